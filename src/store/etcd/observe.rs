//! How one hears of all changes: the member tells of each record that is written.

use std::collections::BTreeSet;
use std::time::Duration;

use super::EtcdRegister;
use super::address::{Address, end_of};
use super::api::{self, Range, Request, Watched};
use super::connection::{Connection, Watching};
use super::trouble::{Failure, no_more};
use crate::clock::Moment;
use crate::model::{Key, Record};
use crate::store::{Changed, Observer, StoreError};

/// How long a member may tell nothing before it is asked for a sign of life, and how long that may take.
const SILENCE: (Duration, Duration) = (Duration::from_secs(8), Duration::from_secs(2));

/// One to whom changes are told.
pub(super) struct Listener {
    watching: Watching,
    /// Over which the same member is asked for a sign of life, and since when it has given none.
    asking: Connection,
    silent: Moment,
    address: Address,
}

impl Listener {
    pub(super) fn new(register: &EtcdRegister, key: Option<&Key>) -> Result<Self, Failure> {
        let address = &register.address;
        let (from, end) = match key {
            Some(key) => (address.record(key), None),
            None => (address.all(), Some(end_of(&address.all()))),
        };
        let until = register.until();
        let (asking, now) =
            register.with_connection(until, |connection, until| connection.ask::<Range>(&one(address), until))?;
        let own = Connection::open(&asking.server, address, &register.tls, &register.login, until)?;
        let watch = api::watch(&from, end.as_deref(), now.header.revision + 1, false);
        let watching = own.watch(&[watch], until)?;
        Ok(Self { watching, asking, silent: Moment::now(), address: address.clone() })
    }

    fn hear(&mut self, timeout: Option<Duration>) -> Result<Changed, Failure> {
        let until = timeout.map(|timeout| Moment::now().after(timeout));
        let mut keys = BTreeSet::new();
        loop {
            let silence = self.silent.after(SILENCE.0);
            let wake = if keys.is_empty() { until.unwrap_or(silence).min(silence) } else { Moment::now() };
            match self.watching.next::<Watched>(wake)? {
                // What is compacted away cannot be told.
                Some(told) if told.canceled && told.compact_revision > 0 => return Ok(Changed::Any),
                Some(told) if told.canceled => return Err(no_more(&told.cancel_reason)),
                Some(told) => {
                    self.silent = Moment::now();
                    let changed = told.events.iter().filter_map(|event| self.address.meaning(&event.kv.key));
                    keys.extend(changed.filter(|(_, is_record)| *is_record).map(|(key, _)| key));
                }
                None if !keys.is_empty() || until.is_some_and(|until| until.left().is_zero()) => {
                    return Ok(Changed::Keys(keys));
                }
                None => {
                    self.asking.ask::<Range>(&one(&self.address), Moment::now().after(SILENCE.1))?;
                    self.silent = Moment::now();
                }
            }
        }
    }
}

/// What costs little to ask.
fn one(address: &Address) -> Request {
    api::range(&address.all(), &end_of(&address.all()), 1)
}

impl Observer for Listener {
    fn next(&mut self, _: &[Record], timeout: Option<Duration>) -> Result<Changed, StoreError> {
        let server = self.watching.server().clone();
        self.hear(timeout).map_err(|failure| failure.by(&server).at(&self.address))
    }
}
