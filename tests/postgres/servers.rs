//! A server that is killed and started again, frozen, ends sessions, or has a standby that takes its place.

use std::os::unix::process::ExitStatusExt as _;
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::Signal::{SIGCONT, SIGKILL, SIGSTOP};

use super::{BOUNDED, fence_of, lease_end};
use crate::support::journal::Journal;
use crate::support::postgres::{Server, has_postgres};
use crate::support::{Store, wait_for};

#[test]
fn a_restart_costs_nobody_the_key_or_his_place_and_fences_rise() {
    if !has_postgres() {
        return;
    }
    let mut store = Store::on_own_postgres(Server::start(&[]));
    let journal = Journal::new(&store);
    let mut holder = store.holding("k", &["--ttl", "9"], "echo ready; echo $DLOCK_FENCE; cat >/dev/null; exit 7");
    let fence: u64 = holder.read_line().and_then(|line| line.parse().ok()).expect("the fence");
    let waiters = ["a", "b", "c"].map(|name| store.waiting("k", &BOUNDED, &journal.visit(name, ":")));
    let before = lease_end(&store);
    store.postgres_mut().kill();
    let left = || before.duration_since(SystemTime::now()).unwrap_or_default();
    wait_for("a beat that is missed", || left() < Duration::from_millis(6500));
    // Whoever comes now finds it starting up, or not at all.
    store.postgres_mut().launch_again();
    let newcomer = store.waiting("k", &BOUNDED, &journal.visit("d", ":"));
    wait_for("a beat", || lease_end(&store) > before);
    holder.finish().is(7, "", "");
    for waiter in waiters.into_iter().chain([newcomer]) {
        waiter.finish().is(0, "", "");
    }
    assert_eq!(journal.entered(), ["a", "b", "c", "d"]);
    assert_eq!(journal.most_at_once(), 1, "{:?}", journal.lines());
    let fences = journal.fences();
    assert!(fence < fences[0] && fences.is_sorted_by(|one, next| one < next), "{fence} {fences:?}");
}

#[test]
fn a_server_that_is_frozen_for_longer_than_a_lease_ends_the_command_before_it() {
    if !has_postgres() {
        return;
    }
    let store = Store::on_own_postgres(Server::start(&[]));
    let tree = store.holding_tree(&["--ttl", "3", "-k", "0.5"]);
    let waiter = store.waiting("k", &["-w", "60", "--store-timeout", "30"], "echo in");
    let start = Instant::now();
    store.postgres().freeze();
    let end = SystemTime::now() + Duration::from_secs(3);
    assert!(store.await_end_of_tree() < end, "the tree ends before the lease");
    tree.dlock.finish().says(76, &["lost 'k'", "did not answer in time"]);
    // Nobody hangs at it.
    store.run(&["run", "--store-timeout", "1", "k", "--", "true"]).says(69, &["did not answer in time"]);
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
    store.postgres().thaw();
    waiter.finish().is(0, "in\n", "");
}

#[test]
fn sessions_that_are_ended_are_replaced() {
    if !has_postgres() {
        return;
    }
    let store = Store::on_own_postgres(Server::start(&[]));
    let holder = store.holding("k", &["--ttl", "3"], "echo ready; cat >/dev/null; exit 7");
    let waiter = store.waiting("k", &BOUNDED, "echo in");
    store.await_listening(&holder);
    for _ in 0..3 {
        let before = lease_end(&store);
        store.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'dlock'");
        wait_for("a beat", || lease_end(&store) > before);
        let back = "SELECT count(*) > 2 FROM pg_stat_activity WHERE application_name = 'dlock'";
        wait_for("all to come back", || store.sql(back) == "t");
    }
    holder.finish().is(7, "", "");
    waiter.finish().is(0, "in\n", "");
}

#[test]
fn dead_and_frozen_waiters_are_passed_over_and_a_dead_holder_costs_its_lease() {
    if !has_postgres() {
        return;
    }
    let store = Store::on_postgres();
    let tree = store.holding_tree(&["--ttl", "2"]);
    let [dead, frozen] = [(); 2].map(|()| store.waiting("k", &BOUNDED, "echo never"));
    let next = store.waiting("k", &BOUNDED, "date +%s%6N");
    dead.signal(SIGKILL);
    frozen.signal(SIGSTOP);
    tree.dlock.signal(SIGKILL);
    let end = lease_end(&store);
    let done = next.finish();
    let micros: u64 = done.stdout.trim().parse().unwrap_or_else(|_| panic!("{done:#?}"));
    let started = SystemTime::UNIX_EPOCH + Duration::from_micros(micros);
    // One offer goes by for each, and nobody sees that both are out of it before he shows his own life.
    let late = started.duration_since(end).expect("the key is not free before the lease ends");
    assert!(late < Duration::from_secs(22), "{late:?}");
    frozen.signal(SIGCONT);
    assert_eq!(frozen.finish().stdout, "never\n");
    assert_eq!(dead.finish().status.signal(), Some(SIGKILL as i32));
    let _ = tree.dlock.finish();
}

#[test]
fn a_standby_takes_no_locks_until_it_takes_the_place_of_its_primary() {
    if !has_postgres() {
        return;
    }
    let mut store = Store::on_own_postgres(Server::start(&["wal_level=replica"]));
    store.run(&["run", "k", "--", "true"]).is(0, "", "");
    let standby = Server::standby_of(store.postgres());
    let at = |url: &str| Store::new().at_url(url);
    let alone = at(&standby.url());
    alone.run(&["run", "--store-timeout", "100ms", "k", "--", "true"]).says(69, &["standby"]);
    wait_for("what was done before", || standby.try_ask("SELECT key FROM dlock").is_ok_and(|keys| keys == "k"));
    assert_eq!(alone.run(&["status", "k"]).status.code(), Some(1), "one may look");
    let doctor = alone.run(&["doctor"]);
    assert!(doctor.stdout.contains("it is a standby"), "{doctor:#?}");
    assert!(store.run(&["doctor"]).stdout.contains("it has a standby, and waits for none"));
    let url = store.url().replace(&store.postgres().host, &format!("{}:6390,{}", standby.host, store.postgres().host));
    let both = at(&url);
    let holder = both.holding("k", &["--ttl", "9"], "echo ready; cat >/dev/null; exit 7");
    let waiter = both.waiting("k", &BOUNDED, "echo $DLOCK_FENCE");
    let (before, end) = (fence_of(&both), lease_end(&both));
    let seen = || alone.status("k")["queue"].as_array().is_some_and(|queue| queue.len() == 1);
    wait_for("the standby to know of both", seen);
    store.postgres_mut().kill();
    standby.ask("SELECT pg_promote()");
    wait_for("a beat", || lease_end(&alone) > end);
    holder.finish().is(7, "", "");
    let fence: u64 = waiter.finish().stdout.trim().parse().expect("a fence");
    assert!(fence > before);
}

#[test]
fn a_standby_that_had_not_got_a_lock_ends_the_run_when_it_takes_the_place_of_its_primary() {
    if !has_postgres() {
        return;
    }
    let mut store = Store::on_own_postgres(Server::start(&["wal_level=replica"]));
    store.run(&["run", "k", "--", "true"]).is(0, "", "");
    let standby = Server::standby_of(store.postgres());
    wait_for("what was done before", || standby.try_ask("SELECT key FROM dlock").is_ok_and(|keys| keys == "k"));
    // From now on it hears of nothing.
    standby.ask("ALTER SYSTEM SET primary_conninfo = ''");
    standby.ask("SELECT pg_reload_conf()");
    wait_for("nobody who follows", || store.sql("SELECT count(*) FROM pg_stat_replication") == "0");
    let url = store.url().replace(&store.postgres().host, &format!("{}:6390,{}", store.postgres().host, standby.host));
    let both = Store::new().at_url(&url);
    let mut holder =
        both.holding("k", &["--ttl", "9", "--max-run", "40"], "echo ready; echo $DLOCK_FENCE; cat >/dev/null");
    let fence: u64 = holder.read_line().and_then(|line| line.parse().ok()).expect("a fence");
    store.postgres_mut().kill();
    standby.ask("SELECT pg_promote()");
    assert_eq!(holder.read_line(), None, "the command is stopped without being asked");
    holder.finish().says(76, &["lost 'k'", "does not know this lease any more"]);
    both.run(&["run", "-n", "k", "--", "true"]).is(0, "", "");
    assert!(fence_of(&both) > fence);
}
