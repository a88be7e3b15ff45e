//! How one hears of all changes: each of them is told on one channel with the name of its key. Whoever is not told says
//! every second that anything may have changed.

use std::collections::BTreeSet;
use std::time::Duration;

use super::PostgresRegister;
use super::address::Address;
use super::connection::{Connection, plain};
use super::trouble::Failure;
use crate::clock::Moment;
use crate::model::{Key, Record};
use crate::store::{Changed, Observer, StoreError};

/// How long a server may be silent before it is asked for a sign of life, and how long that may take.
const SILENCE: (Duration, Duration) = (Duration::from_secs(8), Duration::from_secs(2));

/// How often one says so who is not told.
const UNTOLD: Duration = Duration::from_secs(1);

/// A connection on which the server tells of changes.
pub(super) struct Listener {
    connection: Connection,
    /// Whether nobody tells.
    deaf: bool,
    key: Option<Key>,
    address: Address,
}

impl Listener {
    pub(super) fn new(register: &PostgresRegister, key: Option<&Key>) -> Result<Self, Failure> {
        let connection = register.listen(&register.channels.changes, 0, register.until())?;
        Ok(Self { connection, deaf: register.is_deaf(), key: key.cloned(), address: register.address.clone() })
    }

    fn hear(&mut self, timeout: Option<Duration>) -> Result<Changed, Failure> {
        let until = timeout.map(|timeout| Moment::now().after(timeout));
        let next = |span| until.unwrap_or_else(|| Moment::now().after(span)).min(Moment::now().after(span));
        if self.deaf {
            std::thread::sleep(next(UNTOLD).left());
            // Whoever could not look would not know that.
            self.connection.ask(&[plain("SELECT 1")], Moment::now().after(SILENCE.1))?;
            return Ok(Changed::Any);
        }
        let mut keys = BTreeSet::new();
        loop {
            let wake = if keys.is_empty() { next(SILENCE.0) } else { Moment::now() };
            match self.connection.next_note(wake)? {
                Some(note) if self.connection.channels.contains(&note.channel) => {
                    let key = Key::parse(&note.words).ok();
                    keys.extend(key.filter(|key| self.key.as_ref().is_none_or(|wanted| wanted == key)));
                }
                Some(_) => {}
                None if !keys.is_empty() || until.is_some_and(|until| until.left().is_zero()) => {
                    return Ok(Changed::Keys(keys));
                }
                None => self.connection.ask(&[plain("SELECT 1")], Moment::now().after(SILENCE.1)).map(drop)?,
            }
        }
    }
}

impl Observer for Listener {
    fn next(&mut self, _: &[Record], timeout: Option<Duration>) -> Result<Changed, StoreError> {
        self.hear(timeout).map_err(|failure| failure.by(&self.connection.server).at(&self.address))
    }
}
