//! Leases that a script holds itself: acquire, renew, release, check.

use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::schema::assert_schema;
use crate::support::{
    DLOCK, Done, Running, Store, command, finish, on_every_store, through_a_pooler, unread_pipe, wait_for,
};

on_every_store![
    a_script_holds_a_key_from_acquire_to_release,
    a_lease_that_nobody_renews_ends_with_its_ttl,
    a_renewal_counts_from_now_and_never_shortens,
    a_lease_whose_id_nobody_reads_is_given_back,
    an_id_that_would_go_nowhere_is_not_asked_for,
    a_signal_before_the_id_is_out_leaves_nothing,
    check_says_for_how_long_the_lease_is_good,
    what_a_run_holds_is_not_for_scripts_to_renew_or_release,
    a_forced_unlock_takes_it_at_once_and_says_who,
    the_key_stays_taken_for_the_shortest_time_after_a_release_too,
    acquire_does_not_wait_for_the_run_around_it,
    the_json_has_key_lease_fence_and_end,
    the_lease_is_that_of_the_script_and_not_of_dlock,
];

through_a_pooler![a_script_holds_a_key_from_acquire_to_release, a_forced_unlock_takes_it_at_once_and_says_who,];

/// Acquires, and returns the lease id.
fn acquired(store: &Store, key: &str, options: &[&str]) -> String {
    let done = store.run(&[&["acquire", key][..], options].concat());
    assert!(done.status.success() && done.stderr.is_empty(), "{done:?}");
    let id = done.stdout.strip_suffix('\n').expect("a line").to_owned();
    assert!(id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id:?}");
    id
}

/// Runs a verb on a lease that the environment names.
fn with_lease(store: &Store, args: &[&str], key: &str, lease: &str) -> Done {
    finish(store.dlock(args).env("DLOCK_KEY", key).env("DLOCK_LEASE", lease).stdin(Stdio::null()))
}

fn a_script_holds_a_key_from_acquire_to_release(store: &Store) {
    let id = acquired(store, "k", &[]);
    store.run(&["run", "-n", "k", "--", "true"]).says(75, &["'k' is held by"]);
    store.run(&["acquire", "-n", "-E", "5", "k"]).says(5, &["'k' is held by"]);
    store.run(&["renew", "k", &id]).is(0, "", "");
    with_lease(store, &["renew"], "k", &id).is(0, "", "");
    store.run(&["release", "k", &"0".repeat(32)]).says(76, &["'k' is not held by lease 00000000 any more"]);
    let waiter = store.waiting("k", &[], "echo got it");
    with_lease(store, &["release"], "k", &id).is(0, "", "");
    waiter.finish().is(0, "got it\n", "");
    for verb in ["release", "renew", "check"] {
        store.run(&[verb, "k", &id]).says(76, &["'k' is not held by lease", &id[..8]]);
    }
    assert_eq!(store.leftovers(), Vec::<String>::new());
}

fn a_lease_that_nobody_renews_ends_with_its_ttl(store: &Store) {
    let start = Instant::now();
    let id = acquired(store, "k", &["--ttl", "500ms"]);
    store.run(&["run", "k", "--", "true"]).is(0, "", "");
    let waited = start.elapsed();
    assert!((Duration::from_millis(450)..Duration::from_secs(3)).contains(&waited), "{waited:?}");
    store.run(&["renew", "k", &id]).says(76, &["not held"]);
}

fn a_renewal_counts_from_now_and_never_shortens(store: &Store) {
    let left = |id: &str| store.run(&["check", "k", id]).stdout.trim().parse::<u64>().expect("seconds");
    let id = acquired(store, "k", &["--ttl", "1h"]);
    store.run(&["renew", "k", &id, "--ttl", "1m"]).is(0, "", "");
    assert!((3500..3570).contains(&left(&id)), "{}", left(&id));
    store.run(&["renew", "k", &id, "--ttl", "2h"]).is(0, "", "");
    assert!((7000..7140).contains(&left(&id)), "{}", left(&id));
    store.run(&["renew", "k", &id, "--ttl", "1ms"]).says(64, &["--ttl must be at least 500ms"]);
}

fn a_lease_whose_id_nobody_reads_is_given_back(store: &Store) {
    let done = finish(store.dlock(&["acquire", "k", "--min-hold", "1h"]).stdout(unread_pipe()));
    done.says(71, &["given back", "broken pipe"]);
    store.run(&["run", "-n", "k", "--", "true"]).is(0, "", "");
    let full = std::fs::File::options().write(true).open("/dev/full").expect("it is there");
    finish(store.dlock(&["acquire", "k"]).stdout(full)).says(71, &["given back", "no space"]);
    store.run(&["run", "-n", "k", "--", "true"]).is(0, "", "");
}

fn an_id_that_would_go_nowhere_is_not_asked_for(store: &Store) {
    for stdout in [">&-", "1</dev/null", ">\"$FILE\""] {
        let mut shell = command("bash");
        // A file that may have no bytes is one to which nothing can be written.
        let limit = if stdout.contains("FILE") { "ulimit -f 0;" } else { "" };
        shell.args(["-c", &format!("{limit} exec {DLOCK} acquire k {stdout}")]);
        // The file store's own file could not be written then, either; that is an error, too.
        let done = finish(shell.env("DLOCK_STORE", store.url()).env("FILE", store.path("id")));
        assert_eq!(done.status.code(), Some(71), "{stdout}: {done:?}");
        store.run(&["run", "-n", "k", "--", "true"]).is(0, "", "");
    }
}

fn a_signal_before_the_id_is_out_leaves_nothing(store: &Store) {
    let holder = store.hold("k");
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let waiter = Running::start(&mut store.dlock(&["acquire", "k"]));
        store.await_waiting("k", 1);
        waiter.signal(signal);
        let done = waiter.finish();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&done.status), Some(signal as i32));
        assert_eq!((&*done.stdout, &*done.stderr), ("", ""));
        store.await_waiting("k", 0);
    }
    holder.finish().is(0, "", "");
}

fn check_says_for_how_long_the_lease_is_good(store: &Store) {
    let id = acquired(store, "k", &["--ttl", "100s"]);
    let left: u64 = with_lease(store, &["check"], "k", &id).stdout.trim().parse().expect("seconds");
    assert!((80..99).contains(&left), "{left}");
    // A part of a second is none: whoever sleeps for so long does not outlive the lease.
    let short = acquired(store, "short", &["--ttl", "900ms"]);
    let done = store.run(&["check", "short", &short]);
    let most = store.least_ttl().as_secs().saturating_sub(1);
    let left = done.stdout.trim().parse::<u64>();
    assert!(left.is_ok_and(|left| left <= most) || done.status.code() == Some(76), "{done:?}");
    wait_for("the end of the lease", || store.run(&["check", "short", &short]).status.code() == Some(76));
    // Inside a run nothing needs to be named.
    let inside = store.run(&["run", "--ttl", "100s", "r", "--", crate::support::DLOCK, "check"]);
    if store.beats() {
        let left: u64 = inside.stdout.trim().parse().expect("seconds");
        assert!((80..99).contains(&left), "{left}");
    } else {
        inside.is(0, "inf\n", "");
    }
    store.run(&["check"]).says(64, &["DLOCK_KEY", "DLOCK_LEASE"]);
    store.run(&["check", "k"]).says(64, &["LEASE"]);
    let by_key = finish(store.dlock(&["check", "k"]).env("DLOCK_LEASE", &id).stdin(Stdio::null()));
    assert!(by_key.status.success(), "{by_key:?}");
    store.run(&["check", "k", "12345678"]).says(64, &["no lease id"]);
}

fn what_a_run_holds_is_not_for_scripts_to_renew_or_release(store: &Store) {
    let mut holder = store.holding("k", &[], "echo ready; echo $DLOCK_LEASE; cat >/dev/null");
    let id = holder.read_line().expect("the lease id");
    for verb in ["renew", "release"] {
        store.run(&[verb, "k", &id]).says(64, &["'dlock run'"]);
    }
    store.run(&["run", "-n", "k", "--", "true"]).says(75, &["'k' is held by"]);
    holder.finish().is(0, "", "");
}

fn a_forced_unlock_takes_it_at_once_and_says_who(store: &Store) {
    let id = acquired(store, "k", &["--ttl", "1h"]);
    let start = Instant::now();
    store.run(&["unlock", "k", "--yes"]).says(0, &["'k' was taken from a script, which nothing stops"]);
    assert!(start.elapsed() < Duration::from_secs(1));
    store.run(&["check", "k", &id]).says(76, &["not held"]);
    store.run(&["run", "-n", "k", "--", "true"]).is(0, "", "");
}

fn the_key_stays_taken_for_the_shortest_time_after_a_release_too(store: &Store) {
    let id = acquired(store, "k", &["--min-hold", "1h"]);
    store.run(&["release", "k", &id]).is(0, "", "");
    store.run(&["run", "-n", "k", "--", "true"]).says(75, &["'k' stays taken for"]);
    store.run(&["release", "k", &id]).says(76, &["not held"]);
}

fn acquire_does_not_wait_for_the_run_around_it(store: &Store) {
    let done = store.run(&["run", "k", "--", crate::support::DLOCK, "acquire", "k"]);
    done.says(75, &["'k' is held by this very job"]);
}

fn the_json_has_key_lease_fence_and_end(store: &Store) {
    let done = store.run(&["acquire", "--json", "--ttl", "1m", "k"]);
    let object = assert_schema("acquire", &done.stdout);
    let mut names: Vec<&str> = object.as_object().expect("an object").keys().map(String::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["fence", "key", "lease", "schema", "until"]);
    assert_eq!((&object["schema"], &object["key"]), (&1.into(), &"k".into()));
    assert_eq!(object["fence"], store.status("k")["fence"]);
    let until = humantime::parse_rfc3339(object["until"].as_str().expect("a time")).expect("a time");
    let left = until.duration_since(std::time::SystemTime::now()).expect("it is ahead");
    assert!((Duration::from_secs(40)..Duration::from_secs(60)).contains(&left), "{left:?}");
    store.run(&["release", "k", object["lease"].as_str().expect("an id")]).is(0, "", "");
}

fn the_lease_is_that_of_the_script_and_not_of_dlock(store: &Store) {
    let script = format!("{} acquire k >/dev/null; echo $$; cat >/dev/null", crate::support::DLOCK);
    let mut shell = crate::support::command("sh");
    shell.args(["-c", &script]).env("DLOCK_STORE", store.url());
    let mut script = Running::start(&mut shell);
    let pid = script.read_line().expect("its number");
    let hold = store.status("k")["holders"][0].clone();
    assert_eq!((hold["pid"].to_string(), &hold["program"]), (pid, &"sh".into()));
    assert_eq!(hold["attended"], false);
}
