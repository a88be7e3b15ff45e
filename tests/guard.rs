//! The other end of the fence: what is guarded never sees an older holder after a newer one.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use dlock::model::{Key, Record};
use dlock::store::{Store as _, open_guards};
use nix::sys::signal::Signal::{SIGKILL, SIGTERM};
use nix::sys::signal::{kill, killpg};
use nix::unistd::Pid;

use crate::support::journal::Journal;
use crate::support::{
    DLOCK, Done, Running, Store, child_of, command, finish, has, is_alive, on_every_store, skipped, wait_for,
};

on_every_store![
    inside_a_run_the_fence_is_that_of_the_run,
    who_lost_its_lock_and_does_not_know_is_refused_by_what_it_writes_to,
];

/// A guard of `db` with this fence, for a script.
fn guard(store: &Store, fence: u64, script: &str) -> Command {
    store.dlock(&["guard", "db", "--fence", &fence.to_string(), "--", "sh", "-c", script])
}

/// Runs one to its end. One that waits for something that never comes fails.
#[track_caller]
fn guarded(store: &Store, fence: u64, script: &str) -> Done {
    let running = Running::start(&mut guard(store, fence, script));
    wait_for("a guard to end", || !is_alive(running.pid().as_raw()));
    running.finish()
}

/// A guard that holds `db` until its stdin is closed.
fn hold(store: &Store, fence: u64) -> Running {
    let mut running = Running::start(&mut guard(store, fence, "echo ready; cat >/dev/null"));
    running.await_line("ready");
    running
}

/// What is remembered of `db`.
fn record(store: &Store) -> Record {
    let guards = open_guards(&store.path("locks")).expect("the directory is ours");
    let db = Key::parse("db").expect("a word is a key");
    guards.inspect(&db).expect("it can be read").expect("it was guarded")
}

fn await_waiting(store: &Store, waiting: usize) {
    wait_for(&format!("{waiting} waiting for db"), || record(store).queue.len() == waiting);
}

#[track_caller]
fn is_refused(done: &Done, fence: u64, seen: u64) {
    let begins = format!("dlock: fence {fence} is stale: 'db' has seen {seen} in /");
    assert!(done.stderr.starts_with(&begins), "{done:#?}");
    assert!(done.stderr.ends_with(", so the lock was lost; not running the command\n"), "{done:#?}");
    done.is(76, "", &done.stderr);
}

#[test]
fn an_equal_or_newer_fence_passes_and_an_older_one_is_refused() {
    let store = Store::new();
    guarded(&store, 5, "echo in").is(0, "in\n", "");
    guarded(&store, 5, "echo in").is(0, "in\n", "");
    is_refused(&guarded(&store, 4, "echo in"), 4, 5);
    guarded(&store, u64::MAX, "exit 3").is(3, "", "");
    is_refused(&guarded(&store, u64::MAX - 1, "echo in"), u64::MAX - 1, u64::MAX);
    // Another resource knows nothing of that.
    store.run(&["guard", "other", "--fence", "1", "--", "echo", "in"]).is(0, "in\n", "");
}

#[test]
fn a_fence_counts_as_seen_however_the_command_ended() {
    let store = Store::new();
    store.run(&["guard", "db", "--fence", "2", "--", "/nowhere"]).says(127, &["/nowhere"]);
    is_refused(&guarded(&store, 1, "echo in"), 1, 2);
    guarded(&store, 4, "kill -KILL $$").died_of(SIGKILL);
    is_refused(&guarded(&store, 3, "echo in"), 3, 4);
    let mut holder = hold(&store, 6);
    holder.signal(SIGTERM);
    // Before its stdin is closed, which would end it, too.
    assert_eq!(holder.read_line(), None);
    holder.finish().died_of(SIGTERM);
    is_refused(&guarded(&store, 5, "echo in"), 5, 6);
}

#[test]
fn a_guard_killed_at_any_moment_remembers_what_it_let_start_and_leaves_nothing_running() {
    const MOMENTS: u32 = 90;
    let store = Store::new();
    let entered = store.path("entered");
    // One that nobody kills, on the machine as it is.
    let begun = Instant::now();
    guarded(&store, 1, &format!("echo 1 >'{}'", entered.display())).is(0, "", "");
    let life = begun.elapsed().max(Duration::from_millis(30)) * 3 / 2;
    let (mut early, mut late) = (0, 0);
    for moment in 1..=MOMENTS {
        let fence = 2 * u64::from(moment);
        let script = format!("echo {fence} >'{}'; {}; sleep 60; :", entered.display(), store.alone());
        let victim = Running::start(guard(&store, fence, &script).process_group(0));
        // Many of them early: the machine may have been slower when that life was measured.
        thread::sleep(life * moment * moment / (MOMENTS * MOMENTS));
        // dlock alone, or all that there is.
        let killed = if moment % 2 == 0 { kill(victim.pid(), SIGKILL) } else { killpg(victim.pid(), SIGKILL) };
        killed.expect("it lives");
        victim.finish().died_of(SIGKILL);
        let older = guarded(&store, fence - 1, &store.alone());
        if fs::read_to_string(&entered).is_ok_and(|text| text.trim() == fence.to_string()) {
            is_refused(&older, fence - 1, fence);
            late += 1;
        } else if older.status.success() {
            older.is(0, "", "");
            early += 1;
        } else {
            is_refused(&older, fence - 1, fence);
        }
        guarded(&store, fence, &store.alone()).is(0, "", "");
    }
    assert!(early > 0 && late > 0, "killed {early} times before and {late} times after the start");
}

#[test]
fn a_killed_guardian_takes_the_command_along() {
    let store = Store::new();
    let mut holder = Running::start(&mut guard(&store, 2, &format!("{}; echo ready; sleep 60; :", store.alone())));
    holder.await_line("ready");
    kill(Pid::from_raw(child_of(holder.pid().as_raw())), SIGKILL).expect("the guardian lives");
    guarded(&store, 2, &store.alone()).is(0, "", "");
    holder.finish().died_of(SIGKILL);
    is_refused(&guarded(&store, 1, "echo in"), 1, 2);
}

#[test]
fn of_many_at_once_one_runs_at_a_time_and_none_after_a_newer_one() {
    const PROCESSES: u64 = 8;
    const TIMES: u64 = 25;
    let store = Store::new();
    let journal = Journal::new(&store);
    let ran: u64 = thread::scope(|scope| {
        let work = |process: u64| {
            let (store, journal) = (&store, &journal);
            move || {
                let once = |time: u64| {
                    // Rises in the long run, at random in the short one.
                    let fence = 1 + 20 * time + (process * 7919 + time * 104_729) % 97;
                    let done = guarded(store, fence, &journal.visit(&format!("{process}.{time}"), "sleep 0.002"));
                    match done.status.code() {
                        Some(0) => done.is(0, "", ""),
                        _ => done.says(76, &["is stale"]),
                    }
                    u64::from(done.status.success())
                };
                (0..TIMES).map(once).sum::<u64>()
            }
        };
        let threads: Vec<_> = (0..PROCESSES).map(|process| scope.spawn(work(process))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a thread of the test")).sum()
    });
    assert_eq!(journal.most_at_once(), 1);
    let entries = journal.lines().into_iter().filter(|line| line[0] == "enter");
    let fences: Vec<u64> = entries.map(|line| line[2].parse().expect("a fence is a number")).collect();
    assert!(fences.is_sorted(), "{fences:?}");
    assert_eq!(fences.len() as u64, ran);
    assert!(ran > 10 && ran < PROCESSES * TIMES, "{ran} ran: some pass and some are refused");
}

#[test]
fn who_is_stale_already_does_not_wait_and_who_becomes_so_is_refused_at_its_turn() {
    let store = Store::new();
    let holder = hold(&store, 5);
    is_refused(&guarded(&store, 4, "echo in"), 4, 5);
    let newer = Running::start(&mut guard(&store, 7, "echo in"));
    await_waiting(&store, 1);
    let older = Running::start(&mut guard(&store, 6, "echo in"));
    await_waiting(&store, 2);
    holder.finish().is(0, "", "");
    newer.finish().is(0, "in\n", "");
    is_refused(&older.finish(), 6, 7);
    guarded(&store, 7, "echo in").is(0, "in\n", "");
}

#[test]
fn a_signal_ends_the_wait_and_nothing_is_remembered_of_it() {
    let store = Store::new();
    let holder = hold(&store, 5);
    let waiter = Running::start(&mut guard(&store, 7, "echo in"));
    await_waiting(&store, 1);
    waiter.signal(SIGTERM);
    waiter.finish().died_of(SIGTERM);
    await_waiting(&store, 0);
    holder.finish().is(0, "", "");
    guarded(&store, 6, "echo in").is(0, "in\n", "");
}

#[test]
fn a_resource_and_a_lock_of_the_same_name_have_nothing_to_do_with_each_other() {
    let store = Store::new();
    store.run(&["run", "db", "--", DLOCK, "guard", "db", "--", "echo", "in"]).is(0, "in\n", "");
    let locked = store.hold("db");
    guarded(&store, u64::MAX, "echo in").is(0, "in\n", "");
    locked.finish().is(0, "", "");
    let holder = hold(&store, u64::MAX);
    store.run(&["run", "-n", "db", "--", "echo", "in"]).is(0, "in\n", "");
    store.run(&["run", "-n", "db.guard", "--", "echo", "in"]).is(0, "in\n", "");
    assert_eq!(store.status("db")["held"], false);
    holder.finish().is(0, "", "");
    let all = store.run(&["status", "--all", "--json"]);
    let all: serde_json::Value = serde_json::from_str(&all.stdout).expect("status prints JSON");
    assert_eq!(all["keys"].as_array().map(Vec::len), Some(2), "{all}");
}

#[test]
fn a_guard_inside_a_guard_of_the_same_resource_enters_it_again_and_is_judged_by_its_own_fence() {
    let store = Store::new();
    let inner = |fence: &str| format!("{DLOCK} guard db{fence} -- sh -c 'echo $DLOCK_FENCE'");
    guarded(&store, 5, &inner("")).is(0, "5\n", "");
    guarded(&store, 5, &inner(" --fence 8")).is(0, "8\n", "");
    is_refused(&guarded(&store, 5, "echo in"), 5, 8);
    is_refused(&guarded(&store, 9, &inner(" --fence 8")), 8, 9);
    // Who says that it is inside a guard that has ended gets nothing of its own.
    let held = guarded(&store, 9, "printf %s \"$DLOCK_HELD\"").stdout;
    finish(guard(&store, 9, "echo in").env("DLOCK_HELD", held)).says(76, &["'db' is not held any more", "DLOCK_HELD"]);
}

#[test]
fn the_command_sees_its_fence_and_for_the_rest_what_it_would_see_without() {
    let store = Store::new();
    let show = "echo $DLOCK_KEY $DLOCK_LEASE $DLOCK_FENCE $DLOCK_STORE $DLOCK_STORE_FILE";
    let directory = format!("file:{}", store.path("elsewhere").display());
    for (place, stands) in [(&[][..], "locks"), (&["-S", &directory][..], "elsewhere")] {
        let mut dlock = store.dlock(&[place, &["guard", "db", "--fence", "7", "--", "sh", "-c", show]].concat());
        dlock.envs([("DLOCK_KEY", "k"), ("DLOCK_LEASE", "l"), ("DLOCK_FENCE", "6")]);
        finish(&mut dlock).is(0, &format!("k l 7 {}\n", store.url()), "");
        assert!(store.path(stands).join("db.guard").exists());
    }
    let mut dlock = store.dlock(&["guard", "db", "--", "sh", "-c", "echo $DLOCK_FENCE"]);
    finish(dlock.env("DLOCK_FENCE", "8")).is(0, "8\n", "");
    is_refused(&guarded(&store, 7, "echo in"), 7, 8);
}

#[test]
fn a_fence_that_is_none_is_bad_usage_wherever_it_comes_from() {
    let store = Store::new();
    let above = "18446744073709551616";
    for bad in ["0", "-1", "", "+7", " 7", "7.0", "0x7", "seven", above] {
        let words = if bad == "0" { "no lock that is held has that" } else { "is no fence" };
        store.run(&["guard", "db", "--fence", bad, "--", "echo", "in"]).says(64, &["--fence", bad, words]);
        let mut dlock = store.dlock(&["guard", "db", "--", "echo", "in"]);
        finish(dlock.env("DLOCK_FENCE", bad)).says(64, &["DLOCK_FENCE", bad, words]);
    }
    let done = store.run(&["guard", "db", "--", "echo", "in"]);
    done.says(64, &["DLOCK_FENCE is not set", "use it inside 'dlock run', or give '--fence N'"]);
    store.run(&["guard", "db", "--fence", "1", "--", ""]).says(64, &["the command has no name"]);
    assert!(!store.path("locks").exists());
}

#[test]
fn what_is_remembered_is_on_the_disk_before_the_command_starts_and_stays_there() {
    let store = Store::new();
    let traced = |fence: &str| -> Option<Vec<&'static str>> {
        let log = store.path("log");
        let mut strace = command("strace");
        strace.args(["-f", "-y", "-e", "trace=execve,pwrite64,fdatasync,fsync", "-o"]).arg(&log);
        strace.args([DLOCK, "guard", "db", "--fence", fence, "--", "/bin/true"]).env("DLOCK_STORE", store.url());
        let done = finish(&mut strace);
        if done.stderr.contains("ptrace") {
            skipped("strace may not trace here");
            return None;
        }
        done.is(0, "", "");
        let step = |line: &str| match line {
            _ if line.contains("pwrite64(") && line.contains("db.guard>") => Some("write"),
            _ if line.contains("fdatasync(") && line.contains("db.guard>") => Some("sync"),
            _ if line.contains("fsync(") && line.contains("locks>") => Some("sync the name"),
            _ if line.contains("execve(\"/bin/true\"") => Some("start"),
            _ => None,
        };
        Some(fs::read_to_string(log).expect("strace wrote it").lines().filter_map(step).collect())
    };
    if !has("strace") {
        return;
    }
    // The resource is taken, the fence is noted, the resource is given back. Until a fence is noted there is nothing
    // to lose; from then on each change is on the disk before the next one overwrites the one before it.
    let Some(first) = traced("5") else { return };
    assert_eq!(first, ["write", "write", "sync", "sync the name", "start", "write", "sync"]);
    let newer = ["write", "sync", "write", "sync", "sync the name", "start", "write", "sync"];
    assert_eq!(traced("6").as_deref(), Some(&newer[..]));
    assert_eq!(traced("6").as_deref(), Some(&["write", "sync", "start", "write", "sync"][..]));
}

#[test]
fn a_memory_that_is_damaged_lets_nobody_pass_even_after_a_crash() {
    let store = Store::new();
    guarded(&store, 5, "true").is(0, "", "");
    let file = store.path("locks/db.guard");
    fs::write(&file, "garbage").expect("it is ours");
    finish(command("touch").args(["-d", "@1000000000"]).arg(&file)).is(0, "", "");
    guarded(&store, 9, "echo in").says(73, &["db.guard' is damaged", "if no late writer to 'db' can come any more"]);
    fs::remove_file(&file).expect("it is ours");
    guarded(&store, 1, "echo in").is(0, "in\n", "");
}

#[test]
fn a_memory_that_is_deleted_while_the_command_runs_stops_it() {
    let store = Store::new();
    let holder = hold(&store, 5);
    store.await_listening(&holder);
    fs::remove_file(store.path("locks/db.guard")).expect("it is ours");
    let start = Instant::now();
    // Its stdin stays open until it is asked to end.
    wait_for("the guard to end", || !is_alive(holder.pid().as_raw()));
    holder.finish().says(76, &["lost 'db'", "stopping the command"]);
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}

#[cfg(feature = "redis")]
#[test]
fn a_server_is_no_place_to_remember_fences_in() {
    let store = Store::new();
    let file = store.path("url");
    fs::write(&file, "redis://127.0.0.1:1\n").expect("it is ours");
    for place in [["-S", "redis://127.0.0.1:1"], ["--store-file", &file.display().to_string()]] {
        let args = [&place[..], &["guard", "db", "--fence", "1", "--", "echo", "in"]].concat();
        store.run(&args).says(78, &["guard remembers fences on this machine", "'--store file:DIR'"]);
    }
}

/// What stands before the command that a holder has guarded, wherever its lock is.
fn guard_in(store: &Store) -> String {
    format!("{DLOCK} -S 'file:{}' guard db", store.path("guards").display())
}

fn inside_a_run_the_fence_is_that_of_the_run(store: &Store) {
    let write = format!("{} -- sh -c 'echo $DLOCK_FENCE $DLOCK_KEY $DLOCK_STORE'; echo $DLOCK_FENCE", guard_in(store));
    let done = store.run(&["run", "k", "--", "sh", "-c", &write]);
    let lines: Vec<&str> = done.stdout.lines().collect();
    assert!(lines.len() == 2 && lines[0] == format!("{} k {}", lines[1], store.url()), "{done:#?}");
    done.is(0, &done.stdout, "");
}

fn who_lost_its_lock_and_does_not_know_is_refused_by_what_it_writes_to(store: &Store) {
    let late = format!("echo ready; read go; {} -- echo late", guard_in(store));
    let mut late = store.holding("k", &["--on-lost", "continue"], &late);
    store.run(&["unlock", "k", "--force", "--yes"]);
    let newer = store.run(&["run", "k", "--", "sh", "-c", &format!("{} -- echo newer", guard_in(store))]);
    newer.is(0, "newer\n", "");
    late.write_line("go");
    let done = late.finish();
    assert_eq!((done.status.code(), &*done.stdout), (Some(76), ""), "{done:#?}");
    assert!(done.stderr.contains("is stale: 'db' has seen"), "{done:#?}");
}
