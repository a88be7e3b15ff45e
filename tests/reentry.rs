//! A lease is entered again, compared, and kept for a while.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::{
    DLOCK, Running, Store, await_number, finish, on_every_store, on_every_store_with_order, through_a_pooler, wait_for,
};

on_every_store![
    a_run_inside_a_run_of_the_same_key_enters_its_lease,
    a_lease_is_entered_to_the_limit_and_not_beyond,
    an_inner_run_in_the_background_keeps_the_lease_until_it_ends_and_no_longer,
    a_lease_that_is_held_no_more_is_lost_and_no_fresh_one_is_taken,
    a_key_stays_taken_as_long_as_it_was_asked_for_and_dlock_does_not_linger,
    a_key_stays_taken_even_if_its_holder_is_killed,
    a_fence_that_has_moved_on_is_refused,
];

on_every_store_with_order![shared_enters_exclusive_and_exclusive_does_not_enter_shared];

through_a_pooler![
    a_run_inside_a_run_of_the_same_key_enters_its_lease,
    a_lease_that_is_held_no_more_is_lost_and_no_fresh_one_is_taken,
];

/// `dlock run k` so many times inside each other, and then `last`.
fn nested(depth: usize, last: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    for _ in 0..depth {
        if !words.is_empty() {
            words.push(DLOCK.into());
        }
        words.extend(["run", "k", "--"].map(String::from));
    }
    words.extend(["sh", "-c", last].map(String::from));
    words
}

fn run(store: &Store, words: &[String]) -> crate::support::Done {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    store.run(&words)
}

fn a_run_inside_a_run_of_the_same_key_enters_its_lease(store: &Store) {
    let inner = format!("echo $DLOCK_FENCE $DLOCK_LEASE; {DLOCK} run -n k -- sh -c 'echo $DLOCK_FENCE $DLOCK_LEASE'");
    let done = store.run(&["run", "k", "--", "sh", "-c", &inner]);
    let lines: Vec<&str> = done.stdout.lines().collect();
    assert!(lines.len() == 2 && lines[0] == lines[1], "{done:#?}");
    store.run(&["run", "-n", "k", "--", "true"]).is(0, "", "");
}

fn a_lease_is_entered_to_the_limit_and_not_beyond(store: &Store) {
    run(store, &nested(17, "echo in")).is(0, "in\n", "");
    run(store, &nested(18, "echo in")).says(75, &["'k' may be entered again at most 16 deep"]);
    let inner = format!("{DLOCK} run -E 9 --max-reentry 0 k -- echo in");
    store.run(&["run", "k", "--", "sh", "-c", &inner]).says(9, &["may not be entered again"]);
    let inner = format!("{DLOCK} run --max-reentry 1 k -- echo in");
    store.run(&["run", "k", "--", "sh", "-c", &inner]).is(0, "in\n", "");
}

fn an_inner_run_in_the_background_keeps_the_lease_until_it_ends_and_no_longer(store: &Store) {
    let fifo = store.path("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o600)).expect("a fifo");
    let inner = format!(
        "{DLOCK} run k -- sh -c 'echo $$ >pid; read x <fifo' >/dev/null 2>&1 & until [ -s pid ]; do sleep 0.01; done"
    );
    finish(store.dlock(&["run", "k", "--", "sh", "-c", &inner]).current_dir(store.dir.path())).is(0, "", "");
    let _ = await_number(&store.path("pid"));
    store.run(&["run", "-n", "k", "--", "true"]).says(75, &["'k' is held by"]);
    std::fs::write(&fifo, "go\n").expect("it reads");
    store.run(&["run", "-w", "20s", "k", "--", "true"]).is(0, "", "");
}

fn shared_enters_exclusive_and_exclusive_does_not_enter_shared(store: &Store) {
    let inner = format!("{DLOCK} run -s k -- echo in");
    store.run(&["run", "k", "--", "sh", "-c", &inner]).is(0, "in\n", "");
    let inner = format!("{DLOCK} run k -- echo in");
    store.run(&["run", "-s", "k", "--", "sh", "-c", &inner]).says(75, &["as shared", "entered as exclusive"]);
}

fn a_lease_that_is_held_no_more_is_lost_and_no_fresh_one_is_taken(store: &Store) {
    let done = store.run(&["run", "k", "--", "sh", "-c", "printf %s \"$DLOCK_HELD\""]);
    let held = done.stdout;
    let late = finish(store.dlock(&["run", "k", "--", "echo", "in"]).env("DLOCK_HELD", &held));
    late.says(76, &["'k' is not held any more", "unset DLOCK_HELD"]);
    let other_key = finish(store.dlock(&["run", "j", "--", "echo", "in"]).env("DLOCK_HELD", &held));
    other_key.is(0, "in\n", "");
    let garbage = finish(store.dlock(&["run", "k", "--", "echo", "in"]).env("DLOCK_HELD", "garbage"));
    garbage.says(78, &["DLOCK_HELD"]);
}

#[test]
fn another_store_is_another_lock_and_another_path_to_the_same_one_is_not() {
    let store = Store::new();
    std::os::unix::fs::symlink(store.dir.path(), store.path("alias")).expect("a link");
    let other = format!("{DLOCK} -S file:{} run -n k -- echo in", store.path("other").display());
    store.run(&["run", "k", "--", "sh", "-c", &other]).is(0, "in\n", "");
    let same = format!("{DLOCK} -S file:{} run -n k -- echo in", store.path("alias/locks").display());
    store.run(&["run", "k", "--", "sh", "-c", &same]).is(0, "in\n", "");
}

fn a_key_stays_taken_as_long_as_it_was_asked_for_and_dlock_does_not_linger(store: &Store) {
    let start = Instant::now();
    store.run(&["run", "--min-hold", "2s", "k", "--", "true"]).is(0, "", "");
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    let busy = store.run(&["run", "-n", "k", "--", "true"]);
    busy.says(75, &["'k' stays taken for"]);
    let told =
        busy.stderr.split("stays taken for ").nth(1).and_then(|rest| rest.split(" more").next()).expect("a span");
    let told = humantime::parse_duration(told).expect("a span");
    let left = Duration::from_secs(2).saturating_sub(start.elapsed());
    // In whole seconds.
    assert!(told + Duration::from_secs(1) > left && told <= Duration::from_secs(2), "{told:?}");
    store.run(&["run", "k", "--", "true"]).is(0, "", "");
    let taken = start.elapsed();
    assert!(taken >= Duration::from_secs(2) && taken < Duration::from_secs(4), "{taken:?}");
}

fn a_key_stays_taken_even_if_its_holder_is_killed(store: &Store) {
    let start = Instant::now();
    // Longer than its lease, as others see it.
    let shortest = Duration::from_secs(2) + store.least_ttl() + store.grain();
    let options = ["--ttl", "1s", "--min-hold", &humantime::format_duration(shortest).to_string()];
    let holder = store.holding("k", &options, "echo ready; exec sleep 1000");
    let next = Running::start(&mut store.dlock(&["run", "k", "--", "true"]));
    store.await_waiting("k", 1);
    holder.signal(Signal::SIGKILL);
    wait_for("the key to cool", || store.status("k")["holders"][0]["cooling"] == true);
    next.finish().is(0, "", "");
    let taken = start.elapsed();
    assert!(taken >= shortest && taken < shortest + Duration::from_secs(2), "{taken:?}");
}

fn a_fence_that_has_moved_on_is_refused(store: &Store) {
    let fence = |store: &Store| store.run(&["fence", "k"]).stdout.trim().to_owned();
    assert_eq!(fence(store), "0");
    let before = fence(store);
    store.run(&["run", "--if-fence", &before, "k", "--", "echo", "in"]).is(0, "in\n", "");
    let done = store.run(&["run", "--if-fence", &before, "k", "--", "echo", "in"]);
    done.says(75, &["'k' has fence", "and not 0", "somebody has held it since"]);
    let holder = store.hold("k");
    let during = fence(store);
    store.run(&["run", "--if-fence", &during, "k", "--", "echo", "in"]).says(75, &["'k' is held by"]);
    holder.finish().is(0, "", "");
    let done = store.run(&["run", "--if-fence", &during, "-E", "3", "k", "--", "echo", "in"]);
    done.says(3, &["somebody has held it since"]);
    let now = fence(store);
    store.run(&["run", "--if-fence", &now, "k", "--", "echo", "in"]).is(0, "in\n", "");
}
