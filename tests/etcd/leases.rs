//! Leases of etcd's that end behind the back of those who count on them, and holders that do not notice in time. What
//! `etcdctl lock` does of that stands beside it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::time::{Duration, SystemTime};

use nix::sys::signal::Signal::{SIGCONT, SIGKILL};

use super::BOUNDED;
use crate::support::etcd::{ETCD, Server, on_both};
use crate::support::journal::Journal;
use crate::support::{Running, Store, command, has, wait_for};

/// What is left of it all when the command ends.
const SHORT: [&str; 4] = ["--ttl", "9", "-k", "0.5"];

#[test]
fn a_lease_that_is_revoked_by_hand_ends_the_command_before_the_next_one_starts() {
    on_both(|program| {
        let store = Store::on_etcd(program);
        let tree = store.holding_tree(&SHORT);
        let mut next = store.tree(&BOUNDED);
        store.await_waiting("k", 1);
        store.await_listening(&tree.dlock);
        let life = store.etcd().life("k").expect("it is held");
        let revoked = SystemTime::now();
        store.etcd().etcdctl(&["lease", "revoke", &format!("{:x}", life.lease)]);
        // Whoever starts while anything lives of the other one says so in the place of its own line.
        next.await_start();
        tree.is_gone();
        next.await_all();
        assert!(revoked.elapsed().is_ok_and(|took| took < Duration::from_secs(11)));
        tree.dlock.finish().says(76, &["lost 'k'"]);
        next.dlock.signal(SIGKILL);
    });
}

#[test]
fn a_lease_that_is_revoked_just_after_it_was_renewed_or_the_key_changed_hands_is_waited_for_as_well() {
    on_both(|program| {
        let store = Store::on_etcd(program);
        let revoke = || {
            let life = store.etcd().life("k").expect("it is held");
            store.etcd().etcdctl(&["lease", "revoke", &format!("{:x}", life.lease)]);
        };
        // Its command lives for three seconds more than one that does as it is told.
        let stubborn = ["--ttl", "9", "-k", "3", "-w", "60"];
        let script = |name: &str| format!("trap '' TERM; {}; echo {name}; sleep 60", store.alone());
        let mut first = store.holding("k", &stubborn, &format!("echo ready; {}", script("first")));
        let mut second = store.waiting("k", &stubborn, &script("second"));
        let third = store.waiting("k", &stubborn, &format!("{}; echo third", store.alone()));
        store.await_listening(&first);
        // Near the end of what was known of it before.
        for _ in 0..4 {
            store.etcd().await_beat("k");
        }
        revoke();
        assert_eq!(second.read_line().as_deref(), Some("second"));
        revoke();
        third.finish().is(0, "third\n", "");
        first.await_line("first");
        first.finish().says(76, &["lost 'k'"]);
        second.finish().says(76, &["lost 'k'"]);
    });
}

#[test]
fn whoever_comes_when_a_lease_was_revoked_waits_for_it_although_he_has_not_seen_it() {
    on_both(|program| {
        let store = Store::on_etcd(program);
        let script = format!("trap '' TERM; {}; echo ready; sleep 60", store.alone());
        for is_renewed in [false, true] {
            let first = store.holding("k", &["--ttl", "9", "-k", "3"], &script);
            if is_renewed {
                store.etcd().await_beat("k");
            }
            let life = store.etcd().life("k").expect("it is held");
            store.etcd().etcdctl(&["lease", "revoke", &format!("{:x}", life.lease)]);
            store.run(&["run", "-n", "k", "--", "true"]).says(75, &["'k' is held by"]);
            assert_eq!(store.status("k")["holders"][0]["revoked"], true);
            store
                .run(&["run", "-w", "60", "k", "--", "sh", "-c", &format!("{}; echo next", store.alone())])
                .is(0, "next\n", "");
            first.finish().says(76, &["lost 'k'"]);
        }
    });
}

#[test]
fn a_script_whose_lease_was_revoked_hears_of_it_before_others_get_the_key() {
    on_both(|program| {
        let store = Store::on_etcd(program);
        let done = store.run(&["acquire", "k", "--ttl", "9"]);
        let id = done.stdout.trim();
        store.run(&["check", "k", id]).is(0, "8\n", "");
        let life = store.etcd().life("k").expect("it is held");
        store.etcd().etcdctl(&["lease", "revoke", &format!("{:x}", life.lease)]);
        assert_eq!(store.run(&["check", "k", id]).status.code(), Some(76));
        assert_eq!(store.run(&["renew", "k", id]).status.code(), Some(76));
        store.run(&["run", "-n", "k", "--", "true"]).says(75, &["'k' is held by"]);
        store.run(&["release", "k", id]).is(0, "", "");
        store.run(&["run", "-n", "k", "--", "true"]).is(0, "", "");
    });
}

#[test]
fn all_leases_that_are_revoked_at_once_end_each_command_before_the_next_one_starts() {
    on_both(|program| {
        const KEYS: usize = 4;
        let store = Store::on_own_etcd(Server::start(program, &[]));
        let apart: Vec<Store> =
            (0..KEYS).map(|number| Store::new().at_url(&format!("{}?prefix=p{number}", store.url()))).collect();
        let trees: Vec<_> = apart.iter().map(|store| store.holding_tree(&SHORT)).collect();
        let waiters: Vec<_> =
            apart.iter().map(|store| store.waiting("k", &BOUNDED, &format!("{}; echo in", store.alone()))).collect();
        let list = store.etcd().etcdctl(&["lease", "list"]).stdout;
        let leases: Vec<&str> = list.lines().filter(|line| line.len() == 16).collect();
        assert!(leases.len() >= 2 * KEYS, "{list}");
        for lease in leases {
            // One of those may have been in use for a moment only.
            store.etcd().etcdctl(&["lease", "revoke", lease]);
        }
        for (tree, waiter) in trees.into_iter().zip(waiters) {
            waiter.finish().is(0, "in\n", "");
            tree.is_gone();
            tree.dlock.finish().says(76, &["lost 'k'"]);
        }
    });
}

#[test]
fn a_holder_that_wakes_up_after_its_lease_finds_its_tree_gone_and_leaves_the_next_one_alone() {
    on_both(|program| {
        let store = Store::on_etcd(program);
        let tree = store.holding_tree(&["--ttl", "2"]);
        tree.dlock.freeze();
        let mut next = store.tree(&["-w", "40", "--ttl", "2"]);
        next.await_start();
        tree.is_gone();
        next.await_all();
        let waiting = store.waiting("k", &BOUNDED, "echo third");
        tree.dlock.signal(SIGCONT);
        tree.dlock.finish().says(76, &["lost 'k'"]);
        store.etcd().await_beat("k");
        assert_eq!(store.status("k")["holders"][0]["pid"], next.dlock.pid().as_raw());
        assert_eq!(store.queue("k"), [waiting.pid().as_raw()]);
        next.dlock.signal(SIGKILL);
        waiting.finish().is(0, "third\n", "");
    });
}

#[test]
fn a_waiter_that_was_frozen_when_its_turn_came_waits_again() {
    on_both(|program| {
        let store = Store::on_etcd(program);
        let journal = Journal::new(&store);
        let holder = store.hold("k");
        let mut frozen = store.waiting("k", &["-w", "40", "--ttl", "2"], &journal.stay("frozen"));
        frozen.freeze();
        let mut other =
            Running::start(&mut store.dlock(&["run", "-w", "40", "k", "--", "sh", "-c", &journal.stay("other")]));
        store.await_waiting("k", 2);
        holder.finish().is(0, "", "");
        journal.await_entry("other");
        frozen.signal(SIGCONT);
        let pid = frozen.pid().as_raw();
        wait_for("the frozen one to wait again", || store.queue("k") == [pid]);
        other.close_stdin();
        other.finish().is(0, "", "");
        journal.await_entry("frozen");
        frozen.close_stdin();
        frozen.finish().is(0, "", "");
        assert_eq!(journal.entered(), ["other", "frozen"]);
        assert_eq!(journal.most_at_once(), 1, "{:?}", journal.lines());
    });
}

/// No promise of dlock's, but what it is measured by: the next command runs beside one whose `etcdctl lock` is frozen.
#[test]
fn etcdctl_lock_lets_two_run_beside_each_other_where_one_is_frozen() {
    if !has(ETCD) {
        return;
    }
    let store = Store::on_etcd(ETCD);
    let script = store.path("script");
    // Their commands have no stdin.
    let body = format!("#!/bin/sh\n{}; echo ready; until [ -e over ]; do sleep 0.01; done\n", store.alone());
    fs::write(&script, body).expect("a file");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("it is ours");
    let lock = || {
        let mut lock = command("etcdctl-3.5");
        let endpoint = format!("http://{}:6390", store.etcd().host());
        lock.args(["--endpoints", &endpoint, "lock", "--ttl", "2", store.etcd().prefix()]).arg(&script);
        Running::start(lock.process_group(0))
    };
    let mut frozen = lock();
    frozen.await_line("ready");
    frozen.freeze();
    let mut next = lock();
    assert_eq!(next.read_line().as_deref(), Some("overlap"));
    next.await_line("ready");
    frozen.signal(SIGCONT);
    fs::write(store.path("over"), "").expect("a file");
    // It says nothing of it to anybody: its command ends as if all were well.
    for lock in [frozen, next] {
        assert!(lock.finish().status.success());
    }
}

#[test]
fn more_are_told_of_an_unlock_than_fit_in_one_transaction() {
    on_both(|program| {
        let store = Store::on_etcd(program);
        for _ in 0..110 {
            assert!(store.run(&["acquire", "-s", "k", "--ttl", "60s"]).status.success());
        }
        // A sign of life of each, and its end.
        assert_eq!(store.etcd().leftovers().len(), 220);
        assert!(store.run(&["unlock", "k", "--yes", "--force"]).status.success());
        assert_eq!(store.etcd().leftovers(), Vec::<String>::new());
    });
}
