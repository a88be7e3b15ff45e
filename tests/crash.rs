//! The command never outlives its lease, whoever is killed or frozen; and nothing waits for the dead.

use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal::{SIGCONT, SIGINT, SIGKILL, SIGQUIT, SIGSTOP, SIGTERM};
use nix::sys::signal::kill;
use nix::unistd::Pid;

use crate::support::tree::Tree;
use crate::support::{
    Running, Store, await_number, child_of, command, finish, is_alive, on_every_store, on_file_and_redis, skipped,
    state, through_a_pooler, wait_for,
};

on_every_store![
    a_killed_dlock_takes_its_whole_tree_along_before_the_next_command_starts,
    a_killed_guardian_takes_its_whole_tree_along_before_the_next_command_starts,
    a_command_dies_before_the_next_one_starts_when_dlock_and_its_guardian_are_killed_at_once,
    a_frozen_dlock_has_its_key_no_longer_than_its_lease_and_its_tree_is_gone_by_then,
    what_a_command_leaves_behind_at_its_normal_end_is_left_alone,
    a_command_that_ran_for_too_long_is_gone_with_all_of_its_tree_before_the_key_is_free,
    who_asks_again_while_the_command_is_being_stopped_does_not_wait,
];

on_file_and_redis![
    a_dlock_killed_at_any_moment_leaves_the_key_to_the_next,
    a_dlock_killed_at_any_moment_of_a_long_run_leaves_nothing_of_the_command,
    a_command_has_kill_after_to_end_and_no_longer,
    whoever_reads_stderr_hears_that_dlock_was_killed,
    dlock_stops_the_command_itself_when_its_guardian_is_frozen,
];

through_a_pooler![
    a_killed_dlock_takes_its_whole_tree_along_before_the_next_command_starts,
    a_killed_guardian_takes_its_whole_tree_along_before_the_next_command_starts,
];

/// How often a holder is killed, for each way to kill it: where the store notices, and where it costs a ttl.
/// Overlaps are a matter of chance.
const KILLS: (u32, u32) = (100, 4);

/// How often dlock is killed in the course of a short life; enough to hit each of its steps several times.
const MOMENTS: (u32, u32) = (150, 12);

/// Longer than the short life of a dlock takes in a debug build.
const LIFE: Duration = Duration::from_millis(20);

/// A short life's lease, where that goes by time.
const TTL: Duration = Duration::from_secs(1);
const SHORT: [&str; 2] = ["--ttl", "1s"];

/// Nobody waits longer for a key that is free. Short beside the time after which a waiter looks by itself.
const AT_ONCE: Duration = Duration::from_secs(4);

/// The next command starts within this time of a kill, in the median: 50 ms are the promise, the rest is
/// for the tests that run at the same time.
const HAND_OVER: Duration = Duration::from_millis(300);

/// The last words about a dlock that was killed.
const LAST_WORDS: &str = "dlock: 'k': dlock was killed; the command and all that it started were stopped\n";

/// What is done so often, there or here.
fn times(store: &Store, (file, beats): (u32, u32)) -> u32 {
    if store.beats() { beats } else { file }
}

/// Kills holder after holder, each with a tree, while the next one waits, which starts within `hand_over`.
/// `after` looks at what is left.
#[expect(clippy::print_stderr, reason = "the times are figures that people want to see")]
fn kill_holders(store: &Store, how: &str, victim: fn(&Tree) -> Pid, hand_over: Duration, after: fn(Tree)) {
    let mut took = Vec::new();
    let mut holder = store.holding_tree(&SHORT);
    for _ in 0..times(store, KILLS) {
        let mut waiter = store.tree(&SHORT);
        store.await_waiting("k", 1);
        let killed = Instant::now();
        kill(victim(&holder), SIGKILL).expect("the victim lives");
        waiter.await_start();
        took.push(killed.elapsed());
        holder.is_gone();
        waiter.await_all();
        after(holder);
        holder = waiter;
    }
    took.sort_unstable();
    let [median, worst] = [took.len() / 2, took.len() - 1].map(|at| took[at]);
    eprintln!("from the kill of {how} to the start of the next command: median {median:?}, at most {worst:?}");
    assert!(median < hand_over, "{took:?}");
}

fn a_killed_dlock_takes_its_whole_tree_along_before_the_next_command_starts(store: &Store) {
    let end = if store.beats() { TTL.max(store.least_ttl()) + store.grain() } else { Duration::ZERO };
    let hand_over = end + HAND_OVER;
    let dlock = |holder: &Tree| holder.dlock.pid();
    kill_holders(store, "dlock", dlock, hand_over, |holder| holder.dlock.finish().died_of(SIGKILL));
}

fn a_killed_guardian_takes_its_whole_tree_along_before_the_next_command_starts(store: &Store) {
    let guardian = |holder: &Tree| Pid::from_raw(child_of(holder.dlock.pid().as_raw()));
    // dlock lives and gives the key back.
    kill_holders(store, "the guardian", guardian, HAND_OVER, |holder| {
        let done = holder.dlock.finish();
        assert_eq!(done.stderr, "dlock: 'k': the guardian was killed, and the command with it\n");
        done.died_of(SIGKILL);
    });
}

fn a_command_dies_before_the_next_one_starts_when_dlock_and_its_guardian_are_killed_at_once(store: &Store) {
    let started = store.path("started");
    // Of the two processes of the command only the second one has what shows that it lives.
    let begin = format!("sleep 1000 </dev/null >/dev/null 2>&1 & echo $! >'{}'; {}", started.display(), store.alone());
    let holder = store.holding("k", &SHORT, &format!("{begin}; echo ready; exec sleep 1000"));
    let started = await_number(&started);
    let guardian = child_of(holder.pid().as_raw());
    // Neither sees the other one die.
    holder.freeze();
    kill(Pid::from_raw(guardian), SIGSTOP).expect("it lives");
    wait_for("the guardian to stop", || state(guardian) == Some('T'));
    let killed = Instant::now();
    for pid in [holder.pid(), Pid::from_raw(guardian)] {
        kill(pid, SIGKILL).expect("it is there");
    }
    let next = store.run(&["run", "-w", "40", "k", "--", "sh", "-c", &store.alone()]);
    let took = killed.elapsed();
    let lives = is_alive(started);
    let _ = kill(Pid::from_raw(started), SIGKILL);
    next.is(0, "", "");
    assert!(took < AT_ONCE, "{took:?}");
    assert!(lives, "nobody was left who would have looked for what the command had started");
    holder.finish().died_of(SIGKILL);
}

fn a_frozen_dlock_has_its_key_no_longer_than_its_lease_and_its_tree_is_gone_by_then(store: &Store) {
    let tree = store.holding_tree(&SHORT);
    tree.dlock.freeze();
    if !store.beats() {
        // There is no lease that could end.
        store.run(&["run", "-w", "2", "k", "--", "true"]).says(75, &["'k' is held"]);
        tree.dlock.signal(SIGKILL);
        return store.run(&["run", "k", "--", "true"]).is(0, "", "");
    }
    let mut next = store.tree(&["-w", "40"]);
    next.await_start();
    tree.is_gone();
    next.await_all();
    tree.dlock.signal(SIGCONT);
    // It does not blame the store.
    tree.dlock.finish().says(76, &["lost 'k': its time is over: dlock itself was stopped"]);
    assert_eq!(store.status("k")["holders"][0]["pid"], next.dlock.pid().as_raw());
    next.dlock.signal(SIGKILL);
}

fn a_dlock_killed_at_any_moment_leaves_the_key_to_the_next(store: &Store) {
    let (moments, limit) = (times(store, MOMENTS), AT_ONCE.as_secs().to_string());
    let script = format!("{}; echo $DLOCK_FENCE", store.alone());
    let start = || Running::start(&mut store.dlock(&["run", "--ttl", "1s", "k", "--", "sh", "-c", &script]));
    let mut last = 0;
    for moment in 0..moments {
        let (victim, other) = (start(), start());
        sleep(LIFE * moment / moments);
        victim.signal(SIGKILL);
        let killed = Instant::now();
        let done = other.finish();
        assert!(killed.elapsed() < AT_ONCE, "{:?} after the kill", killed.elapsed());
        let fence: u64 = done.stdout.trim_end().parse().unwrap_or_else(|_| panic!("{done:#?}"));
        done.is(0, &format!("{fence}\n"), "");
        assert_ne!(fence, last);
        last = last.max(fence);
        let victim = victim.finish();
        assert!(!victim.stdout.contains("overlap"), "{victim:#?}");
        // If there was a command by then, whoever is left says what became of it.
        assert!(["", LAST_WORDS].contains(&&*victim.stderr), "{victim:#?}");
        // Where nobody sees it die, it may still be in the queue: two in a row would take longer.
        if store.beats() {
            store.run(&["run", "-w", &limit, "k", "--", "true"]).is(0, "", "");
        }
    }
    let status = store.status("k");
    assert!(status["queue"].as_array().is_none_or(Vec::is_empty), "{status}");
    let done = store.run(&["run", "-n", "k", "--", "sh", "-c", "echo $DLOCK_FENCE"]);
    assert!(done.stdout.trim_end().parse::<u64>().is_ok_and(|fence| fence > last), "{done:#?}");
}

fn a_dlock_killed_at_any_moment_of_a_long_run_leaves_nothing_of_the_command(store: &Store) {
    let (moments, limit) = (times(store, MOMENTS), AT_ONCE.as_secs().to_string());
    let script = format!("{}; sleep 60; :", store.alone());
    for moment in 0..moments {
        let victim = Running::start(&mut store.dlock(&["run", "--ttl", "1s", "k", "--", "sh", "-c", &script]));
        sleep(LIFE * moment / moments);
        victim.signal(SIGKILL);
        let next = store.run(&["run", "-w", &limit, "k", "--", "sh", "-c", &store.alone()]);
        next.is(0, "", "");
        victim.finish().died_of(SIGKILL);
    }
}

fn what_a_command_leaves_behind_at_its_normal_end_is_left_alone(store: &Store) {
    let done = store.run(&["run", "k", "--", "sh", "-c", "sleep 100 >/dev/null 2>&1 & echo $!"]);
    let daemon = done.stdout.trim_end().parse().expect("the script writes a process id");
    let lives = is_alive(daemon);
    let next = store.run(&["run", "-n", "k", "--", "true"]);
    let still_lives = is_alive(daemon);
    let _ = kill(Pid::from_raw(daemon), SIGKILL);
    done.is(0, &format!("{daemon}\n"), "");
    next.is(0, "", "");
    assert!(lives && still_lives);
}

fn a_command_that_ran_for_too_long_is_gone_with_all_of_its_tree_before_the_key_is_free(store: &Store) {
    let holder = store.holding_tree(&["--max-run", "0.3", "-k", "0.3"]);
    let mut waiter = store.tree(&[]);
    waiter.await_start();
    holder.is_gone();
    waiter.await_all();
    holder.dlock.finish().says(124, &["'k'", "ran for 300ms"]);
}

fn a_command_has_kill_after_to_end_and_no_longer(store: &Store) {
    let start = Instant::now();
    let stubborn = ["run", "--max-run", "0.1", "-k", "0.7", "k", "--", "sh", "-c", "trap '' TERM; sleep 60; :"];
    store.run(&stubborn).says(124, &["ran for 100ms"]);
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(800) && took < Duration::from_secs(10), "{took:?}");

    let start = Instant::now();
    let tidy = "exec 2>&-; trap 'echo tidied up; exit 3' TERM; while :; do sleep 0.02; done";
    let done = store.run(&["run", "--max-run", "0.1", "-k", "25", "--ttl", "90", "k", "--", "sh", "-c", tidy]);
    assert_eq!(done.stdout, "tidied up\n");
    done.says(124, &["ran for 100ms"]);
    assert!(start.elapsed() < Duration::from_secs(20), "who ends is not waited for: {:?}", start.elapsed());
}

fn who_asks_again_while_the_command_is_being_stopped_does_not_wait(store: &Store) {
    let start = Instant::now();
    let script = "exec 2>&-; trap 'echo asked' TERM; echo ready; while :; do sleep 0.02; done";
    let mut holder = store.holding("k", &["--max-run", "0.1", "-k", "29", "--ttl", "90"], script);
    holder.await_line("asked");
    for signal in [SIGINT, SIGTERM] {
        holder.signal(signal);
    }
    holder.finish().says(124, &["ran for 100ms"]);
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}

fn dlock_stops_the_command_itself_when_its_guardian_is_frozen(store: &Store) {
    let holder = store.holding_tree(&["--max-run", "1", "-k", "0.3"]);
    let start = Instant::now();
    kill(Pid::from_raw(child_of(holder.dlock.pid().as_raw())), SIGSTOP).expect("the guardian lives");
    let mut waiter = store.tree(&[]);
    waiter.await_start();
    let took = start.elapsed();
    holder.is_gone();
    waiter.await_all();
    assert!(took < Duration::from_secs(6), "one second, kill-after and another second were to do: {took:?}");
    let done = holder.dlock.finish();
    assert_eq!(done.status.code(), Some(124), "{done:#?}");
    assert!(done.stderr.contains("ran for 1s"), "{done:#?}");
}

#[test]
fn a_dlock_whose_command_died_of_a_real_time_signal_dies_of_it_as_well() {
    let store = Store::new();
    for number in [37, 64] {
        let done = store.run(&["run", "k", "--", "sh", "-c", &format!("kill -{number} $$")]);
        assert_eq!(done.status.signal(), Some(number), "{done:#?}");
    }
}

#[test]
fn only_the_command_leaves_a_core() {
    let store = Store::new();
    let abort = |program: &str| {
        let mut shell = command("sh");
        shell.args(["-c", &format!("ulimit -c unlimited && exec {program}")]).current_dir(store.dir.path());
        finish(shell.stdin(Stdio::null()).env("DLOCK_STORE", format!("file:{}", store.path("locks").display())))
    };
    let alone = abort("sh -c 'kill -QUIT $$'");
    if !alone.status.core_dumped() {
        skipped("this machine writes no cores");
        return;
    }
    let done = abort(&format!("'{}' run k -- sh -c 'ulimit -c 0; kill -QUIT $$'", crate::support::DLOCK));
    done.died_of(SIGQUIT);
    assert!(!done.status.core_dumped(), "{done:#?}");
}

#[test]
fn a_large_tree_is_ended_about_as_fast_as_a_small_one() {
    let store = Store::new();
    // What a shell ignores its children ignore.
    let script = "trap '' TERM; i=0; while [ $i -lt 400 ]; do sleep 60 & i=$((i + 1)); done; echo ready; wait";
    let options = ["--max-run", "4s", "--kill-after", "0.2s"];
    let holder = store.holding("k", &options, script);
    let done = holder.finish();
    // To look through /proc again after each of them would take many seconds, and the guardian be thought frozen.
    done.says(124, &["the command ran for 4s"]);
}

fn whoever_reads_stderr_hears_that_dlock_was_killed(store: &Store) {
    let holder = store.holding("k", &[], "echo ready; exec sleep 1000");
    holder.signal(SIGKILL);
    let done = holder.finish();
    assert_eq!(done.stderr, LAST_WORDS);
    // Nobody is told of what ends in another way.
    let mut holder = store.hold("k");
    holder.close_stdin();
    holder.finish().is(0, "", "");
}
