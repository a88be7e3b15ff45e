//! What people read and what programs read, as a whole: kept in tests/snapshots/, with what differs from run to run
//! replaced. After a change that is meant, `INSTA_UPDATE=always cargo test snapshots::` writes them anew.

use std::fs;

use serde_json::Value;

use crate::support::schema::assert_schema;
use crate::support::terminal::Terminal;
use crate::support::{DLOCK, Running, Store, command, finish, on_every_store, on_whole_stores};

on_whole_stores![
    tables_of_keys,
    tables_on_terminals,
    keys_for_programs,
    changes_for_programs,
    words_about_a_key_that_is_taken,
    words_about_what_became_of_a_run,
    words_about_leases_that_scripts_hold,
    the_live_line,
    the_past_of_a_key,
    metrics_of_all_keys,
    reports_of_runs,
    words_of_a_guard,
];

on_every_store![what_the_doctor_says];

const NOTE: &str = "build 41 \u{1b}[2Jof main";

/// Compares with the snapshot of this name: one for stores whose leases go by time, and one for others, where they
/// differ; or one for each kind that is named.
macro_rules! is_as_kept {
    ($store:expr, $name:literal, $text:expr) => {
        is_as_kept!(@kind if $store.beats() { "timed" } else { "file" }, $name, $text)
    };
    (@kind $kind:expr, $name:literal, $text:expr) => {{
        let kind = $kind;
        insta::with_settings!({ snapshot_path => "snapshots", prepend_module_to_snapshot => false, omit_expression => true }, {
            insta::assert_snapshot!(format!("{}_{kind}", $name), $text);
        });
    }};
}

/// A key that is held with a note and waited for by one, and one that a script holds.
struct Scene {
    _holder: Running,
    _waiter: Running,
}

fn scene(store: &Store) -> Scene {
    let holder = store.holding("deploy/prod", &["--note", NOTE, "--ttl", "1h"], "echo ready; cat >/dev/null");
    let waiter = store.waiting("deploy/prod", &["--slots", "2"], "true");
    let script = format!("{DLOCK} acquire schema -s --ttl 2h --note 'by hand' >/dev/null; :");
    finish(command("sh").args(["-c", &script]).env("DLOCK_STORE", store.url())).is(0, "", "");
    store.run(&["run", "free", "--", "true"]).is(0, "", "");
    Scene { _holder: holder, _waiter: waiter }
}

/// What follows `start` in the text for as long as `such` holds, replaced.
fn mask(text: &str, start: &str, such: fn(char) -> bool, mask: &str) -> String {
    let mut parts = text.split(start);
    let mut masked = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        masked.push_str(start);
        let rest = part.trim_start_matches(such);
        // Not "lease any more", whose first letter is a digit, too.
        let is_word = rest.starts_with(|c: char| c.is_ascii_alphanumeric()) && rest.len() < part.len();
        masked.push_str(if is_word || rest.len() == part.len() { "" } else { mask });
        masked.push_str(if is_word { part } else { rest });
    }
    masked
}

/// Lines of dlock's own without hosts, numbers of processes, users, spans, leases, fences and places.
fn masked_line(store: &Store, line: &str) -> String {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").expect("Linux has it");
    let user = std::env::var("USER").ok().filter(|user| !user.is_empty());
    let line = line.replace(&format!("{} pid", host.trim()), "HOST pid");
    let line = mask(&line, "HOST pid ", |c| c.is_ascii_digit(), "PID");
    let line = mask(&line, "PID (", |c| c != ')', "USER");
    let line = user.map_or(line.clone(), |user| line.replace(&format!("({user})"), "(USER)"));
    let span = |c: char| c.is_ascii_alphanumeric() || c == ' ';
    let line = line
        .split("; ")
        .map(|part| match part.split_once("held for ") {
            Some((before, rest)) if rest.contains(" by HOST") => {
                let (_, by) = rest.split_once(" by HOST").expect("it contains it");
                format!("{before}held for SPAN by HOST{by}")
            }
            _ => part.to_owned(),
        })
        .collect::<Vec<_>>()
        .join("; ");
    let line = mask(&line, "' for ", span, "SPAN");
    let line = mask(&line, "(USER) for ", span, "SPAN");
    let line = mask(&line, "stays taken for ", |c| c.is_ascii_alphanumeric() || c == ' ', "SPAN ");
    let line = mask(&line, "lease ", |c| c.is_ascii_hexdigit(), "LEASE");
    let line = mask(&line, "fence ", |c| c.is_ascii_digit(), "FENCE");
    line.replace(&store.words(), "STORE").replace(&store.path("locks").display().to_string(), "STORE")
}

/// The cells of a table, with those replaced whose content differs from run to run.
fn masked_table(text: &str) -> String {
    const CHANGING: [&str; 8] = ["FOR", "LEFT", "WHO", "LEASE", "FENCE", "SINCE", "WAITED", "HELD"];
    let mut lines = text.lines();
    let header: Vec<char> = lines.next().unwrap_or_default().chars().collect();
    let starts: Vec<usize> =
        (0..header.len()).filter(|at| header[*at] != ' ' && (*at == 0 || header[at - 1] == ' ')).collect();
    let cells = |line: &str| -> Vec<String> {
        let chars: Vec<char> = line.chars().collect();
        let ends = starts.iter().skip(1).copied().chain([chars.len().max(header.len())]);
        let cut = |(start, end): (&usize, usize)| {
            let cell: String = chars.iter().skip(*start).take(end - start).collect();
            cell.trim_end().to_owned()
        };
        starts.iter().zip(ends).map(cut).collect()
    };
    let titles = cells(&header.iter().collect::<String>());
    let row = |line: &str| {
        let masked = cells(line).into_iter().zip(&titles).map(|(cell, title)| {
            let changes = CHANGING.contains(&&**title) && cell != "-";
            // Where a cell is cut depends on how wide the others are.
            let cut = cell.ends_with('…').then(|| cell.chars().take(4).chain(['…']).collect());
            if changes { title.to_lowercase() } else { cut.unwrap_or(cell) }
        });
        masked.collect::<Vec<_>>().join(" | ")
    };
    [titles.join(" | ")].into_iter().chain(lines.map(row)).collect::<Vec<_>>().join("\n")
}

/// The same JSON, with what differs from run to run replaced by its kind.
fn masked_json(value: &mut Value) {
    const CHANGING: [&str; 20] = [
        "pid",
        "host",
        "user",
        "lease",
        "fence",
        "since",
        "until",
        "hold_until",
        "at",
        "store",
        "held_ms",
        "waited_ms",
        "waiting_ms",
        "started",
        "ended",
        "exit_ms",
        "latency_us",
        "clock_offset_ms",
        "error",
        "time",
    ];
    match value {
        Value::Array(values) => values.iter_mut().for_each(masked_json),
        Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    Value::Array(_) | Value::Object(_) => masked_json(value),
                    Value::String(_) if CHANGING.contains(&&**name) => *value = format!("<{name}>").into(),
                    Value::Number(_) if CHANGING.contains(&&**name) => *value = format!("<{name}, a number>").into(),
                    _ => {}
                }
            }
        }
        _ => {}
    }
}

fn as_json(text: &str) -> String {
    let mut value: Value = serde_json::from_str(text).expect("it is JSON");
    masked_json(&mut value);
    format!("{value:#}")
}

fn tables_of_keys(store: &Store) {
    let _scene = scene(store);
    let shown = |args: &[&str]| masked_table(&store.run(args).stdout);
    is_as_kept!(store, "status", shown(&["status"]));
    is_as_kept!(store, "status_all", shown(&["status", "--all"]));
    is_as_kept!(store, "status_of_a_free_key", shown(&["status", "free"]));
}

fn tables_on_terminals(store: &Store) {
    let _scene = scene(store);
    let show = |columns: u16| {
        let mut terminal = Terminal::start_sized(store, command(DLOCK).arg("status"), 24, columns);
        assert!(terminal.ends().success());
        masked_table(&terminal.screen())
    };
    is_as_kept!(store, "status_at_80_columns", show(80));
    is_as_kept!(store, "status_at_40_columns", show(40));
    let mut terminal = Terminal::start_sized(store, command(DLOCK).args(["status", "--watch"]), 24, 80);
    let screen = terminal.await_screen(|screen| screen.lines().count() == 4);
    is_as_kept!(store, "status_watched_at_80_columns", masked_table(&screen));
    terminal.types("\u{3}");
    terminal.ends();
}

fn keys_for_programs(store: &Store) {
    let _scene = scene(store);
    let done = store.run(&["status", "--all", "--json"]);
    assert_schema("status", &done.stdout);
    is_as_kept!(store, "status_json", as_json(&done.stdout));
}

fn changes_for_programs(store: &Store) {
    let mut watcher = Running::start(&mut store.dlock(&["status", "--watch", "--json", "k"]));
    let mut lines = Vec::new();
    let mut next = |watcher: &mut Running| {
        let line = watcher.read_line().expect("it goes on");
        assert_schema("status", &line);
        lines.push(as_json(&line));
    };
    next(&mut watcher);
    let holder = store.hold("k");
    next(&mut watcher);
    holder.finish().is(0, "", "");
    next(&mut watcher);
    is_as_kept!(store, "status_watch_json", lines.join("\n"));
}

fn words_about_a_key_that_is_taken(store: &Store) {
    let _scene = scene(store);
    let say = |args: &[&str]| masked_line(store, &store.run(args).stderr);
    let said = [
        say(&["run", "-n", "deploy/prod", "--", "true"]),
        say(&["run", "-w", "0.2", "schema", "--", "true"]),
        say(&["run", "--if-fence", "1", "schema", "--", "true"]),
        say(&["unlock", "deploy/prod"]),
        say(&["unlock", "--lease", "00000000", "--yes", "schema"]),
        say(&["unlock", "--yes", "-v", "schema"]),
        say(&["unlock", "--yes", "schema"]),
    ];
    is_as_kept!(store, "words_about_a_taken_key", said.concat());
}

fn words_about_what_became_of_a_run(store: &Store) {
    let unlocked = store.hold("k");
    store.run(&["unlock", "--yes", "k"]).is(0, "", "");
    let forced = store.holding("k", &["--ttl", "1s"], "echo ready; exec sleep 1000");
    store.await_listening(&forced);
    store.run(&["unlock", "--yes", "--force", "k"]).is(0, "", "");
    let say = |args: &[&str]| store.run(args).stderr;
    let said = [
        unlocked.finish().stderr,
        forced.finish().stderr,
        say(&["run", "--max-run", "0.1", "k", "--", "sleep", "100"]),
        say(&["run", "k", "--", "/none"]),
        say(&["run", "k", "--", "/"]),
        say(&["run", "k", "--", DLOCK, "run", "--max-reentry", "0", "k", "--", "true"]),
        say(&["-v", "run", "k", "--", "true"]),
    ];
    is_as_kept!(store, "words_about_runs", masked_line(store, &said.concat()));
}

fn words_about_leases_that_scripts_hold(store: &Store) {
    let done = store.run(&["acquire", "--json", "--ttl", "1h", "k"]);
    is_as_kept!(store, "acquire_json", as_json(&done.stdout));
    let held = store.holding("r", &[], "echo ready; echo $DLOCK_LEASE; cat >/dev/null");
    let mut held = held;
    let id = held.read_line().expect("the lease id");
    let say = |args: &[&str]| masked_line(store, &store.run(args).stderr);
    let none = "0".repeat(32);
    let said =
        [say(&["release", "r", &id]), say(&["renew", "k", &none]), say(&["check", "k", &none]), say(&["check", "k"])];
    is_as_kept!(store, "words_about_leases", said.concat());
}

fn the_live_line(store: &Store) {
    let _scene = scene(store);
    let line = |columns: u16| {
        let mut terminal =
            Terminal::start_sized(store, command(DLOCK).args(["run", "deploy/prod", "--", "true"]), 24, columns);
        let screen = terminal.await_screen(|screen| screen.contains("waiting 1s"));
        terminal.types("\u{3}");
        terminal.ends();
        // How much of the holder there is room for depends on the digits of its number.
        let who = screen.find(" by ").map_or(screen.len(), |at| at + 4);
        masked_line(store, &format!("{}{}", &screen[..who], if who < screen.len() { "HOST pid 1 (root)" } else { "" }))
    };
    is_as_kept!(store, "waiting_at_120_columns", line(120));
    is_as_kept!(store, "waiting_at_80_columns", line(80));
    is_as_kept!(store, "waiting_at_40_columns", line(40));
}

fn the_past_of_a_key(store: &Store) {
    store.run(&["run", "--note", NOTE, "k", "--", "true"]).is(0, "", "");
    store.run(&["run", "k", "--", "sh", "-c", "exit 3"]);
    store.run(&["run", "k", "--", "sh", "-c", "kill -9 $$"]);
    let stopped = store.hold("k");
    store.run(&["unlock", "--yes", "k"]).is(0, "", "");
    stopped.finish();
    let _held = store.hold("k");
    let done = store.run(&["history", "--json", "k"]);
    assert_schema("history", &done.stdout);
    is_as_kept!(store, "history_json", as_json(&done.stdout));
    let masked = |text: &str| {
        let table = masked_table(text);
        mask(&table, "unlocked by ", |c| c != '|', "WHO ")
    };
    is_as_kept!(store, "history", masked(&store.run(&["history", "k"]).stdout));
    for columns in [80, 40] {
        let mut terminal = Terminal::start_sized(store, command(DLOCK).args(["history", "k"]), 24, columns);
        assert!(terminal.ends().success());
        let screen = masked(&terminal.screen());
        if columns == 80 {
            is_as_kept!(store, "history_at_80_columns", screen);
        } else {
            is_as_kept!(store, "history_at_40_columns", screen);
        }
    }
}

fn metrics_of_all_keys(store: &Store) {
    let _scene = scene(store);
    let text = store.run(&["metrics"]).stdout;
    let line = |line: &str| match line.rsplit_once(' ') {
        Some((name, value)) if name.contains("seconds{") || name.contains("fence{") => {
            format!("{name} {}", if value.contains('.') { "SECONDS" } else { "NUMBER" })
        }
        _ => line.to_owned(),
    };
    is_as_kept!(store, "metrics", text.lines().map(line).collect::<Vec<_>>().join("\n"));
}

fn reports_of_runs(store: &Store) {
    let file = store.path("report.json");
    let file = file.to_str().expect("a path in UTF-8");
    let report = || {
        let text = fs::read_to_string(file).expect("there is a report");
        assert_schema("report", &text);
        as_json(&text)
    };
    store.run(&["run", "--report", file, "--note", NOTE, "k", "--", "sh", "-c", "exit 3"]);
    let ran = report();
    let _holder = store.hold("k");
    store.run(&["run", "--report", file, "-n", "k", "--", "true"]);
    is_as_kept!(store, "reports", [ran, report()].join("\n"));
}

fn what_the_doctor_says(store: &Store) {
    store.run(&["run", "k", "--", "true"]).is(0, "", "");
    #[cfg(feature = "nats")]
    if store.url().starts_with("nats:") {
        store.bucket().await_copies();
    }
    let text = store.run(&["doctor"]).stdout;
    let (facts, findings) = text.split_once("\n\n").expect("facts and findings");
    let names = facts.lines().map(|line| line.split("  ").next().unwrap_or_default());
    // What there is to find in a directory depends on the machine.
    let findings = if store.beats() { findings } else { "" };
    #[cfg(feature = "postgres")]
    if store.is_pooled() {
        // What is noted of the pooler itself stands elsewhere.
        return assert!(findings.contains("a pooler stands before it"), "{findings}");
    }
    #[cfg(feature = "etcd")]
    if std::env::var_os("DLOCK_TEST_ETCD").is_some() && store.url().starts_with("etcd") {
        // Other versions and several members have other findings.
        return;
    }
    let kind = match store.url().split_once("://") {
        Some(("redis+sentinel", _)) => "sentinel",
        Some(("redis+cluster", _)) => "cluster",
        Some(("redis+ring", _)) => "ring",
        Some(("redis+quorum", _)) => "quorum",
        Some(("postgres", _)) => "postgres",
        #[cfg(feature = "nats")]
        Some(("nats", _)) => crate::support::nats::set_up().snapshots(),
        Some(("etcd", _)) => "etcd",
        Some(_) => "timed",
        None => "file",
    };
    is_as_kept!(@kind kind, "doctor", names.chain(["", findings]).collect::<Vec<_>>().join("\n"));
    let done = store.run(&["doctor", "--json"]);
    let mut report = assert_schema("doctor", &done.stdout);
    if !store.beats() {
        report["findings"] = Value::Array(Vec::new());
    }
    for name in ["facts", "latency_us"] {
        let values = report[name].as_object_mut().expect("an object").iter_mut();
        values.for_each(|(name, value)| *value = format!("<{name}>").into());
    }
    for setting in report["settings"].as_array_mut().expect("a list") {
        if setting["name"] == "store" {
            setting["value"] = "<store>".into();
        }
    }
    report["clock_bound_ms"] = "<clock_bound_ms, a number>".into();
    masked_json(&mut report);
    is_as_kept!(@kind kind, "doctor_json", format!("{report:#}"));
}

fn words_of_a_guard(store: &Store) {
    let directory = format!("file:{}", store.path("seen").display());
    let guard = |args: &[&str]| store.run(&[&["guard", "-S", &directory, "db"], args].concat()).stderr;
    let said = [
        guard(&["--fence", "7", "--", "true"]),
        guard(&["--fence", "5", "--", "true"]),
        guard(&["--fence", "0", "--", "true"]),
        guard(&["--", "true"]),
        guard(&["--fence", "7", "true"]),
    ];
    is_as_kept!(store, "words_of_a_guard", {
        let seen = store.path("seen").display().to_string();
        said.concat().replace(&directory, "DIRECTORY").replace(&seen, "DIRECTORY")
    });
}
