//! Servers that are killed, frozen, or started again: alone, and in a cluster while many work under its locks.

use std::time::{Duration, Instant, SystemTime};

use super::{BOUNDED, lease_end};
use crate::support::journal::Journal;
use crate::support::load::counts_exactly;
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
        let fences = journal.fences();
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

#[test]
fn a_server_that_comes_back_with_older_data_ends_the_run_and_fences_still_rise() {
    on_both(|program| {
        let mut store = Store::on_own_nats(Server::start(program, ""));
        store.run(&["run", "k", "--", "true"]).is(0, "", "");
        let again = |store: &mut Store, back: bool| {
            let server = &mut store.nats_mut()[0];
            server.kill();
            server.keep_aside(back);
            server.start_again();
        };
        again(&mut store, false);
        let mut holder =
            store.holding("k", &["--ttl", "9", "--max-run", "40"], "echo ready; echo $DLOCK_FENCE; cat >/dev/null");
        let fence: u64 = holder.read_line().and_then(|line| line.parse().ok()).expect("a fence");
        again(&mut store, true);
        assert_eq!(holder.read_line(), None, "the command is stopped without being asked");
        holder.finish().says(76, &["lost 'k'", "does not know this lease any more"]);
        let next = store.run(&["run", "k", "--", "sh", "-c", "echo $DLOCK_FENCE"]);
        assert!(next.stdout.trim().parse::<u64>().is_ok_and(|next| next > fence), "{fence} {next:#?}");
    });
}
