//! Waiting in line: in which order, for how long, and what it costs while nothing
//! happens.

use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::activity::{Activity, at_rest, open_files};
use crate::support::journal::Journal;
use crate::support::{
    Running, Store, child_of, is_alive, on_every_store, on_every_store_with_order, on_file_and_redis, through_a_pooler,
    wait_for,
};

on_every_store![
    a_killed_waiter_is_passed_over,
    a_waiter_dies_at_once_of_the_signal_that_it_gets_and_leaves_the_queue,
    a_signal_that_came_before_the_key_keeps_the_command_from_starting,
    a_signal_at_the_hand_over_is_not_lost_and_neither_is_the_key,
    a_frozen_waiter_is_passed_over_after_a_second_and_waits_again,
    who_gives_up_after_its_time_leaves_the_queue_to_the_others,
    a_waiter_keeps_its_place_however_long_the_holder_takes,
];

on_every_store_with_order![
    fifty_waiters_get_the_key_in_the_order_in_which_they_came,
    a_writer_that_waits_goes_before_readers_that_came_after_it,
];

on_file_and_redis![
    each_of_three_hundred_waiters_gets_the_key_and_costs_no_more_than_the_others,
    frozen_waiters_at_the_head_of_the_queue_do_not_hold_up_those_behind_for_ever,
];

through_a_pooler![
    a_killed_waiter_is_passed_over,
    a_waiter_dies_at_once_of_the_signal_that_it_gets_and_leaves_the_queue,
    a_signal_at_the_hand_over_is_not_lost_and_neither_is_the_key,
    a_frozen_waiter_is_passed_over_after_a_second_and_waits_again,
    who_gives_up_after_its_time_leaves_the_queue_to_the_others,
    fifty_waiters_get_the_key_in_the_order_in_which_they_came,
    a_writer_that_waits_goes_before_readers_that_came_after_it,
];

/// How long one who could take the key may leave it lying. What takes less time did not wait for that.
const OFFER: Duration = Duration::from_secs(1);

/// How long it takes until one who waits looks by itself, and then until those ahead of it have let their offers
/// go by. Only where nobody sees that two of them, one behind the other, are frozen.
const LOOKED: Duration = Duration::from_secs(22);

/// How long a test looks on where nothing may happen: longer than a ttl of `SHORT` and than `OFFER`.
const STILL: Duration = Duration::from_millis(1500);

/// A short ttl, and long enough to be renewed in time on a machine that does other things, too.
const SHORT: [&str; 2] = ["--ttl", "1s"];

fn names(count: usize) -> Vec<String> {
    (1..=count).map(|number| format!("w{number}")).collect()
}

/// Waiters for `k` who came in this order, and stay inside until their stdin is closed.
fn line_up(store: &Store, journal: &Journal, names: &[String]) -> Vec<Running> {
    names.iter().map(|name| store.waiting("k", &[], &journal.stay(name))).collect()
}

fn fifty_waiters_get_the_key_in_the_order_in_which_they_came(store: &Store) {
    let journal = Journal::new(store);
    let holder = store.hold("k");
    let names = names(50);
    let waiters: Vec<_> = names.iter().map(|name| store.waiting("k", &[], &journal.visit(name, ":"))).collect();
    holder.finish().is(0, "", "");
    for waiter in waiters {
        waiter.finish().is(0, "", "");
    }
    assert_eq!(journal.entered(), names);
    assert_eq!(journal.most_at_once(), 1);
}

fn each_of_three_hundred_waiters_gets_the_key_and_costs_no_more_than_the_others(store: &Store) {
    const WAITERS: usize = 300;
    let journal = Journal::new(store);
    let holder = store.hold("k");
    let mut waiters = Vec::new();
    for number in 0..WAITERS {
        let script = journal.visit(&format!("{number}"), ":");
        let mut waiter = store.dlock(&["run", "k", "--", "sh", "-c", &script]);
        // Pipes to all of them might be more than this process may have open.
        let waiter = waiter.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("dlock starts");
        waiters.push(waiter);
        if waiters.len().is_multiple_of(20) {
            store.await_waiting("k", waiters.len());
        }
    }
    let queue = store.queue("k");
    let some = [queue[9], queue[WAITERS - 11]];
    let [early, late] = &at_rest(&some)[..] else { panic!("two were looked at") };
    assert_eq!(early.threads(), late.threads());
    assert_eq!(open_files(some[0]).len(), open_files(some[1]).len());
    let number = |pid: &i32| waiters.iter().position(|waiter| waiter.id().cast_signed() == *pid);
    let order: Vec<_> = queue.iter().map(|pid| number(pid).expect("ours").to_string()).collect();
    holder.finish().is(0, "", "");
    for mut waiter in waiters {
        assert!(waiter.wait().expect("it can be waited for").success());
    }
    assert_eq!(journal.entered(), order);
    assert_eq!(journal.most_at_once(), 1);
}

#[test]
fn a_hand_over_wakes_two_however_many_wait() {
    const WAITERS: usize = 24;
    const HAND_OVERS: usize = 5;
    let store = Store::new();
    let journal = Journal::new(&store);
    let mut holder = store.hold("k");
    let names = names(WAITERS);
    let mut waiters = line_up(&store, &journal, &names);
    let last = waiters[WAITERS - 1].pid().as_raw();
    let (threads, files) = (at_rest(&[last])[0].threads(), open_files(last).len());
    for name in &names[..HAND_OVERS] {
        // The first one takes the key, the second one learns that it is next.
        let next = waiters.remove(0);
        let others: Vec<i32> = waiters.iter().map(|waiter| waiter.pid().as_raw()).collect();
        let before = at_rest(&others);
        holder.finish().is(0, "", "");
        journal.await_entry(name);
        let woken = woken(&before, &at_rest(&others));
        assert!(woken.is_empty() || woken == [0], "{name} took the key, and these of those behind it woke: {woken:?}");
        holder = next;
    }
    // Who leaves the line is missed by those two only who slept on it.
    let pids: Vec<i32> = waiters.iter().map(|waiter| waiter.pid().as_raw()).collect();
    let others = [&pids[..5], &pids[6..]].concat();
    let before = at_rest(&others);
    let leaver = waiters.remove(5);
    leaver.signal(Signal::SIGTERM);
    leaver.finish().died_of(Signal::SIGTERM);
    let woken = woken(&before, &at_rest(&others));
    assert!(woken.iter().all(|at| [5, 6].contains(at)), "the sixth left, and these woke: {woken:?}");
    assert_eq!((at_rest(&[last])[0].threads(), open_files(last).len()), (threads, files));
}

fn woken(before: &[Activity], after: &[Activity]) -> Vec<usize> {
    (0..before.len()).filter(|at| before[*at] != after[*at]).collect()
}

#[test]
fn nobody_does_anything_while_nothing_happens() {
    let store = Store::new();
    let inside = "echo ready; cat >/dev/null";
    let holders = [
        store.hold("k"),
        store.holding("slots", &["--slots", "2"], inside),
        store.holding("slots", &["--slots", "2"], inside),
        store.holding("shared", &["-s"], inside),
    ];
    // This is what a holder does last.
    for holder in &holders {
        store.await_listening(holder);
    }
    let waiters = [
        store.waiting("k", &[], "true"),
        store.waiting("k", &["-w", "1h"], "true"),
        store.waiting("k", &["-s"], "true"),
        store.waiting("k", &SHORT, "true"),
        store.waiting("slots", &["--slots", "2"], "true"),
        store.waiting("slots", &["--slots", "2"], "true"),
        store.waiting("shared", &[], "true"),
        store.waiting("shared", &["-s"], "true"),
    ];
    let dlocks = holders.iter().chain(&waiters).map(|running| running.pid().as_raw());
    let pids: Vec<i32> = dlocks.flat_map(|pid| [pid, child_of(pid)]).collect();
    let before = at_rest(&pids);
    thread::sleep(STILL);
    let after: Vec<_> = pids.iter().map(|pid| Activity::of(*pid)).collect();
    assert_eq!(before, after);
}

fn a_writer_that_waits_goes_before_readers_that_came_after_it(store: &Store) {
    let journal = Journal::new(store);
    let first = store.holding("k", &["-s"], "echo ready; cat >/dev/null");
    let writer = store.waiting("k", &[], &journal.stay("writer"));
    // They would fit beside the first reader.
    let names = names(4);
    let readers: Vec<_> = names.iter().map(|name| store.waiting("k", &["-s"], &journal.stay(name))).collect();
    first.finish().is(0, "", "");
    journal.await_entry("writer");
    writer.finish().is(0, "", "");
    // Then all of them come in at once.
    for name in &names {
        journal.await_entry(name);
    }
    for reader in readers {
        reader.finish().is(0, "", "");
    }
    assert_eq!(journal.entered()[0], "writer");
    assert!(journal.inside().contains(&vec!["writer".to_owned()]));
    assert_eq!(journal.most_at_once(), 4);
}

fn a_killed_waiter_is_passed_over(store: &Store) {
    // At once where the store sees it die; else it is offered the key, and the one behind it watches.
    let (dead, limit) = if store.beats() { (1, OFFER * 3) } else { (2, OFFER) };
    let journal = Journal::new(store);
    let mut holder = store.hold("k");
    let names = names(dead + 3);
    let mut waiters = line_up(store, &journal, &names);
    let next = waiters[dead].pid().as_raw();
    for dead in waiters.drain(..dead) {
        dead.signal(Signal::SIGKILL);
        dead.finish().died_of(Signal::SIGKILL);
    }
    assert!(store.beats() || store.queue("k")[0] == next);
    let start = Instant::now();
    holder.finish().is(0, "", "");
    journal.await_entry(&names[dead]);
    assert!(start.elapsed() < limit, "{:?}", start.elapsed());
    // Now one that dies when the key is offered to it.
    holder = waiters.remove(0);
    let frozen = waiters.remove(0);
    frozen.freeze();
    let start = Instant::now();
    holder.finish().is(0, "", "");
    frozen.signal(Signal::SIGKILL);
    journal.await_entry(&names[dead + 2]);
    assert!(start.elapsed() < limit, "{:?}", start.elapsed());
    assert_eq!(journal.entered(), [&*names[dead], &*names[dead + 2]]);
}

fn a_waiter_dies_at_once_of_the_signal_that_it_gets_and_leaves_the_queue(store: &Store) {
    let journal = Journal::new(store);
    let holder = store.hold("k");
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let before = store.waiting("k", &[], &journal.visit("before", ":"));
        let waiter = store.waiting("k", &[], &journal.visit("waiter", ":"));
        let after = store.waiting("k", &[], &journal.visit("after", ":"));
        for waiter in [waiter, after, before] {
            let start = Instant::now();
            waiter.signal(signal);
            wait_for("the end of a waiter", || !is_alive(waiter.pid().as_raw()) || start.elapsed() > OFFER * 5);
            waiter.signal(Signal::SIGKILL);
            waiter.finish().died_of(signal);
            assert!(start.elapsed() < Duration::from_secs(1), "{signal}: {:?}", start.elapsed());
        }
        assert_eq!(store.queue("k"), [0; 0], "{signal}");
    }
    holder.finish().is(0, "", "");
    assert_eq!(journal.entered(), [""; 0]);
}

fn a_signal_that_came_before_the_key_keeps_the_command_from_starting(store: &Store) {
    /// The two that race, the signal and the key, are close to each other: a few tries show who wins.
    const TRIES: usize = 30;
    let journal = Journal::new(store);
    for attempt in 0..TRIES {
        let holder = store.hold("k");
        let waiter = store.waiting("k", &[], &journal.visit("waiter", ":"));
        waiter.freeze();
        waiter.signal(Signal::SIGTERM);
        holder.finish().is(0, "", "");
        waiter.signal(Signal::SIGCONT);
        waiter.finish().died_of(Signal::SIGTERM);
        assert_eq!(journal.entered(), [""; 0], "try {attempt}");
        store.run(&["run", "-n", "k", "--", "true"]).is(0, "", "");
    }
}

fn a_signal_at_the_hand_over_is_not_lost_and_neither_is_the_key(store: &Store) {
    const TRIES: u32 = 30;
    for attempt in 0..TRIES {
        let mut holder = store.hold("k");
        let waiter = store.waiting("k", &[], "exec sleep 30");
        let start = Instant::now();
        holder.close_stdin();
        thread::sleep(Duration::from_micros(200) * attempt);
        waiter.signal(Signal::SIGTERM);
        waiter.finish().died_of(Signal::SIGTERM);
        assert!(start.elapsed() < Duration::from_secs(10), "try {attempt}: {:?}", start.elapsed());
        holder.finish().is(0, "", "");
        store.run(&["run", "-n", "k", "--", "true"]).is(0, "", "");
        assert_eq!(store.queue("k"), [0; 0], "try {attempt}");
    }
}

fn a_frozen_waiter_is_passed_over_after_a_second_and_waits_again(store: &Store) {
    let journal = Journal::new(store);
    let holder = store.hold("k");
    let mut waiters = line_up(store, &journal, &names(3)).into_iter();
    let (frozen, second, third) = (waiters.next(), waiters.next(), waiters.next());
    let (frozen, second, third) = (frozen.expect("w1"), second.expect("w2"), third.expect("w3"));
    frozen.freeze();
    let start = Instant::now();
    holder.finish().is(0, "", "");
    journal.await_entry("w2");
    assert!((OFFER..OFFER * 3).contains(&start.elapsed()), "{:?}", start.elapsed());
    assert_eq!(store.queue("k"), [third.pid().as_raw()]);
    // It wakes, finds that it has lost its place, and comes last.
    frozen.signal(Signal::SIGCONT);
    wait_for("w1 to wait again", || store.queue("k") == [third.pid().as_raw(), frozen.pid().as_raw()]);
    second.finish().is(0, "", "");
    third.finish().is(0, "", "");
    frozen.finish().is(0, "", "");
    assert_eq!(journal.entered(), ["w2", "w3", "w1"]);
    assert_eq!(journal.most_at_once(), 1);
}

fn who_gives_up_after_its_time_leaves_the_queue_to_the_others(store: &Store) {
    let journal = Journal::new(store);
    let holder = store.hold("k");
    let first = store.waiting("k", &[], &journal.visit("w1", ":"));
    let start = Instant::now();
    let limited: Vec<_> = (0..5).map(|_| store.waiting("k", &["-w", "2"], &journal.visit("limited", ":"))).collect();
    let second = store.waiting("k", &[], &journal.visit("w2", ":"));
    assert_eq!(store.queue("k").len(), 7);
    for limited in limited {
        limited.finish().says(75, &["'k' is held by", "gave up after 2s"]);
    }
    let limit = Duration::from_secs(2);
    assert!((limit..limit + Duration::from_secs(1)).contains(&start.elapsed()), "{:?}", start.elapsed());
    assert_eq!(store.queue("k"), [first.pid().as_raw(), second.pid().as_raw()]);
    holder.finish().is(0, "", "");
    first.finish().is(0, "", "");
    second.finish().is(0, "", "");
    assert_eq!(journal.entered(), ["w1", "w2"]);
}

fn a_waiter_keeps_its_place_however_long_the_holder_takes(store: &Store) {
    let journal = Journal::new(store);
    let holder = store.holding("k", &SHORT, "echo ready; cat >/dev/null");
    let waiters = names(2).into_iter().map(|name| store.waiting("k", &SHORT, &journal.visit(&name, ":")));
    let waiters: Vec<_> = waiters.collect();
    let queue = store.queue("k");
    thread::sleep(STILL);
    assert_eq!(store.queue("k"), queue);
    holder.finish().is(0, "", "");
    for waiter in waiters {
        waiter.finish().is(0, "", "");
    }
    assert_eq!(journal.entered(), ["w1", "w2"]);
}

#[test]
fn a_frozen_holder_keeps_the_key_and_goes_on_when_it_is_thawed() {
    let store = Store::new();
    let journal = Journal::new(&store);
    // Of one all is frozen, of the other one dlock alone, and its command ends meanwhile.
    let whole = store.holding("k", &SHORT, "echo ready; cat >/dev/null; echo end");
    let mut alone = store.holding("alone", &SHORT, "echo ready; cat >/dev/null");
    let guardian = child_of(whole.pid().as_raw());
    let frozen = [whole.pid().as_raw(), guardian, child_of(guardian), alone.pid().as_raw()].map(Pid::from_raw);
    let waiter = store.waiting("k", &[], &journal.visit("w1", ":"));
    let other = store.waiting("alone", &[], &journal.visit("w2", ":"));
    for pid in frozen {
        kill(pid, Signal::SIGSTOP).expect("it is there");
    }
    alone.close_stdin();
    thread::sleep(STILL);
    for key in ["k", "alone"] {
        store.run(&["run", "-n", key, "--", "true"]).says(75, &["is held by"]);
        assert_eq!(store.queue(key).len(), 1);
    }
    assert_eq!(journal.entered(), [""; 0]);
    for pid in frozen {
        kill(pid, Signal::SIGCONT).expect("it is there");
    }
    whole.finish().is(0, "end\n", "");
    alone.finish().is(0, "", "");
    waiter.finish().is(0, "", "");
    other.finish().is(0, "", "");
}

fn frozen_waiters_at_the_head_of_the_queue_do_not_hold_up_those_behind_for_ever(store: &Store) {
    let holder = store.hold("k");
    let mut frozen = Vec::new();
    for place in 1..=2 {
        frozen.push(Running::start(&mut store.dlock(&["run", "k", "--", "true"])));
        store.await_waiting("k", place);
    }
    let next = Running::start(&mut store.dlock(&["run", "k", "--", "true"]));
    store.await_waiting("k", 3);
    for waiter in &frozen {
        waiter.freeze();
    }
    let start = Instant::now();
    holder.finish().is(0, "", "");
    next.finish().is(0, "", "");
    assert!(start.elapsed() < LOOKED, "{:?}", start.elapsed());
    for waiter in frozen {
        waiter.signal(Signal::SIGCONT);
        waiter.finish().is(0, "", "");
    }
}

/// How long so many who wait take from one to the next.
#[cfg(any(feature = "etcd", feature = "postgres"))]
pub(crate) fn hand_over(store: &Store, waiting: usize) -> Duration {
    let journal = Journal::new(store);
    let holder = store.hold("k");
    let names: Vec<String> = (0..waiting).map(|number| number.to_string()).collect();
    let waiters: Vec<Running> =
        names.iter().map(|name| store.waiting("k", &["-w", "60"], &journal.visit(name, ":"))).collect();
    let start = Instant::now();
    holder.finish().is(0, "", "");
    for waiter in waiters {
        waiter.finish().is(0, "", "");
    }
    let took = start.elapsed() / u32::try_from(waiting).expect("a few");
    assert_eq!(journal.entered(), names);
    took
}
