//! Forced unlock: it reaches the holder, nobody overlaps, and what was shown is what is freed.

use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{
    Store, await_number, child_of, is_alive, on_every_store, on_every_store_with_order, through_a_pooler,
};

on_every_store![
    unlock_reaches_the_holder_within_a_second_and_frees_the_key,
    a_holder_that_has_been_asleep_for_long_hears_of_it_too,
    a_command_that_ignores_term_is_killed_with_all_that_it_started_before_the_next_one_starts,
    force_frees_the_key_at_once_and_the_former_holder_stops_as_lost,
    only_the_lease_that_was_named_is_freed,
    a_holder_that_does_not_stop_in_time_is_told_of_and_keeps_the_key,
    a_frozen_holder_keeps_the_key_until_it_is_forced,
    unlock_of_a_free_key_says_so_and_makes_nothing,
    nobody_is_asked_where_there_is_no_terminal,
    a_cooling_key_is_freed_at_once,
    a_revocation_stops_even_a_command_that_may_go_on_without_its_lease,
    a_lost_lease_that_may_be_passed_over_leaves_the_command_alone_and_still_exits_76,
];

on_every_store_with_order![of_several_holders_only_the_named_one_is_stopped];

through_a_pooler![
    unlock_reaches_the_holder_within_a_second_and_frees_the_key,
    a_holder_that_has_been_asleep_for_long_hears_of_it_too,
    force_frees_the_key_at_once_and_the_former_holder_stops_as_lost,
    of_several_holders_only_the_named_one_is_stopped,
];

/// A command that ignores TERM, and a child of it that does, too, in a session of its own.
const STUBBORN: &str = "trap '' TERM; setsid sleep 1000 & echo $! >pid; echo ready; while :; do sleep 0.05; done";

/// How soon a holder must hear of it.
const SOON: Duration = Duration::from_secs(1);

fn unlock_reaches_the_holder_within_a_second_and_frees_the_key(store: &Store) {
    let holder = store.holding("k", &[], "echo ready; exec sleep 1000");
    let start = Instant::now();
    let unlock = store.dlock(&["unlock", "k", "--yes"]).stderr(Stdio::piped()).spawn().expect("it starts");
    let who = format!(" pid {} (", unlock.id());
    assert!(unlock.wait_with_output().expect("it ends").status.success());
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
    store.run(&["run", "-n", "k", "--", "true"]).is(0, "", "");
    holder.finish().says(76, &["'k' was unlocked by", &who, "; stopping the command"]);
}

fn a_holder_that_has_been_asleep_for_long_hears_of_it_too(store: &Store) {
    let holder = store.hold("k");
    store.await_listening(&holder);
    let start = Instant::now();
    store.run(&["unlock", "k", "--yes"]).is(0, "", "");
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
    holder.finish().says(76, &["unlocked by"]);
}

fn a_command_that_ignores_term_is_killed_with_all_that_it_started_before_the_next_one_starts(store: &Store) {
    let mut command = store.dlock(&["run", "-k", "0.3s", "k", "--", "sh", "-c", STUBBORN]);
    let mut holder = crate::support::Running::start(command.current_dir(store.dir.path()));
    holder.await_line("ready");
    let sleeper = await_number(&store.path("pid"));
    let check = format!("kill -0 {sleeper} 2>/dev/null && echo overlap; :");
    let next = crate::support::Running::start(&mut store.dlock(&["run", "k", "--", "sh", "-c", &check]));
    store.await_waiting("k", 1);
    store.run(&["unlock", "k", "--yes"]).is(0, "", "");
    next.finish().is(0, "", "");
    holder.finish().says(76, &["unlocked by"]);
}

fn force_frees_the_key_at_once_and_the_former_holder_stops_as_lost(store: &Store) {
    let mut command = store.dlock(&["run", "-k", "5s", "k", "--", "sh", "-c", STUBBORN]);
    let mut holder = crate::support::Running::start(command.current_dir(store.dir.path()));
    holder.await_line("ready");
    let sleeper = await_number(&store.path("pid"));
    store.run(&["unlock", "k", "--yes", "--force"]).is(0, "", "");
    store.run(&["run", "-n", "k", "--", "true"]).is(0, "", "");
    assert!(is_alive(sleeper), "it was free before the former holder had stopped");
    // The second one skips the wait.
    holder.signal(Signal::SIGTERM);
    holder.signal(Signal::SIGTERM);
    let mut rest = holder;
    rest.close_stdin();
    crate::support::wait_for("the former holder to stop", || {
        if is_alive(sleeper) {
            let _ = kill(rest.pid(), Signal::SIGTERM);
        }
        !is_alive(sleeper)
    });
    rest.finish().says(76, &["lost 'k'"]);
}

fn only_the_lease_that_was_named_is_freed(store: &Store) {
    let holder = store.hold("k");
    let lease = store.status("k")["holders"][0]["lease"].as_str().expect("a lease").to_owned();
    assert_eq!(lease.len(), 8);
    let other = if lease == "00000000" { "11111111" } else { "00000000" };
    store.run(&["unlock", "k", "--yes", "--lease", other]).says(75, &["'k' is held by", "another lease"]);
    assert_eq!(store.status("k")["held"], true);
    store.run(&["unlock", "k", "--yes", "--lease", &lease]).is(0, "", "");
    holder.finish().says(76, &["unlocked by"]);
}

fn of_several_holders_only_the_named_one_is_stopped(store: &Store) {
    let one = store.holding("k", &["-s"], "echo ready; cat >/dev/null");
    let two = store.holding("k", &["-s"], "echo ready; cat >/dev/null");
    let lease = store.status("k")["holders"][1]["lease"].as_str().expect("a lease").to_owned();
    store.run(&["unlock", "k", "--yes", "--lease", &lease]).is(0, "", "");
    two.finish().says(76, &["unlocked by"]);
    one.finish().is(0, "", "");
}

fn a_holder_that_does_not_stop_in_time_is_told_of_and_keeps_the_key(store: &Store) {
    let mut command = store.dlock(&["run", "-k", "5s", "k", "--", "sh", "-c", STUBBORN]);
    let mut holder = crate::support::Running::start(command.current_dir(store.dir.path()));
    holder.await_line("ready");
    let done = store.run(&["unlock", "k", "--yes", "-w", "0.2s"]);
    done.says(75, &["'k' was told to stop", "after 200ms", "'--force'"]);
    store.run(&["run", "-n", "k", "--", "true"]).says(75, &["'k' is held by"]);
    assert_eq!(store.status("k")["holders"][0]["revoked"], true);
}

fn a_frozen_holder_keeps_the_key_until_it_is_forced(store: &Store) {
    let holder = store.hold("k");
    holder.freeze();
    store.run(&["unlock", "k", "--yes", "-w", "0.2s"]).says(75, &["'k' was told to stop"]);
    store.run(&["unlock", "k", "--yes", "--force"]).is(0, "", "");
    store.run(&["run", "-n", "k", "--", "true"]).is(0, "", "");
    holder.signal(Signal::SIGCONT);
    holder.finish().status.code().map_or_else(|| panic!("it died"), |code| assert_eq!(code, 76));
}

fn unlock_of_a_free_key_says_so_and_makes_nothing(store: &Store) {
    store.run(&["unlock", "k", "--yes"]).says(1, &["'k' is free"]);
    assert!(store.is_untouched());
}

fn nobody_is_asked_where_there_is_no_terminal(store: &Store) {
    let _holder = store.hold("k");
    store.run(&["unlock", "k"]).says(64, &["'--yes'"]);
    store.run(&["unlock", "k", "--yes", "--lease", "xyz"]).says(64, &["'xyz' is no lease id"]);
    store.run(&["unlock", "k", "--yes", "--lease", "1234567"]).says(64, &["first 8 hex digits"]);
    assert_eq!(store.status("k")["held"], true);
}

fn a_cooling_key_is_freed_at_once(store: &Store) {
    store.run(&["run", "--min-hold", "1h", "k", "--", "true"]).is(0, "", "");
    store.run(&["run", "-n", "k", "--", "true"]).says(75, &["'k' stays taken for"]);
    store.run(&["unlock", "k", "--yes"]).is(0, "", "");
    store.run(&["run", "-n", "k", "--", "true"]).is(0, "", "");
}

fn a_revocation_stops_even_a_command_that_may_go_on_without_its_lease(store: &Store) {
    let holder = store.holding("k", &["--on-lost", "continue"], "echo ready; exec sleep 1000");
    store.run(&["unlock", "k", "--yes"]).is(0, "", "");
    holder.finish().says(76, &["; stopping"]);
}

fn a_lost_lease_that_may_be_passed_over_leaves_the_command_alone_and_still_exits_76(store: &Store) {
    let holder = store.holding("k", &["--on-lost", "continue"], "echo ready; cat >/dev/null");
    let guardian = child_of(holder.pid().as_raw());
    store.run(&["unlock", "k", "--yes", "--force"]).is(0, "", "");
    store.run(&["run", "-n", "k", "--", "true"]).is(0, "", "");
    assert!(is_alive(guardian) && kill(Pid::from_raw(child_of(guardian)), None).is_ok(), "the command goes on");
    let done = holder.finish();
    assert_eq!(done.status.code(), Some(76), "{done:#?}");
    assert!(done.stderr.contains("lost 'k'"), "{done:#?}");
}
