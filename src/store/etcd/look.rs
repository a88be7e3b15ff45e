//! What there is of a key: its record, and who of those in it lives. A level lives as long as a key of etcd's that is tied to
//! a lease of etcd's, and such a key is made only together with a change of the record. So whoever is dead in a record stays
//! dead in it.
//!
//! **Time.** Etcd tells no time. What a record says of instants is by the clock of whoever wrote it, and is there to be shown.
//! Before the law works with it, each end is moved: behind now for those who live, before now for the others.
//!
//! **Leases that end too soon.** A lease may be revoked by hand, and members before 3.4.38 and 3.5.23 may end one early once
//! a frozen leader wakes. Its holder counts on it all the same until he hears of that and has stopped his command. So whoever
//! has seen a holder live counts it as living for as long as its holder may, unless that one gives the key back. Others leave
//! it to those at the head of the queue to see that it is dead. And whoever has not seen it goes by the end that its holder wrote
//! down: as long as clocks agree, a lease that ends by itself has none to come.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::address::{END, RECORD, end_of, level, min_hold};
use super::api::{self, LeaseLeft, Range, Request};
use super::connection::{Connection, read};
use super::trouble::Failure;
use super::{EtcdRegister, events, lock};
use crate::clock::Moment;
use crate::model::{Key, LevelId, Record, SIGN_OF_LIFE, Stamp, Standing};
use crate::store::trouble::no_record;
use crate::store::turn::WATCHERS;

/// Etcd tells what is left of a lease in whole seconds.
const GRAIN: Duration = Duration::from_secs(1);

/// What was left behind so long ago has to be looked at again.
const FRESH: Duration = Duration::from_millis(500);

/// When so many were seen, those are forgotten who cannot live any more.
const MOST_SIGHTINGS: usize = 1000;

/// What is read of a key at once.
pub(super) struct Reading {
    /// The revision of etcd that this was read at.
    pub(super) revision: i64,
    /// The revision at which the record was written last; 0 if there is none.
    pub(super) written: i64,
    /// Nothing, if there is none.
    pub(super) kept: Option<Record>,
    /// The record with ends as they are.
    pub(super) seen: Record,
    /// Signs of life, by their names.
    pub(super) lives: BTreeMap<String, Life>,
    /// Until when their owners count on levels, by the names of their signs of life.
    pub(super) ends: BTreeMap<String, End>,
    pub(super) now: Stamp,
    /// Our own level, if it holds and its sign of life has ended.
    pub(super) lost: Option<LevelId>,
    /// The member that answered, and its term.
    pub(super) member: (u64, u64),
}

/// A key of etcd's that lives as long as a lease of etcd's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Life {
    /// When it was written last.
    pub(super) revision: i64,
    pub(super) lease: i64,
}

/// A sign of life that was written.
pub(super) struct Shown {
    pub(super) name: String,
    pub(super) lease: i64,
    /// Until when whoever holds counts on it.
    pub(super) end: Option<End>,
}

/// What the owner of a level wrote when he got it, or renewed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct End {
    /// By the clock of its host.
    until: Stamp,
    /// For how long that was.
    span: Duration,
}

/// What one left behind who got a key, or began to wait for it.
pub(super) struct Left {
    me: LevelId,
    reading: Reading,
    at: Moment,
}

/// What is remembered of those whom we have seen.
#[derive(Default)]
pub(super) struct Sightings {
    /// By the name of a sign of life: its revision then, and until when its owner may count on it.
    lives: HashMap<String, (i64, Moment)>,
    /// Since when we have seen that one could take the key.
    offers: HashMap<LevelId, Moment>,
}

impl Reading {
    /// What there is once this record was written at a revision, with a sign of life that is new.
    pub(super) fn after(&self, record: &Record, revision: i64, shown: Option<Shown>) -> Self {
        let left: BTreeSet<String> = names(record).collect();
        let (mut lives, mut ends) = (self.lives.clone(), self.ends.clone());
        lives.retain(|name, _| left.contains(name));
        ends.retain(|name, _| left.contains(name));
        if let Some(shown) = shown {
            ends.extend(shown.end.map(|end| (shown.name.clone(), end)));
            lives.insert(shown.name, Life { revision, lease: shown.lease });
        }
        let record = events::without(record);
        Self { revision, written: revision, kept: Some(record.clone()), seen: record, lives, ends, lost: None, ..*self }
    }

    /// The record as an operation would find it. Whose sign of life has ended too soon is to give the key back.
    pub(super) fn looked_at(self) -> Option<Record> {
        self.kept?;
        let mut seen = self.seen.seen(&self.now);
        for hold in &mut seen.holders {
            let is_gone = |name: String| {
                !self.lives.contains_key(&name) && self.ends.get(&name).is_some_and(|end| end.is_to_come(self.now))
            };
            hold.revoked |= hold.levels.iter().any(|of| is_gone(level(of.id)));
        }
        Some(seen)
    }
}

impl End {
    pub(super) fn after(now: Stamp, span: Duration) -> Self {
        Self { until: now.after(span), span }
    }

    /// What writes it down beside a sign of life.
    pub(super) fn written(self, name: &str) -> Value {
        let text = format!("{} {}", self.until.micros(), self.span.as_micros());
        api::put(&format!("{name}{END}"), text.as_bytes(), None)
    }

    /// What makes no sense is over.
    fn decode(text: &str) -> Self {
        let numbers = text.split_once(' ').and_then(|(until, span)| Some((until.parse().ok()?, span.parse().ok()?)));
        let (until, span) = numbers.unwrap_or_default();
        Self { until: Stamp::from_micros(until), span: Duration::from_micros(span) }
    }

    /// Whether it is to come. One that is much further away than it ever was is that of another clock.
    fn is_to_come(self, now: Stamp) -> bool {
        self.until > now && self.until <= now.after(self.span).after(self.span)
    }
}

impl EtcdRegister {
    /// Remembers what the owner of a level left behind.
    pub(super) fn remember(&self, me: LevelId, reading: Reading) {
        *lock(&self.left) = Some(Left { me, reading, at: Moment::now() });
    }

    /// What the owner of a level left behind just now, as far as he knows.
    pub(super) fn left_behind(&self, me: LevelId) -> Option<Reading> {
        let left = lock(&self.left).take_if(|left| left.me == me)?;
        let seen = left.reading.kept.clone()?;
        let at = Moment::now();
        let reading = Reading { seen, now: self.clock(), ..left.reading };
        (at.since(left.at) < FRESH).then(|| self.with_ends(reading, Some(me), at))
    }

    /// What there is of a key, for the owner of this level.
    pub(super) fn look_at(
        &self,
        connection: &mut Connection,
        key: &Key,
        me: Option<LevelId>,
        until: Moment,
    ) -> Result<Reading, Failure> {
        let mut all = self.look_at_many(connection, std::slice::from_ref(key), me, until)?;
        all.pop().ok_or(Failure::Garbage)?
    }

    /// The same of many keys. What is wrong with one record hides no other.
    pub(super) fn look_at_many(
        &self,
        connection: &mut Connection,
        keys: &[Key],
        me: Option<LevelId>,
        until: Moment,
    ) -> Result<Vec<Result<Reading, Failure>>, Failure> {
        let at = Moment::now();
        // One range, and no transaction: members before 3.4.20 and 3.5.5 die of one that only reads, if whoever asked
        // hangs up meanwhile (etcd, issue 14110).
        let range = |key| api::all(&self.address.of(key), &end_of(&self.address.of(key)));
        let requests: Vec<Request> = keys.iter().map(range).collect();
        let answers = connection.ask_all(&requests, until)?;
        let mut found = Vec::with_capacity(keys.len());
        for (key, answer) in keys.iter().zip(answers) {
            found.push(self.found(key, read(answer)?));
        }
        self.complete(connection, found, me, (at, until))
    }

    /// What there is of a key, given what was read since that moment.
    pub(super) fn reading(
        &self,
        connection: &mut Connection,
        key: &Key,
        range: Range,
        me: Option<LevelId>,
        times: (Moment, Moment),
    ) -> Result<Reading, Failure> {
        let mut all = self.complete(connection, vec![self.found(key, range)], me, times)?;
        all.pop().ok_or(Failure::Garbage)?
    }

    /// Adds what there is to know of those who live.
    fn complete(
        &self,
        connection: &mut Connection,
        found: Vec<Result<Reading, Failure>>,
        me: Option<LevelId>,
        (at, until): (Moment, Moment),
    ) -> Result<Vec<Result<Reading, Failure>>, Failure> {
        let unknown: Vec<(String, Life)> =
            found.iter().flatten().flat_map(|reading| self.not_seen_before(reading, me)).collect();
        if !unknown.is_empty() {
            let requests: Vec<Request> = unknown.iter().map(|(_, life)| api::time_to_live(life.lease)).collect();
            let answers = connection.ask_all(&requests, until)?;
            for ((name, life), answer) in unknown.into_iter().zip(answers) {
                let left: LeaseLeft = read(answer)?;
                let seconds = |seconds: i64| Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
                let end = Moment::now().after(seconds(left.ttl) + GRAIN).min(at.after(seconds(left.granted)));
                self.saw(&name, life.revision, end);
            }
        }
        let place = |reading: Result<Reading, Failure>| reading.map(|reading| self.with_ends(reading, me, at));
        Ok(found.into_iter().map(place).collect())
    }

    fn found(&self, key: &Key, range: Range) -> Result<Reading, Failure> {
        // Two clusters would each give the key to somebody.
        if *self.cluster.get_or_init(|| range.header.cluster_id) != range.header.cluster_id {
            return Err(Failure::Odd("the hosts of the URL are members of different clusters".into()));
        }
        let prefix = self.address.of(key);
        let name = |kv: &api::Kv| kv.key.strip_prefix(&prefix).unwrap_or_default().to_owned();
        let (records, others): (Vec<_>, Vec<_>) =
            range.kvs.into_iter().map(|kv| (name(&kv), kv)).partition(|(name, _)| name == RECORD);
        let (ends, lives): (Vec<_>, Vec<_>) = others.into_iter().partition(|(name, _)| name.ends_with(END));
        let end = |(name, kv): (String, api::Kv)| Some((name.strip_suffix(END)?.to_owned(), End::decode(&kv.value)));
        let record = records.first().map(|(_, kv)| kv);
        let kept = record.map(|kv| Record::decode(key, kv.value.as_bytes()));
        let kept = kept.transpose().map_err(|why| Failure::Odd(no_record(key, "", &why)))?;
        Ok(Reading {
            revision: range.header.revision,
            written: record.map_or(0, |kv| kv.mod_revision),
            seen: kept.clone().unwrap_or_else(|| Record::new(key.clone())),
            kept,
            lives: lives
                .into_iter()
                .map(|(name, kv)| (name, Life { revision: kv.mod_revision, lease: kv.lease }))
                .collect(),
            ends: ends.into_iter().filter_map(end).collect(),
            now: self.clock(),
            lost: None,
            member: (range.header.member_id, range.header.raft_term),
        })
    }

    /// The clock of this host, unless tests rule it.
    pub(super) fn clock(&self) -> Stamp {
        let own = || Stamp::default().after(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default());
        lock(&self.clock).unwrap_or_else(own)
    }

    /// Signs of life that were not seen as they are now, of those who hold: it matters how long they may count on it to
    /// whoever looks on, or waits at the head of the queue: the end that the holder wrote down is by another clock. Our own
    /// matters always.
    fn not_seen_before(&self, reading: &Reading, me: Option<LevelId>) -> Vec<(String, Life)> {
        let sightings = lock(&self.sightings);
        let matters = me.is_none_or(|me| matches!(reading.seen.standing(me), Standing::Waiting(at) if at < WATCHERS));
        let names = reading.seen.holders.iter().flat_map(|hold| {
            hold.levels.iter().map(|of| level(of.id)).chain(hold.hold_until.map(|_| min_hold(hold.lease)))
        });
        let known = |name: &str, life: &Life| sightings.lives.get(name).is_some_and(|seen| seen.0 == life.revision);
        let living = names.filter_map(|name| Some((reading.lives.get(&name).copied()?, name)));
        let own = me.map(level);
        let living = living.filter(|(_, name)| matters || Some(name) == own.as_ref());
        living.filter(|(life, name)| !known(name, life)).map(|(life, name)| (name, life)).collect()
    }

    /// Remembers a sign of life, and until when its owner may count on it.
    pub(super) fn saw(&self, name: &str, revision: i64, until: Moment) {
        let mut sightings = lock(&self.sightings);
        if sightings.lives.len() > MOST_SIGHTINGS {
            sightings.lives.retain(|_, (_, until)| !until.left().is_zero());
        }
        sightings.lives.insert(name.to_owned(), (revision, until));
    }

    /// How long the owner of this sign of life may count on it, as far as that was seen.
    pub(super) fn left_of(&self, name: &str, revision: i64) -> Duration {
        let sightings = lock(&self.sightings);
        let seen = sightings.lives.get(name).filter(|(seen, _)| *seen == revision);
        seen.map_or(Duration::ZERO, |(_, until)| until.left())
    }

    /// Moves each end to where it is.
    fn with_ends(&self, mut reading: Reading, me: Option<LevelId>, at: Moment) -> Reading {
        if lock(&self.clock).is_some() {
            return reading;
        }
        let now = reading.now;
        let mut sightings = lock(&self.sightings);
        // A moment later on our clock, as an instant.
        let stamp = |moment: Moment| now.after(moment.since(at));
        let soon = now.after(GRAIN);
        let lives = &reading.lives;
        let is_ours_to_judge = is_left_to_us(&reading.seen, lives, me);
        // Nobody may have looked for long at who has died.
        let counted = |name: &str| reading.ends.get(name);
        let died = |name: &str, written: Option<Stamp>| {
            counted(name).map(|end| end.until).max(written).unwrap_or(now).min(now)
        };
        let end = |name: &str, written: Option<Stamp>, sightings: &Sightings, is_mine: bool| {
            let seen = sightings.lives.get(name).map(|(_, until)| stamp(*until));
            let to_come = counted(name).filter(|end| end.is_to_come(now));
            match (lives.contains_key(name), seen) {
                // Our own is renewed from now on, whatever is left of it.
                (true, _) if is_mine => now.after(Duration::from_micros(1)),
                (true, seen) => seen.max(to_come.map(|end| end.until)).filter(|until| *until > now).unwrap_or(soon),
                (false, _) if is_mine => died(name, written),
                (false, Some(until)) if until > now => until,
                (false, _) => match to_come {
                    Some(end) => end.until,
                    None if is_ours_to_judge => died(name, written),
                    None => soon,
                },
            }
        };
        for hold in &mut reading.seen.holders {
            for of in &mut hold.levels {
                let is_mine = Some(of.id) == me;
                let name = level(of.id);
                if is_mine && !lives.contains_key(&name) {
                    reading.lost = me;
                }
                of.until = Some(end(&name, of.until, &sightings, is_mine));
            }
            let name = min_hold(hold.lease);
            hold.hold_until = hold.hold_until.map(|until| end(&name, Some(until), &sightings, false));
        }
        let queue = &mut reading.seen.queue;
        sightings
            .offers
            .retain(|level, _| queue.iter().any(|waiter| waiter.lease == *level && waiter.offered_at.is_some()));
        for waiter in queue {
            let name = level(waiter.lease);
            // Of our own we know when it was shown last; the end of another one we are told.
            let signed =
                sightings.lives.get(&name).filter(|_| Some(waiter.lease) == me).map(|(_, until)| stamp(*until));
            let is_alive = lives.contains_key(&name);
            waiter.until = Some(if is_alive { signed.unwrap_or(now.after(SIGN_OF_LIFE)).max(soon) } else { now });
            waiter.offered_at = waiter.offered_at.map(|_| {
                let since = *sightings.offers.entry(waiter.lease).or_insert(at);
                now.moved(-i64::try_from(at.since(since).as_micros()).unwrap_or_default())
            });
        }
        reading
    }
}

/// Whether it is for the owner of this level to see that a holder is dead: nobody lives who waits at the head, or we do.
fn is_left_to_us(record: &Record, lives: &BTreeMap<String, Life>, me: Option<LevelId>) -> bool {
    let mut head =
        record.queue.iter().filter(|waiter| lives.contains_key(&level(waiter.lease))).take(WATCHERS).peekable();
    head.peek().is_none() || head.any(|waiter| Some(waiter.lease) == me)
}

/// The names of all signs of life that belong to a record.
pub(super) fn names(record: &Record) -> impl Iterator<Item = String> + '_ {
    let holds = record.holders.iter().flat_map(|hold| {
        hold.levels.iter().map(|of| level(of.id)).chain(hold.hold_until.map(|_| min_hold(hold.lease)))
    });
    holds.chain(record.queue.iter().map(|waiter| level(waiter.lease)))
}
