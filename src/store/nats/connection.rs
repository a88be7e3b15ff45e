//! One connection: requests with their replies, and what others tell on a subject (NATS, "Client Protocol"). Every step of it
//! has an end in time, whatever the other side does. One that gave no answer in time is not used again.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use serde::Deserialize;

use super::address::Address;
use super::login;
use super::trouble::{Failure, Said};
use crate::clock::Moment;
use crate::store::idle::Connected;
use crate::store::socket::Endpoint;
use crate::store::tls::TlsConfig;
use crate::store::wire::{Buffered, Stream};

/// How long a line of the protocol may be: what a server says of itself names all servers of its cluster.
const LONGEST_LINE: usize = 1 << 20;

/// How large a message may be: a record in base64, or the names of many keys.
const LARGEST: usize = 128 << 20;

/// How many messages are kept for whoever listens. Who has so many has to look anyway.
const MOST_NOTES: usize = 10_000;

/// The number of the subscription to replies, and of the one to what others tell.
const REPLIES: &str = "1";
const NOTES: &str = "2";

/// A connection that has been let in.
pub(super) struct Connection {
    /// To whom.
    pub(super) server: Endpoint,
    pub(super) buffered: Buffered,
    /// What the server said of itself.
    pub(super) info: Info,
    /// What replies to us begin with.
    inbox: String,
    asked: u64,
    /// What is listened to.
    pub(super) subject: Option<String>,
    heard: VecDeque<Note>,
    /// Whether an answer is due, or the end of it all.
    broken: bool,
}

/// What a server says of itself.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(clippy::struct_excessive_bools, reason = "that is how it says it")]
pub(super) struct Info {
    pub(super) version: String,
    pub(super) cluster: Option<String>,
    pub(super) jetstream: bool,
    pub(super) headers: bool,
    pub(super) max_payload: usize,
    pub(super) nonce: Option<String>,
    pub(super) tls_required: bool,
    pub(super) tls_available: bool,
    /// It ends soon, and wants everybody to go.
    pub(super) ldm: bool,
}

/// Something that others tell: on which subject.
pub(super) type Note = String;

/// A request: where to, headers, and what.
pub(super) struct Request {
    pub(super) subject: String,
    pub(super) headers: String,
    pub(super) payload: Vec<u8>,
}

/// What a server sends.
pub(super) enum Received {
    Info(Info),
    Message { subject: String, sid: String, headers: String, payload: Vec<u8> },
    Pong,
    Refusal(String),
}

/// A request without headers.
pub(super) fn plain(subject: String, payload: impl Into<Vec<u8>>) -> Request {
    Request { subject, headers: String::new(), payload: payload.into() }
}

impl Connection {
    /// Connects to the first server that lets us in, beginning with the one of this number.
    pub(super) fn open(address: &Address, config: &TlsConfig, first: usize, until: Moment) -> Result<Self, Failure> {
        let mut failed = None;
        let many = address.hosts.len();
        for (at, server) in address.hosts.iter().cycle().skip(first % many).take(many).enumerate() {
            // One that is silent leaves time for the others.
            let share = until.left() / u32::try_from(many - at).unwrap_or(u32::MAX);
            match login::connect(server, address, config, Moment::now().after(share)) {
                Ok(connection) => return Ok(connection),
                // What is wrong with a login matters more than that another one is away.
                Err(failure) if failed.is_none() || failure.is_refusal() => failed = Some(failure.by(server)),
                Err(_) => {}
            }
        }
        Err(failed.unwrap_or(Failure::Silent).before())
    }

    /// One over this stream, before it was let in.
    pub(super) fn over(server: &Endpoint, stream: Stream, inbox: String) -> Self {
        Self {
            server: server.clone(),
            buffered: Buffered::over(stream),
            info: Info::default(),
            inbox,
            asked: 0,
            subject: None,
            heard: VecDeque::new(),
            broken: false,
        }
    }

    /// Sends what begins a session, and waits until the server has taken it.
    pub(super) fn begin(&mut self, connect: &str, until: Moment) -> Result<(), Failure> {
        let words = format!("CONNECT {connect}\r\nSUB {}.* {REPLIES}\r\nPING\r\n", self.inbox);
        self.write(words.as_bytes(), until)?;
        self.await_pong(until)
    }

    /// Sends requests in one go, and returns the reply to each.
    pub(super) fn ask(&mut self, requests: &[Request], until: Moment) -> Result<Vec<Vec<u8>>, Failure> {
        let first = self.asked;
        let mut bytes = Vec::new();
        for request in requests {
            let reply = format!("{}.{}", self.inbox, self.asked);
            self.asked += 1;
            self.put(&mut bytes, request, &reply)?;
        }
        let broken = std::mem::replace(&mut self.broken, true);
        self.write(&bytes, until)?;
        let mut replies: Vec<Option<Vec<u8>>> = vec![None; requests.len()];
        while replies.iter().any(Option::is_none) {
            match self.receive(until)? {
                Received::Message { subject, sid, headers, payload } if sid == REPLIES => {
                    let number: Option<u64> = subject.rsplit('.').next().and_then(|number| number.parse().ok());
                    let at = number.and_then(|number| usize::try_from(number.checked_sub(first)?).ok());
                    let Some(reply) = at.and_then(|at| replies.get_mut(at)) else { continue };
                    // "No responders": nobody has even heard of it.
                    if payload.is_empty() && headers.starts_with("NATS/1.0 503") {
                        return Err(if self.info.jetstream {
                            Failure::Said(Said::NobodyThere)
                        } else {
                            Failure::Said(Said::NoJetStream)
                        });
                    }
                    *reply = Some(payload);
                }
                Received::Message { subject, .. } => self.keep(subject),
                Received::Refusal(words) => return Err(Failure::Said(Said::Words(words))),
                Received::Info(_) | Received::Pong => {}
            }
        }
        self.broken = broken;
        Ok(replies.into_iter().flatten().collect())
    }

    /// Tells others on these subjects, and waits until the server has taken that.
    pub(super) fn tell(&mut self, subjects: &[String], until: Moment) -> Result<(), Failure> {
        let mut bytes = Vec::new();
        for subject in subjects {
            bytes.extend(format!("PUB {subject} 0\r\n\r\n").bytes());
        }
        bytes.extend(b"PING\r\n");
        self.write(&bytes, until)?;
        self.await_pong(until)
    }

    /// Listens to a subject, in the place of what it listened to before.
    pub(super) fn listen(&mut self, subject: &str, until: Moment) -> Result<(), Failure> {
        if self.subject.as_deref() == Some(subject) {
            return Ok(());
        }
        let end = if self.subject.is_some() { format!("UNSUB {NOTES}\r\n") } else { String::new() };
        self.write(format!("{end}SUB {subject} {NOTES}\r\nPING\r\n").as_bytes(), until)?;
        self.subject = Some(subject.to_owned());
        self.await_pong(until)?;
        self.heard.clear();
        Ok(())
    }

    fn put(&self, bytes: &mut Vec<u8>, request: &Request, reply: &str) -> Result<(), Failure> {
        let Request { subject, headers, payload } = request;
        let most = self.info.max_payload;
        if headers.len() + payload.len() > most {
            return Err(Failure::Said(Said::TooLarge(payload.len(), most)).before());
        }
        if headers.is_empty() {
            bytes.extend(format!("PUB {subject} {reply} {}\r\n", payload.len()).bytes());
        } else {
            let (head, all) = (headers.len(), headers.len() + payload.len());
            bytes.extend(format!("HPUB {subject} {reply} {head} {all}\r\n{headers}").bytes());
        }
        bytes.extend_from_slice(payload);
        bytes.extend_from_slice(b"\r\n");
        Ok(())
    }

    /// What the server refused, it says before it answers a PING.
    fn await_pong(&mut self, until: Moment) -> Result<(), Failure> {
        let broken = std::mem::replace(&mut self.broken, true);
        loop {
            match self.receive(until)? {
                Received::Pong => break,
                Received::Refusal(words) => return Err(Failure::Said(Said::Words(words))),
                Received::Message { subject, sid, .. } if sid == NOTES => self.keep(subject),
                Received::Message { .. } | Received::Info(_) => {}
            }
        }
        self.broken = broken;
        Ok(())
    }

    fn keep(&mut self, subject: String) {
        if self.heard.len() < MOST_NOTES {
            self.heard.push_back(subject);
        }
    }

    /// The next thing that others tell; nothing if there is none before that moment.
    pub(super) fn next_note(&mut self, until: Moment) -> Result<Option<Note>, Failure> {
        loop {
            if let Some(note) = self.heard.pop_front() {
                return Ok(Some(note));
            }
            // Without time nothing at all would be read, not even what is there.
            let at_least = Moment::now().after(Duration::from_millis(1));
            match self.receive(until.max(at_least)) {
                Ok(Received::Message { subject, sid, .. }) if sid == NOTES => self.keep(subject),
                Ok(Received::Refusal(words)) => {
                    self.broken = true;
                    return Err(Failure::Said(Said::Words(words)));
                }
                // It goes, and whoever stays hears nothing any more.
                Ok(Received::Info(_)) if self.info.ldm => {
                    return Err(io::Error::from(io::ErrorKind::ConnectionReset).into());
                }
                Ok(_) => {}
                Err(failure) if failure.is_silence() => return Ok(None),
                Err(failure) => {
                    self.broken = true;
                    return Err(failure);
                }
            }
        }
    }

    /// Asks the server for a sign of life.
    pub(super) fn ping(&mut self, until: Moment) -> Result<(), Failure> {
        self.write(b"PING\r\n", until)?;
        self.await_pong(until)
    }

    pub(super) fn write(&mut self, bytes: &[u8], until: Moment) -> Result<(), Failure> {
        Ok(self.buffered.write(bytes, until)?)
    }

    /// The next thing that the server sends besides its own questions, which are answered.
    pub(super) fn receive(&mut self, until: Moment) -> Result<Received, Failure> {
        loop {
            let line = self.line(until)?;
            let (verb, rest) = line.split_once([' ', '\t']).unwrap_or((&line, ""));
            match verb.to_ascii_uppercase().as_str() {
                "PING" => self.write(b"PONG\r\n", until)?,
                "PONG" => return Ok(Received::Pong),
                "+OK" => {}
                "-ERR" => return Ok(Received::Refusal(rest.trim().trim_matches('\'').to_owned())),
                "INFO" => {
                    self.info = serde_json::from_str(rest).map_err(|_| Failure::Garbage)?;
                    return Ok(Received::Info(self.info.clone()));
                }
                "MSG" => return self.message(rest, false, until),
                "HMSG" => return self.message(rest, true, until),
                _ => return Err(Failure::Garbage),
            }
        }
    }

    /// `SUBJECT SID [REPLY] [HEADERS] ALL`, and so many bytes.
    fn message(&mut self, line: &str, headed: bool, until: Moment) -> Result<Received, Failure> {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let number = |from_end: usize| {
            let word = words.len().checked_sub(from_end).and_then(|at| words.get(at));
            word.and_then(|word| word.parse::<usize>().ok()).filter(|length| *length <= LARGEST).ok_or(Failure::Garbage)
        };
        let all = number(1)?;
        let head = if headed { number(2)? } else { 0 };
        let ([subject, sid, _, ..], true) = (&words[..], head <= all) else { return Err(Failure::Garbage) };
        self.buffered.fill_to(all + 2, until).inspect_err(|_| self.broken = true)?;
        let bytes = &self.buffered.unused()[..all];
        let headers = String::from_utf8_lossy(&bytes[..head]).into_owned();
        let payload = bytes[head..].to_vec();
        self.buffered.advance(all + 2);
        Ok(Received::Message { subject: (*subject).to_owned(), sid: (*sid).to_owned(), headers, payload })
    }

    fn line(&mut self, until: Moment) -> Result<String, Failure> {
        let mut looked = 0;
        loop {
            let unused = self.buffered.unused();
            if let Some(end) = unused[looked..].iter().position(|byte| *byte == b'\n') {
                let line = String::from_utf8_lossy(&unused[..looked + end]).trim_end().to_owned();
                self.buffered.advance(looked + end + 1);
                return Ok(line);
            }
            looked = unused.len();
            if looked > LONGEST_LINE {
                return Err(Failure::Garbage);
            }
            self.buffered.fill(until)?;
        }
    }
}

impl Connected for Connection {
    fn is_usable(&mut self) -> bool {
        let mut kept = std::mem::take(&mut self.heard);
        while !self.broken && self.buffered.stream.wire().is_readable(Duration::ZERO) {
            match self.next_note(Moment::now()) {
                Ok(Some(note)) => kept.push_back(note),
                Ok(None) => {}
                Err(_) => return false,
            }
        }
        kept.append(&mut self.heard);
        self.heard = kept;
        !self.broken && !self.info.ldm && self.heard.len() < MOST_NOTES
    }

    fn listens(&self) -> bool {
        self.subject.is_some()
    }

    fn listens_to(&self, subject: &str) -> bool {
        self.subject.as_deref() == Some(subject)
    }
}
