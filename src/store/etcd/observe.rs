//! How one hears of all changes: the member tells of each record that is written.

use std::collections::BTreeSet;
use std::time::Duration;

use super::EtcdRegister;
use super::address::{Address, end_of};
use super::api::{self, Range, Watched};
use super::connection::{Connection, Watching};
use super::trouble::Failure;
use crate::clock::Moment;
use crate::model::{Key, Record};
use crate::store::{Changed, Observer, StoreError};

/// Whoever was told nothing for so long begins anew: nobody may tell any more.
const SILENCE: Duration = Duration::from_secs(15);

/// One to whom changes are told.
pub(super) struct Listener {
    watching: Watching,
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
        let range = api::range(&from, end.as_deref().unwrap_or_default(), 1);
        let (connection, now) =
            register.with_connection(until, |connection, until| connection.ask::<Range>(&range, until))?;
        let own = Connection::open(&connection.server, address, &register.tls, &register.login, until)?;
        let watch = api::watch(&from, end.as_deref(), now.header.revision + 1, false);
        let watching = own.watch(&[watch], until)?;
        register.idle.keep(connection);
        Ok(Self { watching, address: address.clone() })
    }

    fn hear(&mut self, timeout: Option<Duration>) -> Result<Changed, Failure> {
        let until = Moment::now().after(timeout.unwrap_or(SILENCE).min(SILENCE));
        let mut keys = BTreeSet::new();
        loop {
            let wake = if keys.is_empty() { until } else { Moment::now() };
            match self.watching.next::<Watched>(wake)? {
                Some(told) if told.canceled => {
                    return Err(Failure::Odd(format!("it tells no more: '{}'", told.cancel_reason)));
                }
                Some(told) => {
                    let changed = told.events.iter().filter_map(|event| self.address.meaning(&event.kv.key));
                    keys.extend(changed.filter(|(_, is_record)| *is_record).map(|(key, _)| key));
                }
                None if keys.is_empty() && timeout.is_none_or(|timeout| timeout > SILENCE) => return Ok(Changed::Any),
                None => return Ok(Changed::Keys(keys)),
            }
        }
    }
}

impl Observer for Listener {
    fn next(&mut self, _: &[Record], timeout: Option<Duration>) -> Result<Changed, StoreError> {
        let server = self.watching.server().clone();
        self.hear(timeout).map_err(|failure| failure.by(&server).at(&self.address))
    }
}
