//! Metrics are read by those who are to read them, and say what status and history say.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::support::schema::python;
use crate::support::{Store, finish, on_every_store, on_every_store_with_order, wait_for};

on_every_store![
    the_text_is_what_both_parsers_of_prometheus_read,
    a_time_that_is_forgotten_or_never_was_is_missing,
    what_ended_by_itself_or_was_taken_is_counted,
    only_keys_that_begin_so_are_there,
    a_store_without_keys_has_metrics_without_values,
];

on_every_store_with_order![a_key_has_the_facts_that_status_has];

/// Reads `OpenMetrics` and the older text format of Prometheus, and tells what is in it.
const READ: &str = r"
import json, sys
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as prometheus
text = sys.stdin.read()
old = {(s.name, s.labels['key']): s.value for family in prometheus(text) for s in family.samples}
told = {}
for family in openmetrics(text):
    samples = {s.labels['key']: s.value for s in family.samples}
    assert all(list(s.labels) == ['key'] and s.timestamp is None for s in family.samples)
    assert all(old.pop((s.name, s.labels['key'])) == s.value for s in family.samples)
    told[family.name] = {'type': family.type, 'unit': family.unit, 'help': family.documentation, 'samples': samples}
assert not old
print(json.dumps(told))
";

/// What `metrics` prints.
#[track_caller]
fn text(store: &Store, args: &[&str]) -> String {
    let done = store.run(&[&["metrics"], args].concat());
    assert!(done.status.success() && done.stderr.is_empty(), "{done:#?}");
    done.stdout
}

/// The values of a key whose name needs no escape, as they are written.
fn values(text: &str, key: &str) -> BTreeMap<String, String> {
    let label = format!("{{key=\"{key}\"}} ");
    let value = |line: &str| line.split_once(&*label).map(|(name, value)| (name.to_owned(), value.to_owned()));
    text.lines().filter_map(value).collect()
}

/// What Python makes of it; nothing if that cannot read metrics.
fn read(text: &str) -> Option<Value> {
    let done = python("prometheus_client", &["-c", READ], text)?;
    assert!(done.status.success(), "{}\n{text}", done.stderr);
    serde_json::from_str(&done.stdout).ok()
}

fn seconds(values: &BTreeMap<String, String>, name: &str) -> f64 {
    values[name].parse().expect("a number")
}

fn the_text_is_what_both_parsers_of_prometheus_read(store: &Store) {
    let odd = r#"a "b" \n {c="d"},e # 東京 \"#;
    store.run(&["run", odd, "--", "true"]).is(0, "", "");
    let _holder = store.hold("held");
    let text = text(store, &[]);
    assert!(text.ends_with("\n# EOF\n"), "{text}");
    let Some(told) = read(&text) else { return };
    let keys = |family: &str| told[family]["samples"].as_object().expect("samples").keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys("dlock_held"), [odd, "held"], "{told:#}");
    assert_eq!(keys("dlock_grants"), keys("dlock_held"));
    for (name, family) in told.as_object().expect("families") {
        let counts = ["dlock_grants", "dlock_expiries", "dlock_evictions"].contains(&&**name);
        assert_eq!(family["type"], if counts { "counter" } else { "gauge" }, "{name}");
        assert_eq!(family["unit"], if name.ends_with("_seconds") { "seconds" } else { "" }, "{name}");
        assert!(family["help"].as_str().is_some_and(|help| help.ends_with('.')), "{name}");
    }
    let fence = store.run(&["fence", "held"]).stdout;
    assert_eq!(values(&text, "held")["dlock_fence"], fence.trim(), "no digit of it is lost");
}

fn a_key_has_the_facts_that_status_has(store: &Store) {
    let _holders = [(); 2].map(|()| store.holding("k", &["--slots", "2"], "echo ready; cat >/dev/null"));
    let _waiter = store.waiting("k", &[], "true");
    wait_for("a hold that has lasted for a while", || store.status("k")["holders"][0]["held_ms"].as_u64() > Some(50));
    let now = values(&text(store, &[]), "k");
    let counts = ["dlock_held", "dlock_holders", "dlock_waiting", "dlock_grants_total", "dlock_expiries_total"];
    assert_eq!(counts.map(|name| &*now[name]), ["1", "2", "1", "2", "0"]);
    let status = store.status("k");
    let at_most = |name: &str, ms: &Value| {
        let (seconds, most) = (seconds(&now, name), ms.as_f64().expect("milliseconds") / 1000.0);
        assert!(seconds > 0.0 && seconds <= most + 0.001, "{name} {seconds} {most}");
    };
    at_most("dlock_held_seconds", &status["holders"][0]["held_ms"]);
    at_most("dlock_oldest_wait_seconds", &status["queue"][0]["waiting_ms"]);
    assert!(seconds(&now, "dlock_held_seconds") >= 0.05, "the older holder counts");
    assert_eq!(now.contains_key("dlock_ttl_left_seconds"), store.beats(), "in a directory a run has no end");
    if store.beats() {
        assert!((1.0..30.0).contains(&seconds(&now, "dlock_ttl_left_seconds")), "{now:?}");
    }
    let granted = seconds(&now, "dlock_last_grant_timestamp_seconds");
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later").as_secs_f64();
    assert!((clock - 60.0..clock + 1.0).contains(&granted), "{granted} {clock}");
}

fn a_time_that_is_forgotten_or_never_was_is_missing(store: &Store) {
    let success = || values(&text(store, &[]), "k").get("dlock_last_success_timestamp_seconds").cloned();
    store.run(&["run", "k", "--", "false"]).is(1, "", "");
    assert_eq!(success(), None);
    store.run(&["run", "k", "--", "true"]).is(0, "", "");
    let first = success().expect("it is known");
    store.run(&["run", "k", "--", "false"]).is(1, "", "");
    store.run(&["run", "k", "--", "sh", "-c", "kill -9 $$"]);
    let second = success().expect("it is known");
    assert!(second == first || is_quorum(store), "what went wrong since changes nothing: {first} {second}");
    // Nodes of a quorum hear of it one after the other, and another one may tell.
    let apart = |later: &str| later.parse::<f64>().expect("seconds") - first.parse::<f64>().expect("seconds");
    assert!(apart(&second).abs() < 0.005, "what went wrong since changes nothing: {first} {second}");
    store.run(&["run", "k", "--", "true"]).is(0, "", "");
    let third = success().expect("it is known");
    assert!(apart(&third) > 0.005, "of two the later one: {first} {third}");
    let free = values(&text(store, &[]), "k");
    let names = ["dlock_held", "dlock_holders", "dlock_waiting", "dlock_held_seconds", "dlock_oldest_wait_seconds"];
    assert_eq!(names.map(|name| &*free[name]), ["0", "0", "0", "0.000000", "0.000000"]);
    assert!(!free.contains_key("dlock_ttl_left_seconds"), "{free:?}");
}

fn is_quorum(store: &Store) -> bool {
    store.url().starts_with("redis+quorum")
}

fn what_ended_by_itself_or_was_taken_is_counted(store: &Store) {
    store.run(&["acquire", "k", "--ttl", "500ms"]);
    wait_for("the end of the lease", || store.status("k")["held"] == false);
    store.run(&["acquire", "k"]);
    store.run(&["unlock", "k", "--yes"]).says(0, &["taken from a script"]);
    // A key that only stays taken is held by nobody, but not to be had either.
    store.run(&["run", "k", "--min-hold", "1h", "--", "true"]).is(0, "", "");
    let mut now = BTreeMap::new();
    // A node of a quorum that has not answered yet may have anything.
    wait_for("the end of the run", || {
        now = values(&text(store, &[]), "k");
        let is_so =
            ["dlock_held", "dlock_holders", "dlock_held_seconds"].map(|name| &*now[name]) == ["1", "0", "0.000000"];
        assert!(is_so || is_quorum(store), "elsewhere it is so at once: {now:?}");
        is_so
    });
    let counts = ["dlock_grants_total", "dlock_expiries_total", "dlock_evictions_total"];
    assert_eq!(counts.map(|name| &*now[name]), ["3", "1", "1"]);
    assert!((3000.0..3600.1).contains(&seconds(&now, "dlock_ttl_left_seconds")), "{now:?}");
}

fn only_keys_that_begin_so_are_there(store: &Store) {
    for key in ["app/one", "web/two"] {
        store.run(&["run", key, "--", "true"]).is(0, "", "");
    }
    let all = text(store, &[]);
    let app = text(store, &["--prefix", "app/"]);
    assert_eq!(values(&app, "app/one").len(), values(&all, "app/one").len());
    assert!(values(&app, "web/two").is_empty() && !values(&all, "web/two").is_empty(), "{all}");
}

fn a_store_without_keys_has_metrics_without_values(store: &Store) {
    let text = text(store, &[]);
    assert!(text.lines().all(|line| line.starts_with("# ")), "{text}");
    if let Some(told) = read(&text) {
        assert_eq!(told["dlock_held"]["samples"], json!({}));
    }
    assert!(store.is_untouched());
}

#[test]
fn a_record_that_cannot_be_read_hides_no_other_key() {
    let store = Store::new();
    store.run(&["run", "good", "--", "true"]).is(0, "", "");
    std::fs::write(store.key_file("bad"), "no record at all").expect("a file");
    let done = store.run(&["metrics"]);
    done.says(0, &["bad.lock"]);
    assert_eq!(values(&done.stdout, "good")["dlock_grants_total"], "1");
}

#[test]
fn a_store_that_fails_leaves_nothing_that_could_be_taken_for_metrics() {
    let store = Store::new();
    std::fs::write(store.path("locks"), "").expect("a file in the place of the directory");
    let done = store.run(&["metrics"]);
    assert_eq!((done.status.code(), &*done.stdout), (Some(73), ""));
    std::fs::remove_file(store.path("locks")).expect("it is there");
    let full = std::fs::File::options().write(true).open("/dev/full").expect("it is there");
    finish(store.dlock(&["metrics"]).stdin(Stdio::null()).stdout(full)).says(71, &["cannot write to stdout"]);
}

#[cfg(feature = "redis")]
#[test]
fn a_server_that_is_away_is_told_by_the_exit_code() {
    let args = ["metrics", "-S", "redis://127.0.0.1:1", "--store-timeout", "100ms"];
    let done = finish(crate::support::command(crate::support::DLOCK).args(args));
    done.says(69, &["127.0.0.1:1"]);
    assert_eq!(done.stdout, "");
}
