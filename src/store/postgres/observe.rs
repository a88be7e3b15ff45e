//! How one hears of all changes: each of them is told on one channel with the name of its key. Whoever is not told looks
//! which rows have another version.

use std::collections::{BTreeSet, HashMap};
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

/// How often one looks who is not told. There are few of them.
const UNTOLD: Duration = Duration::from_millis(200);

/// A connection on which the server tells of changes.
pub(super) struct Listener {
    connection: Connection,
    /// The versions of the rows, where nobody tells, and what asks for them.
    versions: Option<HashMap<String, String>>,
    statement: String,
    key: Option<Key>,
    address: Address,
}

impl Listener {
    pub(super) fn new(register: &PostgresRegister, key: Option<&Key>) -> Result<Self, Failure> {
        let connection = register.listen(&register.channels.changes, 0, register.until())?;
        let (key, address) = (key.cloned(), register.address.clone());
        let statement = register.statements.versions.clone();
        let mut listener = Self { connection, versions: None, statement, key, address };
        if register.is_deaf() {
            listener.versions = Some(listener.look()?);
        }
        Ok(listener)
    }

    /// The version of each row.
    fn look(&mut self) -> Result<HashMap<String, String>, Failure> {
        let done = match self.connection.ask(&[plain(&self.statement)], Moment::now().after(SILENCE.1)) {
            Err(failure) if failure.is_missing_table() => return Ok(HashMap::new()),
            done => done?,
        };
        let rows = done.into_iter().flat_map(|done| done.rows);
        let pair = |row: Vec<Option<String>>| {
            let mut cells = row.into_iter().flatten();
            Some((cells.next()?, cells.next()?))
        };
        Ok(rows.filter_map(pair).collect())
    }

    /// The keys whose rows have another version than before, if nobody tells.
    fn compare(&mut self, before: &HashMap<String, String>) -> Result<BTreeSet<Key>, Failure> {
        let after = self.look()?;
        let changed = after.iter().filter(|(name, version)| before.get(*name) != Some(version)).map(|(name, _)| name);
        let gone = before.keys().filter(|name| !after.contains_key(*name));
        let keys = changed.chain(gone).filter_map(|name| self.wanted(name)).collect();
        self.versions = Some(after);
        Ok(keys)
    }

    fn wanted(&self, name: &str) -> Option<Key> {
        Key::parse(name).ok().filter(|key| self.key.as_ref().is_none_or(|wanted| wanted == key))
    }

    fn hear(&mut self, timeout: Option<Duration>) -> Result<Changed, Failure> {
        let until = timeout.map(|timeout| Moment::now().after(timeout));
        let next = |span| until.unwrap_or_else(|| Moment::now().after(span)).min(Moment::now().after(span));
        while let Some(before) = self.versions.take() {
            std::thread::sleep(next(UNTOLD).left());
            let keys = self.compare(&before)?;
            if !keys.is_empty() || until.is_some_and(|until| until.left().is_zero()) {
                return Ok(Changed::Keys(keys));
            }
        }
        let mut keys = BTreeSet::new();
        loop {
            let wake = if keys.is_empty() { next(SILENCE.0) } else { Moment::now() };
            match self.connection.next_note(wake)? {
                Some(note) if self.connection.channels.contains(&note.channel) => {
                    keys.extend(self.wanted(&note.words));
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
