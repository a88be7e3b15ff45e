//! Time: a lease that is too short for etcd, those who die with theirs, and replies that take long.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use dlock::model::Answer;
use dlock::store::Store as _;
use nix::sys::signal::Signal::SIGKILL;

use super::{BOUNDED, ledger};
use crate::support::Store;
use crate::support::etcd::on_both;
use crate::support::etcd::proxy::Proxy;
use crate::support::race::{WITHIN, ask, key};

#[test]
fn a_lease_that_is_too_short_for_etcd_is_made_longer() {
    on_both(|program| {
        let store = Store::on_etcd(program);
        let holder = store.holding("k", &["--ttl", "500ms"], "echo ready; cat >/dev/null; exit 7");
        let life = store.etcd().life("k").expect("it is held");
        let ask = serde_json::json!({ "ID": life.lease.to_string() });
        let told = crate::support::etcd::client::ask(store.etcd().host(), "lease/timetolive", &ask);
        assert_eq!(told["grantedTTL"], "2", "{told}");
        store.etcd().await_beat("k");
        store.etcd().await_beat("k");
        holder.finish().is(7, "", "");
        let done = store.run(&["-v", "run", "--ttl", "500ms", "k", "--", "true"]);
        assert!(done.status.success() && done.stderr.contains("a lease of 500ms lives for 2s: etcd at"), "{done:#?}");
        let done = store.run(&["-v", "run", "--min-hold", "200ms", "k", "--", "true"]);
        assert!(done.stderr.contains("a '--min-hold' of 200ms lives for 2s: etcd at"), "{done:#?}");
    });
}

#[test]
fn a_killed_holder_frees_its_key_a_second_after_its_lease_at_the_latest() {
    on_both(|program| {
        const TTL: Duration = Duration::from_secs(2);
        let kill = || {
            let store = Store::on_etcd(program);
            let tree = store.holding_tree(&["--ttl", "2"]);
            let mut waiter = store.tree(&BOUNDED);
            store.await_waiting("k", 1);
            let killed = Instant::now();
            tree.dlock.signal(SIGKILL);
            waiter.await_start();
            let took = killed.elapsed();
            tree.is_gone();
            waiter.await_all();
            waiter.dlock.signal(SIGKILL);
            took
        };
        let took = [kill(), kill(), kill()];
        // Again if this machine had others to run first.
        let late = Duration::from_millis(1300);
        assert!(took.iter().min() < Some(&(TTL + late)) && took.iter().all(|took| *took < TTL + late * 2), "{took:?}");
    });
}

#[test]
fn a_lease_is_counted_on_from_before_it_was_asked_for_however_long_replies_take() {
    on_both(|program| {
        const DELAY: Duration = Duration::from_millis(300);
        const TTL: Duration = Duration::from_secs(3);
        let store = Store::on_etcd(program);
        let proxy = Proxy::to(store.etcd().host());
        let (near, far) = (ledger(store.url()), ledger(&proxy.url(store.url())));
        proxy.delay(DELAY);
        let (first, second) = (ask(1, TTL), ask(2, TTL));
        let asked = Instant::now();
        let answer = far.acquire(&key(), &first, WITHIN).expect("it answers");
        assert!(matches!(answer, Answer::Granted(_)), "{answer:?}");
        // Whoever hears late that it is there does not take it for over, and nobody does before it ends.
        assert!(matches!(far.acquire(&key(), &second, WITHIN), Ok(Answer::Busy(..))));
        while !matches!(near.acquire(&key(), &second, WITHIN).expect("it answers"), Answer::Granted(_)) {
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(asked.elapsed() >= TTL, "{:?}", asked.elapsed());
    });
}

#[test]
fn an_unlock_reaches_a_holder_within_a_second() {
    on_both(|program| {
        let store = Store::on_etcd(program);
        let holder = store.hold("k");
        store.await_listening(&holder);
        let start = Instant::now();
        store.run(&["unlock", "k", "--yes"]).is(0, "", "");
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
        holder.finish().says(76, &["unlocked by"]);
    });
}

#[test]
fn the_end_that_a_holder_wrote_down_counts_unless_another_clock_did() {
    on_both(|program| {
        let store = Store::on_etcd(program);
        // A lease that has ended, and its end by a clock that is so far ahead of ours.
        let ended = |ahead: Duration| {
            store.run(&["acquire", "k", "--ttl", "5"]);
            let life = store.etcd().life("k").expect("it is held");
            let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later");
            let end = format!("{} 5000000", (since + ahead).as_micros());
            store.etcd().etcdctl(&["put", &format!("{}.end", life.path), &end]);
            store.etcd().etcdctl(&["lease", "revoke", &format!("{:x}", life.lease)]);
        };
        let run = |options: &[&str]| store.run(&[&["run", "k"], options, &["--", "echo", "in"]].concat());
        ended(Duration::from_secs(3600));
        run(&["-n"]).is(0, "in\n", "");
        // Its clock may be a little ahead of ours.
        ended(Duration::from_secs(7));
        run(&["-n"]).says(75, &["'k' is held by"]);
        store.run(&["unlock", "k", "--force"]);
        ended(Duration::from_secs(4));
        let start = Instant::now();
        run(&["-n"]).says(75, &["'k' is held by"]);
        run(&["-w", "30"]).is(0, "in\n", "");
        let waited = start.elapsed();
        assert!(waited > Duration::from_secs(3) && waited < Duration::from_secs(10), "{waited:?}");
    });
}
