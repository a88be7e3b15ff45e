//! One connection. Every step of it has an end in time, whatever the other side does: finding the address,
//! connecting, TLS, each write and each read.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::time::Duration;

use redis::{Cmd, Parser, Value, cmd};

use super::address::{Access, Endpoint};
use super::reply;
use super::trouble::Failure;
use crate::clock::Moment;
use crate::store::hurry::Hurry;
use crate::store::tls::{self, TlsConfig};
use crate::store::wire::{self, Stream, Wire};

/// How much memory the replies to one request may need. A record with 10,000 waiters takes some 12 MiB.
const LARGEST: usize = 64 << 20;

/// What the parser makes of a line, be it the shortest: without that, 64 MiB of nulls are a gigabyte. An array of one null, which
/// is two lines, takes some 350 bytes.
const OF_A_LINE: usize = 96;

/// A server counts in milliseconds, and the last one must be over.
const TICK: Duration = Duration::from_millis(3);

/// A connection that has been let in.
pub(super) struct Connection {
    /// To whom.
    pub(super) server: Endpoint,
    pub(super) stream: Stream,
    parser: Parser,
    /// How much memory the replies to the last request may still need.
    room: usize,
    /// The server tells us of things that we did not ask for.
    told: bool,
    /// What was read of that before the parser wanted it.
    ahead: VecDeque<u8>,
}

impl Connection {
    /// Connects, and does what the server wants to see before it takes commands.
    pub(super) fn open(
        server: &Endpoint,
        access: &Access,
        config: &TlsConfig,
        hurry: &Hurry,
        within: Duration,
    ) -> Result<Self, Failure> {
        let until = Moment::now().after(within);
        let wire = |socket| Wire { socket, until, hurry: hurry.clone() };
        let stream = match (server, &access.tls) {
            (Endpoint::Unix(_), _) | (_, None) => Stream::Plain(wire(server.connect(until).map_err(failure)?)),
            (Endpoint::Tcp(host, _), Some(tls)) => {
                let session = config.session(host, || tls::read(tls)).map_err(Failure::Settings)?;
                Stream::tls(session, wire(server.connect(until).map_err(failure)?))
            }
        };
        let (server, parser) = (server.clone(), Parser::new());
        let mut connection = Self { server, stream, parser, room: LARGEST, told: false, ahead: VecDeque::new() };
        connection.be_let_in(access, until)?;
        Ok(connection)
    }

    fn be_let_in(&mut self, access: &Access, until: Moment) -> Result<(), Failure> {
        let mut hello = Vec::new();
        match (&access.user, &access.password) {
            (Some(user), password) => hello.push(cmd("AUTH").arg(user).arg(password.as_deref().unwrap_or("")).take()),
            (None, Some(password)) => hello.push(cmd("AUTH").arg(password).take()),
            (None, None) => {}
        }
        if access.db != 0 {
            hello.push(cmd("SELECT").arg(access.db).take());
        }
        if access.masters_only {
            hello.push(cmd("ROLE"));
        }
        if hello.is_empty() {
            return Ok(());
        }
        let mut replies = self.ask(&hello, until.left())?;
        let refusal = replies.iter().position(|reply| matches!(reply, Value::ServerError(_)));
        if let Some(Value::ServerError(error)) = refusal.map(|at| replies.swap_remove(at)) {
            return Err(Failure::Server(error));
        }
        match replies.last() {
            Some(Value::Array(role)) if access.masters_only => match role.first().and_then(reply::text) {
                Some("master") => Ok(()),
                role => Err(Failure::Role(role.unwrap_or_default().to_owned())),
            },
            _ => Ok(()),
        }
    }

    /// Whether it can be used again: it ends while nobody asks when its server is restarted, and what can be read
    /// before anybody asks is such an end, or nothing that we asked for.
    pub(super) fn is_idle(&mut self) -> bool {
        !self.stream.wire().is_readable(Duration::ZERO)
    }

    /// Sends commands at once, and returns a reply for each; one of these may be a refusal.
    pub(super) fn ask(&mut self, commands: &[Cmd], within: Duration) -> Result<Vec<Value>, Failure> {
        self.send(commands, within)?;
        commands.iter().map(|_| self.receive()).collect()
    }

    /// Sends a command that the server answers after `span` if nothing happens before, and so much later at the
    /// latest. It looks for those whose time is over ten times a second, and whenever it hears from anybody: so
    /// it hears from us.
    pub(super) fn ask_to_wait(&mut self, command: Cmd, span: Duration, late: Duration) -> Result<Value, Failure> {
        let within = span + late;
        self.send(&[command], within)?;
        if !self.stream.wire().is_readable(span + TICK) {
            // An empty line is no command, and has no reply.
            self.write(b"\r\n").map_err(|error| self.failure(error))?;
        }
        self.receive()
    }

    /// Sends a command whose reply nobody will read, if there is room for it.
    pub(super) fn send_last(mut self, command: &Cmd) {
        let _ = self.send(std::slice::from_ref(command), Duration::from_millis(50));
    }

    /// The next message of a server that was told to send them; nothing if none begins within `span`. What has begun
    /// comes to its end `within` some time.
    pub(super) fn next(&mut self, span: Duration, within: Duration) -> Result<Option<Value>, Failure> {
        self.told = true;
        if self.ahead.is_empty() && !self.fill(span, within).map_err(|error| self.failure(error))? {
            return Ok(None);
        }
        self.room = LARGEST;
        self.stream.wire().until = Moment::now().after(within);
        self.receive().map(Some)
    }

    /// Reads what there is, so that nothing is left where no poll sees it: inside TLS, or in the parser.
    fn fill(&mut self, span: Duration, within: Duration) -> io::Result<bool> {
        let mut bytes = vec![0; 4096];
        // Without time, it is read what TLS has decrypted already.
        self.stream.wire().until = Moment::now();
        let read = match self.stream.read(&mut bytes) {
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                if !self.stream.wire().is_readable(span) {
                    return Ok(false);
                }
                self.stream.wire().until = Moment::now().after(within);
                self.stream.read(&mut bytes)?
            }
            read => read?,
        };
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.ahead.extend(&bytes[..read]);
        Ok(true)
    }

    pub(super) fn send(&mut self, commands: &[Cmd], within: Duration) -> Result<(), Failure> {
        self.stream.wire().until = Moment::now().after(within);
        self.room = LARGEST;
        let mut packed = Vec::new();
        for command in commands {
            command.write_packed_command(&mut packed);
        }
        self.write(&packed).map_err(|error| self.failure(error))
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)?;
        self.stream.flush()
    }

    /// The next reply to what was sent.
    fn receive(&mut self) -> Result<Value, Failure> {
        let Self { stream, parser, room, ahead, told, .. } = self;
        let mut reader = Reader { stream, room, ahead, told: *told, failed: None };
        let reply = parser.parse_value(&mut reader);
        let failed = reader.failed.take();
        reply.map_err(|_| failed.map_or(Failure::Garbage, |error| self.failure(error)))
    }

    fn failure(&self, error: io::Error) -> Failure {
        match (&self.stream, failure(error)) {
            (Stream::Tls(tls), Failure::Silent | Failure::Io(_)) if tls.conn.is_handshaking() => Failure::NoTls,
            (_, failure) => failure,
        }
    }
}

fn failure(error: io::Error) -> Failure {
    if wire::is_silence(&error) {
        return Failure::Silent;
    }
    match tls::inside(&error) {
        Some(error) => Failure::Tls(error.clone()),
        None => Failure::Io(error),
    }
}

/// What the parser reads from, which is not without end. It keeps the error that the parser makes into words.
struct Reader<'a> {
    stream: &'a mut Stream,
    /// How much more may come.
    room: &'a mut usize,
    ahead: &'a mut VecDeque<u8>,
    told: bool,
    failed: Option<io::Error>,
}

impl Read for Reader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // One at a time: what the parser takes and does not need yet would be where no poll sees it.
        let buffer = if self.told { &mut buffer[..1] } else { buffer };
        if !self.ahead.is_empty() {
            return self.ahead.read(buffer);
        }
        let read = self.stream.read(buffer);
        match &read {
            Ok(0) if !buffer.is_empty() => self.failed = Some(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => {
                let lines: usize = buffer[..*read].iter().map(|byte| usize::from(*byte == b'\n')).sum();
                *self.room = self.room.saturating_sub(read + lines * OF_A_LINE);
                if *self.room == 0 {
                    self.failed = Some(io::Error::other("its reply has no end"));
                    return Err(io::ErrorKind::Other.into());
                }
            }
            Err(error) => {
                let kind = error.kind();
                self.failed = Some(read.expect_err("it is one"));
                return Err(kind.into());
            }
        }
        read
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::thread;
    use std::time::Duration;

    use redis::{Parser, cmd};
    use socket2::Socket;

    use super::{Connection, Endpoint, Failure, Hurry, LARGEST, Stream, Wire};
    use crate::clock::Moment;

    #[test]
    fn many_small_values_without_end_are_no_more_than_a_large_one() {
        let (ours, mut theirs) = UnixStream::pair().expect("two sockets");
        let socket = Socket::from(OwnedFd::from(ours));
        let stream = Stream::Plain(Wire { socket, until: Moment::now(), hurry: Hurry::default() });
        let (server, parser) = (Endpoint::Unix("/".into()), Parser::new());
        let mut connection = Connection { server, stream, parser, room: LARGEST, told: false, ahead: <_>::default() };
        let server = thread::spawn(move || {
            let nulls = b"_\r\n".repeat(1000);
            let mut sent = theirs.write(b"*99999999999\r\n").expect("we listen");
            while let Ok(more) = theirs.write(&nulls) {
                sent += more;
            }
            sent
        });
        let answer = connection.ask(&[cmd("PING")], Duration::from_secs(60));
        assert!(matches!(&answer, Err(Failure::Io(error)) if error.to_string().contains("no end")), "{answer:?}");
        drop(connection);
        let sent = server.join().expect("it only writes");
        assert!(sent < LARGEST / 10, "a null of 3 bytes takes more: {sent}");
    }
}
