//! The main job: exit codes, what the command sees, who is told what.

use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::activity::at_rest;
use crate::support::{Store, child_of, is_alive, on_every_store, wait_for};

on_every_store![
    dlock_ends_as_its_command_does,
    a_command_that_cannot_be_started_gives_the_lease_back,
    a_taken_key_is_busy_and_its_holder_is_named,
    a_signal_that_came_too_late_for_the_command_does_not_hide_how_it_ended,
    a_reader_that_does_not_read_keeps_no_command_from_being_stopped,
];

fn dlock_ends_as_its_command_does(store: &Store) {
    store.run(&["run", "k", "--", "sh", "-c", "exit 7"]).is(7, "", "");
    store.run(&["run", "k", "--", "sh", "-c", "echo out; echo err >&2"]).is(0, "out\n", "err\n");
    store.run(&["run", "k", "--", "sh", "-c", "kill -TERM $$"]).died_of(Signal::SIGTERM);
    store.run(&["run", "k", "--", "sh", "-c", "kill -KILL $$"]).died_of(Signal::SIGKILL);
}

fn a_command_that_cannot_be_started_gives_the_lease_back(store: &Store) {
    store.run(&["run", "k", "--", "/nonexistent"]).says(127, &["cannot find", "'/nonexistent'"]);
    store.run(&["run", "-n", "k", "--", "/etc/passwd"]).says(126, &["cannot execute", "'/etc/passwd'"]);
    store.run(&["run", "-n", "k", "--", "true"]).is(0, "", "");
}

fn a_taken_key_is_busy_and_its_holder_is_named(store: &Store) {
    let holder = store.hold("k");
    let pid = format!("pid {}", holder.pid());
    store.run(&["run", "-n", "k", "--", "true"]).says(75, &["'k' is held by", &pid]);
    store.run(&["run", "-w", "0.1", "k", "--", "true"]).says(75, &["gave up after 100ms"]);
    store.run(&["run", "-n", "-E", "9", "k", "--", "true"]).says(9, &[&pid]);
    store.run(&["run", "-n", "-E", "0", "-q", "k", "--", "true"]).is(0, "", "");
    holder.finish().is(0, "", "");
    store.run(&["run", "-n", "k", "--", "true"]).is(0, "", "");
}

fn a_signal_that_came_too_late_for_the_command_does_not_hide_how_it_ended(store: &Store) {
    let run = store.holding("k", &[], "echo ready; cat");
    let guardian = child_of(run.pid().as_raw());
    let command = child_of(guardian);
    // The guardian finds both at once: the end of the command, and a signal to pass to it.
    kill(Pid::from_raw(guardian), Signal::SIGSTOP).expect("it is there");
    kill(Pid::from_raw(command), Signal::SIGUSR2).expect("it is there");
    wait_for("the end of the command", || !is_alive(command));
    run.signal(Signal::SIGUSR1);
    at_rest(&[run.pid().as_raw()]);
    kill(Pid::from_raw(guardian), Signal::SIGCONT).expect("it is there");
    let done = run.finish();
    done.died_of(Signal::SIGUSR2);
    assert_eq!(done.stderr, "");
}

fn a_reader_that_does_not_read_keeps_no_command_from_being_stopped(store: &Store) {
    let mut dlock =
        store.dlock(&["run", "--max-run", "0.3", "-k", "0.2", "k", "--", "sh", "-c", "trap '' TERM; yes >&2"]);
    let mut child = dlock.stderr(Stdio::piped()).spawn().expect("it starts");
    assert_eq!(child.wait().expect("it ends").code(), Some(124));
    store.run(&["run", "-n", "k", "--", "true"]).is(0, "", "");
}
