//! A connection as a stream of bytes, plain or with TLS. Each read and each write of it ends in time, whatever the other
//! side does.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustls::{ClientConnection, StreamOwned};
use socket2::Socket;

use super::hurry::Hurry;
use crate::clock::Moment;

/// What bytes come and go through.
pub(super) enum Stream {
    Plain(Wire),
    Tls(Box<StreamOwned<ClientConnection, Wire>>),
}

/// A socket whose reads and writes end in time.
pub(super) struct Wire {
    pub(super) socket: Socket,
    pub(super) until: Moment,
    /// Ends the waiting for what is to be read before that.
    pub(super) hurry: Hurry,
}

impl Stream {
    pub(super) fn tls(session: ClientConnection, wire: Wire) -> Self {
        Self::Tls(Box::new(StreamOwned::new(session, wire)))
    }

    pub(super) fn wire(&mut self) -> &mut Wire {
        match self {
            Self::Plain(wire) => wire,
            Self::Tls(stream) => &mut stream.sock,
        }
    }

    /// Whether others could hear what is said: it goes to an address that is not loopback.
    pub(super) fn is_from_outside(&mut self) -> bool {
        let peer = self.wire().socket.peer_addr().ok().and_then(|peer| peer.as_socket());
        peer.is_some_and(|peer| !peer.ip().to_canonical().is_loopback())
    }
}

#[cfg(any(feature = "etcd", feature = "nats", feature = "postgres"))]
impl Stream {
    /// Whether others could read what is said, too.
    pub(super) fn can_be_read(&mut self) -> bool {
        matches!(self, Self::Plain(_)) && self.is_from_outside()
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(wire) => wire.read(buffer),
            Self::Tls(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(wire) => wire.write(bytes),
            Self::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(wire) => wire.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}

/// A stream, and what was read of it and not used yet.
#[cfg(any(feature = "etcd", feature = "nats"))]
pub(super) struct Buffered {
    pub(super) stream: Stream,
    bytes: Vec<u8>,
    used: usize,
}

#[cfg(any(feature = "etcd", feature = "nats"))]
impl Buffered {
    pub(super) fn over(stream: Stream) -> Self {
        Self { stream, bytes: Vec::new(), used: 0 }
    }

    pub(super) fn write(&mut self, bytes: &[u8], until: Moment) -> io::Result<()> {
        self.stream.wire().until = until;
        self.stream.write_all(bytes)?;
        self.stream.flush()
    }

    pub(super) fn unused(&self) -> &[u8] {
        &self.bytes[self.used..]
    }

    /// Takes so many bytes as used.
    pub(super) fn advance(&mut self, length: usize) {
        self.used += length;
    }

    /// Reads until so many are unused.
    pub(super) fn fill_to(&mut self, length: usize, until: Moment) -> io::Result<()> {
        while self.unused().len() < length {
            self.fill(until)?;
        }
        Ok(())
    }

    /// Reads some more.
    pub(super) fn fill(&mut self, until: Moment) -> io::Result<()> {
        self.bytes.drain(..std::mem::take(&mut self.used));
        let mut bytes = [0; 16384];
        self.stream.wire().until = until;
        match self.stream.read(&mut bytes)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            read => {
                self.bytes.extend_from_slice(&bytes[..read]);
                Ok(())
            }
        }
    }
}

impl Wire {
    /// One that has so much time, and that nobody hurries.
    #[cfg(any(feature = "etcd", feature = "nats", feature = "postgres"))]
    pub(super) fn over(socket: Socket, until: Moment) -> Self {
        Self { socket, until, hurry: Hurry::default() }
    }

    /// Waits until there is something to read, or an end of it; no if there is nothing for `span`.
    pub(super) fn is_readable(&self, span: Duration) -> bool {
        self.is_readable_unless(None, span)
    }

    /// The same; no, too, once there is a hurry.
    fn is_readable_before_hurry(&self, span: Duration) -> bool {
        self.is_readable_unless(self.hurry.bell(), span)
    }

    fn is_readable_unless(&self, bell: Option<BorrowedFd>, span: Duration) -> bool {
        let until = Moment::now().after(span);
        let socket = PollFd::new(self.socket.as_fd(), PollFlags::POLLIN);
        let mut both: Vec<PollFd> =
            std::iter::once(socket).chain(bell.map(|b| PollFd::new(b, PollFlags::POLLIN))).collect();
        loop {
            // Rounded up: it counts in milliseconds, too.
            let left = until.left().as_micros().div_ceil(1000);
            let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            match poll(&mut both, left) {
                Ok(0) if until.left().is_zero() => return false,
                Ok(0) | Err(Errno::EINTR) => {}
                // What is wrong will be said by the read.
                Ok(_) | Err(_) => return both[0].any() != Some(false),
            }
        }
    }

    /// Does `work` until it is done, or the time is over. A signal is not its end.
    fn in_time(&mut self, mut work: impl FnMut(&mut Self, Option<Duration>) -> io::Result<usize>) -> io::Result<usize> {
        loop {
            let left = self.until.left();
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            // Less than a microsecond would be no limit at all.
            match work(self, Some(left.max(Duration::from_micros(1)))) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                done => return done,
            }
        }
    }
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.in_time(|wire, left| {
            if wire.hurry.bell().is_some() && !wire.is_readable_before_hurry(left.unwrap_or_default()) {
                return Err(io::ErrorKind::TimedOut.into());
            }
            wire.socket.set_read_timeout(left)?;
            wire.socket.read(buffer)
        })
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.in_time(|wire, left| {
            wire.socket.set_write_timeout(left)?;
            wire.socket.write(bytes)
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether it is over for a connection that is used: it was idle for long, or its server was restarted.
pub(super) fn is_end(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    [BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof].contains(&error.kind())
}

/// Whether time was over.
pub(super) fn is_silence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock)
}
