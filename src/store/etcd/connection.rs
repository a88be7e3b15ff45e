//! A connection to a member: HTTP/1.1 to its JSON gateway. Each exchange has an end in time, whatever the other side does.
//! One that gave no answer in time is not used again.

use std::io;
use std::sync::{Arc, Mutex};

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::address::{Access, Address};
use super::api::{Refusal, Request, Streamed};
use super::trouble::{Failure, Said};
use crate::clock::Moment;
use crate::store::idle::Connected;
use crate::store::lock;
use crate::store::socket::Endpoint;
use crate::store::tls::{self, TlsConfig};
use crate::store::wire::{Buffered, Stream, Wire};

/// How long the head of an answer may be, and how many lines it may have.
const HEAD: (usize, usize) = (64 << 10, 100);

/// How large an answer may be: the records of many keys, or one stream of changes at once.
const LARGEST: usize = 128 << 20;

/// Who we are to the members, and what showed it last: they all know it.
pub(super) struct Login {
    access: Option<Access>,
    token: Mutex<Option<String>>,
}

impl Login {
    pub(super) fn new(address: &Address) -> Self {
        Self { access: address.access.clone(), token: Mutex::default() }
    }

    /// Whether there is a login, and nobody there asks for one.
    pub(super) fn is_not_asked_for(&self) -> bool {
        self.token().is_some_and(|token| token.is_empty())
    }

    fn token(&self) -> Option<String> {
        lock(&self.token).clone()
    }
}

/// A connection.
pub(super) struct Connection {
    /// To whom.
    pub(super) server: Endpoint,
    buffered: Buffered,
    login: Arc<Login>,
    /// Whether an answer is due, or the end of it all.
    broken: bool,
    /// When the last answer was given, by the clock over there.
    date: Option<String>,
}

/// What an answer begins with.
struct Head {
    status: u16,
    body: Body,
    /// When that was, by the clock over there.
    date: Option<String>,
}

/// Where an answer ends.
#[derive(Clone, Copy)]
enum Body {
    Sized(usize),
    Chunked,
    /// With the connection.
    Open,
}

/// The answer to a request, or why it was not done.
pub(super) type Answer = Result<Vec<u8>, Refusal>;

impl Connection {
    /// Connects.
    pub(super) fn open(
        server: &Endpoint,
        address: &Address,
        config: &TlsConfig,
        login: &Arc<Login>,
        until: Moment,
    ) -> Result<Self, Failure> {
        let socket = Wire::over(server.connect(until)?, until);
        let stream = match server {
            Endpoint::Tcp(host, _) if address.secure => {
                let session = config.session(host, || tls::read(&address.tls)).map_err(Failure::Settings)?;
                tls::secured(socket, session).map_err(Failure::from).map_err(Failure::in_handshake)?
            }
            _ => Stream::Plain(socket),
        };
        let login = Arc::clone(login);
        Ok(Self { server: server.clone(), buffered: Buffered::over(stream), login, broken: false, date: None })
    }

    /// Asks for something, and reads what is answered.
    pub(super) fn ask<T: DeserializeOwned>(&mut self, request: &Request, until: Moment) -> Result<T, Failure> {
        let answer = self.ask_all(std::slice::from_ref(request), until)?.pop();
        read(answer.ok_or(Failure::Garbage)?)
    }

    /// The same where the answer is the first of a stream.
    pub(super) fn ask_stream<T: DeserializeOwned>(&mut self, request: &Request, until: Moment) -> Result<T, Failure> {
        let streamed: Streamed<T> = self.ask(request, until)?;
        match (streamed.result, streamed.error) {
            (Some(result), _) => Ok(result),
            (None, Some(error)) => Err(refusal_in_stream(&error).into()),
            (None, None) => Err(Failure::Garbage),
        }
    }

    /// Sends requests in one go, and returns the answer to each. Whoever is not known any more logs in again: then nothing
    /// was done.
    pub(super) fn ask_all(&mut self, requests: &[Request], until: Moment) -> Result<Vec<Answer>, Failure> {
        if self.login.access.is_some() && self.login.token().is_none() {
            self.log_in(until)?;
        }
        let token = self.login.token();
        let answers = self.exchange(requests, token.as_deref(), until)?;
        let is_unknown = |answer: &Answer| answer.as_ref().is_err_and(Refusal::is_unknown_token);
        if self.login.access.is_none() || !answers.iter().any(is_unknown) {
            return Ok(answers);
        }
        // Another thread may have done so meanwhile.
        if self.login.token() == token {
            self.log_in(until)?;
        }
        let token = self.login.token();
        self.exchange(requests, token.as_deref(), until)
    }

    fn log_in(&mut self, until: Moment) -> Result<(), Failure> {
        let Some(Access { user, password }) = self.login.access.clone() else { return Ok(()) };
        let body = json!({ "name": user, "password": password });
        let request = Request { path: "/v3/auth/authenticate", body };
        let token = match self.exchange(&[request], None, until)?.pop() {
            Some(Ok(answer)) => {
                let answer: Value = serde_json::from_slice(&answer).map_err(|_| Failure::Garbage)?;
                let token = answer["token"].as_str().filter(|token| token.bytes().all(|byte| byte.is_ascii_graphic()));
                token.ok_or(Failure::Garbage)?.to_owned()
            }
            // Where everybody may do everything nobody has a name.
            Some(Err(refusal)) if refusal.is_about_nobody() => String::new(),
            Some(Err(refusal)) => return Err(Failure::from(refusal).before()),
            None => return Err(Failure::Garbage),
        };
        *lock(&self.login.token) = Some(token);
        Ok(())
    }

    fn exchange(&mut self, requests: &[Request], token: Option<&str>, until: Moment) -> Result<Vec<Answer>, Failure> {
        let mut bytes = Vec::new();
        for request in requests {
            bytes.extend(self.written(request.path, request.body.to_string().as_bytes(), token));
        }
        // An answer to nothing would be taken for the next one.
        if !self.buffered.unused().is_empty() {
            return Err(Failure::Garbage);
        }
        self.broken = true;
        // Whoever speaks TLS there, and hears none, has nothing to say.
        let is_first = self.date.is_none() && matches!(self.buffered.stream, Stream::Plain(_));
        let first = |failure: Failure| if is_first { failure.at_first() } else { failure };
        self.write(&bytes, until).map_err(first)?;
        let mut answers = Vec::with_capacity(requests.len());
        let mut ends = false;
        for _ in requests {
            let head = self.head(until).map_err(first)?;
            let body = self.body(head.body, until)?;
            self.date = head.date;
            ends |= matches!(head.body, Body::Open);
            answers.push(judge(head.status, body)?);
        }
        self.broken = ends;
        Ok(answers)
    }

    /// Begins to watch, on a connection that is for nothing else.
    pub(super) fn watch(mut self, creations: &[Value], until: Moment) -> Result<Watching, Failure> {
        let body: Vec<String> = creations.iter().map(ToString::to_string).collect();
        if self.login.access.is_some() && self.login.token().is_none() {
            self.log_in(until)?;
        }
        let token = self.login.token();
        let bytes = self.written("/v3/watch", body.join("\n").as_bytes(), token.as_deref());
        self.write(&bytes, until)?;
        let head = self.head(until)?;
        if head.status != 200 || !matches!(head.body, Body::Chunked) {
            let body = self.body(head.body, until)?;
            judge(head.status, body)??;
            return Err(Failure::Garbage);
        }
        Ok(Watching { connection: self, heard: Vec::new() })
    }

    fn written(&self, path: &str, body: &[u8], token: Option<&str>) -> Vec<u8> {
        let token = token.filter(|token| !token.is_empty());
        let authorization = token.map_or_else(String::new, |token| format!("Authorization: {token}\r\n"));
        // A member that has no leader says so at once, in the place of waiting for one.
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
             Grpc-Metadata-Hasleader: true\r\n{authorization}\r\n",
            self.server,
            body.len()
        );
        [head.as_bytes(), body].concat()
    }

    /// When a request was answered, by the clock over there, if it says so.
    pub(super) fn date(&mut self, request: &Request, until: Moment) -> Result<Option<String>, Failure> {
        self.ask::<Value>(request, until)?;
        Ok(self.date.clone())
    }

    /// Whether a stranger on the way could read what is said.
    pub(super) fn can_be_read(&mut self) -> bool {
        self.buffered.stream.can_be_read()
    }

    fn write(&mut self, bytes: &[u8], until: Moment) -> Result<(), Failure> {
        Ok(self.buffered.write(bytes, until)?)
    }

    fn head(&mut self, until: Moment) -> Result<Head, Failure> {
        loop {
            let mut lines = [httparse::EMPTY_HEADER; HEAD.1];
            let mut response = httparse::Response::new(&mut lines);
            let unused = self.buffered.unused();
            match response.parse(unused) {
                Ok(httparse::Status::Complete(length)) => {
                    let body = body_of(response.headers)?;
                    let date = value_of(response.headers, "date");
                    let status = response.code.unwrap_or_default();
                    self.buffered.advance(length);
                    return Ok(Head { status, body, date });
                }
                Ok(httparse::Status::Partial) if unused.len() < HEAD.0 => self.buffered.fill(until)?,
                _ => return Err(Failure::Garbage),
            }
        }
    }

    fn body(&mut self, body: Body, until: Moment) -> Result<Vec<u8>, Failure> {
        let mut all = Vec::new();
        match body {
            Body::Sized(length) => {
                self.fill_to(length, until)?;
                self.take(length, &mut all);
            }
            Body::Chunked => while self.chunk(&mut all, until)? {},
            Body::Open => loop {
                let left = self.buffered.unused().len();
                self.take(left, &mut all);
                if all.len() > LARGEST {
                    return Err(Failure::Garbage);
                }
                match self.buffered.fill(until).map_err(Failure::from) {
                    Err(failure) if failure.is_end() => break,
                    filled => filled?,
                }
            },
        }
        Ok(all)
    }

    /// Appends the next part of an answer; no if that was all.
    fn chunk(&mut self, all: &mut Vec<u8>, until: Moment) -> Result<bool, Failure> {
        // Nothing of it is used before all is there: whoever has no more time goes on here.
        let (start, length) = loop {
            let unused = self.buffered.unused();
            match httparse::parse_chunk_size(unused) {
                Ok(httparse::Status::Complete((start, length))) => {
                    break (start, usize::try_from(length).map_err(|_| Failure::Garbage)?);
                }
                Ok(httparse::Status::Partial) if unused.len() < HEAD.0 => self.buffered.fill(until)?,
                _ => return Err(Failure::Garbage),
            }
        };
        if length == 0 {
            self.buffered.advance(start);
            self.trailer(until)?;
            return Ok(false);
        }
        if length.saturating_add(all.len()) > LARGEST {
            return Err(Failure::Garbage);
        }
        // And the end of the line.
        self.fill_to(start + length + 2, until)?;
        self.buffered.advance(start);
        self.take(length, all);
        self.buffered.advance(2);
        Ok(true)
    }

    /// Lines behind the last part of an answer, of which the last one is empty.
    fn trailer(&mut self, until: Moment) -> Result<(), Failure> {
        loop {
            let unused = self.buffered.unused();
            if let Some(end) = unused.windows(2).position(|pair| pair == b"\r\n") {
                self.buffered.advance(end + 2);
                if end == 0 {
                    return Ok(());
                }
            } else if unused.len() > HEAD.0 {
                return Err(Failure::Garbage);
            } else {
                self.buffered.fill(until)?;
            }
        }
    }

    fn take(&mut self, length: usize, into: &mut Vec<u8>) {
        into.extend_from_slice(&self.buffered.unused()[..length]);
        self.buffered.advance(length);
    }

    fn fill_to(&mut self, length: usize, until: Moment) -> Result<(), Failure> {
        if length > LARGEST {
            return Err(Failure::Garbage);
        }
        Ok(self.buffered.fill_to(length, until)?)
    }
}

impl Connected for Connection {
    fn is_usable(&mut self) -> bool {
        !self.broken
            && self.buffered.unused().is_empty()
            && !self.buffered.stream.wire().is_readable(std::time::Duration::ZERO)
    }
}

/// A connection on which a member tells what changes.
pub(super) struct Watching {
    connection: Connection,
    /// What was told and not read.
    heard: Vec<u8>,
}

impl Watching {
    /// By whom.
    pub(super) fn server(&self) -> &Endpoint {
        &self.connection.server
    }

    /// The next thing that is told; nothing if there is none before that moment.
    pub(super) fn next<T: DeserializeOwned>(&mut self, until: Moment) -> Result<Option<T>, Failure> {
        loop {
            if let Some(end) = self.heard.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.heard.drain(..=end).collect();
                let streamed: Streamed<T> = serde_json::from_slice(&line).map_err(|_| Failure::Garbage)?;
                return match (streamed.result, streamed.error) {
                    (Some(result), _) => Ok(Some(result)),
                    (None, Some(error)) => Err(refusal_in_stream(&error).into()),
                    (None, None) => Err(Failure::Garbage),
                };
            }
            // Without time nothing at all would be read, not even what is there.
            let at_least = Moment::now().after(std::time::Duration::from_millis(1));
            match self.connection.chunk(&mut self.heard, until.max(at_least)) {
                Ok(true) => {}
                Ok(false) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Err(failure) if failure.is_silence() => return Ok(None),
                Err(failure) => return Err(failure),
            }
        }
    }
}

fn value_of(headers: &[httparse::Header], name: &str) -> Option<String> {
    let header = headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
    Some(String::from_utf8_lossy(header.value).trim().to_owned())
}

fn body_of(headers: &[httparse::Header]) -> Result<Body, Failure> {
    let coding = value_of(headers, "transfer-encoding");
    if coding.is_some_and(|coding| coding.to_ascii_lowercase().ends_with("chunked")) {
        return Ok(Body::Chunked);
    }
    match value_of(headers, "content-length") {
        Some(length) => length.parse().map(Body::Sized).map_err(|_| Failure::Garbage),
        None => Ok(Body::Open),
    }
}

/// Whether something was done.
fn judge(status: u16, body: Vec<u8>) -> Result<Answer, Failure> {
    if status == 200 {
        return Ok(Ok(body));
    }
    match serde_json::from_slice::<Refusal>(&body) {
        Ok(refusal) if refusal.code != 0 => Ok(Err(refusal)),
        _ => Err(Failure::Said(Said::Http(status, String::from_utf8_lossy(&body).into_owned()))),
    }
}

/// Reads an answer.
pub(super) fn read<T: DeserializeOwned>(answer: Answer) -> Result<T, Failure> {
    serde_json::from_slice(&answer?).map_err(|_| Failure::Garbage)
}

/// What goes wrong in a stream has a form of its own.
fn refusal_in_stream(error: &Value) -> Refusal {
    Refusal {
        code: error["grpc_code"].as_i64().or_else(|| error["code"].as_i64()).unwrap_or_default(),
        message: error["message"].as_str().unwrap_or_default().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::net::UnixStream;
    use std::path::Path;
    use std::sync::Arc;
    use std::time::Duration;

    use socket2::Socket;

    use super::super::api::Watched;
    use super::{Address, Buffered, Connection, Endpoint, Login, Stream, Watching, Wire};
    use crate::clock::Moment;

    fn soon() -> Moment {
        Moment::now().after(Duration::from_millis(5))
    }

    #[test]
    fn what_comes_in_pieces_is_heard_however_often_one_stops_to_listen() {
        let (here, mut there) = UnixStream::pair().expect("a pair");
        let address = Address::parse("etcd://h", Path::new("/")).expect("a URL");
        let connection = Connection {
            server: Endpoint::Tcp("h".into(), 1),
            buffered: Buffered::over(Stream::Plain(Wire::over(Socket::from(here), soon()))),
            login: Arc::new(Login::new(&address)),
            broken: false,
            date: None,
        };
        let mut watching = Watching { connection, heard: Vec::new() };
        let mut hear = || watching.next::<Watched>(soon()).expect("it goes on");
        let line = b"{\"result\":{\"created\":true}}\n";
        let whole = [format!("{:x}\r\n", line.len()).as_bytes(), line, b"\r\n"].concat();
        for cut in 1..whole.len() {
            let (one, other) = whole.split_at(cut);
            there.write_all(one).expect("it listens");
            let early = hear();
            there.write_all(other).expect("it listens");
            // The end of a line may have come before that of its part.
            let heard = early.or_else(&mut hear).expect("it was told");
            assert!(heard.created, "cut at {cut}");
        }
    }
}
