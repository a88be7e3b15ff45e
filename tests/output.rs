//! Words of dlock's own on stderr: for people, or, with `--log-format json`, an object a line.

use std::process::Stdio;
use std::time::{Duration, SystemTime};

use serde_json::Value;

use crate::support::schema::assert_schema;
use crate::support::{Done, Store, finish};

/// The objects on stderr: level and message of each.
#[track_caller]
fn objects(done: &Done) -> Vec<(String, String)> {
    let object = |line: &str| {
        let object: Value = assert_schema("log", line);
        let time = humantime::parse_rfc3339(object["time"].as_str().expect("a time")).expect("a time");
        let age = SystemTime::now().duration_since(time).expect("it has passed");
        assert!(age < Duration::from_secs(60), "{line}");
        let text = |name: &str| object[name].as_str().expect("a text").to_owned();
        (text("level"), text("message"))
    };
    done.stderr.lines().map(object).collect()
}

/// Runs it with both formats: the same code, and with JSON the same words in objects of this level.
#[track_caller]
fn agree(store: &Store, code: i32, level: &str, args: &[&str]) {
    let with = |format: &[&str]| {
        let split = args.iter().position(|arg| *arg == "--").unwrap_or(args.len());
        let done = store.run(&[&args[..split], format, &args[split..]].concat());
        assert_eq!(done.status.code(), Some(code), "{args:?} {done:#?}");
        done
    };
    let text = with(&[]).stderr;
    for format in [&["--log-format", "json"][..], &["--log-format=json"]] {
        let objects = objects(&with(format));
        assert_eq!(objects.len(), text.lines().count(), "{objects:?} {text}");
        for ((said, message), line) in objects.iter().zip(text.lines()) {
            assert_eq!(said, level, "{message}");
            // The spans of time in them differ.
            let shape = |text: &str| -> String { text.chars().filter(|c| !c.is_ascii_digit()).collect() };
            let shapes = [shape(message), shape(line.strip_prefix("dlock: ").expect("all words begin so"))];
            let usage = code == 64 && message.contains("--log-format");
            assert!(usage || shapes[0].len().abs_diff(shapes[1].len()) <= 4, "{shapes:?}");
        }
    }
}

#[test]
fn with_json_each_line_is_an_object_whatever_happens() {
    let store = Store::new();
    let _holder = store.hold("held");
    let lost = format!("rm '{}'; exec sleep 60", store.key_file("k").display());
    let cases: [(i32, &str, &[&str]); 15] = [
        (64, "error", &["walk"]),
        (64, "error", &["run"]),
        (64, "error", &["run", "k", "true"]),
        (64, "error", &["run", "", "--", "true"]),
        (64, "error", &["run", "--fly", "k", "--", "true"]),
        (64, "error", &["run", "--ttl", "0", "k", "--", "true"]),
        (64, "error", &["-q", "-v", "status"]),
        (78, "error", &["status", "-S", "gopher:x"]),
        (73, "error", &["run", "-S", "file:/proc/none", "k", "--", "true"]),
        (75, "warn", &["run", "-n", "held", "--", "true"]),
        (75, "warn", &["run", "-w", "0.1", "held", "--", "true"]),
        (75, "warn", &["run", "--if-fence", "7", "free", "--", "true"]),
        (76, "error", &["run", "k", "--", "sh", "-c", &lost]),
        (124, "error", &["run", "--max-run", "0.1", "k", "--", "sleep", "60"]),
        (127, "error", &["run", "k", "--", "/none"]),
    ];
    for (code, level, args) in cases {
        agree(&store, code, level, args);
    }
    // Only to dlock is it a flag.
    let script = "echo said >&2; exit 3";
    store.run(&["run", "k", "--", "sh", "-c", script, "--log-format", "json"]).is(3, "", "said\n");
    store.run(&["run", "k", "--", "/none", "--log-format=json"]).says(127, &["/none"]);
    store.run(&["walk", "--", "--log-format=json"]).says(64, &["walk"]);
    store.run(&["status", "--log-format", "xml"]).says(64, &["'xml'", "text, json"]);
}

#[cfg(feature = "redis")]
#[test]
fn with_json_a_server_that_is_not_there_is_told_in_objects() {
    let store = Store::new();
    let url = format!("redis://:secret@{}:1", crate::support::redis::new_host());
    agree(&store, 69, "error", &["run", "-S", &url, "--store-timeout", "0.2", "k", "--", "true"]);
    let done = store.run(&["-v", "--log-format", "json", "status", "-S", &url, "--store-timeout", "0.2"]);
    let objects = objects(&done);
    assert!(objects.len() > 1 && objects[0].0 == "info", "{objects:?}");
    assert!(objects[0].1.contains("trying again") && !done.stderr.contains("secret"), "{objects:?}");
}

#[test]
fn quiet_and_verbose_mean_with_json_what_they_mean_in_text() {
    let store = Store::new();
    let _holder = store.hold("k");
    for format in ["text", "json"] {
        let run = |args: &[&str]| store.run(&[&["--log-format", format], args].concat());
        run(&["-q", "run", "-n", "k", "--", "true"]).is(75, "", "");
        run(&["-q", "run", "free", "--", "true"]).is(0, "", "");
        assert_eq!(run(&["-q", "run", "free", "--", "/none"]).stderr.lines().count(), 1);
        assert_eq!(run(&["run", "-w", "0.1", "k", "--", "true"]).stderr.lines().count(), 1);
        assert_eq!(run(&["-v", "run", "-w", "2s", "k", "--", "true"]).stderr.lines().count(), 2);
    }
    let done = store.run(&["--log-format", "json", "-v", "run", "-w", "2s", "k", "--", "true"]);
    let objects = objects(&done);
    assert_eq!(objects.iter().map(|(level, _)| &**level).collect::<Vec<_>>(), ["info", "warn"]);
    assert!(objects[0].1.starts_with("waiting for 'k', next in line: held for "), "{objects:?}");
}

#[test]
fn json_carries_any_text_and_shows_no_tricks() {
    let store = Store::new();
    let word = "a\u{1b}[31mb\nc\u{202e}d\"\\\u{e0041}é";
    for args in [&[word][..], &["run", "k", "--", word], &["status", "--store-file", word]] {
        let done = store.run(&[&["--log-format", "json"], args].concat());
        let objects = objects(&done);
        assert_eq!(objects.len(), 1, "{done:#?}");
        // The parser of arguments takes some out by itself.
        assert!(args[0] == word || objects[0].1.contains(word), "{done:#?}");
        let tricks = |c: char| c.is_control() || matches!(c, '\u{202e}' | '\u{e0041}');
        assert!(!done.stderr.trim_end().contains(tricks), "{done:#?}");
    }
}

#[test]
fn a_table_that_nobody_looks_at_is_not_cut() {
    let store = Store::new();
    let (key, note) = ("k".repeat(200), "東".repeat(300));
    let _holder = store.holding(&key, &["--note", &note], "echo ready; cat >/dev/null");
    let done = finish(store.dlock(&["status"]).env("TERM", "xterm").stdin(Stdio::null()));
    assert!(done.stdout.contains(&key) && done.stdout.contains(&note), "{done:#?}");
    assert!(!done.stdout.contains('\u{1b}'), "{done:#?}");
}
