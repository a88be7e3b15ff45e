//! What is kept under a subject: the last message there, and what it says of the clock by which its instants are.

use std::collections::HashMap;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use serde_json::json;

use super::bucket;
use super::trouble::{Failure, Refusal};
use crate::model::{Key, LevelId, Record, RecordError, Stamp};

/// By whose clock the instants of a value are, and what the time was there when it was written.
const CLOCK: &str = "Dlock-Clock";
const NOW: &str = "Dlock-Now";

/// A message that is kept.
pub(super) struct Value {
    pub(super) sequence: u64,
    /// When it was written, by the leader's clock.
    pub(super) stamp: Stamp,
    pub(super) headers: String,
    pub(super) payload: Vec<u8>,
}

/// A record as it was read: as it is kept, and as it is with the signs of life of those who wait.
pub(super) struct Reading {
    /// The number of the message that it was read from; zero if there is none.
    pub(super) sequence: u64,
    /// The number of the last message of all, where that is what is compared.
    pub(super) last: Option<u64>,
    /// Nothing, if there is none.
    pub(super) kept: Option<Record>,
    pub(super) seen: Record,
    pub(super) life: Life,
    /// Whether it is of another leader's time, and its instants were moved.
    pub(super) is_moved: bool,
    pub(super) now: Stamp,
    pub(super) clock: String,
}

/// The signs of life of those who wait for a key, and until when they are good.
#[derive(Clone, Debug, Default)]
pub(super) struct Life {
    pub(super) signs: HashMap<LevelId, Stamp>,
    pub(super) sequence: u64,
}

impl Value {
    /// Reads the answer to a request for a message; nothing if there is none.
    pub(super) fn parse(answer: &[u8]) -> Result<Option<Self>, Failure> {
        #[derive(Deserialize)]
        struct Answer {
            error: Option<Refusal>,
            message: Option<Message>,
        }
        #[derive(Deserialize)]
        struct Message {
            seq: u64,
            time: String,
            #[serde(default)]
            hdrs: String,
            #[serde(default)]
            data: String,
        }
        let answer: Answer = serde_json::from_slice(answer).map_err(|_| Failure::Garbage)?;
        let message = match (answer.error, answer.message) {
            // The bucket may be made while we look.
            (Some(refusal), _) if refusal.is_missing_message() || refusal.is_missing_stream() => return Ok(None),
            (Some(refusal), _) => return Err(refusal.into()),
            (None, message) => message.ok_or(Failure::Garbage)?,
        };
        let bytes = |text: &str| BASE64_STANDARD.decode(text).map_err(|_| Failure::Garbage);
        Ok(Some(Self {
            sequence: message.seq,
            stamp: bucket::stamp(&message.time).ok_or(Failure::Garbage)?,
            headers: String::from_utf8_lossy(&bytes(&message.hdrs)?).into_owned(),
            payload: bytes(&message.data)?,
        }))
    }

    pub(super) fn record(&self, key: &Key) -> Result<Record, RecordError> {
        Record::decode(key, &self.payload)
    }
}

impl Reading {
    /// The record as an operation would find it.
    pub(super) fn looked_at(self) -> Option<Record> {
        let now = self.now;
        self.kept.is_some().then(|| self.seen.seen(&now))
    }

    /// The headers of a message that takes the place of the one with this number, if nobody wrote meanwhile: there, or, if the
    /// number of the `last` message of all is given, anywhere.
    pub(super) fn expecting(&self, stream: &str, sequence: u64, last: Option<u64>) -> String {
        let last = last.map_or_else(String::new, |last| format!("Nats-Expected-Last-Sequence: {last}\r\n"));
        format!(
            "NATS/1.0\r\nNats-Expected-Stream: {stream}\r\nNats-Expected-Last-Subject-Sequence: {sequence}\r\n{last}\
             {CLOCK}: {}\r\n{NOW}: {}\r\n\r\n",
            self.clock,
            self.now.micros()
        )
    }
}

impl Life {
    /// What a message says, by the clock that is looked at.
    pub(super) fn read(value: Option<&Value>, clock: &str, now: Stamp) -> Self {
        let Some(value) = value else { return Self::default() };
        let ahead = dated(&value.headers, clock, now).unwrap_or_default();
        let signs: HashMap<String, serde_json::Value> = serde_json::from_slice(&value.payload).unwrap_or_default();
        // What is no sign of life does not hide those of others.
        let sign = |(lease, until): (String, serde_json::Value)| {
            Some((LevelId::parse(&lease).ok()?, Stamp::from_micros(until.as_u64()?).moved(ahead)))
        };
        Self { signs: signs.into_iter().filter_map(sign).collect(), sequence: value.sequence }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let signs: HashMap<String, u64> =
            self.signs.iter().map(|(level, until)| (level.secret(), until.micros())).collect();
        json!(signs).to_string().into_bytes()
    }

    /// The signs of those who still wait, unless their life is to end sooner.
    pub(super) fn counting(&self, record: &Record) -> HashMap<LevelId, Stamp> {
        let counts = |lease: &LevelId, until: &Stamp| {
            let waiter = record.queue.iter().find(|waiter| waiter.lease == *lease);
            waiter.and_then(|waiter| waiter.until).is_some_and(|own| own >= *until)
        };
        self.signs.iter().filter(|(lease, until)| counts(lease, until)).map(|(lease, until)| (*lease, *until)).collect()
    }

    /// Whether there are others, too.
    pub(super) fn is_stale_for(&self, record: &Record) -> bool {
        self.counting(record).len() < self.signs.len()
    }
}

/// How far the instants of a value are to be moved on, if they are by another clock than this: as if it had been written now.
pub(super) fn dated(headers: &str, clock: &str, now: Stamp) -> Option<i64> {
    let header = |name: &str| {
        let lines = headers.lines().filter_map(|line| line.split_once(':'));
        lines.filter(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).next()
    };
    let then: u64 = header(NOW)?.parse().ok()?;
    (header(CLOCK)? != clock).then(|| now.micros().wrapping_sub(then).cast_signed())
}

#[cfg(test)]
mod tests {
    use super::dated;
    use crate::model::Stamp;

    #[test]
    fn instants_of_another_leader_are_moved_as_if_no_time_had_passed() {
        let headers = "NATS/1.0\r\nDlock-Clock: n1\r\nDlock-Now: 1000\r\n\r\n";
        assert_eq!(dated(headers, "n1", Stamp::from_micros(5000)), None);
        assert_eq!(dated(headers, "n2", Stamp::from_micros(5000)), Some(4000));
        assert_eq!(dated(headers, "n2", Stamp::from_micros(400)), Some(-600));
        assert_eq!(dated("", "n2", Stamp::from_micros(400)), None, "written by hand");
    }
}
