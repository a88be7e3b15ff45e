//! Which keys there are, and their records: of one server, or of all nodes of a cluster.

use std::collections::BTreeMap;
use std::time::Duration;

use redis::{Value, cmd};

use super::RedisStore;
use super::address::Endpoint;
use super::cluster::Range;
use super::parallel::at_once;
use super::reply::{self, Reply};
use super::router::Request;
use super::trouble::Failure;
use crate::clock::Moment;
use crate::model::{Key, Stamp};
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
            let clock = (scope == Scope::Live).then(|| self.clock_of(0, until)).transpose();
            let since = clock.map_err(|failure| self.error(failure))?.map(|clock| self.lively(clock));
            self.read_indexes(None, &[(0, self.index(0))], since, until, &mut listing);
            listing.unseen.pop().map_or(Ok(()), Err)?;
        }
        let mut of_each: BTreeMap<&Endpoint, Vec<u16>> = BTreeMap::new();
        for Range { from, to, owner, .. } in &slots {
            of_each.entry(owner).or_default().extend(*from..=*to);
        }
        let of_each: Vec<_> = of_each.into_iter().collect();
        let listings = at_once(&of_each, |(owner, slots)| self.list_at(owner, slots, scope, until));
        for part in listings.map_err(|failure| self.error(failure))? {
            listing.keys.extend(part.keys);
            part.unseen.into_iter().for_each(|error| listing.miss(error));
        }
        listing.keys.sort_unstable();
        listing.keys.dedup();
        Ok(listing)
    }

    /// The keys of the slots that a node should have.
    fn list_at(&self, owner: &Endpoint, slots: &[u16], scope: Scope, until: Moment) -> Listing {
        let mut listing = Listing::default();
        let clock =
            (scope == Scope::Live).then(|| self.clock_at(slots[0], owner, Moment::now().after(until.left() / 2)));
        let again = |failure: Failure| {
            if failure.is_before_anything() { self.clock_of(slots[0], until) } else { Err(failure) }
        };
        match clock.map(|clock| clock.or_else(again)).transpose() {
            Ok(clock) => {
                let since = clock.map(|clock| self.lively(clock));
                let indexes: Vec<(u16, String)> = slots.iter().map(|slot| (*slot, self.index(*slot))).collect();
                for some in indexes.chunks(INDEXES) {
                    self.read_indexes(Some(owner), some, since, until, &mut listing);
                }
            }
            Err(failure) => listing.miss(self.error(failure)),
        }
        listing
    }

    /// From which end of a lease on a key is of interest.
    fn lively(&self, now: Stamp) -> u64 {
        self.hear(Some(now));
        now.micros().saturating_sub(u64::try_from(LIVELY.as_micros()).unwrap_or(u64::MAX))
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
