//! What a person sees at a terminal: the live line of one who waits, tables, a table that is watched.

use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};

use crate::support::terminal::Terminal;
use crate::support::{DLOCK, Running, Store, command, on_whole_stores};

on_whole_stores![
    who_waits_sees_who_holds_the_key_and_how_many_are_ahead,
    the_live_line_fits_a_narrow_terminal_and_one_that_is_made_narrow,
    the_live_line_is_gone_when_the_wait_is_over,
    nothing_is_drawn_where_it_is_not_wanted,
    what_others_wrote_is_harmless_on_a_terminal,
    with_verbose_a_wait_is_told_without_a_terminal,
    a_table_fits_the_terminal,
    a_table_that_is_watched_changes_with_what_it_shows,
    unlock_shows_the_holder_and_asks,
];

fn waits(store: &Store, columns: u16, args: &[&str]) -> Terminal {
    let mut dlock = command(DLOCK);
    Terminal::start_sized(store, dlock.args(args), 24, columns)
}

fn who_waits_sees_who_holds_the_key_and_how_many_are_ahead(store: &Store) {
    let holder = store.holding("deploy", &["--note", "build 41"], "echo ready; cat >/dev/null");
    let other = store.waiting("deploy", &[], "true");
    let mut terminal = waits(store, 120, &["run", "deploy", "--", "echo", "got it"]);
    let line = terminal.await_screen(|screen| screen.contains("waiting 1s"));
    let who = format!("pid {} (", holder.child.id());
    for part in ["dlock: waiting 1s for 'deploy', 1 ahead: held for ", &who, ") sh 'build 41'"] {
        assert!(line.contains(part), "{part:?} is not in {line}");
    }
    other.signal(Signal::SIGTERM);
    other.finish();
    terminal.await_screen(|screen| screen.contains("'deploy', next in line: held for "));
    holder.finish().is(0, "", "");
    assert!(terminal.ends().success());
    assert_eq!(terminal.screen(), "got it");
}

fn the_live_line_fits_a_narrow_terminal_and_one_that_is_made_narrow(store: &Store) {
    let _holder = store.holding("deploy/prod", &["--note", &"long ".repeat(30)], "echo ready; cat >/dev/null");
    let mut terminal = waits(store, 80, &["run", "deploy/prod", "--", "true"]);
    let one_row = |screen: &str| screen.lines().filter(|line| !line.is_empty()).count() == 1;
    let wide = terminal.await_screen(|screen| screen.contains("next in line: held for"));
    assert!(one_row(&wide) && !wide.contains("long"), "the note does not fit:\n{wide}");
    terminal.resize(24, 40);
    let narrow =
        terminal.await_screen(|screen| screen.lines().all(|line| line.chars().count() < 40) && one_row(screen));
    assert!(narrow.starts_with("dlock: waiting") && narrow.contains("'deploy/prod'"), "{narrow}");
    terminal.resize(24, 80);
    terminal.await_screen(|screen| screen.contains("held for") && one_row(screen));
}

fn the_live_line_is_gone_when_the_wait_is_over(store: &Store) {
    let holder = store.hold("k");
    // A signal, a limit, and the key itself.
    let mut terminal = waits(store, 80, &["run", "k", "--", "true"]);
    terminal.await_screen(|screen| screen.contains("waiting"));
    terminal.types("\u{3}");
    terminal.ends();
    assert!(matches!(&*terminal.screen(), "" | "^C"), "{}", terminal.screen());
    let mut terminal = waits(store, 160, &["run", "-w", "2s", "k", "--", "true"]);
    terminal.await_screen(|screen| screen.contains("waiting"));
    assert_eq!(terminal.ends().code(), Some(75));
    let screen = terminal.screen();
    assert!(screen.starts_with("dlock: 'k' is held by ") && screen.lines().count() == 1, "{screen}");
    let mut terminal = waits(store, 80, &["acquire", "k"]);
    terminal.await_screen(|screen| screen.contains("waiting"));
    holder.finish().is(0, "", "");
    assert!(terminal.ends().success());
    let screen = terminal.screen();
    assert!(screen.len() == 32 && screen.bytes().all(|byte| byte.is_ascii_hexdigit()), "{screen:?}");
}

fn nothing_is_drawn_where_it_is_not_wanted(store: &Store) {
    let holder = store.hold("k");
    let mut quiet = waits(store, 80, &["run", "-q", "k", "--", "true"]);
    let mut json = waits(store, 80, &["run", "--log-format", "json", "k", "--", "true"]);
    let mut dumb = Terminal::start(store, command(DLOCK).args(["run", "k", "--", "true"]).env("TERM", "dumb"));
    let mut plain = Terminal::start(store, command(DLOCK).args(["run", "k", "--", "true"]).env("NO_COLOR", "1"));
    store.await_waiting("k", 4);
    plain.await_screen(|screen| screen.contains("waiting 1s"));
    holder.finish().is(0, "", "");
    for terminal in [&mut quiet, &mut json, &mut dumb] {
        assert!(terminal.ends().success());
        assert_eq!(terminal.shown, "", "not even to be removed");
    }
    assert!(plain.ends().success());
    assert!(!plain.shown.contains("[1m"), "{:?}", plain.shown);
}

fn what_others_wrote_is_harmless_on_a_terminal(store: &Store) {
    let nasty = "\u{1b}[2J\u{1b}]0;owned\u{7}\u{9b}5A\u{202e}\r\n";
    let _holder = store.holding("k", &["--note", nasty], "echo ready; cat >/dev/null");
    let tricks = |shown: &str| {
        let ours = ["\u{1b}[J", "\u{1b}[1A", "\u{1b}[2A", "\u{1b}[1m", "\u{1b}[0m"];
        let rest = ours.iter().fold(shown.to_owned(), |text, ours| text.replace(ours, ""));
        rest.chars().any(|c| c.is_control() && !matches!(c, '\r' | '\n') || c == '\u{202e}')
    };
    let mut waiter = waits(store, 200, &["run", "k", "--", "true"]);
    waiter.await_screen(|screen| screen.contains("owned"));
    assert!(!tricks(&waiter.shown), "{:?}", waiter.shown);
    let mut status = waits(store, 200, &["status"]);
    status.ends();
    assert!(status.shown.contains("owned") && !tricks(&status.shown), "{:?}", status.shown);
    let mut watched = waits(store, 200, &["status", "--watch"]);
    watched.await_screen(|screen| screen.contains("owned"));
    assert!(!tricks(&watched.shown), "{:?}", watched.shown);
    watched.types("\u{3}");
    watched.ends();
}

fn with_verbose_a_wait_is_told_without_a_terminal(store: &Store) {
    let holder = store.holding("k", &["--note", "why"], "echo ready; cat >/dev/null");
    let silent = store.waiting("k", &[], "true");
    let mut waiter = store.dlock(&["run", "-v", "k", "--", "true"]).stderr(Stdio::piped()).spawn().expect("it starts");
    let mut words = std::io::BufReader::new(waiter.stderr.take().expect("stderr is piped"));
    let mut line = String::new();
    std::io::BufRead::read_line(&mut words, &mut line).expect("it says something");
    assert!(line.starts_with("dlock: waiting for 'k', 1 ahead: held for ") && line.ends_with(" sh 'why'\n"), "{line}");
    holder.finish().is(0, "", "");
    silent.finish().is(0, "", "");
    assert!(waiter.wait().expect("it ends").success());
}

fn a_table_fits_the_terminal(store: &Store) {
    let _holder = store.holding("deploy/prod", &["--note", "build 4711 of main"], "echo ready; cat >/dev/null");
    let _waiter = store.waiting("deploy/prod", &[], "true");
    let shown = |columns: u16| {
        let mut terminal = waits(store, columns, &["status"]);
        assert!(terminal.ends().success());
        let bold = terminal.emulator().cell(0, 0).is_some_and(vt100::Cell::bold);
        assert!(bold, "the header stands out");
        let screen = terminal.screen();
        assert_eq!(screen.lines().count(), 3, "{screen}");
        screen
    };
    for (columns, headers) in [
        (160, "KEY STATE FOR WHO LEFT PROGRAM NOTE LEASE FENCE"),
        (80, "KEY STATE FOR WHO LEFT PROGRAM NOTE LEASE"),
        (40, "KEY STATE FOR WHO"),
    ] {
        let screen = shown(columns);
        let header: Vec<&str> = screen.lines().next().unwrap_or_default().split_whitespace().collect();
        assert_eq!(header.join(" "), headers, "{screen}");
    }
}

fn a_table_that_is_watched_changes_with_what_it_shows(store: &Store) {
    let mut terminal = waits(store, 160, &["status", "--watch"]);
    terminal.await_screen(|screen| screen == "no key is held");
    let holder = store.hold("k");
    terminal.await_screen(|screen| screen.lines().count() == 2 && screen.contains("exclusive"));
    let waiter = store.waiting("k", &[], "echo ready; cat >/dev/null");
    terminal.await_screen(|screen| screen.lines().nth(2).is_some_and(|line| line.contains("waiting")));
    // The ages go on although nothing happens.
    terminal.await_screen(|screen| screen.lines().nth(1).is_some_and(|line| line.contains("exclusive  2s")));
    holder.finish().is(0, "", "");
    terminal.await_screen(|screen| screen.lines().count() == 2 && !screen.contains("waiting"));
    // Nobody writes anything when a holder is killed, or when a lease ends.
    kill(waiter.pid(), Signal::SIGKILL).expect("it runs");
    if !store.beats() {
        terminal.await_screen(|screen| screen == "no key is held");
    }
    store.run(&["acquire", "short", "--ttl", "1s"]);
    terminal.await_screen(|screen| screen.contains("short"));
    terminal.await_screen(|screen| !screen.contains("short"));
    terminal.types("\u{3}");
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&terminal.ends()), Some(Signal::SIGINT as i32));
}

fn unlock_shows_the_holder_and_asks(store: &Store) {
    let holder = store.holding("k", &["--note", "why"], "echo ready; cat >/dev/null");
    let mut asked = waits(store, 120, &["unlock", "k"]);
    let screen = asked.await_screen(|screen| screen.contains("stop and unlock it? [y/N]"));
    let who = format!("pid {} (", holder.child.id());
    assert!(
        screen.starts_with("dlock: 'k' is held by ") && screen.contains(&who) && screen.contains("'why'"),
        "{screen}"
    );
    asked.types("\n");
    assert_eq!(asked.ends().code(), Some(75), "who only presses Enter has not said yes");
    assert_eq!(store.status("k")["holders"][0]["revoked"], false);
    let mut asked = waits(store, 120, &["unlock", "k"]);
    asked.await_screen(|screen| screen.contains("[y/N]"));
    asked.types("y\n");
    assert!(asked.ends().success());
    holder.finish().says(76, &["'k' was unlocked by"]);
    let mut free = waits(store, 120, &["unlock", "k"]);
    assert_eq!(free.ends().code(), Some(1));
    assert_eq!(free.screen(), "dlock: 'k' is free");
}

mod watched_by_programs {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    use serde_json::Value;

    use super::{Duration, Running, Signal, Stdio, Store, kill};
    use crate::support::{on_every_store, through_a_pooler};

    on_every_store![
        each_change_is_an_object_of_a_line,
        what_comes_and_goes_at_once_is_told_by_its_events,
        only_what_was_asked_for_is_told,
        a_reader_that_has_gone_away_ends_it,
        one_whose_reader_does_not_read_ends_when_it_is_asked_to,
        many_keys_one_after_the_other_need_no_more_than_one,
    ];

    through_a_pooler![
        each_change_is_an_object_of_a_line,
        what_comes_and_goes_at_once_is_told_by_its_events,
        only_what_was_asked_for_is_told,
    ];

    fn next(watcher: &mut Running) -> Value {
        let line = watcher.read_line().expect("it goes on");
        serde_json::from_str(&line).expect("a line is an object")
    }

    /// Reads until a key is as it should be.
    fn await_key(watcher: &mut Running, key: &str, such: impl Fn(&Value) -> bool) -> Value {
        loop {
            let object = next(watcher);
            assert_eq!(object["schema"], 1);
            let keys = object["keys"].as_array().expect("a list");
            assert!(!keys.is_empty(), "nothing is no change");
            if let Some(key) = keys.iter().find(|seen| seen["key"] == key && such(seen)) {
                return key.clone();
            }
        }
    }

    fn each_change_is_an_object_of_a_line(store: &Store) {
        let mut watcher = Running::start(&mut store.dlock(&["status", "--watch", "--json"]));
        assert_eq!(next(&mut watcher)["keys"], serde_json::json!([]), "it begins with how it is");
        let holder = store.hold("k");
        let held = await_key(&mut watcher, "k", |key| key["held"] == true);
        assert_eq!(held["holders"][0]["pid"], holder.child.id());
        let waiter = store.waiting("k", &[], "true");
        await_key(&mut watcher, "k", |key| key["queue"].as_array().is_some_and(|queue| queue.len() == 1));
        holder.finish().is(0, "", "");
        waiter.finish().is(0, "", "");
        let free = await_key(&mut watcher, "k", |key| key["held"] == false && key["queue"] == serde_json::json!([]));
        assert_eq!(free["fence"].to_string(), store.run(&["fence", "k"]).stdout.trim());
        let id = store.run(&["acquire", "k", "--ttl", "600ms"]).stdout;
        await_key(&mut watcher, "k", |key| key["held"] == true);
        await_key(&mut watcher, "k", |key| key["held"] == false);
        drop(id);
        kill(watcher.pid(), Signal::SIGTERM).expect("it runs");
        let done = watcher.finish();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&done.status), Some(Signal::SIGTERM as i32));
        assert_eq!((&*done.stdout, &*done.stderr), ("", ""));
    }

    fn what_comes_and_goes_at_once_is_told_by_its_events(store: &Store) {
        store.run(&["run", "old", "--", "true"]).is(0, "", "");
        let mut watcher = Running::start(&mut store.dlock(&["status", "--watch", "--json"]));
        next(&mut watcher);
        let mut expected = Vec::new();
        for number in 0..10 {
            store.run(&["run", "k", "--", "sh", "-c", &format!("exit {number}")]);
            expected.extend([("granted".to_owned(), None), ("released".to_owned(), Some(number))]);
        }
        let mut told = Vec::new();
        while told.len() < expected.len() {
            for key in next(&mut watcher)["keys"].as_array().expect("a list") {
                assert_eq!(key["key"], "k", "nothing has become of the other one");
                for event in key["events"].as_array().expect("a list") {
                    told.push((event["event"].as_str().expect("a name").to_owned(), event["exit"].as_u64()));
                }
            }
        }
        assert_eq!(told, expected, "each once and in order");
    }

    fn only_what_was_asked_for_is_told(store: &Store) {
        let mut one = Running::start(&mut store.dlock(&["status", "--watch", "--json", "app/a"]));
        let mut some = Running::start(&mut store.dlock(&["status", "--watch", "--json", "--prefix", "app/"]));
        assert_eq!(next(&mut one)["keys"][0]["held"], false);
        assert_eq!(next(&mut some)["keys"], serde_json::json!([]));
        store.run(&["run", "web/c", "--", "true"]).is(0, "", "");
        let _b = store.hold("app/b");
        assert_eq!(next(&mut some)["keys"][0]["key"], "app/b");
        let _a = store.hold("app/a");
        assert_eq!(next(&mut one)["keys"][0]["key"], "app/a");
        // Of the other one there may be more to tell.
        loop {
            let told = next(&mut some)["keys"][0]["key"].clone();
            if told == "app/a" {
                break;
            }
            assert_eq!(told, "app/b");
        }
    }

    fn one_whose_reader_does_not_read_ends_when_it_is_asked_to(store: &Store) {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("it is ours");
        while nix::unistd::write(&writer, &[b' '; 4096]).is_ok() {}
        fcntl(&writer, FcntlArg::F_SETFL(OFlag::empty())).expect("it is ours");
        let mut watcher = store.dlock(&["status", "--watch", "--json"]);
        let mut watcher = watcher.stdin(Stdio::null()).stdout(writer).spawn().expect("it starts");
        let pid = nix::unistd::Pid::from_raw(watcher.id().cast_signed());
        let wchan = || std::fs::read_to_string(format!("/proc/{pid}/wchan")).unwrap_or_default();
        crate::support::wait_for("it writes", || wchan().contains("pipe_write"));
        kill(pid, Signal::SIGTERM).expect("it runs");
        let status = watcher.wait().expect("it ends");
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(Signal::SIGTERM as i32));
        drop(reader);
    }

    fn many_keys_one_after_the_other_need_no_more_than_one(store: &Store) {
        let _held = store.hold("held");
        let mut watcher = Running::start(&mut store.dlock(&["status", "--watch", "--json"]));
        next(&mut watcher);
        let count = |what: &str| std::fs::read_dir(format!("/proc/{}/{what}", watcher.pid())).expect("it runs").count();
        let (files, threads) = (count("fd"), count("task"));
        for number in 0..20 {
            // One whose name is that of its file, and one whose is too long.
            for key in [format!("k{number}"), "é".repeat(60) + &number.to_string()] {
                store.hold(&key).finish().is(0, "", "");
            }
        }
        crate::support::wait_for("it lets go", || count("fd") < files + 6 && count("task") < threads + 6);
    }

    fn a_reader_that_has_gone_away_ends_it(store: &Store) {
        let _holder = store.hold("k");
        let mut command = crate::support::command("bash");
        let script =
            format!("{} status --watch --json | head -n 1 >/dev/null; exit ${{PIPESTATUS[0]}}", crate::support::DLOCK);
        command.args(["-c", &script]).env("DLOCK_STORE", store.url());
        let start = std::time::Instant::now();
        crate::support::finish(&mut command).is(0, "", "");
        assert!(start.elapsed() < Duration::from_secs(10), "nothing changes, and still it ends");
    }
}

#[cfg(feature = "redis")]
mod without_a_server {
    use super::{Running, Store, waits};
    use crate::support::redis::{REDIS, Server};

    #[test]
    fn a_store_that_goes_away_while_it_is_watched_is_told_and_comes_back() {
        if !crate::support::has(REDIS) {
            return;
        }
        let mut store = Store::on(Server::start(REDIS, &[]));
        let _holder = store.holding("k", &["--ttl", "1h"], "echo ready; cat >/dev/null");
        let mut terminal = waits(&store, 120, &["status", "--watch", "--store-timeout", "30s"]);
        terminal.await_screen(|screen| screen.contains("exclusive"));
        store.server_mut().kill();
        let screen = terminal.await_screen(|screen| screen.contains("connection refused; trying for "));
        assert!(screen.contains("exclusive"), "what was seen stays:\n{screen}");
        store.server_mut().start_again();
        terminal.await_screen(|screen| screen == "no key is held");
        let _other = store.hold("other");
        terminal.await_screen(|screen| screen.contains("other"));
    }

    #[test]
    fn a_store_that_is_silent_is_told_of_although_nothing_is_to_be_asked() {
        if !crate::support::has(REDIS) {
            return;
        }
        let store = Store::on(Server::start(REDIS, &[]));
        let _holder = store.holding("k", &["--ttl", "1h"], "echo ready; cat >/dev/null");
        let mut terminal = waits(&store, 120, &["status", "--watch"]);
        terminal.await_screen(|screen| screen.contains("exclusive"));
        store.server().freeze();
        terminal.await_screen(|screen| screen.contains("did not answer in time; trying for "));
        store.server().thaw();
        terminal.await_screen(|screen| screen.starts_with("KEY") && screen.contains("exclusive"));
    }

    #[test]
    fn a_store_that_stays_away_ends_a_watch_with_69() {
        if !crate::support::has(REDIS) {
            return;
        }
        let mut store = Store::on(Server::start(REDIS, &[]));
        let mut watcher = Running::start(&mut store.dlock(&["status", "--watch", "--json", "--store-timeout", "2s"]));
        watcher.read_line().expect("it begins with how it is");
        store.server_mut().kill();
        let done = watcher.finish();
        assert_eq!((done.status.code(), &*done.stdout), (Some(69), ""));
        let words: Vec<&str> = done.stderr.lines().collect();
        assert!(words[0].ends_with("; trying again") && words[1].ends_with("; gave up after 2s"), "{words:?}");
        assert_eq!(words.len(), 2, "{words:?}");
    }
}
