//! A connection of a test's own to a NATS server: as much of the protocol as a test needs.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};

use super::PORT;

/// A connection.
pub(crate) struct Client {
    stream: BufReader<TcpStream>,
}

/// What came back for a request.
#[derive(Debug)]
pub(crate) enum Answer {
    /// Nobody answers such requests.
    NobodyThere,
    Message(Vec<u8>),
}

impl Client {
    #[track_caller]
    pub(crate) fn to(host: &str, login: &str) -> Self {
        Self::try_to(host, login).unwrap_or_else(|error| panic!("{host} does not take us in: {error}"))
    }

    /// Connects with these fields in what we say of ourselves.
    pub(crate) fn try_to(host: &str, login: &str) -> io::Result<Self> {
        let stream = TcpStream::connect((host, PORT))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.set_nodelay(true)?;
        let mut client = Self { stream: BufReader::new(stream) };
        let mut hello = json!({ "headers": true, "no_responders": true, "verbose": false, "protocol": 1 });
        let login: Value = serde_json::from_str(login).expect("JSON");
        login.as_object().expect("an object").iter().for_each(|(name, value)| hello[name] = value.clone());
        client.send(&format!("CONNECT {hello}\r\nSUB _INBOX.test 1\r\nPING\r\n"))?;
        client.await_verb("PONG")?;
        Ok(client)
    }

    fn send(&mut self, words: &str) -> io::Result<()> {
        self.stream.get_mut().write_all(words.as_bytes())
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if line.starts_with("PING") {
            self.send("PONG\r\n")?;
        }
        if line.starts_with("-ERR") {
            return Err(io::Error::other(line));
        }
        Ok(line)
    }

    fn await_verb(&mut self, verb: &str) -> io::Result<String> {
        loop {
            let line = self.line()?;
            if line.split_whitespace().next() == Some(verb) {
                return Ok(line);
            }
        }
    }

    /// Sends a request, and waits for what comes back.
    pub(crate) fn request(&mut self, subject: &str, headers: &str, payload: &[u8]) -> io::Result<Answer> {
        let head = if headers.is_empty() { String::new() } else { format!("NATS/1.0\r\n{headers}\r\n\r\n") };
        let (length, all) = (head.len(), head.len() + payload.len());
        self.send(&format!("HPUB {subject} _INBOX.test {length} {all}\r\n{head}"))?;
        self.stream.get_mut().write_all(payload)?;
        self.send("\r\n")?;
        loop {
            let line = self.line()?;
            let words: Vec<&str> = line.split_whitespace().collect();
            let headed = words[0] == "HMSG";
            if !headed && words[0] != "MSG" {
                continue;
            }
            let number = |from_end: usize| words[words.len() - from_end].parse::<usize>().expect("a number");
            let head = if headed { number(2) } else { 0 };
            let mut bytes = vec![0; number(1) + 2];
            self.stream.read_exact(&mut bytes)?;
            if bytes.starts_with(b"NATS/1.0 503") {
                return Ok(Answer::NobodyThere);
            }
            return Ok(Answer::Message(bytes[head..bytes.len() - 2].to_vec()));
        }
    }

    /// Asks JetStream, which answers in JSON.
    #[track_caller]
    pub(crate) fn api(&mut self, what: &str, ask: &Value) -> Value {
        match self.request(&format!("$JS.API.{what}"), "", ask.to_string().as_bytes()).expect("it answers") {
            Answer::NobodyThere => Value::Null,
            Answer::Message(bytes) => serde_json::from_slice(&bytes).expect("JSON"),
        }
    }

    /// The last value under a subject.
    #[track_caller]
    pub(crate) fn last(&mut self, stream: &str, subject: &str) -> Option<Vec<u8>> {
        use base64::Engine as _;
        let found = self.api(&format!("STREAM.MSG.GET.{stream}"), &json!({ "last_by_subj": subject }));
        let message = found.get("message")?;
        let data = message["data"].as_str().unwrap_or_default();
        Some(base64::prelude::BASE64_STANDARD.decode(data).expect("base64"))
    }

    /// Publishes something, and says what JetStream answers.
    #[track_caller]
    pub(crate) fn publish(&mut self, subject: &str, headers: &str, payload: &[u8]) -> Value {
        match self.request(subject, headers, payload).expect("it answers") {
            Answer::NobodyThere => Value::Null,
            Answer::Message(bytes) => serde_json::from_slice(&bytes).expect("JSON"),
        }
    }
}
