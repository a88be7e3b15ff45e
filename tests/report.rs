//! What a run reports of itself, whatever became of it.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::Value;

use crate::support::schema::assert_schema;
use crate::support::{DLOCK, Done, Running, Store, child_of, command, finish, is_alive, on_every_store, wait_for};

on_every_store![
    a_command_that_ran_is_reported_with_how_it_ended,
    one_who_did_not_get_the_key_reports_who_has_it,
    one_who_compared_in_vain_reports_that_it_was_busy,
    a_lost_lease_is_reported_also_if_the_command_goes_on,
    one_who_was_unlocked_reports_by_whom,
    a_command_that_ran_for_too_long_is_reported,
    a_signal_before_there_is_a_command_is_reported_before_dlock_dies_of_it,
    what_keeps_a_command_from_being_started_is_reported,
    a_run_that_cannot_report_does_not_begin,
    a_link_of_somebody_else_where_everybody_may_make_links_is_not_followed,
    a_killed_dlock_leaves_the_old_report_and_nothing_else,
];

/// Runs `dlock run` with a report, and returns both.
#[track_caller]
fn reported(store: &Store, args: &[&str]) -> (Done, Value) {
    let file = store.path("report.json");
    let before = SystemTime::now();
    let done = store.run(&[&["run", "--report", path(&file)], args].concat());
    let report = read(&file);
    let time = |name: &str| humantime::parse_rfc3339(report[name].as_str().expect("a time")).expect("a time");
    // They are told in whole milliseconds.
    let (started, ended) = (time("started"), time("ended"));
    assert!(
        before - Duration::from_millis(1) <= started && started <= ended && ended <= SystemTime::now(),
        "{report:#}"
    );
    let exits = (report["exit"].as_i64(), report["signal"].as_i64());
    let status = (done.status.code(), std::os::unix::process::ExitStatusExt::signal(&done.status));
    assert_eq!((status.0.map(i64::from), status.1.map(i64::from)), exits, "{report:#}");
    (done, report)
}

#[track_caller]
fn read(file: &Path) -> Value {
    let report = assert_schema("report", &fs::read_to_string(file).expect("there is a report"));
    let folder = fs::read_dir(file.parent().expect("a folder")).expect("it can be listed");
    let names = folder.map(|entry| entry.expect("it can be listed").file_name().to_string_lossy().into_owned());
    assert!(names.into_iter().all(|name| !name.starts_with(".dlock")), "a part of a report is left");
    report
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// The first line on stderr, without dlock's name before it.
fn said(done: &Done) -> &str {
    let line = done.stderr.lines().next().unwrap_or_default();
    line.strip_prefix("dlock: ").expect("it says something")
}

fn a_command_that_ran_is_reported_with_how_it_ended(store: &Store) {
    let script = "echo $DLOCK_LEASE $DLOCK_FENCE $PPID; exit 3";
    let (done, report) = reported(store, &["k", "--note", "the note", "--", "sh", "-c", script]);
    let words: Vec<&str> = done.stdout.split_whitespace().collect();
    assert_eq!((&report["outcome"], &report["error"]), (&"ran".into(), &Value::Null));
    assert_eq!((&report["key"], &report["store"]), (&"k".into(), &store.identity().into()));
    assert_eq!((report["lease"].as_str(), report["fence"].to_string()), (Some(&words[0][..8]), words[1].to_owned()));
    assert_eq!((&report["exit"], &report["command_exit"]), (&3.into(), &3.into()));
    assert_eq!((&report["program"], &report["note"]), (&"sh".into(), &"the note".into()));
    let history = store.run(&["history", "--json", "k"]).stdout;
    let history: Value = serde_json::from_str(&history).expect("it is JSON");
    for name in ["host", "pid", "user", "program", "note", "lease", "fence"] {
        assert_eq!(history["events"][0][name], report[name], "{name}");
    }
    let (done, report) = reported(store, &["k", "--", "sh", "-c", "kill -KILL $$"]);
    done.died_of(Signal::SIGKILL);
    assert_eq!((&report["outcome"], &report["signal"]), (&"ran".into(), &9.into()));
    assert_eq!((&report["command_signal"], &report["command_exit"]), (&9.into(), &Value::Null));
    let (_, report) = reported(store, &["k", "--", "sleep", "0.2"]);
    assert!(report["held_ms"].as_u64() >= Some(200), "{report:#}");
}

fn one_who_did_not_get_the_key_reports_who_has_it(store: &Store) {
    let holder = store.holding("k", &["--note", "mine"], "echo ready; cat >/dev/null");
    for (options, code) in [(&["-n"][..], 75), (&["-n", "-q", "-E", "0"], 0), (&["-w", "0.3"], 75)] {
        let (done, report) = reported(store, &[options, &["k", "--", "true"]].concat());
        assert_eq!((&report["outcome"], &report["exit"]), (&"busy".into(), &code.into()));
        let hold = &report["holders"][0];
        assert_eq!((&hold["pid"], &hold["note"]), (&holder.child.id().into(), &"mine".into()));
        assert_eq!((&report["lease"], &report["program"]), (&Value::Null, &"true".into()));
        assert_eq!(report["waited_ms"].as_u64() >= Some(300), options[0] == "-w", "{report:#}");
        if code == 75 {
            assert_eq!(report["error"], said(&done));
        }
    }
}

fn one_who_compared_in_vain_reports_that_it_was_busy(store: &Store) {
    let (done, report) = reported(store, &["k", "--if-fence", "7", "--", "true"]);
    assert_eq!((&report["outcome"], &report["exit"]), (&"busy".into(), &75.into()));
    assert_eq!((&report["error"], &report["holders"]), (&said(&done).into(), &Value::Null));
    let file = store.path("inner.json");
    let inner = [DLOCK, "run", "--report", path(&file), "--max-reentry", "0", "k", "--", "true"];
    assert_eq!(store.run(&[&["run", "k", "--"][..], &inner].concat()).status.code(), Some(75));
    assert_eq!(read(&file)["outcome"], "busy");
}

/// What makes a store forget who holds `k`.
fn loss(store: &Store) -> String {
    #[cfg(feature = "nats")]
    if store.url().starts_with("nats") {
        return store.bucket().loss("k");
    }
    #[cfg(feature = "etcd")]
    if store.url().starts_with("etcd") {
        return store.etcd().loss("k");
    }
    #[cfg(feature = "postgres")]
    if store.url().starts_with("postgres") {
        return store.place().loss("k");
    }
    #[cfg(feature = "redis")]
    if store.beats() {
        return store.loss("k");
    }
    format!("rm '{}'", store.key_file("k").display())
}

fn a_lost_lease_is_reported_also_if_the_command_goes_on(store: &Store) {
    let stopped = format!("{}; exec sleep 60", loss(store));
    let (done, report) = reported(store, &["k", "--ttl", "1500ms", "--", "sh", "-c", &stopped]);
    assert_eq!((&report["outcome"], &report["exit"]), (&"lost".into(), &76.into()));
    assert_eq!((&report["error"], &report["command_signal"]), (&said(&done).into(), &15.into()));
    let late = format!("{}; exit 3", loss(store));
    for options in [&[][..], &["--on-lost", "continue"]] {
        let (done, report) = reported(store, &[&["k"], options, &["--", "sh", "-c", &late]].concat());
        assert_eq!((&report["outcome"], &report["exit"]), (&"lost".into(), &76.into()), "{done:#?}");
        assert_eq!((&report["error"], &report["command_exit"]), (&said(&done).into(), &3.into()));
    }
}

fn one_who_was_unlocked_reports_by_whom(store: &Store) {
    let file = store.path("report.json");
    let holder =
        store.holding("k", &["--report", path(&file)], "trap 'exit 5' TERM; echo ready; while :; do sleep 0.05; done");
    store.await_listening(&holder);
    store.run(&["unlock", "k", "--yes"]).is(0, "", "");
    let done = holder.finish();
    let report = read(&file);
    assert_eq!((&report["outcome"], &report["exit"]), (&"revoked".into(), &76.into()));
    assert_eq!((&report["error"], &report["command_exit"]), (&said(&done).into(), &5.into()));
    assert!(report["error"].as_str().is_some_and(|error| error.contains("was unlocked by ")), "{report:#}");
}

fn a_command_that_ran_for_too_long_is_reported(store: &Store) {
    let (done, report) = reported(store, &["k", "--max-run", "0.1", "--", "sleep", "60"]);
    assert_eq!((&report["outcome"], &report["exit"]), (&"max-run".into(), &124.into()));
    assert_eq!((&report["error"], &report["command_signal"]), (&said(&done).into(), &15.into()));
}

fn a_signal_before_there_is_a_command_is_reported_before_dlock_dies_of_it(store: &Store) {
    let file = store.path("report.json");
    let holder = store.hold("k");
    let waiter = Running::start(&mut store.dlock(&["run", "k", "--report", path(&file), "--", "true"]));
    store.await_waiting("k", 1);
    waiter.signal(Signal::SIGTERM);
    waiter.finish().died_of(Signal::SIGTERM);
    let report = read(&file);
    assert_eq!((&report["outcome"], &report["signal"]), (&"signal".into(), &15.into()));
    assert_eq!((&report["lease"], report["waited_ms"].is_u64()), (&Value::Null, true));
    drop(holder);
    // With a command it is for that to decide.
    let script = "trap 'exit 4' TERM; echo ready; while :; do sleep 0.05; done";
    let run = store.holding("other", &["--report", path(&file)], script);
    run.signal(Signal::SIGTERM);
    assert_eq!(run.finish().status.code(), Some(4));
    assert_eq!((&read(&file)["outcome"], &read(&file)["exit"]), (&"ran".into(), &4.into()));
}

fn what_keeps_a_command_from_being_started_is_reported(store: &Store) {
    let cases: [(&[&str], i32, &str); 5] = [
        (&["", "--", "true"], 64, ""),
        (&["k", "--ttl", "1ms", "--", "true"], 64, "k"),
        (&["k", "--store-timeout", "0", "--", "true"], 64, "k"),
        (&["k", "-S", "gopher:x", "--", "true"], 78, "k"),
        (&["k", "-S", "file:/proc/none", "--", "true"], 73, "k"),
    ];
    for (args, code, key) in cases {
        let (done, report) = reported(store, args);
        assert_eq!((&report["outcome"], &report["exit"]), (&"error".into(), &code.into()));
        assert_eq!((&report["error"], &report["key"]), (&said(&done).into(), &key.into()));
        assert_eq!(
            (&report["store"], &report["waited_ms"], &report["lease"]),
            (&Value::Null, &Value::Null, &Value::Null)
        );
    }
    assert!(store.is_untouched());
    let (done, report) = reported(store, &["k", "--", "/none"]);
    assert_eq!((&report["outcome"], &report["exit"]), (&"error".into(), &127.into()));
    assert_eq!((&report["error"], report["lease"].is_string()), (&said(&done).into(), true));
}

fn a_link_of_somebody_else_where_everybody_may_make_links_is_not_followed(store: &Store) {
    if !(nix::unistd::geteuid().is_root() || crate::support::skipped("only root can make links of other users")) {
        return;
    }
    let (folder, target) = (store.path("tmp"), store.path("precious"));
    fs::create_dir(&folder).expect("a folder");
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o1777)).expect("it is ours");
    fs::write(&target, "precious").expect("a file");
    let link = folder.join("report");
    symlink(&target, &link).expect("a link");
    lchown(&link, Some(65534), None).expect("we are root");
    store.run(&["run", "k", "--report", path(&link), "--", "echo", "ran"]).says(73, &["permission denied"]);
    assert_eq!(fs::read_to_string(&target).expect("it is there"), "precious");
    lchown(&link, Some(0), None).expect("we are root");
    store.run(&["run", "k", "--report", path(&link), "--", "true"]).is(0, "", "");
    read(&target);
}

fn a_run_that_cannot_report_does_not_begin(store: &Store) {
    fs::write(store.path("file"), "").expect("a file");
    fs::create_dir(store.path("shut")).expect("a folder");
    let loops = store.path("loop");
    symlink(&loops, &loops).expect("a link");
    for name in ["none/report", "file/report", "shut", "loop"] {
        let name = store.path(name);
        let done = store.run(&["run", "k", "--report", path(&name), "--", "echo", "ran"]);
        done.says(73, &["cannot write the report", path(&name)]);
        assert_eq!(done.stdout, "");
    }
    store.run(&["run", "k", "--report", "", "--", "true"]).says(73, &["''"]);
    assert!(store.is_untouched());
}

fn a_killed_dlock_leaves_the_old_report_and_nothing_else(store: &Store) {
    let (_, before) = reported(store, &["k", "--note", "the old one", "--", "true"]);
    let file = store.path("report.json");
    let run = store.holding("k", &["--report", path(&file), "--ttl", "1s"], "echo ready; cat >/dev/null");
    let guardian = child_of(run.pid().as_raw());
    run.signal(Signal::SIGKILL);
    wait_for("the end of the guardian", || !is_alive(guardian));
    assert_eq!(read(&file), before);
}

#[test]
fn a_report_replaces_the_file_as_a_whole_and_what_a_link_leads_to() {
    let store = Store::new();
    let (file, link) = (store.path("report.json"), store.path("link"));
    fs::write(&file, "old").expect("a file");
    // Whoever has it open reads the old one to its end.
    let old = fs::File::open(&file).expect("it is there");
    symlink("report.json", store.path("inner")).expect("a link");
    symlink(store.path("inner"), &link).expect("a link");
    let report = |file: &std::path::Path| {
        let mut shell = command("sh");
        shell.args(["-c", "umask 027; exec \"$@\"", "sh", DLOCK, "run", "k", "--report", path(file), "--", "true"]);
        finish(shell.env("DLOCK_STORE", store.url())).is(0, "", "");
    };
    report(&link);
    assert_eq!(read(&file)["outcome"], "ran");
    assert_eq!(std::io::read_to_string(old).expect("it can be read"), "old");
    assert!(fs::symlink_metadata(&link).expect("it is there").is_symlink());
    let new = store.path("new.json");
    report(&new);
    let mode = fs::metadata(&new).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o640, "as the umask has it");
}

#[test]
fn a_link_to_nothing_is_where_the_report_is_made() {
    let store = Store::new();
    symlink("there.json", store.path("link")).expect("a link");
    let mut dlock = store.dlock(&["run", "k", "--report", "link", "--", "true"]);
    finish(dlock.current_dir(store.dir.path())).is(0, "", "");
    assert_eq!(read(&store.path("there.json"))["outcome"], "ran");
    assert!(fs::symlink_metadata(store.path("link")).expect("it is there").is_symlink());
}

#[test]
fn what_is_no_regular_file_is_written_to_once_and_never_replaced() {
    let store = Store::new();
    let fifo = store.path("fifo");
    mkfifo(&fifo, Mode::S_IRWXU).expect("a fifo");
    let reader = Running::start(command("cat").arg(&fifo));
    store.run(&["run", "k", "--report", path(&fifo), "--", "true"]).is(0, "", "");
    assert_eq!(assert_schema("report", &reader.finish().stdout)["outcome"], "ran");
    // Without a reader there is nobody to wait for.
    store.run(&["run", "k", "--report", path(&fifo), "--", "true"]).says(0, &["cannot write the report"]);
    store.run(&["run", "k", "--report", "/dev/full", "--", "true"]).says(0, &["cannot write the report", "no space"]);
    store.run(&["run", "k", "--report", "/dev/null", "--", "true"]).is(0, "", "");
    assert!(!fs::metadata("/dev/null").expect("it is there").is_file());
}

#[test]
fn a_stream_that_leads_to_a_file_is_added_to() {
    let store = Store::new();
    let log = store.path("log");
    for stream in ["/dev/stderr", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/2"] {
        fs::write(&log, "first\n").expect("a file");
        let inode = fs::metadata(&log).expect("it is there").ino();
        let file = fs::File::options().append(true).open(&log).expect("it is there");
        let mut dlock = store.dlock(&["run", "k", "--report", stream, "--", "sh", "-c", "echo second >&2"]);
        let both = file.try_clone().expect("a descriptor");
        let status = dlock.stdin(Stdio::null()).stdout(file).stderr(both).status().expect("it starts");
        assert!(status.success());
        let text = fs::read_to_string(&log).expect("it is there");
        // The guardian, which goes by the same way, adds none of its own.
        let report = text.strip_prefix("first\nsecond\n").expect("what was there before");
        assert_eq!(assert_schema("report", report)["outcome"], "ran");
        assert_eq!(fs::metadata(&log).expect("it is there").ino(), inode);
    }
}

#[test]
fn a_report_that_fails_at_the_end_changes_no_exit_code() {
    let store = Store::new();
    let folder = store.path("folder");
    fs::create_dir(&folder).expect("a folder");
    let script = format!("rm -r '{}'; exit 3", folder.display());
    let file = folder.join("report.json");
    let done = store.run(&["run", "k", "--report", path(&file), "-q", "--", "sh", "-c", &script]);
    done.says(3, &["cannot write the report", "no such file"]);
}

#[cfg(feature = "redis")]
mod on_redis {
    use serde_json::json;

    use super::{path, read, reported, said};
    use crate::support::redis::on_both;

    #[test]
    fn a_server_that_is_away_or_refuses_us_is_reported_without_the_password() {
        on_both(|store| {
            let (done, report) =
                reported(store, &["k", "-S", "redis://:hush@127.0.0.1:1", "--store-timeout", "100ms", "--", "true"]);
            assert_eq!((&report["outcome"], &report["exit"]), (&"unreachable".into(), &69.into()));
            assert_eq!((&report["error"], report["waited_ms"].as_u64() >= Some(100)), (&said(&done).into(), true));
            assert!(report["store"].as_str().is_some_and(|store| store.contains("127.0.0.1:1")), "{report:#}");
            assert!(!report.to_string().contains("hush"), "{report:#}");
            store.server().ask(&["ACL", "SETUSER", "guest", "on", ">hush", "~other:*"]);
            let url = store.url().replace("//", "//guest:hush@");
            let (done, report) = reported(store, &["k", "-S", &url, "--", "true"]);
            assert_eq!((&report["outcome"], &report["exit"]), (&"refused".into(), &77.into()));
            assert_eq!(report["error"], said(&done));
            assert!(!report.to_string().contains("hush"), "{report:#}");
        });
    }

    #[test]
    fn a_lease_that_cannot_be_renewed_is_reported_as_lost() {
        on_both(|store| {
            let file = store.path("report.json");
            let options = ["--ttl", "2s", "--report", path(&file)];
            let run = store.holding("k", &options, "echo ready; exec sleep 60");
            store.server().freeze();
            let done = run.finish();
            let report = read(&file);
            assert_eq!((&report["outcome"], &report["exit"]), (&json!("lost"), &json!(76)));
            assert!(report["error"].as_str().is_some_and(|error| done.stderr.contains(error)), "{report:#}");
            store.server().thaw();
        });
    }
}

#[test]
fn whoever_may_read_the_last_report_may_read_the_next_and_nobody_else() {
    let store = Store::new();
    let file = store.path("report.json");
    fs::write(&file, "").and_then(|()| fs::set_permissions(&file, fs::Permissions::from_mode(0o600))).expect("a file");
    store.run(&["run", "--report", path(&file), "k", "--", "true"]).is(0, "", "");
    assert_eq!(fs::metadata(&file).expect("the report").permissions().mode() & 0o777, 0o600);
    assert_eq!(assert_schema("report", &fs::read_to_string(&file).expect("the report"))["outcome"], "ran");
}
