//! What stdout and stderr lead to: a terminal, of which size, and how to write to it without being held up.

use std::env;
use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc::{O_NOCTTY, O_NONBLOCK};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{getpgrp, tcgetpgrp, write};
use terminal_size::{Height, Width, terminal_size_of};

/// How long text waits for room.
const PATIENCE: Duration = Duration::from_millis(200);

/// Where dlock writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// What was asked for.
    Stdout,
    /// Words of dlock's own.
    Stderr,
}

/// A terminal that understands how to move its cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Screen {
    /// Its width, in columns.
    pub columns: usize,
    /// Its height, in rows.
    pub rows: usize,
    /// Whether text may have colours and be bold.
    pub colours: bool,
}

impl Stream {
    fn handle(self) -> Box<dyn AsFd> {
        match self {
            Self::Stdout => Box::new(io::stdout()),
            Self::Stderr => Box::new(io::stderr()),
        }
    }

    fn is_terminal(self) -> bool {
        self.handle().as_fd().is_terminal()
    }

    /// Whether we are in the foreground of its terminal, so that what we draw is not drawn into what somebody
    /// types for others. Also if it is a terminal that knows no foreground of ours.
    pub(super) fn is_ours(self) -> bool {
        tcgetpgrp(self.handle().as_fd()).map_or(true, |front| front == getpgrp())
    }

    /// Writes `text`, if it can be in one piece. Gives up if for [`PATIENCE`] there is no room.
    ///
    /// # Errors
    /// If it cannot be written, or not all of it.
    pub(super) fn send(self, text: &str) -> io::Result<()> {
        let handle = self.handle();
        let own = self.is_terminal().then(|| unblocked(&*handle)).and_then(Result::ok);
        let fd = own.as_ref().map_or(handle.as_fd(), AsFd::as_fd);
        let mut rest = text.as_bytes();
        let mut until = Instant::now() + PATIENCE;
        while !rest.is_empty() {
            let left = until.saturating_duration_since(Instant::now());
            let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
            match poll(&mut [PollFd::new(fd, PollFlags::POLLOUT)], left) {
                Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
                Err(Errno::EINTR) => continue,
                result => result?,
            };
            match write(fd, rest) {
                Ok(written) => {
                    rest = &rest[written..];
                    until = Instant::now() + PATIENCE;
                }
                Err(Errno::EINTR | Errno::EAGAIN) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// The same terminal, opened once more. Only so can we write without blocking, and not make others write so
/// who have the same open file description.
fn unblocked(handle: &dyn AsFd) -> io::Result<File> {
    let path = format!("/proc/self/fd/{}", handle.as_fd().as_raw_fd());
    File::options().write(true).custom_flags(O_NONBLOCK | O_NOCTTY).open(path)
}

impl Screen {
    /// The terminal that a stream leads to; none if it leads to something else, or to a terminal that has no
    /// cursor to move (`TERM` is `dumb` or not set).
    #[must_use]
    pub fn of(stream: Stream) -> Option<Self> {
        let able = |term: &std::ffi::OsStr| !term.is_empty() && term != "dumb";
        if !stream.is_terminal() || !env::var_os("TERM").is_some_and(|term| able(&term)) {
            return None;
        }
        // A terminal that does not know its size has that of the first ones.
        let (Width(columns), Height(rows)) =
            terminal_size_of(stream.handle().as_fd()).unwrap_or((Width(80), Height(24)));
        // https://no-color.org
        let colours = env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Some(Self { columns: columns.into(), rows: rows.into(), colours })
    }

    /// The columns that a line may take and be sure not to wrap.
    #[must_use]
    pub fn room(&self) -> usize {
        self.columns.saturating_sub(1)
    }
}
