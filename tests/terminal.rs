//! In a terminal all is as without dlock: Ctrl-C, Ctrl-Z, reading, pipelines. What dlock shows fits it.

use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use nix::sys::signal::{Signal, kill};

use crate::support::terminal::Terminal;
use crate::support::{DLOCK, Store, command, finish};

/// Says which signals it gets.
const LISTENER: &str =
    r#"$SIG{$_} = sub { syswrite STDOUT, "<$_[0]>" } for qw(INT USR1); syswrite STDOUT, "rea" . "dy"; sleep 1 while 1"#;

#[test]
fn ctrl_c_reaches_the_command_once() {
    let store = Store::new();
    let mut terminal = Terminal::start(&store, command(DLOCK).args(["run", "k", "--", "perl", "-e", LISTENER]));
    terminal.shows("ready");
    for _ in 0..10 {
        terminal.types("\u{3}");
        terminal.shows("<INT>");
        // Passed on behind whatever dlock may have made of the INT.
        for _ in 0..2 {
            kill(terminal.pid(), Signal::SIGUSR1).expect("it runs");
            let before = terminal.shown.clone();
            terminal.shows("<USR1>");
            assert!(!before.contains("<INT>") && !terminal.shown.contains("<INT>"), "{before:?}");
        }
    }
    kill(terminal.pid(), Signal::SIGTERM).expect("it runs");
    assert_eq!(terminal.ends().signal(), Some(Signal::SIGTERM as i32));
}

#[test]
fn ctrl_c_ends_the_loop_of_a_script_as_without_dlock() {
    let store = Store::new();
    let script = format!("while :; do {DLOCK} run k -- sh -c 'echo rea''dy; exec sleep 1000'; done");
    let mut terminal = Terminal::start(&store, command("bash").args(["-c", &script]));
    terminal.shows("ready");
    terminal.types("\u{3}");
    assert_eq!(terminal.ends().signal(), Some(Signal::SIGINT as i32));
    store.run(&["run", "-n", "k", "--", "true"]).is(0, "", "");
}

#[test]
fn a_command_can_read_from_the_terminal_and_set_it() {
    let store = Store::new();
    let script = "stty raw -echo; stty sane; echo rea''dy; read x; echo got-$x";
    let mut terminal = Terminal::start(&store, command(DLOCK).args(["run", "k", "--", "sh", "-c", script]));
    terminal.shows("ready");
    terminal.types("words\n");
    terminal.shows("got-words");
    assert!(terminal.ends().success());
}

#[test]
fn a_command_hears_once_of_a_terminal_that_changes_its_size() {
    let store = Store::new();
    let listener = r#"$SIG{WINCH} = sub { print `stty size` }; $| = 1; print "rea" . "dy\n"; sleep 1 while 1"#;
    let mut terminal = Terminal::start(&store, command(DLOCK).args(["run", "k", "--", "perl", "-e", listener]));
    terminal.await_screen(|screen| screen == "ready");
    terminal.resize(10, 40);
    terminal.await_screen(|screen| screen == "ready\n10 40");
    terminal.resize(9, 4);
    terminal.await_screen(|screen| screen == "ready\n10 40\n9 4");
    kill(terminal.pid(), Signal::SIGTERM).expect("it runs");
    assert_eq!(terminal.ends().signal(), Some(Signal::SIGTERM as i32));
    assert_eq!(terminal.screen(), "ready\n10 40\n9 4");
}

#[test]
fn ctrl_z_stops_the_job_and_fg_and_bg_let_it_go_on() {
    let store = Store::new();
    let mut shell = command("bash");
    shell.args(["--norc", "--noprofile", "--noediting", "-i"]).env("PS1", "> ").env("HISTFILE", "/dev/null");
    let mut terminal = Terminal::start(&store, &mut shell);
    terminal.shows("> ");
    terminal.types(&format!("{DLOCK} run k -- sh -c 'echo rea''dy; while read x; do echo got-$x; done'\n"));
    terminal.shows("ready");
    for word in ["one", "two"] {
        terminal.types("\u{1a}");
        terminal.shows("Stopped");
        terminal.types("fg\n");
        terminal.types(&format!("{word}\n"));
        terminal.shows(&format!("got-{word}"));
    }
    terminal.types("\u{1a}");
    terminal.shows("Stopped");
    store.run(&["run", "-n", "k", "--", "true"]).says(75, &["'k' is held by"]);
    terminal.types("bg\n");
    // It reads in the background, so the terminal stops it again.
    terminal.types("until jobs -s | grep -q .; do sleep 0.05; done; jobs\n");
    terminal.shows("Stopped");
    terminal.types("fg\n");
    terminal.types("\u{4}");
    terminal.types("echo en''d\n");
    terminal.shows("end");
    terminal.types("exit\n");
    assert!(terminal.ends().success());
    store.run(&["run", "-n", "k", "--", "true"]).is(0, "", "");
}

#[test]
fn ctrl_z_stops_one_who_waits_and_fg_lets_it_wait_on() {
    let store = Store::new();
    let holder = store.hold("k");
    let mut shell = command("bash");
    shell.args(["--norc", "--noprofile", "--noediting", "-i"]).env("PS1", "> ").env("HISTFILE", "/dev/null");
    let mut terminal = Terminal::start(&store, &mut shell);
    terminal.shows("> ");
    terminal.types(&format!("{DLOCK} run k -- echo go''t\n"));
    store.await_waiting("k", 1);
    terminal.types("\u{1a}");
    terminal.shows("Stopped");
    terminal.types("fg\n");
    holder.finish().is(0, "", "");
    terminal.shows("got");
    terminal.types("exit\n");
    assert!(terminal.ends().success());
}

#[test]
fn pipelines_end_when_they_end_without_dlock() {
    let store = Store::new();
    let sh = |script: &str| {
        let url = format!("file:{}", store.path("locks").display());
        finish(command("bash").args(["-c", script, DLOCK]).env("DLOCK_STORE", url))
    };
    sh("yes | $0 run k -- head -1").is(0, "y\n", "");
    sh("$0 run k -- yes | head -1; exit ${PIPESTATUS[0]}").is(141, "y\n", "");
    sh("printf 'a\\nb\\n' | $0 run k -- cat | $0 run j -- tail -1").is(0, "b\n", "");
}

/// What `status` shows on a terminal of so many columns, with this in its environment.
fn status(store: &Store, columns: u16, environment: &[(&str, &str)]) -> (Terminal, String) {
    let mut dlock: Command = store.dlock(&["status"]);
    let mut terminal = Terminal::start_sized(store, dlock.envs(environment.to_vec()), 24, columns);
    assert!(terminal.ends().success());
    let screen = terminal.screen();
    (terminal, screen)
}

#[test]
fn nothing_stands_out_where_it_is_not_wanted() {
    let store = Store::new();
    let key = "deploy/production/europe/".repeat(5);
    let _holder = store.holding(&key, &["--note", &"東京".repeat(30)], "echo ready; cat >/dev/null");
    for columns in [120, 80, 40] {
        let (terminal, screen) = status(&store, columns, &[]);
        assert_eq!(screen.lines().count(), 2, "no line wraps:\n{screen}");
        assert!(screen.contains("exclusive") && screen.contains('…'), "{screen}");
        let bold = |row| terminal.emulator().cell(row, 0).is_some_and(vt100::Cell::bold);
        assert!(bold(0) && !bold(1), "{screen}");
    }
    let (terminal, screen) = status(&store, 80, &[("NO_COLOR", "1")]);
    assert!(screen.contains('…') && !terminal.shown.contains('\u{1b}'), "{screen}");
    let (terminal, screen) = status(&store, 80, &[("NO_COLOR", "")]);
    assert!(terminal.shown.contains("\u{1b}[1m"), "{screen}");
    // One that has no cursor to move is not drawn on.
    for term in ["dumb", ""] {
        let (terminal, screen) = status(&store, 80, &[("TERM", term)]);
        assert!(!terminal.shown.contains('\u{1b}') && terminal.shown.contains(&key), "{screen}");
    }
}

#[test]
fn a_terminal_that_is_held_with_ctrl_s_holds_nobody_up() {
    let store = Store::new();
    let _holder = store.hold("k");
    let script = format!("echo rea''dy; read x; {DLOCK} run -n k -- true; echo $? >code");
    let mut terminal = Terminal::start(&store, command("sh").args(["-c", &script]).current_dir(store.dir.path()));
    terminal.shows("ready");
    terminal.types("\u{13}\n");
    assert!(terminal.ends().success());
    assert_eq!(std::fs::read_to_string(store.path("code")).expect("it was written"), "75\n");
}
