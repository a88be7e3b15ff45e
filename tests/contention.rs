//! Many at once on one key: no two inside that must not be, nobody starves, and nothing is left
//! lying.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::journal::Journal;
use crate::support::{Done, Running, Store, on_every_store_with_order, on_file_and_redis, through_a_pooler, wait_for};

on_every_store_with_order![
    slots_let_that_many_in_and_never_more,
    no_reader_is_inside_beside_a_writer,
    a_writer_gets_the_key_although_readers_keep_coming,
];

on_file_and_redis![
    a_counter_under_the_lock_is_exact_and_the_fences_rise_in_its_order,
    those_who_wait_and_those_who_do_not_leave_nothing_lying,
];

through_a_pooler![slots_let_that_many_in_and_never_more, no_reader_is_inside_beside_a_writer,];

/// Runs `work(number)` in so many threads at once, and returns what they did.
fn together<T: Send>(count: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let work = &work;
    thread::scope(|scope| {
        let threads: Vec<_> = (0..count).map(|number| scope.spawn(move || work(number))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a thread of the test")).collect()
    })
}

/// Runs a script under a key.
fn locked(store: &Store, key: &str, options: &[&str], script: &str) -> Done {
    let mut args = vec!["run", key];
    args.extend(options);
    args.extend(["--", "sh", "-c", script]);
    store.run(&args)
}

fn a_counter_under_the_lock_is_exact_and_the_fences_rise_in_its_order(store: &Store) {
    const PROCESSES: usize = 16;
    const TIMES: usize = 25;
    let journal = Journal::new(store);
    let (counter, marker) = (store.path("counter"), store.path("marker"));
    fs::write(&counter, "0\n").expect("the test's directory is writable");
    // Only one can make the marker; whoever finds it says so and changes the outcome.
    let body = format!(
        "mkdir '{marker}' || exit 99; read n <'{counter}'; echo $((n + 1)) >'{counter}'; rmdir '{marker}'",
        marker = marker.display(),
        counter = counter.display()
    );
    together(PROCESSES, |process| {
        for time in 0..TIMES {
            locked(store, "k", &[], &journal.visit(&format!("{process}.{time}"), &body)).is(0, "", "");
        }
    });
    assert_eq!(fs::read_to_string(&counter).expect("the counter"), format!("{}\n", PROCESSES * TIMES));
    assert_eq!(journal.most_at_once(), 1);
    let fences = journal.fences();
    assert_eq!(fences.len(), PROCESSES * TIMES);
    assert!(fences.is_sorted_by(|earlier, later| earlier < later), "{fences:?}");
}

fn slots_let_that_many_in_and_never_more(store: &Store) {
    const SLOTS: usize = 3;
    let journal = Journal::new(store);
    // The first ones wait for each other inside, however late one of them is.
    let path = store.path("journal");
    let body = format!(
        "timeout 60 sh -c \"until [ \\$(grep -c enter '{}') -ge {SLOTS} ]; do sleep 0.02; done\"; sleep 0.03",
        path.display()
    );
    together(12, |process| {
        for time in 0..8 {
            let script = journal.visit(&format!("{process}.{time}"), &body);
            locked(store, "k", &["--slots", "3"], &script).is(0, "", "");
        }
    });
    assert_eq!(journal.entered().len(), 12 * 8);
    assert_eq!(journal.most_at_once(), SLOTS);
}

fn no_reader_is_inside_beside_a_writer(store: &Store) {
    let journal = Journal::new(store);
    // Of ten times seven to read and three to write. Each does both, so readers come while a writer is inside.
    together(10, |process| {
        for time in 0..20 {
            let reads = (process + time) % 10 < 7;
            let name = format!("{}-{process}.{time}", if reads { "reader" } else { "writer" });
            let options: &[&str] = if reads { &["-s"] } else { &[] };
            locked(store, "k", options, &journal.visit(&name, "sleep 0.005")).is(0, "", "");
        }
    });
    assert_eq!(journal.entered().len(), 10 * 20);
    for inside in journal.inside() {
        let writer = inside.iter().any(|name| name.starts_with("writer"));
        assert!(!writer || inside.len() == 1, "{inside:?}");
    }
    assert!(journal.most_at_once() > 1, "readers were never together");
}

fn a_writer_gets_the_key_although_readers_keep_coming(store: &Store) {
    let journal = Journal::new(store);
    let written = AtomicBool::new(false);
    // Four readers overlap all the time, so without a queue there would never be a gap between them.
    together(5, |process| {
        if process == 4 {
            journal.await_entry("reader-3.1");
            locked(store, "k", &[], &journal.visit("writer", ":")).is(0, "", "");
            written.store(true, Ordering::SeqCst);
            return;
        }
        let start = Instant::now();
        for time in 0.. {
            if written.load(Ordering::SeqCst) {
                break;
            }
            assert!(start.elapsed() < Duration::from_secs(20), "the writer starves");
            let script = journal.visit(&format!("reader-{process}.{time}"), "sleep 0.1");
            locked(store, "k", &["-s"], &script).is(0, "", "");
        }
    });
    assert!(journal.inside().contains(&vec!["writer".to_owned()]), "{:?}", journal.lines());
}

/// Runs nothing under `k`; the test fails if that takes far more time than it needs, as it does if dlock
/// sleeps while the key is free.
fn in_time(store: &Store, options: &[&str]) -> Done {
    // Less than the time after which a waiter looks by itself.
    const LIMIT: Duration = Duration::from_secs(10);
    let mut run = Running::start(&mut store.dlock(&[&["run", "k"], options, &["--", "true"]].concat()));
    let start = Instant::now();
    wait_for("the end of a run", || {
        assert!(start.elapsed() < LIMIT, "{options:?} sleeps");
        run.child.try_wait().expect("it is our child").is_some()
    });
    run.finish()
}

fn those_who_wait_and_those_who_do_not_leave_nothing_lying(store: &Store) {
    /// With eight clients each, about a thousand meetings.
    const ROUNDS: usize = 120;
    for round in 0..ROUNDS {
        // Nobody comes after those of a round: a wake-up that is lost is not made good by another one.
        let codes = together(8, |client| match client {
            0..4 => ("wait", in_time(store, &[])),
            4..6 => ("try", in_time(store, &["-n"])),
            _ => ("limit", in_time(store, &["-w", "0.01"])),
        });
        for (kind, done) in codes {
            let code = done.status.code();
            assert!(code == Some(0) || code == Some(75) && kind != "wait", "round {round}, {kind}: {done:#?}");
        }
        let status = store.status("k");
        assert!(status["holders"] == serde_json::json!([]) && status["queue"] == serde_json::json!([]), "{status:#}");
    }
    assert_eq!(store.leftovers(), [""; 0]);
}

/// One run of the test below, as the journal and its exit code tell of it.
#[derive(Debug)]
struct Hold {
    file: String,
    enter: usize,
    leave: usize,
    code: Option<i32>,
}

#[test]
fn two_who_hold_a_key_whose_file_was_deleted_are_not_both_told_that_all_is_well() {
    const SPAN: Duration = Duration::from_secs(4);
    let store = Store::new();
    let journal = Journal::new(&store);
    let path = store.key_file("k");
    locked(&store, "k", &[], ":").is(0, "", "");
    let device = fs::metadata(&path).expect("the key's file").dev();
    let start = Instant::now();
    // The guardian has the file of its key open, deleted or not: that names what a run holds.
    let files = format!("echo \"file NAME $(stat -L -c %d:%i /proc/$PPID/fd/* | grep ^{device}:)\"");
    let body = format!("{files} >>'{}'; sleep 0.0$(($$ % 3))", store.path("journal").display());
    let outcomes = together(4, |process| {
        let mut dones = Vec::new();
        // Deleted files stay open, so that no later one gets the same number.
        let mut deleted = Vec::new();
        for time in 0.. {
            if start.elapsed() > SPAN {
                break;
            }
            if process < 3 {
                let name = format!("{process}.{time}");
                let done = locked(&store, "k", &[], &journal.visit(&name, &body.replace("NAME", &name)));
                dones.push((name, done));
                continue;
            }
            // Now soon, now late, so that it meets all that the others do.
            thread::sleep(Duration::from_millis(time * 7 % 31));
            if let Ok(file) = File::open(&path) {
                let found = file.metadata().expect("an open file");
                fs::remove_file(&path).expect("only we delete it");
                journal.write(&format!("deleted {}:{}", found.dev(), found.ino()));
                deleted.push(file);
            }
        }
        (dones, deleted)
    });
    let lines = journal.lines();
    let find = |what: &str, name: &str| lines.iter().position(|line| line[0] == what && line[1] == name);
    let hold = |(name, done): &(String, Done)| {
        let code = done.status.code();
        assert!(code == Some(0) || code == Some(76) && done.stderr.contains("lost 'k'"), "{name}: {done:#?}");
        let file = lines.iter().find(|line| line[0] == "file" && line[1] == *name).expect("each names its file");
        assert_eq!(file.len(), 3, "one file of the store is open: {file:?}");
        let (enter, leave) = (find("enter", name).expect("it entered"), find("leave", name).expect("it left"));
        Hold { file: file[2].clone(), enter, leave, code }
    };
    let holds: Vec<Hold> = outcomes.iter().flat_map(|(dones, _)| dones).map(hold).collect();
    for hold in &holds {
        let deleted = find("deleted", &hold.file);
        // Whose file went before it left is told; and only they are.
        assert!(deleted.is_none_or(|at| at > hold.leave) || hold.code == Some(76), "not told: {hold:?}");
        assert!(hold.code == Some(0) || deleted.is_some(), "told for nothing: {hold:?}");
    }
    for (at, one) in holds.iter().enumerate() {
        for other in holds[at + 1..].iter().filter(|other| one.enter < other.leave && other.enter < one.leave) {
            assert_ne!(one.file, other.file, "two hold the same file");
            assert!([one.code, other.code].contains(&Some(76)), "neither is told: {one:?} {other:?}");
        }
    }
    assert!(holds.iter().any(|hold| hold.code == Some(76)), "no file was deleted while its key was held");
}
