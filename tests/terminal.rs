//! In a terminal all is as without dlock: Ctrl-C, Ctrl-Z, reading, pipelines.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus};

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::openpty;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, setsid};

use crate::support::{DLOCK, Store, command, finish};

/// Says which signals it gets.
const LISTENER: &str =
    r#"$SIG{$_} = sub { syswrite STDOUT, "<$_[0]>" } for qw(INT USR1); syswrite STDOUT, "rea" . "dy"; sleep 1 while 1"#;

/// A process that leads a session of its own on a terminal of its own.
struct Terminal {
    master: File,
    child: Child,
    shown: String,
}

impl Terminal {
    #[expect(unsafe_code, reason = "only so can a child get a controlling terminal")]
    fn start(store: &Store, program: &mut Command) -> Self {
        let pty = openpty(None, None).expect("there are pseudo terminals");
        let slave = || File::from(pty.slave.try_clone().expect("a descriptor"));
        program.stdin(slave()).stdout(slave()).stderr(slave());
        program.env("DLOCK_STORE", format!("file:{}", store.path("locks").display()));
        // SAFETY: both are plain system calls.
        unsafe {
            program.pre_exec(|| {
                setsid()?;
                if libc::ioctl(0, libc::TIOCSCTTY, 0) == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
            });
        }
        let child = program.spawn().expect("it starts");
        Self { master: pty.master.into(), child, shown: String::new() }
    }

    fn types(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).expect("the terminal takes it");
    }

    /// Waits until it has shown `text`, and forgets what it showed before.
    #[track_caller]
    fn shows(&mut self, text: &str) {
        while !self.shown.contains(text) {
            let mut fds = [PollFd::new(self.master.as_fd(), PollFlags::POLLIN)];
            let ready = poll(&mut fds, PollTimeout::from(20_000_u16)).expect("poll works");
            let mut bytes = [0; 4096];
            let length = if ready > 0 { self.master.read(&mut bytes).unwrap_or(0) } else { 0 };
            assert!(length > 0, "{text:?} is not in {:?}", self.shown);
            self.shown.push_str(&String::from_utf8_lossy(&bytes[..length]));
        }
        let (_, rest) = self.shown.split_once(text).expect("it was found");
        self.shown = rest.to_owned();
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    fn ends(mut self) -> ExitStatus {
        self.child.wait().expect("it can be waited for")
    }
}

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
