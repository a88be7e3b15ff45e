//! A server that is killed and started again, with what it knew or without, or that forgets all it knew.

use std::process::Stdio;
use std::time::{Duration, SystemTime};

use super::{BOUNDED, lease_end};
use crate::support::journal::Journal;
use crate::support::redis::{on_both, on_both_with};
use crate::support::{Running, Store, finish, wait_for};

/// What makes a server remember.
const DURABLE: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "always"];

/// Kills the server and starts it again.
fn restart(store: &mut Store) {
    store.server_mut().kill();
    store.server_mut().start_again();
}

/// The fence with which a key is granted now.
#[track_caller]
fn next_fence(store: &Store) -> u64 {
    let args = ["run", "-n", "k", "--", "sh", "-c", "echo $DLOCK_FENCE"];
    let done = finish(store.dlock(&args).stdin(Stdio::null()));
    done.stdout.trim_end().parse().unwrap_or_else(|_| panic!("{done:#?}"))
}

/// A dlock that holds `k`, and its fence.
fn hold(store: &Store, options: &[&str]) -> (Running, u64) {
    let mut holder = store.holding(
        "k",
        &[options, &["--max-run", "40"]].concat(),
        "echo ready; echo $DLOCK_FENCE; cat >/dev/null; exit 7",
    );
    let fence = holder.read_line().and_then(|line| line.parse().ok()).expect("a fence");
    (holder, fence)
}

#[test]
fn a_run_outlives_a_restart_of_a_server_that_remembers() {
    on_both_with(&DURABLE, |store| {
        let (holder, fence) = hold(store, &["--ttl", "6"]);
        let before = lease_end(store);
        store.server_mut().kill();
        let left = || before.duration_since(SystemTime::now()).unwrap_or_default();
        // A third of what the command does not need to end, and some.
        wait_for("a beat that is missed", || left() < Duration::from_millis(4500));
        store.server_mut().start_again();
        wait_for("a beat", || lease_end(store) > before);
        holder.finish().is(7, "", "");
        assert!(next_fence(store) > fence);
    });
}

#[test]
fn a_server_that_comes_back_without_the_lease_ends_the_run_and_its_fences_still_rise() {
    on_both_with(&[], |store| {
        let (mut holder, fence) = hold(store, &["--ttl", "3"]);
        restart(store);
        assert_eq!(holder.read_line(), None, "the command is stopped without being asked");
        holder.finish().says(76, &["lost 'k'", "does not know this lease any more; stopping the command"]);
        assert!(next_fence(store) > fence);
    });
}

#[test]
fn a_server_that_comes_back_with_older_data_ends_the_run_and_its_fences_still_rise() {
    on_both_with(&[], |store| {
        let earlier = next_fence(store);
        store.server().ask(&["SAVE"]);
        let (mut holder, fence) = hold(store, &["--ttl", "3"]);
        restart(store);
        let record = store.server().record("k");
        assert!(record["fence"].parse::<u64>().is_ok_and(|old| (earlier..fence).contains(&old)), "{record:?}");
        assert_eq!(holder.read_line(), None, "the command is stopped without being asked");
        holder.finish().says(76, &["lost 'k'", "does not know this lease any more; stopping the command"]);
        assert!(next_fence(store) > fence);
    });
}

#[test]
fn a_run_that_ends_when_its_lease_was_forgotten_says_so() {
    on_both_with(&[], |store| {
        let (holder, fence) = hold(store, &[]);
        restart(store);
        // It has not had a beat since. Nobody knows what the key has seen meanwhile.
        holder.finish().says(76, &["lost 'k' while the command ran"]);
        assert!(next_fence(store) > fence);
    });
}

#[test]
fn fences_rise_also_after_a_flushall() {
    on_both(|store| {
        let before = next_fence(store);
        store.server().ask(&["FLUSHALL"]);
        assert!(store.server().record("k").is_empty());
        assert!(next_fence(store) > before);
    });
}

#[test]
fn a_run_whose_lease_was_flushed_is_ended() {
    on_both(|store| {
        let (mut holder, _) = hold(store, &["--ttl", "2"]);
        store.server().ask(&["FLUSHALL"]);
        assert_eq!(holder.read_line(), None, "the command is stopped without being asked");
        holder.finish().says(76, &["lost 'k'", "does not know this lease any more; stopping the command"]);
    });
}

#[test]
fn those_who_wait_keep_their_order_over_a_restart_of_a_server_that_remembers() {
    on_both_with(&DURABLE, |store| {
        let journal = Journal::new(store);
        let (holder, _) = hold(store, &["--ttl", "9"]);
        let names = ["first", "second", "third"];
        let waiters = names.map(|name| store.waiting("k", &BOUNDED, &journal.visit(name, ":")));
        restart(store);
        holder.finish().is(7, "", "");
        for waiter in waiters {
            waiter.finish().is(0, "", "");
        }
        assert_eq!(journal.entered(), names);
        assert_eq!(journal.most_at_once(), 1, "{:?}", journal.lines());
    });
}

#[test]
fn those_who_wait_all_get_the_key_after_a_restart_of_a_server_that_forgot_them() {
    on_both_with(&[], |store| {
        let journal = Journal::new(store);
        let (holder, _) = hold(store, &["--ttl", "3"]);
        let names = ["first", "second", "third"];
        let waiters = names.map(|name| store.waiting("k", &BOUNDED, &journal.visit(name, "sleep 0.2")));
        restart(store);
        for waiter in waiters {
            waiter.finish().is(0, "", "");
        }
        holder.finish().says(76, &["lost 'k'"]);
        let mut entered = journal.entered();
        entered.sort();
        assert_eq!(entered, names);
        assert_eq!(journal.most_at_once(), 1, "{:?}", journal.lines());
    });
}
