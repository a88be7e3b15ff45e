//! What a store keeps of a key.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Fence, Key, LeaseId, LevelId, Mode, Stamp};

/// The layout of [`Record`] that this version writes. A record with a higher number is left untouched.
pub const LAYOUT: u32 = 1;

/// How many of the last events a record keeps.
pub const MAX_EVENTS: usize = 32;

/// A number that a key gives to each level that waits or holds. Tickets rise and never recur, so a store
/// can tie a sign of life to one.
pub type Ticket = u64;

/// Fields that a newer version of dlock wrote; kept as they are, since two versions share a store.
type Unknown = Map<String, Value>;

/// All that a store keeps of one key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The layout number: [`LAYOUT`] or lower.
    pub layout: u32,
    /// The key that this record is of.
    pub key: Key,
    /// The fence of the last grant or end of a hold.
    pub fence: Fence,
    /// The last ticket that was given out.
    pub last_ticket: Ticket,
    /// Who holds the key, in order of grants. A hold without levels is cooling.
    pub holders: Vec<Hold>,
    /// Who waits, first come first served.
    pub queue: Vec<Waiter>,
    /// The last [`MAX_EVENTS`] events, oldest first.
    pub events: VecDeque<Event>,
    /// What happened since the record was made.
    pub counters: Counters,
    /// The highest fence that `dlock guard` has let pass here, if the key is that of a resource.
    #[serde(default, skip_serializing_if = "Fence::is_none")]
    pub passed: Fence,
    #[serde(flatten)]
    pub(super) unknown: Unknown,
}

/// One holder's right to a key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hold {
    /// The lease id.
    pub lease: LeaseId,
    /// How the key is held.
    pub mode: Mode,
    /// How often the lease was entered and not yet left.
    pub levels: Vec<Level>,
    /// The fence of the grant.
    pub fence: Fence,
    /// When the key was granted.
    pub granted_at: Stamp,
    /// Since when the holder had waited for it.
    pub asked_at: Stamp,
    /// The key stays taken until then, whatever the holder does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hold_until: Option<Stamp>,
    /// Whether a `dlock run` attends to this lease and can be told to stop.
    pub attended: bool,
    /// Whether the holder was asked to give the key back.
    pub revoked: bool,
    /// Who it is.
    pub info: Info,
    #[serde(flatten)]
    pub(super) unknown: Unknown,
}

/// One level of re-entry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Level {
    /// The id of the level.
    pub id: LevelId,
    /// Its ticket.
    pub ticket: Ticket,
    /// Until when it counts unless it is renewed; nothing where the store itself sees the holder die.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<Stamp>,
    #[serde(flatten)]
    pub(super) unknown: Unknown,
}

/// One that waits for a key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Waiter {
    /// The id of the lease that it asks for, and of its first level.
    pub lease: LeaseId,
    /// How it wants to hold the key.
    pub mode: Mode,
    /// Its ticket.
    pub ticket: Ticket,
    /// Since when it waits.
    pub asked_at: Stamp,
    /// Until when its last sign of life is good; nothing where the store itself sees it die.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<Stamp>,
    /// Since when it could have taken the key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offered_at: Option<Stamp>,
    /// Who it is.
    pub info: Info,
    #[serde(flatten)]
    pub(super) unknown: Unknown,
}

/// Who holds or waits, for people. Never the command's arguments: they may hold secrets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Info {
    /// The host's name.
    pub host: String,
    /// The process id of dlock there.
    pub pid: u32,
    /// The user's name.
    pub user: String,
    /// The name of the command's program, without its arguments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<String>,
    /// What the user wrote about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// What else a newer version of dlock wrote about it.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// How a command ended, as its holder told on release.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    /// Its exit code; if dlock stopped it, that of dlock (76, 124), whatever the command made of that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<i32>,
    /// The number of the signal it died of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// What else a newer version of dlock told.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// What can happen to a lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EventKind {
    /// It was granted.
    Granted,
    /// Its holder gave it back.
    Released,
    /// Its holder died or did not renew it.
    Expired,
    /// Its holder was asked to give it back.
    Revoked,
    /// It was taken from its holder.
    Evicted,
    /// The time that the key had to stay taken is over.
    Cooled,
    /// Something that a newer version of dlock knows, by its name there.
    #[serde(untagged)]
    Other(String),
}

/// One thing that happened to a lease.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// When.
    pub at: Stamp,
    /// What.
    pub kind: EventKind,
    /// The first digits of the lease's id.
    pub lease: String,
    /// The fence of the lease's grant.
    pub fence: Fence,
    /// Who holds or held it.
    pub info: Info,
    /// For a grant how long the holder had waited, for an end how long it had held, in microseconds.
    pub micros: u64,
    /// How the command ended, where the holder told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ending: Option<Ending>,
    /// Who asked for it, where that was not the holder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<Info>,
    #[serde(flatten)]
    pub(super) unknown: Unknown,
}

impl Event {
    /// Whether it is the same thing that happened, if it was noticed at another time.
    #[must_use]
    pub fn tells_the_same_as(&self, other: &Self) -> bool {
        (&self.kind, &self.lease, self.fence) == (&other.kind, &other.lease, other.fence)
    }
}

/// How often things happened since the record was made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Grants, re-entries not counted.
    pub grants: u64,
    /// Leases whose holder died or did not renew.
    pub expiries: u64,
    /// Leases taken from their holder.
    pub evictions: u64,
    #[serde(flatten)]
    pub(super) unknown: Unknown,
}

/// Why bytes are not a record that this version may touch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordError {
    /// A newer version of dlock wrote it, with this layout number.
    Newer(u32),
    /// It is no record at all.
    Corrupt(String),
}

impl Record {
    /// The record of a key that nobody ever held.
    #[must_use]
    pub fn new(key: Key) -> Self {
        Self {
            layout: LAYOUT,
            key,
            fence: Fence::default(),
            last_ticket: 0,
            holders: Vec::new(),
            queue: Vec::new(),
            events: VecDeque::new(),
            counters: Counters::default(),
            passed: Fence::default(),
            unknown: Unknown::new(),
        }
    }

    /// Reads a record.
    ///
    /// # Errors
    /// [`RecordError`] if it is of a newer layout, or not a record of `key`.
    pub fn decode(key: &Key, bytes: &[u8]) -> Result<Self, RecordError> {
        #[derive(Deserialize)]
        struct Probe {
            layout: u32,
        }
        let record: Result<Self, _> = serde_json::from_slice(bytes);
        let layout = match &record {
            Ok(record) => Some(record.layout),
            Err(_) => serde_json::from_slice(bytes).ok().map(|probe: Probe| probe.layout),
        };
        match (layout, record) {
            (Some(layout), _) if layout > LAYOUT => Err(RecordError::Newer(layout)),
            (_, Ok(record)) if record.key == *key && !record.counts_too_far() => Ok(record),
            (_, Ok(record)) if record.key == *key => Err(RecordError::Corrupt("its numbers are none of ours".into())),
            (_, Ok(record)) => Err(RecordError::Corrupt(format!("it is the record of '{}'", record.key))),
            (_, Err(error)) => Err(RecordError::Corrupt(error.to_string())),
        }
    }

    /// Whether one of the numbers that only rise is farther than it ever gets, so that it could not rise any more.
    fn counts_too_far(&self) -> bool {
        let Counters { grants, expiries, evictions, .. } = self.counters;
        [self.fence.0, self.last_ticket, grants, expiries, evictions].into_iter().any(|count| count > u64::MAX >> 1)
    }

    /// Writes a record.
    ///
    /// # Panics
    /// Never: what a record is made of has a form in JSON.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a record has text keys only, so JSON can hold it")
    }

    /// The hold of a lease.
    #[must_use]
    pub fn hold(&self, lease: LeaseId) -> Option<&Hold> {
        self.holders.iter().find(|hold| hold.lease == lease)
    }

    /// Whether any end of a hold is set by time, not by a sign of life that the store sees.
    #[must_use]
    pub fn is_timed(&self) -> bool {
        self.holders.iter().any(|hold| hold.hold_until.is_some() || hold.levels.iter().any(|l| l.until.is_some()))
    }

    /// What happened after the state that `before` is of; without one, from `since` on.
    pub fn events_after<'a>(&'a self, before: Option<&Self>, since: Stamp) -> impl Iterator<Item = &'a Event> {
        let place = |known: &Event| self.events.iter().rposition(|event| event.tells_the_same_as(known));
        // The last of these may not be written yet: an end that whoever looks notices, and nobody else did.
        let place = before.and_then(|before| before.events.iter().rev().find_map(place));
        self.events.iter().skip(place.map_or(0, |place| place + 1)).filter(move |event| event.at >= since)
    }

    /// Who took this lease from its holder, or asked the holder to give it back, as far as the record remembers.
    #[must_use]
    pub fn unlocked_by(&self, lease: LeaseId) -> Option<&Info> {
        let of_it = |event: &&Event| event.lease == lease.short() && event.by.is_some();
        self.events.iter().rev().find(of_it).and_then(|event| event.by.as_ref())
    }

    /// The first instant at which something of this ends that nobody tells of.
    #[must_use]
    pub fn next_end(&self) -> Option<Stamp> {
        let levels = self.holders.iter().flat_map(|hold| &hold.levels).filter_map(|level| level.until);
        let cooling = self.holders.iter().filter(|hold| hold.is_cooling()).filter_map(Hold::ends_at);
        let signs = self.queue.iter().filter_map(|waiter| waiter.until);
        let offers = self.queue.iter().filter_map(|waiter| waiter.offered_at).map(|since| since.after(super::OFFER));
        levels.chain(cooling).chain(signs).chain(offers).min()
    }

    /// Whether this differs from `other` by more than the instants that beats and signs of life move on.
    #[must_use]
    pub fn differs_from(&self, other: &Self) -> bool {
        let still = |record: &Self| {
            let mut record = record.clone();
            record.holders.iter_mut().flat_map(|hold| &mut hold.levels).for_each(|level| level.until = None);
            record.queue.iter_mut().for_each(|waiter| waiter.until = None);
            record
        };
        still(self) != still(other)
    }

    /// The same record by a clock that is so many microseconds ahead of the one that it was kept by. What is over stays
    /// where it was.
    #[must_use]
    pub fn moved(mut self, ahead: i64) -> Self {
        let at = |stamp: Stamp| stamp.moved(ahead);
        for hold in &mut self.holders {
            hold.levels.iter_mut().for_each(|level| level.until = level.until.map(at));
            (hold.granted_at, hold.asked_at) = (at(hold.granted_at), at(hold.asked_at));
            hold.hold_until = hold.hold_until.map(at);
        }
        for waiter in &mut self.queue {
            waiter.asked_at = at(waiter.asked_at);
            (waiter.until, waiter.offered_at) = (waiter.until.map(at), waiter.offered_at.map(at));
        }
        self
    }

    /// Whether something of it must outlive the processes that it speaks of, and so a crash of the machine.
    #[must_use]
    pub fn must_last(&self) -> bool {
        self.is_timed() || !self.passed.is_none()
    }

    pub(super) fn note(&mut self, event: Event) {
        if self.events.len() >= MAX_EVENTS {
            self.events.drain(..=self.events.len() - MAX_EVENTS);
        }
        self.events.push_back(event);
    }
}

impl Level {
    pub(super) fn new(id: LevelId, ticket: Ticket, until: Option<Stamp>) -> Self {
        Self { id, ticket, until, unknown: Unknown::new() }
    }
}

impl Hold {
    /// Whether the holder is done, and the key only stays taken until [`Hold::hold_until`].
    #[must_use]
    pub fn is_cooling(&self) -> bool {
        self.levels.is_empty()
    }

    /// The instant at which this hold ends unless it is renewed; nothing while a level of it ends by a
    /// sign of life alone.
    #[must_use]
    pub fn ends_at(&self) -> Option<Stamp> {
        let last =
            self.levels.iter().map(|level| level.until).try_fold(None, |last, until| until.map(|u| last.max(Some(u))));
        // Whoever was asked to give the key back leaves it to the next one, not to cool.
        last.map(|last| last.max(self.hold_until.filter(|_| !self.revoked))).unwrap_or_default()
    }

    pub(super) fn event(&self, kind: EventKind, at: Stamp, span: Duration, ending: Option<Ending>) -> Event {
        Event {
            at,
            kind,
            lease: self.lease.short(),
            fence: self.fence,
            info: self.info.clone(),
            micros: u64::try_from(span.as_micros()).unwrap_or(u64::MAX),
            ending,
            by: None,
            unknown: Unknown::new(),
        }
    }
}

impl EventKind {
    /// Its name, as in the record.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Granted => "granted",
            Self::Released => "released",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
            Self::Evicted => "evicted",
            Self::Cooled => "cooled",
            Self::Other(name) => name,
        }
    }
}

impl Event {
    pub(super) fn by(self, by: &Info) -> Self {
        Self { by: Some(by.clone()), ..self }
    }
}

impl fmt::Display for Info {
    /// `web3 pid 4121 (alice)`. What is in it may hold anything that others wrote.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} pid {} ({})", self.host, self.pid, self.user)
    }
}
