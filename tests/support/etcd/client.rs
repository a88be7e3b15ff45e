//! What a test asks of an etcd server: over its gateway, which takes JSON.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use super::PORT;

/// Asks for something and returns what the server says, be it an error of its own; nothing if it says nothing.
pub(crate) fn try_ask(host: &str, what: &str, ask: &Value) -> Option<Value> {
    let body = ask.to_string();
    let mut stream = TcpStream::connect((host, PORT)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    // In this version of HTTP what comes is as long as the connection, and nothing is said of its parts.
    let head = format!("POST /v3/{what} HTTP/1.0\r\nHost: {host}\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(format!("{head}{body}").as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
}

/// The same of a server that answers, and does what it is asked.
#[track_caller]
pub(crate) fn ask(host: &str, what: &str, ask: &Value) -> Value {
    let answer = try_ask(host, what, ask).unwrap_or_else(|| panic!("{host} says nothing to {what}"));
    assert!(answer["error"].is_null(), "{what}: {answer}");
    answer
}

/// Changes a key so often, over one connection.
#[track_caller]
pub(crate) fn put_often(host: &str, times: usize) {
    let body = json!({ "key": encoded("filling"), "value": encoded("x") }).to_string();
    let put = format!("POST /v3/kv/put HTTP/1.1\r\nHost: {host}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let mut stream = TcpStream::connect((host, PORT)).expect("it takes us in");
    let mut answers = BufReader::new(stream.try_clone().expect("a connection")).lines();
    // So many are on their way at once.
    for put_before in (0..times).step_by(50) {
        let puts = 50.min(times - put_before);
        stream.write_all(put.repeat(puts).as_bytes()).expect("it listens");
        let done = answers.by_ref().filter(|line| line.as_ref().expect("it answers").ends_with("200 OK")).take(puts);
        assert_eq!(done.count(), puts);
    }
}

/// Text as the gateway takes and gives it.
pub(crate) fn encoded(text: &str) -> String {
    BASE64_STANDARD.encode(text)
}

/// What the gateway gave.
pub(crate) fn decoded(value: &Value) -> String {
    let bytes = BASE64_STANDARD.decode(value.as_str().unwrap_or_default()).expect("base64");
    String::from_utf8(bytes).expect("text")
}

/// A key of etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) path: String,
    pub(crate) value: String,
    /// The lease with which it ends; 0 if with none.
    pub(crate) lease: i64,
    /// The revision of etcd with which it was written last.
    pub(crate) revision: i64,
}

/// All keys that begin so.
#[track_caller]
pub(crate) fn all_under(host: &str, prefix: &str) -> Vec<Entry> {
    try_all_under(host, prefix).unwrap_or_else(|| panic!("{host} does not tell what is under {prefix}"))
}

/// The same of a server that may not know it.
pub(crate) fn try_all_under(host: &str, prefix: &str) -> Option<Vec<Entry>> {
    // The first key that does not begin so has the next letter in the place of the last one.
    let (start, last) = prefix.split_at(prefix.len() - 1);
    let end = format!("{start}{}", char::from(last.as_bytes()[0] + 1));
    let found = try_ask(host, "kv/range", &json!({ "key": encoded(prefix), "range_end": encoded(&end) }))?;
    let number = |value: &Value| value.as_str().and_then(|text| text.parse().ok()).unwrap_or(0);
    let entry = |kv: &Value| Entry {
        path: decoded(&kv["key"]),
        value: decoded(&kv["value"]),
        lease: number(&kv["lease"]),
        revision: number(&kv["mod_revision"]),
    };
    found["error"].is_null().then(|| found["kvs"].as_array().into_iter().flatten().map(entry).collect())
}
