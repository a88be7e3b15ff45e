//! A proxy between a dlock and its server, on an address of its own, that does to what passes what networks do.

use std::collections::VecDeque;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use super::redis::{PORT, Server};
use super::relay::{Pair, Relay, Wires, copy, end, lock};

/// What becomes of one reply.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fate {
    /// It is lost, as is all that follows on its connection.
    Swallowed,
    /// It comes so much later.
    Late(Duration),
    /// Half of it comes, then the connection ends.
    Torn,
    /// Another one comes in its place.
    Replaced(fn(&str) -> String),
}

/// The proxy. It ends with the test.
pub(crate) struct Proxy {
    relay: Relay,
    state: Arc<Mutex<State>>,
}

/// What all its threads share.
#[derive(Default)]
struct State {
    /// Connections stay; what comes over them is dropped.
    drops: bool,
    /// What becomes of the next reply to an operation.
    fates: VecDeque<(String, Fate)>,
    /// The operations that were asked for, those that were dropped included.
    seen: Vec<String>,
}

impl Proxy {
    pub(crate) fn to(server: &Server) -> Self {
        let state = Arc::default();
        let shared = Arc::clone(&state);
        let relay = Relay::before(&server.host, PORT, Wires::default(), move |pair| carry(pair, &shared));
        Self { relay, state }
    }

    /// Its address.
    pub(crate) fn host(&self) -> &str {
        self.relay.host()
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://{}:{PORT}", self.host())
    }

    /// What becomes of the next good reply to an operation: of the law by its name, else of a command.
    /// Several of them come true one after the other. A refusal and an empty reply pass.
    pub(crate) fn next(&self, operation: &str, fate: Fate) {
        lock(&self.state).fates.push_back((operation.into(), fate));
    }

    /// How often an operation was asked for.
    pub(crate) fn seen(&self, operation: &str) -> usize {
        lock(&self.state).seen.iter().filter(|seen| *seen == operation).count()
    }

    /// Whether all that was to befall replies has.
    pub(crate) fn is_spent(&self) -> bool {
        lock(&self.state).fates.is_empty()
    }

    /// Drops all that comes, in both directions.
    pub(crate) fn drop_all(&self) {
        lock(&self.state).drops = true;
    }

    /// Lets pass again what comes from now on.
    pub(crate) fn heal(&self) {
        lock(&self.state).drops = false;
    }

    /// Ends all connections.
    pub(crate) fn cut(&self) {
        self.relay.cut();
    }

    /// Ends all connections, and takes no new ones.
    pub(crate) fn refuse(&self) {
        self.relay.refuse();
    }

    /// Takes connections again.
    pub(crate) fn admit(&self) {
        self.relay.admit();
    }
}

/// Passes on what a client and the server say to each other.
fn carry(Pair { client, server }: Pair, state: &Arc<Mutex<State>>) {
    let asked = Arc::new(Mutex::new(VecDeque::new()));
    let (requests, replies) = ((copy(&client), copy(&server)), (server, client));
    let (shared, questions) = (Arc::clone(state), Arc::clone(&asked));
    thread::spawn(move || {
        pump(requests, |_, words| {
            // An empty line, which is no request.
            if words.is_empty() {
                return None;
            }
            let operation = operation(words);
            let mut state = lock(&shared);
            state.seen.push(operation.clone());
            if state.drops {
                return Some(Fate::Swallowed);
            }
            questions.lock().expect("no thread panics with it").push_back(operation);
            None
        });
    });
    let shared = Arc::clone(state);
    thread::spawn(move || {
        pump(replies, |reply, _| {
            let operation = asked.lock().expect("no thread panics with it").pop_front();
            let mut state = lock(&shared);
            if state.drops {
                return Some(Fate::Swallowed);
            }
            let is_good = reply[0] != b'-' && !reply.starts_with(b"*-1") && !reply.starts_with(b"$-1");
            let (next, _) = state.fates.front()?;
            if !is_good || operation.as_ref() != Some(next) {
                return None;
            }
            state.fates.pop_front().map(|(_, fate)| fate)
        });
    });
}

/// Passes values from one side to the other for as long as both are there. `judge` decides about each.
fn pump((mut from, mut to): (TcpStream, TcpStream), judge: impl Fn(&[u8], &[String]) -> Option<Fate>) {
    let mut is_mute = false;
    let mut pending = Vec::new();
    let mut chunk = [0; 16 << 10];
    'open: while let Ok(length @ 1..) = from.read(&mut chunk) {
        pending.extend_from_slice(&chunk[..length]);
        while let Some((length, words)) = value(&pending) {
            let mut value: Vec<u8> = pending.drain(..length).collect();
            let fate = judge(&value, &words);
            if let Some(Fate::Replaced(other)) = fate {
                value = other(&String::from_utf8_lossy(&value)).into_bytes();
            }
            let passed = match fate {
                Some(Fate::Torn) => length / 2,
                Some(Fate::Swallowed) => 0,
                _ => value.len(),
            };
            is_mute |= matches!(fate, Some(Fate::Swallowed));
            if let Some(Fate::Late(span)) = fate {
                thread::sleep(span);
            }
            if !is_mute && to.write_all(&value[..passed]).is_err() || matches!(fate, Some(Fate::Torn)) {
                break 'open;
            }
        }
    }
    end([from, to]);
}

/// What is asked for: the operation of the law, or the command.
fn operation(words: &[String]) -> String {
    let keys = words.get(2).and_then(|count| count.parse::<usize>().ok());
    let of_law = keys.filter(|_| words[0].starts_with("EVAL")).and_then(|keys| words.get(3 + keys));
    // In a ring it is followed by the stamp of the list.
    of_law.unwrap_or(&words[0]).split(' ').next().unwrap_or_default().to_lowercase()
}

/// The length of the first value of RESP2 in `bytes`, or of an empty line, and the texts in it; nothing unless it
/// is complete.
fn value(bytes: &[u8]) -> Option<(usize, Vec<String>)> {
    let end = bytes.windows(2).position(|pair| pair == b"\r\n")?;
    if end == 0 {
        return Some((2, Vec::new()));
    }
    let line = String::from_utf8_lossy(&bytes[1..end]).into_owned();
    let mut length = end + 2;
    let count = line.parse::<usize>();
    match (bytes[0], count) {
        (b'*', Ok(count)) => {
            let mut texts = Vec::new();
            for _ in 0..count {
                let (inner, more) = value(bytes.get(length..)?)?;
                length += inner;
                texts.extend(more);
            }
            Some((length, texts))
        }
        (b'$', Ok(count)) => {
            let text = bytes.get(length..length + count)?;
            let text = String::from_utf8_lossy(text).into_owned();
            length += count + 2;
            (bytes.len() >= length).then(|| (length, vec![text]))
        }
        _ => Some((length, vec![line])),
    }
}
