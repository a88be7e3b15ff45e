//! One connection: statements with their answers, and what the server tells unasked. Every step of it has an end in time,
//! whatever the other side does. Statements have no names, so that a pooler may give each transaction to another server.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io::{self, Read as _, Write as _};
use std::time::Duration;

use bytes::BytesMut;
use fallible_iterator::FallibleIterator as _;
use postgres_protocol::IsNull;
use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend;

use super::address::Address;
use super::login;
use super::trouble::{Failure, Refusal, Said};
use crate::clock::Moment;
use crate::store::idle::Connected;
use crate::store::socket::Endpoint;
use crate::store::tls::TlsConfig;
use crate::store::wire::Stream;

/// How long the answer to one request may be. A record with 10,000 waiters has some 4 MiB.
const LARGEST: usize = 64 << 20;

/// How long the answer to all requests of one round trip may be: the records of very many keys.
const LARGEST_IN_ALL: usize = 512 << 20;

/// How many messages are kept for whoever listens. Who has so many has to look anyway.
const MOST_NOTES: usize = 10_000;

/// What a server says of a session that is in no transaction.
const IDLE: u8 = b'I';

/// A connection that has been let in.
pub(super) struct Connection {
    /// To whom.
    pub(super) server: Endpoint,
    pub(super) stream: Stream,
    buffer: BytesMut,
    /// In which state the session is: idle, in a transaction, in a failed one.
    state: u8,
    /// What the server said of itself.
    pub(super) parameters: HashMap<String, String>,
    /// The number of the process that serves us, or of what a pooler takes for it.
    pub(super) process: i32,
    /// Whether that is the one that works for us, if it is known.
    is_direct: Option<bool>,
    /// On which channels it was told to listen.
    pub(super) channels: BTreeSet<String>,
    heard: VecDeque<Note>,
}

/// Something that the server tells unasked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Note {
    pub(super) channel: String,
    pub(super) words: String,
}

/// A statement, and the values in it as text.
pub(super) struct Statement<'a> {
    text: &'a str,
    values: Vec<String>,
}

/// The rows that a statement gave, as text, and what the server says it did.
#[derive(Debug, Default)]
pub(super) struct Done {
    pub(super) rows: Vec<Vec<Option<String>>>,
    pub(super) tag: String,
}

impl Done {
    /// A value of the first row.
    pub(super) fn value(&self, column: usize) -> Option<&str> {
        self.rows.first()?.get(column)?.as_deref()
    }

    /// How many rows were changed.
    pub(super) fn changed(&self) -> u64 {
        self.tag.rsplit(' ').next().and_then(|count| count.parse().ok()).unwrap_or(0)
    }
}

/// A statement without values.
pub(super) fn plain(text: &str) -> Statement<'_> {
    Statement { text, values: Vec::new() }
}

/// A statement with the values for `$1`, `$2` …
pub(super) fn with<const N: usize>(text: &str, values: [String; N]) -> Statement<'_> {
    Statement { text, values: values.into() }
}

impl Connection {
    /// Connects to the first server that lets us in, and that takes locks.
    pub(super) fn open(address: &Address, config: &TlsConfig, until: Moment) -> Result<Self, Failure> {
        let mut failed = None;
        for (at, server) in address.hosts.iter().enumerate() {
            // One that is silent leaves time for the others.
            let share = until.left() / u32::try_from(address.hosts.len() - at).unwrap_or(u32::MAX);
            let opened = Self::open_at(server, address, config, Moment::now().after(share));
            match opened.map_err(|failure| failure.by(server)) {
                Ok(connection) => return Ok(connection),
                // What is wrong with a login matters more than that another one is a standby, or away.
                Err(failure) if failed.is_none() || !failure.code().is_empty() => failed = Some(failure),
                Err(_) => {}
            }
        }
        Err(failed.unwrap_or(Failure::Silent).before())
    }

    fn open_at(server: &Endpoint, address: &Address, config: &TlsConfig, until: Moment) -> Result<Self, Failure> {
        let mut connection = login::connect(server, address, config, until)?;
        if address.primary {
            let standby = connection.ask(&[plain("SELECT pg_is_in_recovery()")], until)?;
            if standby.first().and_then(|done| done.value(0)) == Some("t") {
                return Err(Failure::Said(Said::Standby));
            }
        }
        Ok(connection)
    }

    /// One over this stream, before it was let in.
    pub(super) fn over(server: &Endpoint, stream: Stream) -> Self {
        Self {
            server: server.clone(),
            stream,
            buffer: BytesMut::new(),
            state: IDLE,
            parameters: HashMap::new(),
            process: 0,
            is_direct: None,
            channels: BTreeSet::new(),
            heard: VecDeque::new(),
        }
    }

    /// Does statements in one round trip, and returns what each gave. If one is refused, those behind it are not done.
    pub(super) fn ask(&mut self, statements: &[Statement], until: Moment) -> Result<Vec<Done>, Failure> {
        self.send(statements, until)?;
        let mut done = Vec::with_capacity(statements.len());
        let mut current = Done::default();
        let mut refused = None;
        let mut size = 0;
        loop {
            match self.receive(until) {
                Ok(Message::DataRow(row)) => {
                    let bytes = row.buffer();
                    size += bytes.len();
                    if size > LARGEST_IN_ALL {
                        self.state = 0;
                        return Err(Failure::Garbage);
                    }
                    let text = |range: Option<std::ops::Range<usize>>| {
                        range.map(|range| String::from_utf8_lossy(&bytes[range]).into_owned())
                    };
                    let cells = row.ranges().map(|range| Ok(text(range))).collect();
                    current.rows.push(cells.map_err(|_| Failure::Garbage)?);
                }
                Ok(Message::CommandComplete(body)) => {
                    body.tag().map_err(|_| Failure::Garbage)?.clone_into(&mut current.tag);
                    done.push(std::mem::take(&mut current));
                }
                Ok(Message::EmptyQueryResponse) => done.push(std::mem::take(&mut current)),
                Ok(Message::ErrorResponse(body)) => refused = Some(Refusal::read(&body)),
                Ok(Message::ReadyForQuery(body)) => {
                    self.state = body.status();
                    break;
                }
                Ok(_) => {}
                // All was done, or it was refused, and then it hung up.
                Err(_) if done.len() == statements.len() || refused.is_some() => {
                    self.state = 0;
                    break;
                }
                Err(failure) => {
                    self.state = 0;
                    return Err(failure);
                }
            }
        }
        match refused {
            Some(refusal) if done.len() < statements.len() => Err(refusal.into()),
            Some(_) => {
                self.state = 0;
                Ok(done)
            }
            None if done.len() == statements.len() => Ok(done),
            None => Err(Failure::Garbage),
        }
    }

    /// Whether nobody stands between us and the server who would give us one session after the other.
    pub(super) fn is_direct(&mut self, until: Moment) -> Result<bool, Failure> {
        if self.is_direct.is_none() {
            let done = self.ask(&[plain("SELECT pg_backend_pid()")], until)?;
            self.served_by(done.first().and_then(|done| done.value(0)));
        }
        Ok(self.is_direct == Some(true))
    }

    /// This process works for us.
    pub(super) fn served_by(&mut self, process: Option<&str>) {
        self.is_direct = Some(process.and_then(|process| process.parse().ok()) == Some(self.process));
    }

    /// Sends statements whose answers nobody will read, if there is room for them.
    pub(super) fn send_last(mut self, statements: &[Statement]) {
        let _ = self.send(statements, Moment::now().after(Duration::from_millis(50)));
    }

    fn send(&mut self, statements: &[Statement], until: Moment) -> Result<(), Failure> {
        let mut bytes = BytesMut::new();
        for Statement { text, values } in statements {
            frontend::parse("", text, None, &mut bytes).map_err(Failure::Io)?;
            let write = |value: &String, bytes: &mut BytesMut| {
                bytes.extend_from_slice(value.as_bytes());
                Ok(IsNull::No)
            };
            if frontend::bind("", "", None, values, write, None, &mut bytes).is_err() {
                return Err(Failure::Odd("a value for it is too long".into()));
            }
            frontend::execute("", 0, &mut bytes).map_err(Failure::Io)?;
        }
        frontend::sync(&mut bytes);
        self.write(&bytes, until)
    }

    pub(super) fn write(&mut self, bytes: &[u8], until: Moment) -> Result<(), Failure> {
        self.stream.wire().until = until;
        Ok(self.stream.write_all(bytes).and_then(|()| self.stream.flush())?)
    }

    /// The next message that belongs to what was asked.
    pub(super) fn receive(&mut self, until: Moment) -> Result<Message, Failure> {
        loop {
            let message = self.next_message(until)?;
            if let Some(answer) = self.heed(message)? {
                return Ok(answer);
            }
        }
    }

    /// Keeps what the server tells unasked; what it was asked for is returned.
    fn heed(&mut self, message: Message) -> Result<Option<Message>, Failure> {
        match message {
            Message::NotificationResponse(body) => {
                let (Ok(channel), Ok(words)) = (body.channel(), body.message()) else { return Err(Failure::Garbage) };
                if self.heard.len() < MOST_NOTES {
                    self.heard.push_back(Note { channel: channel.to_owned(), words: words.to_owned() });
                }
            }
            Message::ParameterStatus(body) => {
                let (Ok(name), Ok(value)) = (body.name(), body.value()) else { return Err(Failure::Garbage) };
                if self.parameters.len() < MOST_NOTES {
                    self.parameters.insert(name.to_owned(), value.to_owned());
                }
            }
            Message::NoticeResponse(_) => {}
            answer => return Ok(Some(answer)),
        }
        Ok(None)
    }

    fn next_message(&mut self, until: Moment) -> Result<Message, Failure> {
        loop {
            match Message::parse(&mut self.buffer) {
                Ok(Some(message)) => return Ok(message),
                Ok(None) if self.buffer.len() > LARGEST => return Err(Failure::Garbage),
                Ok(None) => self.fill(until)?,
                Err(_) => return Err(Failure::Garbage),
            }
        }
    }

    fn fill(&mut self, until: Moment) -> Result<(), Failure> {
        let mut bytes = [0; 8192];
        self.stream.wire().until = until;
        match self.stream.read(&mut bytes)? {
            0 => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            read => {
                self.buffer.extend_from_slice(&bytes[..read]);
                Ok(())
            }
        }
    }

    /// The next thing that the server tells unasked; nothing if there is none before that moment.
    pub(super) fn next_note(&mut self, until: Moment) -> Result<Option<Note>, Failure> {
        loop {
            if let Some(note) = self.heard.pop_front() {
                return Ok(Some(note));
            }
            // Without time nothing at all would be read, not even what is there.
            let at_least = Moment::now().after(Duration::from_millis(1));
            let message = match self.next_message(until.max(at_least)) {
                Err(failure) if failure.is_silence() => return Ok(None),
                message => message?,
            };
            match self.heed(message)? {
                None => {}
                Some(Message::ErrorResponse(body)) => return Err(Refusal::read(&body).into()),
                Some(_) => return Err(Failure::Garbage),
            }
        }
    }

    /// Ends a transaction that failed. Whether it can be used again.
    pub(super) fn roll_back(&mut self, until: Moment) -> bool {
        self.state == IDLE || self.state != 0 && self.ask(&[plain("ROLLBACK")], until).is_ok()
    }
}

impl Connected for Connection {
    fn is_usable(&mut self) -> bool {
        if self.state != IDLE {
            return false;
        }
        let mut kept = std::mem::take(&mut self.heard);
        while self.stream.wire().is_readable(Duration::ZERO) {
            match self.next_note(Moment::now()) {
                Ok(Some(note)) => kept.push_back(note),
                Ok(None) => {}
                Err(_) => return false,
            }
        }
        kept.append(&mut self.heard);
        self.heard = kept;
        self.heard.len() < MOST_NOTES
    }

    fn listens(&self) -> bool {
        !self.channels.is_empty()
    }

    fn listens_to(&self, channel: &str) -> bool {
        self.channels.contains(channel)
    }
}
