//! A terminal, and what a person sees on it.

use std::fs::File;
use std::io::{Read, Write};
use std::num::NonZero;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{Winsize, openpty};
use nix::unistd::{Pid, setsid};

use super::{Store, wait_for};

/// How long to wait for a terminal to show something, in milliseconds.
const PATIENCE_MS: u16 = 20_000;

/// A process that leads a session of its own on a terminal of its own.
pub(crate) struct Terminal {
    master: File,
    child: Child,
    /// What was written, since it was last asked for.
    pub(crate) shown: String,
    emulator: vt100::Parser,
}

impl Terminal {
    /// Starts a program that finds the store in its environment, on a terminal of 24 rows and 80 columns.
    pub(crate) fn start(store: &Store, program: &mut Command) -> Self {
        Self::start_sized(store, program, 24, 80)
    }

    /// The same, on a terminal of any size.
    #[expect(unsafe_code, reason = "only so can a child get a controlling terminal")]
    pub(crate) fn start_sized(store: &Store, program: &mut Command, rows: u16, columns: u16) -> Self {
        let pty = openpty(&size(rows, columns), None).expect("there are pseudo terminals");
        // Others start processes meanwhile, which are not to have them.
        for end in [&pty.master, &pty.slave] {
            fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).expect("it is ours");
        }
        let slave = || File::from(pty.slave.try_clone().expect("a descriptor"));
        program.stdin(slave()).stdout(slave()).stderr(slave());
        program.env("DLOCK_STORE", store.url());
        if !program.get_envs().any(|(name, _)| name == "TERM") {
            program.env("TERM", "xterm-256color");
        }
        if !program.get_envs().any(|(name, _)| name == "NO_COLOR") {
            program.env_remove("NO_COLOR");
        }
        // SAFETY: both are plain system calls.
        unsafe {
            program.pre_exec(|| {
                setsid()?;
                if libc::ioctl(0, libc::TIOCSCTTY, 0) == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
            });
        }
        let child = program.spawn().expect("it starts");
        Self { master: pty.master.into(), child, shown: String::new(), emulator: emulator(rows, columns) }
    }

    /// Types some text.
    pub(crate) fn types(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).expect("the terminal takes it");
    }

    /// Waits until it has shown `text`, and forgets what it showed before.
    #[track_caller]
    pub(crate) fn shows(&mut self, text: &str) {
        while !self.shown.contains(text) {
            assert!(self.read(PATIENCE_MS), "{text:?} is not in {:?}", self.shown);
        }
        let (_, rest) = self.shown.split_once(text).expect("it was found");
        self.shown = rest.to_owned();
    }

    /// What a person sees now: the rows, without blanks at the ends and empty ones below.
    pub(crate) fn screen(&mut self) -> String {
        while self.read(0) {}
        self.emulator.screen().contents()
    }

    /// The emulator, for what is more than text.
    pub(crate) fn emulator(&self) -> &vt100::Screen {
        self.emulator.screen()
    }

    /// Waits until what a person sees is such.
    #[track_caller]
    pub(crate) fn await_screen(&mut self, mut such: impl FnMut(&str) -> bool) -> String {
        let start = Instant::now();
        loop {
            let screen = self.screen();
            if such(&screen) {
                return screen;
            }
            // Something that is drawn again and again does not make it any better.
            let in_time = start.elapsed() < Duration::from_millis(PATIENCE_MS.into());
            assert!(in_time && self.read(PATIENCE_MS), "this does not come to be as it should:\n{screen}");
        }
    }

    /// Gives the terminal another size, and wraps what stands above the cursor anew, as most terminals do. Those in
    /// the foreground get SIGWINCH.
    #[expect(unsafe_code, reason = "nothing else resizes a terminal")]
    pub(crate) fn resize(&mut self, rows: u16, columns: u16) {
        self.screen();
        let (row, column) = self.emulator.screen().cursor_position();
        let text = self.emulator.screen().contents_between(0, 0, row, column);
        self.emulator = emulator(rows, columns);
        self.emulator.process(text.replace('\n', "\r\n").as_bytes());
        let size = size(rows, columns);
        // SAFETY: the descriptor is open, and the size is valid for reads.
        let done = unsafe { libc::ioctl(self.master.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
        assert_eq!(done, 0, "a terminal can be resized");
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Waits for the end of the program; what it wrote can be seen then.
    pub(crate) fn ends(&mut self) -> ExitStatus {
        let mut status = None;
        wait_for("the end of what runs in the terminal", || {
            // A terminal that nobody reads would hold it up.
            while self.read(0) {}
            status = self.child.try_wait().expect("it can be waited for");
            status.is_some()
        });
        self.screen();
        status.expect("it was waited for")
    }

    /// Reads what is there, waiting at most so many milliseconds; whether there was anything.
    fn read(&mut self, patience: u16) -> bool {
        let mut fds = [PollFd::new(self.master.as_fd(), PollFlags::POLLIN)];
        let ready = poll(&mut fds, PollTimeout::from(patience)).expect("poll works");
        let mut bytes = [0; 4096];
        // When the last one has closed the terminal, there is an error to read.
        let length = if ready > 0 { self.master.read(&mut bytes).unwrap_or(0) } else { 0 };
        self.shown.push_str(&String::from_utf8_lossy(&bytes[..length]));
        self.emulator.process(&bytes[..length]);
        length > 0
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

fn emulator(rows: u16, columns: u16) -> vt100::Parser {
    let size = |size| NonZero::new(size).expect("a terminal has rows and columns");
    vt100::Parser::new(size(rows), size(columns), 0)
}
