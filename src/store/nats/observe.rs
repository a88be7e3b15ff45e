//! How one hears of all changes: each of them is told on a subject of its key.

use std::collections::BTreeSet;
use std::time::Duration;

use super::address::{Address, decode};
use super::{Connection, Failure, NatsRegister};
use crate::clock::Moment;
use crate::model::{Key, Record};
use crate::store::{Changed, Observer, StoreError};

/// How long a server may be silent before it is asked for a sign of life, and how long that may take.
const SILENCE: (Duration, Duration) = (Duration::from_secs(8), Duration::from_secs(2));

/// A connection on which others tell of changes.
pub(super) struct Listener {
    connection: Connection,
    address: Address,
}

impl Listener {
    pub(super) fn new(register: &NatsRegister, key: Option<&Key>) -> Result<Self, Failure> {
        let bucket = &register.address.bucket;
        let subject = key.map_or_else(|| bucket.changes() + "*", |key| bucket.changes_of(key));
        let connection = register.listen(&subject, 0, register.until())?;
        Ok(Self { connection, address: register.address.clone() })
    }

    fn hear(&mut self, timeout: Option<Duration>) -> Result<Changed, Failure> {
        let until = timeout.map(|timeout| Moment::now().after(timeout));
        let next = |span| until.unwrap_or_else(|| Moment::now().after(span)).min(Moment::now().after(span));
        let prefix = self.address.bucket.changes();
        let mut keys = BTreeSet::new();
        loop {
            let wake = if keys.is_empty() { next(SILENCE.0) } else { Moment::now() };
            match self.connection.next_note(wake)? {
                Some(subject) => keys.extend(subject.strip_prefix(&prefix).and_then(decode)),
                None if !keys.is_empty() || until.is_some_and(|until| until.left().is_zero()) => {
                    return Ok(Changed::Keys(keys));
                }
                None => self.connection.ping(Moment::now().after(SILENCE.1))?,
            }
        }
    }
}

impl Observer for Listener {
    fn next(&mut self, _: &[Record], timeout: Option<Duration>) -> Result<Changed, StoreError> {
        self.hear(timeout).map_err(|failure| failure.by(&self.connection.server).at(&self.address))
    }
}
