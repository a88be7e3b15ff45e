//! What happened to a key. It is no part of the record as it is kept: whoever takes a key would read and write much that he
//! does not need, and etcd keeps all that was ever written until it is compacted. Each change of a record that makes
//! events writes them beside it, in the same transaction, under the number of grants and the revision of the record that it
//! replaced.

use serde_json::Value;

use super::EtcdRegister;
use super::address::end_of;
use super::api::{self, Range, Request};
use super::connection::{Connection, read};
use super::look::Reading;
use super::trouble::Failure;
use crate::clock::Moment;
use crate::model::{Event, MAX_EVENTS, Record};

/// After so many grants what is too old to be told goes.
const PRUNE: u64 = 8;

/// A record as it is kept.
pub(super) fn without(record: &Record) -> Record {
    let mut kept = record.clone();
    kept.events.clear();
    kept
}

/// What writes down what a change has noted, if it has: the record was written at this revision before. Each grant is an event,
/// so those of as many grants as events are told are kept.
pub(super) fn noted(prefix: &str, written: i64, record: &Record) -> Vec<Value> {
    if record.events.is_empty() {
        return Vec::new();
    }
    let grants = record.counters.grants;
    let events = serde_json::to_vec(&record.events).unwrap_or_default();
    let name = format!("{prefix}{grants:020}.{written:020}");
    let oldest = format!("{prefix}{:020}", grants.saturating_sub(MAX_EVENTS as u64));
    let mut done = vec![api::put(&name, &events, None)];
    if written == 0 {
        // Whoever deleted the record, and not these, has begun anew.
        done.push(api::delete_all(prefix, &name));
        done.push(api::delete_all(&format!("{name}\0"), &end_of(prefix)));
    } else if grants.is_multiple_of(PRUNE) {
        done.push(api::delete_all(prefix, &oldest));
    }
    done
}

impl EtcdRegister {
    /// Adds what happened.
    pub(super) fn add_events(
        &self,
        connection: &mut Connection,
        readings: &mut [Result<Reading, Failure>],
        until: Moment,
    ) -> Result<(), Failure> {
        let mut found: Vec<&mut Reading> =
            readings.iter_mut().flatten().filter(|reading| reading.kept.is_some()).collect();
        let range = |reading: &&mut Reading| {
            let prefix = self.address.events(&reading.seen.key);
            api::all(&prefix, &end_of(&prefix))
        };
        let requests: Vec<Request> = found.iter().map(range).collect();
        for (reading, answer) in found.iter_mut().zip(connection.ask_all(&requests, until)?) {
            let range: Range = read(answer)?;
            reading.seen.events.extend(range.kvs.iter().flat_map(|kv| told(kv, reading.written)));
            let surplus = reading.seen.events.len().saturating_sub(MAX_EVENTS);
            reading.seen.events.drain(..surplus);
        }
        Ok(())
    }
}

/// What an entry tells of a record that was written at this revision. Later ones are none of what was read.
fn told(kv: &api::Kv, written: i64) -> Vec<Event> {
    let replaced = kv.key.rsplit_once('.').and_then(|(_, replaced)| replaced.parse::<i64>().ok());
    match replaced {
        Some(replaced) if replaced >= written => Vec::new(),
        _ => serde_json::from_str(&kv.value).unwrap_or_else(|_| {
            log::warn!("'{}' is no event", kv.key);
            Vec::new()
        }),
    }
}
