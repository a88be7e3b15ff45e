//! Which keys there are, and their records: of one server, or of all nodes of a cluster.

use std::time::Duration;

use redis::{Value, cmd};

use super::RedisStore;
use super::address::Endpoint;
use super::cluster::Range;
use super::reply::{self, Reply};
use super::router::Request;
use super::trouble::Failure;
use crate::clock::Moment;
use crate::model::Key;
use crate::store::{Inspected, Listing, Scope, Store as _, StoreError, Trouble};

/// How many records are asked for at once.
const RECORDS: usize = 100;

/// How many indexes are asked for at once.
const INDEXES: usize = 4096;

/// For how long a key without a lease may still be waited for.
const LIVELY: Duration = Duration::from_secs(60);

impl RedisStore {
    /// Looks at records. What a node of a cluster has that does not answer hides no other.
    pub(super) fn look_at(&self, keys: &[Key]) -> Result<Vec<Inspected>, StoreError> {
        if self.router.cluster().is_some() && keys.len() > 1 {
            // Without it each is looked for alone.
            let _ = self.router.slots(Moment::now().after(self.patience));
        }
        let mut inspected = Vec::with_capacity(keys.len());
        for some in keys.chunks(RECORDS) {
            inspected.extend(self.look_at_some(some)?);
        }
        Ok(inspected)
    }

    fn look_at_some(&self, keys: &[Key]) -> Result<Vec<Inspected>, StoreError> {
        let looks: Vec<Request> = keys.iter().map(|key| self.request("EVALSHA", key, "look", &[])).collect();
        let mut inspected: Vec<Option<Inspected>> = keys.iter().map(|_| None).collect();
        for (places, answers) in self.router.ask_all(&looks, Moment::now().after(self.patience)) {
            match answers {
                Ok((replies, by)) => {
                    for (at, reply) in places.into_iter().zip(replies) {
                        inspected[at] = Some(self.seen_by(&by, &keys[at], reply)?);
                    }
                }
                Err(failure) => {
                    let error = self.error(failure);
                    if self.router.cluster().is_none() {
                        return Err(error);
                    }
                    for at in places {
                        inspected[at] = Some(Err(error.clone()));
                    }
                }
            }
        }
        let all = inspected
            .into_iter()
            .zip(keys)
            .map(|(inspected, key)| inspected.map_or_else(|| self.inspect(key).map(Ok), Ok));
        all.collect()
    }

    fn seen_by(&self, by: &Endpoint, key: &Key, reply: Value) -> Result<Inspected, StoreError> {
        // The server was restarted, or never saw the script.
        if matches!(&reply, Value::ServerError(error) if error.code() == "NOSCRIPT") {
            return self.inspect(key).map(Ok);
        }
        match Reply::read(reply).and_then(|reply| reply.record(key)) {
            Ok(record) => Ok(Ok(self.see(record))),
            Err(failure) => match self.error(failure.by(by)) {
                error if error.trouble == Trouble::Unfit => Ok(Err(error)),
                error => Err(error),
            },
        }
    }

    /// The keys in the index or, of a cluster, in that of each slot.
    pub(super) fn list_keys(&self, scope: Scope) -> Result<Listing, StoreError> {
        let until = Moment::now().after(self.patience);
        let slots = self.router.slots(until).map_err(|failure| self.error(failure))?;
        let mut listing = Listing::default();
        if self.router.cluster().is_none() {
            let since = self.since(scope, 0, until)?;
            self.read_indexes(None, &[(0, self.index(0))], since, until, &mut listing);
            listing.unseen.pop().map_or(Ok(()), Err)?;
        }
        for Range { from, to, owner, .. } in slots {
            let index = |slot: u16| (slot, self.index(slot));
            let indexes: Vec<(u16, String)> = (from..=to).map(index).collect();
            match self.since(scope, from, until) {
                Ok(since) => {
                    for some in indexes.chunks(INDEXES) {
                        self.read_indexes(Some(&owner), some, since, until, &mut listing);
                    }
                }
                Err(error) => listing.miss(error),
            }
        }
        listing.keys.sort_unstable();
        listing.keys.dedup();
        Ok(listing)
    }

    /// From which end of a lease on a key is of interest, by the clock of whoever has the slot.
    fn since(&self, scope: Scope, slot: u16, until: Moment) -> Result<Option<u64>, StoreError> {
        if scope == Scope::All {
            return Ok(None);
        }
        let now = self.clock_of(slot, until).map_err(|failure| self.error(failure))?;
        self.hear(Some(now));
        Ok(Some(now.micros().saturating_sub(u64::try_from(LIVELY.as_micros()).unwrap_or(u64::MAX))))
    }

    fn read_indexes(
        &self,
        owner: Option<&Endpoint>,
        indexes: &[(u16, String)],
        since: Option<u64>,
        until: Moment,
        listing: &mut Listing,
    ) {
        let request = |(slot, index): &(u16, String)| {
            let command = match since {
                // The index has the ends of leases, which are in the future for all that are held.
                Some(since) => cmd("ZRANGEBYSCORE").arg(index).arg(since).arg("+inf").take(),
                None => cmd("ZRANGE").arg(index).arg(0).arg(-1).take(),
            };
            Request { slot: *slot, command, alone: None }
        };
        let requests: Vec<Request> = indexes.iter().map(request).collect();
        let answered = match owner {
            Some(owner) => self.router.ask_all_of(owner, &requests, (0..requests.len()).collect(), until),
            None => self.router.ask_all(&requests, until),
        };
        for (_, answers) in answered {
            let found = answers.and_then(|(replies, by)| {
                let keys: Result<Vec<_>, _> = replies.into_iter().map(keys_in).collect();
                keys.map_err(|failure| failure.by(&by))
            });
            match found {
                Ok(keys) => listing.keys.extend(keys.into_iter().flatten()),
                Err(failure) => listing.miss(self.error(failure)),
            }
        }
    }
}

fn keys_in(index: Value) -> Result<Vec<Key>, Failure> {
    match index {
        Value::Array(keys) => Ok(keys.iter().filter_map(|key| Key::parse(reply::text(key)?).ok()).collect()),
        Value::ServerError(error) => Err(Failure::Server(error)),
        _ => Err(Failure::Garbage),
    }
}
