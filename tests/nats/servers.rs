//! Servers that are killed, frozen, or started again: alone, and in a cluster while many work under its locks.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use super::{BOUNDED, lease_end};
use crate::support::journal::Journal;
use crate::support::nats::{Cluster, NATS, Server, on_both};
use crate::support::{Store, has, wait_for};

#[test]
fn a_restart_costs_nobody_the_key_or_his_place_and_fences_rise() {
    on_both(|program| {
        let mut store = Store::on_own_nats(Server::start(program, ""));
        let journal = Journal::new(&store);
        let mut holder = store.holding("k", &["--ttl", "9"], "echo ready; echo $DLOCK_FENCE; cat >/dev/null; exit 7");
        let fence: u64 = holder.read_line().and_then(|line| line.parse().ok()).expect("the fence");
        let waiters = ["a", "b", "c"].map(|name| store.waiting("k", &BOUNDED, &journal.visit(name, ":")));
        let before = lease_end(&store);
        store.nats_mut()[0].kill();
        let left = || before.duration_since(SystemTime::now()).unwrap_or_default();
        wait_for("a beat that is missed", || left() < Duration::from_millis(6500));
        store.nats_mut()[0].start_again();
        wait_for("a beat", || lease_end(&store) > before);
        holder.finish().is(7, "", "");
        for waiter in waiters {
            waiter.finish().is(0, "", "");
        }
        assert_eq!(journal.entered(), ["a", "b", "c"]);
        assert_eq!(journal.most_at_once(), 1, "{:?}", journal.lines());
        let fences = fences(&journal);
        assert!(fence < fences[0] && fences.is_sorted_by(|one, next| one < next), "{fence} {fences:?}");
    });
}

#[test]
fn a_server_that_is_frozen_for_longer_than_a_lease_ends_the_command_before_it() {
    if !has(NATS) {
        return;
    }
    let store = Store::on_own_nats(Server::start(NATS, ""));
    let tree = store.holding_tree(&["--ttl", "3", "-k", "0.5"]);
    let waiter = store.waiting("k", &["-w", "60", "--store-timeout", "30"], "echo in");
    let start = Instant::now();
    store.nats().freeze();
    let end = SystemTime::now() + Duration::from_secs(3);
    assert!(store.await_end_of_tree() < end, "the tree ends before the lease");
    tree.dlock.finish().says(76, &["lost 'k'", "did not answer in time"]);
    // Nobody hangs at it.
    store.run(&["run", "--store-timeout", "1", "k", "--", "true"]).says(69, &["did not answer in time"]);
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
    store.nats().thaw();
    waiter.finish().is(0, "in\n", "");
}

/// The fences of those who entered, in that order.
fn fences(journal: &Journal) -> Vec<u64> {
    let entries = journal.lines().into_iter().filter(|line| line[0] == "enter");
    entries.map(|line| line[2].parse().expect("a fence")).collect()
}

/// Counts under a lock from many processes while `trouble` is done, and checks that nobody was beside another one.
#[track_caller]
fn counts_exactly(mut store: Store, trouble: &dyn Fn(&mut Store)) {
    const COUNTERS: usize = 6;
    let journal = Journal::new(&store);
    fs::write(store.path("counter"), "0\n").expect("a file");
    store.run(&["setup"]).is(0, "", "");
    let counter = store.path("counter").display().to_string();
    let body = format!("read n <'{counter}'; echo $((n + 1)) >'{counter}'");
    let over = AtomicBool::new(false);
    let (url, dir) = (store.url().to_owned(), store.dir.path().to_owned());
    let done: usize = thread::scope(|scope| {
        let count = |process: usize| {
            let (over, url, dir, journal, body) = (&over, &url, &dir, &journal, &body);
            move || {
                let its = Store::new();
                let mut done = 0;
                while !over.load(Ordering::Relaxed) {
                    let script = journal.visit(&format!("{process}.{done}"), body);
                    let args = ["run", "k", "--ttl", "6", "--store-timeout", "30", "--", "sh", "-c", &script];
                    let mut run = its.dlock(&args);
                    // That it cannot be given back is no failure: then it ends by itself.
                    let ran = crate::support::finish(run.env("DLOCK_STORE", url).current_dir(dir));
                    assert!(ran.status.success(), "{ran:#?}");
                    done += 1;
                }
                done
            }
        };
        let counters: Vec<_> = (0..COUNTERS).map(|process| scope.spawn(count(process))).collect();
        let entered = || journal.lines().len();
        wait_for("them to work", || entered() > 20);
        trouble(&mut store);
        let before = entered();
        wait_for("them to work again", || entered() > before + 20);
        over.store(true, Ordering::Relaxed);
        counters.into_iter().map(|counter| counter.join().expect("a counter")).sum()
    });
    assert_eq!(fs::read_to_string(&counter).expect("the counter"), format!("{done}\n"));
    assert_eq!(journal.most_at_once(), 1);
    let fences = fences(&journal);
    assert!(fences.is_sorted_by(|one, next| one < next), "{fences:?}");
}

#[test]
fn a_leader_that_is_killed_under_load_costs_nobody_his_lock_and_nothing_is_lost() {
    on_both(|program| {
        let store = Store::on_own_nats_cluster(Cluster::start(program));
        counts_exactly(store, &|store| {
            let leader = store.bucket().leader();
            let leader = store.nats_mut().iter_mut().find(|server| server.name() == leader).expect("one leads");
            leader.kill();
        });
    });
}

#[test]
fn a_leader_that_is_cut_off_and_comes_back_grants_nothing_beside_its_successor() {
    on_both(|program| {
        let store = Store::on_own_nats_cluster(Cluster::start(program));
        counts_exactly(store, &|store| {
            let leader = store.bucket().leader();
            let at = store.nats_mut().iter().position(|server| server.name() == leader).expect("one leads");
            store.nats_mut()[at].freeze();
            let others: Vec<String> =
                store.nats_mut().iter().filter(|server| server.name() != leader).map(Server::name).collect();
            wait_for("a successor", || others.contains(&store.bucket().leader_seen_from(&others)));
            store.nats_mut()[at].thaw();
        });
    });
}
