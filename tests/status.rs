//! What status tells people and programs.

use crate::support::schema::assert_schema;
use crate::support::{Running, Store, on_every_store, on_every_store_with_order};

on_every_store![
    json_has_all_that_is_known_in_the_order_of_the_queue,
    only_held_keys_are_shown_unless_all_are_asked_for,
    nothing_that_others_wrote_reaches_the_terminal_raw,
    looking_makes_nothing,
    nothing_is_an_empty_list_and_not_an_error,
    a_fence_rises_when_a_key_is_taken_and_when_it_is_given_back,
];

on_every_store_with_order![
    slots_and_shared_holders_are_told_apart,
    the_names_in_the_json_are_those_that_programs_rely_on,
];

fn json_has_all_that_is_known_in_the_order_of_the_queue(store: &Store) {
    let holder = store.holding("k", &["--note", "the note", "--ttl", "1h"], "echo ready; cat >/dev/null");
    let mut waiters = Vec::new();
    for place in 1..=3 {
        let note = format!("number {place}");
        waiters.push(Running::start(&mut store.dlock(&["run", "--note", &note, "k", "--", "true"])));
        store.await_waiting("k", place);
    }
    let done = store.run(&["status", "--json", "k"]);
    assert_eq!(done.status.code(), Some(0));
    let status: serde_json::Value = serde_json::from_str(&done.stdout).expect("it is JSON");
    assert_eq!(status["schema"], 1);
    let key = &status["keys"][0];
    let hold = &key["holders"][0];
    assert_eq!((&key["key"], &key["held"]), (&"k".into(), &true.into()));
    assert_eq!((&hold["mode"], &hold["depth"], &hold["revoked"]), (&"exclusive".into(), &1.into(), &false.into()));
    assert_eq!((&hold["note"], &hold["program"]), (&"the note".into(), &"sh".into()));
    assert_eq!(hold["pid"], holder.child.id());
    assert_eq!(hold["fence"], key["fence"]);
    let since = hold["since"].as_str().expect("a time");
    assert!(humantime::parse_rfc3339(since).is_ok() && since.ends_with('Z'), "{since}");
    assert!(hold["held_ms"].is_u64() && hold["waited_ms"].is_u64());
    assert_eq!(hold["lease"].as_str().map(str::len), Some(8), "a lease id is a secret");
    let notes: Vec<&str> =
        key["queue"].as_array().expect("a queue").iter().filter_map(|w| w["note"].as_str()).collect();
    assert_eq!(notes, ["number 1", "number 2", "number 3"]);
    holder.finish().is(0, "", "");
    for waiter in waiters {
        waiter.finish().is(0, "", "");
    }
}

fn only_held_keys_are_shown_unless_all_are_asked_for(store: &Store) {
    store.run(&["run", "app/free", "--", "true"]).is(0, "", "");
    store.run(&["status"]).is(1, "", "");
    let _one = store.hold("app/one");
    let _two = store.hold("web/two");
    let shown = |args: &[&str]| {
        let done = store.run(args);
        let keys = done.stdout.lines().skip(1).filter_map(|line| line.split_whitespace().next()).map(String::from);
        (done.status.code(), keys.collect::<Vec<_>>())
    };
    let strings = |keys: &[&str]| keys.iter().copied().map(String::from).collect::<Vec<_>>();
    assert_eq!(shown(&["status"]), (Some(0), strings(&["app/one", "web/two"])));
    assert_eq!(shown(&["status", "--prefix", "app/"]), (Some(0), strings(&["app/one"])));
    assert_eq!(shown(&["status", "--prefix", "app/", "--all"]), (Some(0), strings(&["app/free", "app/one"])));
    assert_eq!(shown(&["status", "app/free"]), (Some(1), strings(&["app/free"])));
    assert_eq!(shown(&["status", "app/free", "web/two"]), (Some(0), strings(&["app/free", "web/two"])));
}

fn nothing_that_others_wrote_reaches_the_terminal_raw(store: &Store) {
    let _holder = store.holding("k", &["--note", "\u{1b}]0;owned\u{7}\u{9b}2J\u{202e}"], "echo ready; cat >/dev/null");
    let shown = store.run(&["status"]).stdout;
    let busy = store.run(&["run", "-n", "k", "--", "true"]).stderr;
    let json = store.run(&["status", "--json"]).stdout;
    let read: serde_json::Value = serde_json::from_str(&json).expect("it is JSON");
    assert_eq!(read["keys"][0]["holders"][0]["note"], "\u{1b}]0;owned\u{7}\u{9b}2J\u{202e}", "nothing is lost");
    for text in [shown, busy, json] {
        assert!(text.contains("owned"), "{text:?}");
        assert!(text.chars().all(|c| c == '\n' || !c.is_control() && c != '\u{202e}'), "{text:?}");
    }
}

fn slots_and_shared_holders_are_told_apart(store: &Store) {
    let _reader = store.holding("s", &["-s"], "echo ready; cat >/dev/null");
    let _slot = store.holding("n", &["--slots", "3"], "echo ready; cat >/dev/null");
    let (shared, slot) = (store.status("s")["holders"][0].clone(), store.status("n")["holders"][0].clone());
    assert_eq!(shared["mode"], "shared");
    assert_eq!((&slot["mode"], &slot["slots"]), (&"slots".into(), &3.into()));
    let table = store.run(&["status"]).stdout;
    assert!(table.contains("shared") && table.contains("slot of 3"), "{table}");
}

fn looking_makes_nothing(store: &Store) {
    store.run(&["status"]).is(1, "", "");
    store.run(&["fence", "k"]).is(0, "0\n", "");
    assert!(store.is_untouched());
    store.run(&["run", "k", "--", "true"]).is(0, "", "");
    store.run(&["fence", "other"]).is(0, "0\n", "");
    assert!(store.keeps("k") && !store.keeps("other"));
}

/// The names of an object, sorted.
fn names(object: &serde_json::Value) -> Vec<&str> {
    let mut names: Vec<&str> = object.as_object().expect("an object").keys().map(String::as_str).collect();
    names.sort_unstable();
    names
}

fn the_names_in_the_json_are_those_that_programs_rely_on(store: &Store) {
    let _holder = store.holding("k", &["--slots", "1"], "echo ready; cat >/dev/null");
    let _waiter = store.waiting("k", &[], "true");
    let done = store.run(&["status", "--json"]);
    let status = assert_schema("status", &done.stdout);
    assert_eq!(names(&status), ["keys", "schema", "store"]);
    let key = &status["keys"][0];
    assert_eq!(names(key), ["fence", "held", "holders", "key", "queue"]);
    let who = ["host", "pid", "user", "program", "note", "lease", "mode", "since"];
    let with = |more: &[&'static str]| {
        let mut all = [&who[..], more].concat();
        all.sort_unstable();
        all
    };
    let hold =
        ["slots", "fence", "depth", "held_ms", "waited_ms", "until", "hold_until", "cooling", "revoked", "attended"];
    assert_eq!(names(&key["holders"][0]), with(&hold));
    assert_eq!(names(&key["queue"][0]), with(&["waiting_ms"]));
    assert_eq!(status["store"], store.identity());
}

fn nothing_is_an_empty_list_and_not_an_error(store: &Store) {
    for args in [&["status", "--json"][..], &["status", "--json", "--all"], &["status", "--json", "--prefix", "x"]] {
        let done = store.run(args);
        assert_eq!((done.status.code(), &*done.stderr), (Some(1), ""));
        let status = assert_schema("status", &done.stdout);
        assert_eq!((&status["schema"], &status["keys"]), (&1.into(), &serde_json::json!([])));
    }
    store.run(&["status", "-v"]).says(1, &["no key is held"]);
    let done = store.run(&["status", "--json", "never"]);
    let status: serde_json::Value = serde_json::from_str(&done.stdout).expect("it is JSON");
    assert_eq!((&status["keys"][0]["held"], &status["keys"][0]["fence"]), (&false.into(), &0.into()));
}

fn a_fence_rises_when_a_key_is_taken_and_when_it_is_given_back(store: &Store) {
    let fence = || store.run(&["fence", "k"]).stdout.trim().parse::<u64>().expect("a number");
    assert_eq!(fence(), 0);
    let mut last = 0;
    for _ in 0..3 {
        let mut holder = store.holding("k", &[], "echo ready; echo $DLOCK_FENCE; cat >/dev/null");
        let seen = holder.read_line().and_then(|line| line.parse::<u64>().ok()).expect("a number");
        assert!(seen > last && fence() == seen, "{last}, {seen}");
        holder.finish().is(0, "", "");
        last = fence();
        assert!(last > seen, "{seen}, {last}");
    }
}
