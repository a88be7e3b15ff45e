//! Who is killed or frozen: holders, waiters, and the server. A command never outlives its lease, and nobody
//! waits longer for the dead than until their lease ends.

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::thread::{self, sleep};
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::Signal::{SIGCONT, SIGKILL, SIGSTOP, SIGTERM};
use nix::sys::signal::kill;
use nix::unistd::Pid;

use super::{BOUNDED, lease_end};
use crate::support::journal::Journal;
use crate::support::redis::{REDIS, Server, VALKEY, on_a_server, on_both};
use crate::support::tree::Tree;
use crate::support::{Running, Store, child_of, crowd, has, wait_for};

/// What makes a server write down what it does, before it tells of it.
const WRITES_DOWN: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "no"];

/// How many holders a server is frozen under, and how many at once.
const HOLDERS: usize = 50;
const AT_ONCE: usize = 10;

/// The time that a command wrote, in microseconds.
fn time(line: &str) -> SystemTime {
    let micros = line.trim_end().parse().unwrap_or_else(|_| panic!("{line:?} is no time"));
    SystemTime::UNIX_EPOCH + Duration::from_micros(micros)
}

/// Stores of their own on one server.
fn apart(server: &Server, count: usize) -> Vec<Store> {
    (0..count).map(|number| Store::new().at(&format!("{}?prefix=p{number}", server.url()))).collect()
}

/// Kills holders of keys of their own while somebody waits for each: how long after the end of the lease that
/// one starts, sorted.
fn kill_holders(server: &Server) -> Vec<Duration> {
    let kill = |store: Store| {
        let tree = store.holding_tree(&["--ttl", "1.5"]);
        let waiter = store.waiting("k", &BOUNDED, "date +%s%6N");
        tree.dlock.signal(SIGKILL);
        let end = lease_end(&store);
        assert!(store.await_end_of_tree() < end, "the tree ends with its dlock, and not with the lease");
        let done = waiter.finish();
        assert_eq!(done.stderr, "");
        let late = time(&done.stdout).duration_since(end);
        assert_eq!(tree.dlock.finish().status.signal(), Some(SIGKILL as i32));
        late.expect("the key is not free before the lease ends")
    };
    let threads: Vec<_> = apart(server, 7).into_iter().map(|store| thread::spawn(move || kill(store))).collect();
    let mut late: Vec<Duration> = threads.into_iter().map(|thread| thread.join().expect("it went well")).collect();
    late.sort_unstable();
    late
}

/// Several of the next commands start in time, at the first go or at another: this machine may have others to run
/// first. The server looks at its clock once a second, and is not waited for.
#[expect(clippy::print_stderr, reason = "the times are figures that people want to see")]
fn hand_over_in_time(program: &'static str) {
    const PROMISE: Duration = Duration::from_millis(50);
    if !has(program) {
        return;
    }
    let server = Server::start(program, &["--hz", "1"]);
    let in_time = (0..3).any(|_| {
        let late = kill_holders(&server);
        eprintln!("from the end of a lease to the start of the next command, {program}: {late:?}");
        late[2] < PROMISE
    });
    assert!(in_time, "the next command starts within {PROMISE:?} of the end of a lease");
}

#[test]
fn a_killed_holder_frees_its_key_when_its_lease_ends_on_redis() {
    hand_over_in_time(REDIS);
}

#[test]
fn a_killed_holder_frees_its_key_when_its_lease_ends_on_valkey() {
    hand_over_in_time(VALKEY);
}

/// Kills a waiter who was just offered the key: how long after the offer the next one starts. For ever, if the offer was not
/// seen before it was over.
fn kill_head(store: &Store) -> Duration {
    let mut holder = store.hold("k");
    let head = store.waiting("k", &BOUNDED, "echo never");
    let mut next = store.waiting("k", &BOUNDED, "date +%s%6N");
    head.signal(SIGSTOP);
    holder.close_stdin();
    let mut offered = None;
    wait_for("an offer", || {
        let record = store.server().record("k");
        offered = record.into_iter().find_map(|(field, since)| field.starts_with("o:").then_some(since));
        offered.is_some() || next.has_ended()
    });
    head.signal(SIGKILL);
    let done = next.finish();
    assert_eq!((done.status.code(), &*done.stderr), (Some(0), ""));
    holder.finish().is(0, "", "");
    let head = head.finish();
    assert_eq!((head.status.signal(), &*head.stdout), (Some(SIGKILL as i32), ""));
    let Some(offered) = offered else { return Duration::MAX };
    time(&done.stdout).duration_since(time(&offered)).expect("the offer came first")
}

#[test]
fn who_is_killed_when_the_key_was_offered_to_it_is_passed_over_in_a_second() {
    on_both(|store| {
        // Again if this machine had others to run first.
        let in_time = (0..3).any(|_| kill_head(store) < Duration::from_millis(1100));
        assert!(in_time, "the next one starts 1.1 s after the offer at the latest");
    });
}

/// When the lease of `k` would have ended, by what a server has written down of what it told.
fn end_written_down(folder: &Path, store: &Store) -> SystemTime {
    let prefix = store.prefix();
    let files = fs::read_dir(folder).expect("the server writes").map(|entry| entry.expect("a file").path());
    let file = files.into_iter().find(|path| path.to_string_lossy().ends_with(".incr.aof")).expect("it has begun");
    let bytes = fs::read(file).expect("it can be read");
    let text = String::from_utf8_lossy(&bytes);
    let ours = |command: &&str| command.contains(&format!("\r\n{prefix}:{{k}}:record\r\n"));
    let last = text.split("HSET\r\n").filter(ours).filter_map(|command| command.split_once("\"until\":\"")).last();
    let (_, until) = last.expect("it was granted");
    time(until.split('"').next().unwrap_or_default())
}

/// Freezes a server under many holders, and some of these, too.
fn freeze_server(program: &'static str) {
    if !has(program) {
        return;
    }
    crowd::enter_last();
    let server = Server::start(program, &WRITES_DOWN);
    for some in apart(&server, HOLDERS).chunks(AT_ONCE) {
        let trees: Vec<Tree> = some.iter().map(|store| store.holding_tree(&["--ttl", "1"])).collect();
        server.freeze();
        // A dlock that cannot act leaves it to its guardian.
        let frozen = &trees[..AT_ONCE / 5];
        for tree in frozen {
            tree.dlock.signal(SIGSTOP);
        }
        let gone: Vec<SystemTime> = thread::scope(|scope| {
            let watchers: Vec<_> = some.iter().map(|store| scope.spawn(|| store.await_end_of_tree())).collect();
            watchers.into_iter().map(|watcher| watcher.join().expect("it ends")).collect()
        });
        for ((gone, tree), store) in gone.into_iter().zip(&trees).zip(some) {
            let end = end_written_down(&server.path("appendonlydir"), store);
            let left = end.duration_since(gone);
            assert!(left.is_ok(), "it lived too long: {left:?}");
            tree.is_gone();
        }
        server.thaw();
        for tree in frozen {
            tree.dlock.signal(SIGCONT);
        }
        for tree in trees {
            tree.dlock.finish().says(76, &["lost 'k'"]);
        }
    }
}

#[test]
fn a_server_frozen_for_longer_than_the_ttl_ends_each_tree_before_its_lease_on_redis() {
    freeze_server(REDIS);
}

#[test]
fn a_server_frozen_for_longer_than_the_ttl_ends_each_tree_before_its_lease_on_valkey() {
    freeze_server(VALKEY);
}

#[test]
fn a_server_frozen_for_less_than_the_lease_has_left_ends_nothing() {
    on_both(|store| {
        let holder = store.holding("k", &["--ttl", "3"], "echo ready; cat >/dev/null; exit 7");
        let before = lease_end(store);
        store.server().freeze();
        // With a beat before it that makes 1.7 s; at 2 s the command would be asked to end.
        sleep(Duration::from_secs(1));
        store.server().thaw();
        wait_for("a beat", || lease_end(store) > before);
        holder.finish().is(7, "", "");
    });
}

#[test]
fn a_holder_that_wakes_up_after_its_lease_finds_its_tree_gone_and_leaves_the_next_one_alone() {
    on_both(|store| {
        let tree = store.holding_tree(&["--ttl", "1"]);
        tree.dlock.signal(SIGSTOP);
        let mut next = store.tree(&["-w", "40", "--ttl", "1"]);
        next.await_start();
        tree.is_gone();
        next.await_all();
        let waiting = store.waiting("k", &BOUNDED, "echo third");
        tree.dlock.signal(SIGCONT);
        tree.dlock.finish().says(76, &["lost 'k'"]);
        let end = lease_end(store);
        wait_for("a beat of the other", || lease_end(store) > end);
        assert_eq!(store.status("k")["holders"][0]["pid"], next.dlock.pid().as_raw());
        assert_eq!(store.queue("k"), [waiting.pid().as_raw()]);
        next.dlock.signal(SIGKILL);
        waiting.finish().is(0, "third\n", "");
    });
}

#[test]
fn a_waiter_that_was_frozen_when_its_turn_came_waits_again() {
    on_a_server(REDIS, |store| {
        let journal = Journal::new(store);
        let holder = store.hold("k");
        let mut frozen = store.waiting("k", &["-w", "40", "--ttl", "1"], &journal.stay("frozen"));
        frozen.signal(SIGSTOP);
        let start = Instant::now();
        let args = ["run", "-w", "40", "k", "--", "sh", "-c", &journal.stay("other")];
        let other = Running::start(&mut store.dlock(&args));
        store.await_waiting("k", 2);
        holder.finish().is(0, "", "");
        journal.await_entry("other");
        wait_for("twice the ttl", || start.elapsed() > Duration::from_secs(2));
        frozen.signal(SIGCONT);
        let pid = frozen.pid().as_raw();
        wait_for("the frozen one to wait again", || store.queue("k") == [pid]);
        other.finish().is(0, "", "");
        journal.await_entry("frozen");
        frozen.close_stdin();
        frozen.finish().is(0, "", "");
        assert_eq!(journal.entered(), ["other", "frozen"]);
        assert_eq!(journal.most_at_once(), 1, "{:?}", journal.lines());
    });
}

#[test]
fn who_gives_up_on_a_frozen_server_keeps_nobody_out_when_it_thaws() {
    on_both(|store| {
        store.run(&["run", "other", "--", "true"]).is(0, "", "");
        store.server().freeze();
        let run = ["run", "k", "-n", "--min-hold", "10m", "--store-timeout", "1", "--", "echo", "started"];
        store.run(&run).says(69, &["did not answer"]);
        let waiter = Running::start(&mut store.dlock(&["run", "k", "--min-hold", "10m", "--", "echo", "started"]));
        sleep(Duration::from_millis(1200));
        waiter.signal(SIGTERM);
        waiter.finish().died_of(SIGTERM);
        store.server().thaw();
        store.run(&["run", "k", "-n", "--", "echo", "in"]).is(0, "in\n", "");
    });
}

#[test]
fn whose_time_is_over_while_the_server_hesitates_is_told_that_the_key_is_taken() {
    on_both(|store| {
        let _holder = store.hold("k");
        let waiter = Running::start(&mut store.dlock(&["run", "k", "-w", "1.5", "--", "true"]));
        store.await_waiting("k", 1);
        store.server().freeze();
        let done = waiter.finish();
        store.server().thaw();
        done.says(75, &["'k' is", "gave up after 1s"]);
    });
}

#[test]
fn a_silent_server_is_what_is_named_however_short_a_time_the_command_has_to_end() {
    on_both(|store| {
        let holder = store.holding("k", &["--ttl", "2s", "-k", "10ms"], "echo ready; sleep 60");
        store.server().freeze();
        holder.finish().says(76, &["lost 'k'", "did not answer in time"]);
        store.server().thaw();
    });
}

#[test]
fn dlock_itself_ends_the_tree_in_time_when_its_guardian_and_the_server_are_frozen() {
    on_both(|store| {
        let tree = store.holding_tree(&["--ttl", "4"]);
        let guardian = child_of(tree.dlock.pid().as_raw());
        // The server is asked for the end first; beats go on meanwhile, so it ends no sooner than that.
        kill(Pid::from_raw(guardian), SIGSTOP).expect("it lives");
        store.server().freeze();
        let end = SystemTime::now() + Duration::from_secs(4);
        assert!(store.await_end_of_tree() < end, "the tree outlived its lease");
        assert_eq!(tree.dlock.finish().status.code(), Some(76));
        store.server().thaw();
    });
}

#[test]
fn a_command_that_may_go_on_without_its_lease_does_so_also_when_its_dlock_is_frozen() {
    on_both(|store| {
        let mut holder = store.holding("k", &["--ttl", "1", "--on-lost", "continue"], "echo ready; read x; echo $x");
        holder.freeze();
        // Somebody else has the key when the lease is over.
        store.run(&["run", "k", "-w", "20", "--", "echo", "next"]).is(0, "next\n", "");
        holder.signal(SIGCONT);
        holder.write_line("on");
        holder.await_line("on");
        holder.finish().says(76, &["lost 'k'"]);
    });
}
