//! Whether a store can be trusted with locks: what the doctor says of any store, and what of directories. Each
//! finding is that of a store which was made so.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, chown, symlink};
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::directory::with_mounts;
use crate::support::schema::assert_schema;
use crate::support::terminal::Terminal;
use crate::support::{DLOCK, Done, Store, command, finish, on_every_store};
use crate::users::{ALICE, BOB, TEAM, as_user, is_root, mode, shared};

on_every_store![it_tells_how_fast_the_store_is_and_how_far_its_clock_is_from_ours, it_makes_nothing];

/// What `doctor --json` printed, and that its code and its findings go together.
#[track_caller]
pub(crate) fn read(done: &Done) -> Value {
    assert_eq!(done.stderr, "", "{done:#?}");
    let report = assert_schema("doctor", &done.stdout);
    let has = |severity: &str| {
        report["findings"].as_array().is_some_and(|all| all.iter().any(|one| one["severity"] == severity))
    };
    let code = done.status.code();
    assert!(has("error") || code == Some(i32::from(has("warning"))), "{done:#?}");
    assert!(!has("error") || code > Some(1), "{done:#?}");
    report
}

/// Checks that a store has just this wrong with it, and returns what `doctor --json` printed.
#[track_caller]
pub(crate) fn finds(done: &Done, severity: &str, words: &[&str]) -> Value {
    let report = read(done);
    let findings = report["findings"].as_array().expect("the schema says so");
    assert_eq!(findings.len(), 1, "{report:#}");
    assert_eq!(findings[0]["severity"], severity, "{report:#}");
    let what = findings[0]["what"].as_str().expect("the schema says so");
    assert!(words.iter().all(|word| what.contains(word)), "{words:?}: {what}");
    report
}

/// The doctor in a store.
fn doctor(store: &Store) -> Done {
    store.run(&["doctor", "--json"])
}

/// A store whose directory is there, on a disk.
fn used() -> Store {
    let store = Store::new();
    store.run(&["run", "k", "--", "true"]).is(0, "", "");
    store
}

fn it_tells_how_fast_the_store_is_and_how_far_its_clock_is_from_ours(store: &Store) {
    let report = read(&doctor(store));
    assert_eq!(report["reachable"], true);
    let [min, median, p99] =
        ["min", "median", "p99"].map(|name| report["latency_us"][name].as_u64().expect("a number"));
    assert!(min <= median && median <= p99, "{report:#}");
    // It is the clock of this machine.
    let [offset, bound] = ["clock_offset_ms", "clock_bound_ms"].map(|name| report[name].as_i64().expect("a number"));
    assert!(offset.abs() <= bound + 1, "{report:#}");
}

fn it_makes_nothing(store: &Store) {
    read(&doctor(store));
    store.run(&["doctor"]);
    assert!(store.is_untouched());
}

#[test]
fn each_setting_is_shown_with_who_decided_it() {
    let store = Store::new();
    let url = format!("file:{}", store.path("locks").display());
    fs::write(store.path("url"), &url).expect("a file");
    let file = store.path("url").display().to_string();
    let from = |command: &mut Command| {
        let report = read(&finish(command.args(["doctor", "--json"])));
        let from = |setting: &Value| {
            let [name, from] = ["name", "from"].map(|name| setting[name].as_str().expect("a text").to_owned());
            (name, from)
        };
        report["settings"].as_array().expect("a list").iter().map(from).collect::<BTreeMap<_, _>>()
    };
    let default = from(command(DLOCK).env("XDG_STATE_HOME", store.dir.path()));
    for name in ["store", "store_timeout", "ttl", "kill_after"] {
        assert_eq!(default[name], "default");
    }
    let config = store.path("config.toml");
    let text = format!("store = '{url}'\nttl = '1m'\nkill_after = '2s'\nstore_timeout = '3s'\n");
    fs::write(&config, text).expect("a file");
    let config = config.display().to_string();
    let configured = from(command(DLOCK).args(["--config", &config]));
    assert_eq!(configured["config"], "--config");
    for name in ["store", "store_timeout", "ttl", "kill_after"] {
        assert_eq!(configured[name], config);
    }
    assert_eq!(from(command(DLOCK).env("DLOCK_STORE", &url))["store"], "DLOCK_STORE");
    assert_eq!(from(command(DLOCK).env("DLOCK_STORE_FILE", &file))["store"], "DLOCK_STORE_FILE");
    assert_eq!(from(command(DLOCK).args(["--store-file", &file]))["store"], "--store-file");
    let flags = from(command(DLOCK).env("DLOCK_STORE", "file:/x").args(["-S", &url, "--store-timeout", "3s"]));
    assert_eq!((&*flags["store"], &*flags["store_timeout"]), ("--store", "--store-timeout"));
}

#[test]
fn a_directory_on_a_disk_is_sound() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory on a disk");
    let store = Store::new();
    let url = format!("file:{}", dir.path().join("locks").display());
    store.run(&["-S", &url, "run", "k", "--", "true"]).is(0, "", "");
    let done = store.run(&["-S", &url, "doctor"]);
    assert!(done.status.success() && done.stdout.ends_with("\n\nsound\n") && done.stderr.is_empty(), "{done:#?}");
    let report = read(&store.run(&["-S", &url, "doctor", "--json"]));
    assert_eq!(report["findings"], Value::Array(Vec::new()), "{report:#}");
    assert_eq!(report["facts"]["mode"], "0700");
}

#[test]
fn it_leaves_a_directory_and_its_files_as_they_are() {
    let store = used();
    let _holder = store.hold("held");
    let times = |path: &Path| {
        let found = fs::metadata(path).expect("it is there");
        (found.mtime(), found.mtime_nsec(), found.ctime(), found.ctime_nsec(), found.mode())
    };
    let all = [store.path("locks"), store.key_file("k"), store.key_file("held")];
    let before = all.each_ref().map(|path| times(path));
    read(&doctor(&store));
    assert_eq!(all.each_ref().map(|path| times(path)), before);
}

#[test]
fn a_directory_that_is_not_there_is_noted_and_not_made() {
    let store = Store::new();
    finds(&doctor(&store), "note", &["is not there yet"]);
    assert!(store.is_untouched());
}

#[test]
fn what_keeps_a_directory_from_being_used_is_a_finding_and_the_code_of_a_run() {
    let store = used();
    let locks = store.path("locks");
    let refused = |words: &str| {
        let done = doctor(&store);
        assert_eq!(done.status.code(), Some(73), "{done:#?}");
        let report = finds(&done, "error", &["locks'", words]);
        assert_eq!(report["error"], report["findings"][0]["what"]);
        let done = store.run(&["doctor"]);
        assert!(done.stdout.contains("\nerror: '") && done.stdout.ends_with("\n\n1 error\n"), "{done:#?}");
    };
    mode(&locks, 0o707);
    refused("anybody may write to it");
    mode(&locks, 0o770);
    refused("'chmod g+s'");
    mode(&locks, 0o700);
    fs::rename(&locks, store.path("elsewhere")).expect("it is ours");
    symlink("elsewhere", &locks).expect("a link");
    refused("symbolic link");
}

#[test]
fn a_file_system_in_memory_or_without_room_or_read_only_is_found() {
    let store = Store::new();
    let on = |options: &str, prepare: &str| {
        let script = format!(
            "mkdir -p m; mount -t tmpfs -o mode=700,{options} none m; {prepare}; exec \"$1\" doctor --json -S file:$PWD/m"
        );
        with_mounts(&store, &script)
    };
    let Some(done) = on("size=64m", ":") else { return };
    let report = finds(&done, "note", &["tmpfs"]);
    assert_eq!(report["facts"]["file_system"], "tmpfs");
    let both = |done: &Done, words: &[&str]| {
        let report = read(done);
        let [first, second] = &report["findings"].as_array().expect("a list")[..] else { panic!("{report:#}") };
        assert!(first["severity"] == "warning" && second["severity"] == "note", "{report:#}");
        let what = first["what"].as_str().expect("a text");
        assert!(words.iter().all(|word| what.contains(word)), "{report:#}");
    };
    for (options, prepare, words) in [
        ("size=8m", ":", "no more than 8192 KiB"),
        ("size=64m,nr_inodes=50", ":", "more files"),
        ("size=64m", "mount -o remount,ro m", "mounted read-only"),
    ] {
        both(&on(options, prepare).expect("the first one was mounted, too"), &[words]);
    }
}

#[test]
fn whom_else_a_directory_belongs_to_is_noted() {
    if !is_root() {
        return;
    }
    let store = shared();
    let report = read(&as_user(&store, ALICE, TEAM, &["doctor", "--json"]));
    assert_eq!(report["facts"]["group"], "gid 41100", "{report:#}");
    finds(&as_user(&store, ALICE, TEAM, &["doctor", "--json"]), "note", &["the group 'gid 41100' shares it"]);
    mode(&store.path("locks"), 0o700);
    finds(&doctor(&store), "note", &["belongs to uid 41001", "we are root"]);
}

#[test]
fn what_a_user_cannot_do_in_a_directory_is_found() {
    if !is_root() {
        return;
    }
    let as_alice = |store: &Store| as_user(store, ALICE, ALICE, &["doctor", "--json"]);
    let store = used();
    mode(&store.path("locks"), 0o755);
    let done = as_alice(&store);
    assert_eq!(done.status.code(), Some(73));
    finds(&done, "error", &["it belongs to uid 0"]);
    chown(store.path("locks"), Some(ALICE), Some(ALICE)).expect("we are root");
    mode(&store.path("locks"), 0o700);
    finds(&as_alice(&store), "warning", &["k.lock'", "permission denied"]);
    chown(store.key_file("k"), Some(ALICE), Some(ALICE)).expect("we are root");
    assert_eq!(read(&as_alice(&store))["findings"], Value::Array(Vec::new()));
    mode(&store.key_file("k"), 0o400);
    finds(&as_alice(&store), "warning", &["cannot write", "k.lock'"]);
    fs::copy(store.key_file("k"), store.key_file("other")).expect("a file");
    finds(&as_alice(&store), "warning", &["other.lock'", "1 more like that"]);
    fs::remove_file(store.key_file("other")).expect("it is ours");
    mode(&store.key_file("k"), 0o600);
    mode(&store.path("locks"), 0o500);
    finds(&as_alice(&store), "warning", &["cannot make files in it"]);
    fs::remove_dir_all(store.path("locks")).expect("it is ours");
    finds(&as_alice(&store), "warning", &["is not there, and we cannot make it", "permission denied"]);
}

#[test]
fn a_key_file_that_cannot_be_trusted_is_found() {
    if !is_root() {
        return;
    }
    let store = shared();
    store.run(&["run", "k", "--", "true"]).is(0, "", "");
    chown(store.key_file("k"), Some(BOB), Some(BOB)).expect("we are root");
    let done = as_user(&store, ALICE, TEAM, &["doctor"]);
    assert_eq!(done.status.code(), Some(1), "{done:#?}");
    assert!(done.stdout.contains("\nwarning: ") && done.stdout.contains("k.lock'"), "{done:#?}");
    assert!(done.stdout.ends_with("\n\n1 warning, 1 note\n"), "{done:#?}");
}

#[test]
fn on_a_terminal_it_is_wrapped_at_blanks_and_elsewhere_it_is_not() {
    let store = Store::new();
    fs::create_dir(store.path("locks")).expect("a folder");
    mode(&store.path("locks"), 0o777);
    let piped = store.run(&["doctor"]).stdout;
    assert!(piped.lines().any(|line| line.len() > 80), "{piped}");
    let mut terminal = Terminal::start_sized(&store, command(DLOCK).arg("doctor"), 40, 60);
    let screen = terminal.await_screen(|screen| screen.contains("1 error"));
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(words(&screen), words(&piped));
    let why: Vec<&str> = screen.lines().skip_while(|line| !line.starts_with("  why: ")).take(2).collect();
    assert!(why[1].starts_with("       ") && why.iter().all(|line| line.len() < 60), "{screen}");
}
