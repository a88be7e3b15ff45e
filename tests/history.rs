//! What history tells of who held a key, and how that ended.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::schema::assert_schema;
use crate::support::{DLOCK, Store, on_every_store, on_whole_stores, wait_for};

on_every_store![
    each_hold_is_a_row_with_how_it_ended_oldest_first,
    one_who_was_unlocked_is_shown_with_who_did_it,
    one_who_died_has_expired,
    one_who_still_holds_it_is_shown_and_so_is_a_key_that_cools,
    the_json_has_an_object_for_each_event,
    a_key_that_was_never_held_has_no_history,
    nothing_that_others_wrote_plays_tricks_in_a_history,
];

on_whole_stores![a_holder_whose_grant_is_forgotten_is_shown_all_the_same];

/// The cells of each row of the table, which no cell breaks: those between two blanks and more.
#[track_caller]
fn rows(store: &Store, key: &str) -> Vec<Vec<String>> {
    let done = store.run(&["history", key]);
    assert!(done.status.success() && done.stderr.is_empty(), "{done:#?}");
    let cells =
        |line: &str| line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).map(String::from).collect();
    let mut rows: Vec<Vec<String>> = done.stdout.lines().map(cells).collect();
    assert_eq!(rows.remove(0), ["SINCE", "HELD", "HOW", "WHO", "WAITED", "PROGRAM", "NOTE", "LEASE", "FENCE"]);
    assert!(rows.iter().all(|row| row.len() == 9), "{rows:#?}");
    rows
}

fn how(store: &Store, key: &str) -> Vec<String> {
    rows(store, key).into_iter().map(|row| row[2].clone()).collect()
}

#[track_caller]
fn json(store: &Store, key: &str) -> Value {
    let done = store.run(&["history", "--json", key]);
    assert!(done.status.success() && done.stderr.is_empty(), "{done:#?}");
    assert_schema("history", &done.stdout)
}

/// The names of what happened, oldest first.
fn events(history: &Value) -> Vec<&str> {
    let events = history["events"].as_array().expect("a list");
    events.iter().map(|event| event["event"].as_str().expect("a name")).collect()
}

fn acquired(store: &Store, options: &[&str]) -> String {
    let done = store.run(&[&["acquire", "k"], options].concat());
    done.stdout.trim().to_owned()
}

fn each_hold_is_a_row_with_how_it_ended_oldest_first(store: &Store) {
    let holder = store.holding("k", &["--note", "the note"], "echo ready; cat >/dev/null; exit 3");
    let waiter = store.waiting("k", &[], "kill -9 $$");
    let dlock = holder.pid();
    holder.finish().is(3, "", "");
    waiter.finish().died_of(Signal::SIGKILL);
    store.run(&["run", "k", "--", "true"]).is(0, "", "");
    store.run(&["run", "k", "--", "/none"]).says(127, &["/none"]);
    let id = acquired(store, &[]);
    store.run(&["release", "k", &id]).is(0, "", "");
    // What it makes of being stopped is no success.
    let script = "trap 'exit 0' TERM; sleep 60 & wait";
    store.run(&["run", "--max-run", "0.2", "k", "--", "sh", "-c", script]).says(124, &["the command ran for"]);
    let rows = rows(store, "k");
    assert_eq!(how(store, "k"), ["exit 3", "signal 9", "exit 0", "released", "released", "exit 124"]);
    assert!(rows[0][3].contains(&format!("pid {dlock} (")), "{rows:#?}");
    assert_eq!((&*rows[0][5], &*rows[0][6]), ("sh", "the note"));
    assert_eq!((&*rows[2][5], &*rows[2][6]), ("true", "-"));
    assert_eq!(rows[4][7], id[..8]);
    assert_ne!(rows[1][4], "0s", "it had waited");
    let fences: Vec<u64> = rows.iter().map(|row| row[8].parse().expect("a number")).collect();
    assert!(fences.is_sorted_by(|one, next| one < next), "{fences:?}");
    for row in &rows {
        assert_eq!(row[0].len(), "2026-01-02T03:04:05Z".len());
        humantime::parse_rfc3339(&row[0]).expect("a time in UTC");
        humantime::parse_duration(&row[1]).expect("a span of time");
    }
}

fn one_who_was_unlocked_is_shown_with_who_did_it(store: &Store) {
    let holder = store.hold("k");
    store.await_listening(&holder);
    store.run(&["unlock", "k", "--yes"]).is(0, "", "");
    assert_eq!(holder.finish().status.code(), Some(76));
    let forced = store.hold("k");
    store.run(&["unlock", "k", "--yes", "--force"]).is(0, "", "");
    assert_eq!(forced.finish().status.code(), Some(76));
    acquired(store, &[]);
    store.run(&["unlock", "k", "--yes"]).says(0, &["taken from a script"]);
    let how = how(store, "k");
    let shapes = ["unlocked by ", "unlocked at once by ", "unlocked at once by "];
    assert_eq!(how.len(), 3, "{how:?}");
    for (how, shape) in how.iter().zip(shapes) {
        assert!(how.starts_with(shape) && how.contains(" pid ") && how.ends_with(')'), "{how:?}");
    }
    let json = json(store, "k");
    assert_eq!(events(&json), ["granted", "revoked", "released", "granted", "evicted", "granted", "evicted"]);
    assert_eq!(json["events"][2]["signal"], 15, "how its command ended is kept, too");
    let by = |at: usize| json["events"][at]["by"]["pid"].as_u64();
    assert!(by(1).is_some() && by(4).is_some() && by(2).is_none(), "{json:#}");
}

fn one_who_died_has_expired(store: &Store) {
    let holder = store.holding("k", &["--ttl", "1s"], "echo ready; cat >/dev/null");
    holder.signal(Signal::SIGKILL);
    drop(holder);
    wait_for("the end of its lease", || !store.status("k")["held"].as_bool().expect("held or not"));
    assert_eq!(how(store, "k"), ["expired"]);
    assert_eq!(events(&json(store, "k")), ["granted", "expired"]);
    // With a shortest time the key stays taken after that, and gives a second event.
    let id = acquired(store, &["--ttl", "500ms", "--min-hold", "3s"]);
    wait_for("the end of the lease", || store.status("k")["holders"][0]["cooling"] == true);
    assert_eq!(how(store, "k"), ["expired", "expired, cooling"], "lease {id}");
    // Those who only look write nothing down.
    store.run(&["run", "-n", "k", "--", "true"]).says(75, &["stays taken"]);
    wait_for("a free key", || store.status("k")["held"] == false);
    assert_eq!(how(store, "k"), ["expired", "expired"]);
    let history = json(store, "k");
    assert_eq!(events(&history)[2..], ["granted", "expired", "cooled"]);
    let held = [3, 4].map(|at| history["events"][at]["held_ms"].as_u64().map(Duration::from_millis).expect("a span"));
    let due = [Duration::from_millis(500).max(store.least_ttl()), Duration::from_secs(3)];
    if store.grain().is_zero() {
        return assert_eq!(held, due);
    }
    // There a hold has ended when that is seen: its lease may end some time later, and somebody looks then.
    let in_time = |held: Duration, due: Duration| held >= due && held < due + store.grain() + Duration::from_secs(1);
    assert!(held.iter().zip(due).all(|(held, due)| in_time(*held, due)), "{held:?}");
}

fn one_who_still_holds_it_is_shown_and_so_is_a_key_that_cools(store: &Store) {
    let holder = store.hold("k");
    assert_eq!(how(store, "k"), ["held"]);
    holder.finish().is(0, "", "");
    store.run(&["run", "--min-hold", "1h", "k", "--", "sh", "-c", "exit 5"]).is(5, "", "");
    assert_eq!(how(store, "k"), ["exit 0", "exit 5, cooling"]);
    let rows = rows(store, "k");
    let held = humantime::parse_duration(&rows[1][1]).expect("a span of time");
    assert!(held.as_secs() < 60, "the time in which the key only stays taken is not counted");
    // One that was told to stop and does not.
    let script = "trap '' TERM; echo ready; while :; do sleep 0.1; done";
    let _deaf = store.holding("deaf", &["--kill-after", "20s"], script);
    store.run(&["unlock", "deaf", "--yes", "-w", "0"]).says(75, &["not free"]);
    assert!(how(store, "deaf")[0].starts_with("being unlocked by "), "{:?}", how(store, "deaf"));
}

fn the_json_has_an_object_for_each_event(store: &Store) {
    store.run(&["run", "k", "--note", "n", "--", "sh", "-c", "exit 3"]).is(3, "", "");
    let history = json(store, "k");
    assert_eq!((&history["key"], &history["store"]), (&"k".into(), &store.identity().into()));
    assert_eq!(history["fence"].to_string(), store.run(&["fence", "k"]).stdout.trim());
    assert_eq!(events(&history), ["granted", "released"]);
    let [granted, released] = [0, 1].map(|at| &history["events"][at]);
    assert_eq!((&released["exit"], &released["signal"]), (&3.into(), &Value::Null));
    assert_eq!((&granted["note"], &granted["program"]), (&"n".into(), &"sh".into()));
    assert_eq!((&granted["lease"], &granted["fence"]), (&released["lease"], &released["fence"]));
    assert!(granted["fence"].as_u64() < history["fence"].as_u64());
}

fn a_key_that_was_never_held_has_no_history(store: &Store) {
    store.run(&["history", "k"]).is(0, "", "");
    store.run(&["history", "k", "-v"]).says(0, &["nothing is known of 'k' in "]);
    let history = json(store, "k");
    assert_eq!((&history["fence"], &history["events"]), (&0.into(), &serde_json::json!([])));
    store.run(&["history", " k"]).says(64, &["blank"]);
    assert!(store.is_untouched());
}

fn a_holder_whose_grant_is_forgotten_is_shown_all_the_same(store: &Store) {
    let _reader = store.holding("k", &["-s", "--note", "first"], "echo ready; cat >/dev/null");
    let many = format!("i=0; while [ $i -lt 17 ]; do {DLOCK} run -s k -- true || exit; i=$((i + 1)); done");
    let mut shell = crate::support::command("sh");
    crate::support::finish(shell.args(["-c", &many]).env("DLOCK_STORE", store.url())).is(0, "", "");
    let rows = rows(store, "k");
    assert_eq!((&*rows[0][2], &*rows[0][6]), ("held", "first"));
    assert_eq!(rows.len(), 1 + 16, "the last 32 events are those of 16 holds");
    let history = json(store, "k");
    assert_eq!(events(&history).len(), 32);
    let leases: BTreeSet<String> = rows.iter().map(|row| row[7].clone()).collect();
    assert_eq!(leases.len(), 17);
}

fn nothing_that_others_wrote_plays_tricks_in_a_history(store: &Store) {
    store.run(&["run", "k", "--note", "\u{1b}[2J\u{202e}owned", "--", "true"]).is(0, "", "");
    for args in [&["history", "k"][..], &["history", "k", "--json"]] {
        let shown = store.run(args).stdout;
        assert!(shown.contains("owned"), "{shown:?}");
        assert!(shown.chars().all(|c| c == '\n' || !c.is_control() && c != '\u{202e}'), "{shown:?}");
    }
}

#[test]
fn the_schemas_are_those_of_verbs_and_options() {
    let folder = std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/schemas");
    let files = fs::read_dir(folder).expect("it can be listed");
    let names = files.map(|file| file.expect("it can be listed").file_name().to_string_lossy().into_owned());
    let names: BTreeSet<String> = names.collect();
    assert_eq!(
        names,
        ["acquire.json", "doctor.json", "history.json", "log.json", "report.json", "status.json"]
            .map(String::from)
            .into()
    );
}
