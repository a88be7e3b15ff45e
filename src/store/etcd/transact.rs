//! Changing a record: it is read, and what the law makes of it is written if nobody else wrote it meanwhile, together with
//! the signs of life that come and go with it. Whether that was so, the answer to the write tells, and nothing else does.
//!
//! **Renewals.** A hold is renewed by tying its sign of life to a new lease of etcd's, which most members have agreed to. To
//! keep the old lease alive would cost no agreement, but a leader that was frozen, and does not know yet that there is a new
//! one, may say that it did so, and may even end a lease that the new leader had kept alive (etcd, issue 15247).

use std::time::Duration;

use serde_json::Value;

use super::address::{end_of, level, min_hold};
use super::api::{self, LeaseLeft, Range, Request};
use super::connection::{Connection, read};
use super::look::{Life, Reading, names};
use super::trouble::Failure;
use super::{EtcdRegister, lock};
use crate::clock::{Moment, some_of};
use crate::model::{Clock, Key, LevelId, Record, SIGN_OF_LIFE, Stamp, Standing};
use crate::store::turn;

/// Whoever lost a swap waits for a random part of this, more each time up to so many times as much. A renewal does not.
const PAUSE: (Duration, u32) = (Duration::from_millis(2), 8);

/// What etcd counts leases in, and the shortest one that it makes.
pub(super) const LEAST_TTL: Duration = Duration::from_secs(2);

/// How many operations fit in a transaction: etcd's own limit is 128.
const MOST_OPERATIONS: usize = 100;

/// What becomes of our own level with a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mine {
    /// It holds, for so long.
    Holds(Duration),
    Waits,
}

impl Written {
    fn if_so(done: bool) -> Self {
        if done { Self::Nothing } else { Self::Not(None) }
    }
}

/// A change on its way.
struct Change<'a> {
    register: &'a EtcdRegister,
    key: &'a Key,
    me: Option<LevelId>,
    until: Moment,
    /// A lease of etcd's that was made for it and is not used yet: for how long, and when.
    spare: Option<(i64, Duration, Moment)>,
}

/// What became of a write.
enum Written {
    /// At which revision.
    At(i64),
    /// There was nothing to write.
    Nothing,
    /// Somebody was faster, or a lease has ended. What was read in the place of it, since that moment.
    Not(Option<(Moment, Range)>),
}

/// A lease of etcd's to tie a sign of life to.
struct Lease {
    id: i64,
    /// What makes it, if it is not there yet.
    making: Option<Request>,
}

impl EtcdRegister {
    pub(super) fn change<T>(
        &self,
        key: &Key,
        me: Option<LevelId>,
        until: Moment,
        mut change: impl FnMut(&mut Record, &dyn Clock) -> T,
    ) -> Result<T, Failure> {
        let (mut connection, mut reading) =
            self.with_connection(until, |connection, until| self.look_at(connection, key, me, until))?;
        let server = connection.server.clone();
        let mut course = Change { register: self, key, me, until, spare: None };
        let mut lost = 0;
        loop {
            let (record, answer) = applied(&reading, me, &mut change);
            let Some(record) = record else {
                self.keep(connection);
                return Ok(answer);
            };
            // A grant that got no answer may still come, unless its lease is gone.
            let taken_back = course.take_back(&mut connection, &record);
            let mut now = None;
            if !taken_back.map_err(|failure| failure.by(&server).before())? {
                match course.write(&mut connection, &reading, &record).map_err(|failure| failure.by(&server))? {
                    Written::At(_) | Written::Nothing => {
                        course.clean_up(&mut connection, &reading, &record);
                        self.keep(connection);
                        return Ok(answer);
                    }
                    Written::Not(read) => now = read,
                }
            }
            if until.left().is_zero() {
                return Err(Failure::Contended.by(&server).before());
            }
            if !is_urgent(me, &reading.seen) {
                let pause = some_of(PAUSE.0 * lost).min(until.left());
                std::thread::sleep(pause);
                lost = PAUSE.1.min(lost + 1);
                now = now.filter(|_| pause.is_zero());
            }
            let again = match now {
                Some((at, range)) => self.reading(&mut connection, key, range, me, (at, until)),
                None => self.look_at(&mut connection, key, me, until),
            };
            reading = again.map_err(|failure| failure.by(&server).before())?;
        }
    }

    /// Begins a lease of etcd's anew; no, if it has ended.
    pub(super) fn sign(
        &self,
        connection: &mut Connection,
        me: LevelId,
        life: Life,
        until: Moment,
    ) -> Result<bool, Failure> {
        let sent = Moment::now();
        let left: LeaseLeft = connection.ask_stream(&api::keep_alive(life.lease), until)?;
        let Some(seconds) = u64::try_from(left.ttl).ok().filter(|seconds| *seconds > 0) else { return Ok(false) };
        self.saw(&level(me), life.revision, sent.after(Duration::from_secs(seconds)));
        Ok(true)
    }
}

impl Change<'_> {
    /// Writes what has changed. Whether nobody was faster.
    fn write(&mut self, connection: &mut Connection, reading: &Reading, record: &Record) -> Result<Written, Failure> {
        if *record == reading.seen {
            return Ok(Written::Nothing);
        }
        let mine = self.me.and_then(|me| Some((me, mine(me, reading, record)?)));
        let life_of = |me: LevelId| reading.lives.get(&level(me)).copied();
        // Where tests rule time, all of it stands in the record.
        if let Some((me, mine)) = mine
            && let Some(life) = life_of(me)
            && is_that_all(me, reading, record)
            && !self.is_ruled()
        {
            return match mine {
                Mine::Holds(ttl) => self.renew(connection, me, life, ttl, reading),
                Mine::Waits => Ok(Written::if_so(self.register.sign(connection, me, life, self.until)?)),
            };
        }
        let address = &self.register.address;
        let (name, prefix) = (address.record(self.key), address.of(self.key));
        let mut success = vec![api::put(&name, &record.encode(), None)];
        let mut shown = None;
        let mut making = Vec::new();
        if let Some((me, mine)) = mine {
            let span = match (mine, life_of(me)) {
                // Its sign of life is there, and only begins anew.
                (Mine::Waits, Some(life)) => {
                    if !self.register.sign(connection, me, life, self.until)? {
                        return Ok(Written::Not(None));
                    }
                    None
                }
                (Mine::Waits, None) => Some(SIGN_OF_LIFE),
                (Mine::Holds(ttl), _) => Some(ttl),
            };
            if let Some(span) = span {
                let lease = self.lease(me, span)?;
                making.extend(lease.making);
                success.push(api::put(&format!("{prefix}{}", level(me)), b"", Some(lease.id)));
                shown = Some((lease.id, Moment::now().after(span)));
            }
            if let Some(span) = new_min_hold(me, reading, record) {
                let lease = self.new_lease(me, span)?;
                making.extend(lease.making);
                success.push(api::put(&format!("{prefix}{}", min_hold(me)), b"", Some(lease.id)));
            }
        }
        success.extend(farewells(&prefix, reading, record));
        success.extend(news(&prefix, reading, record, self.me));
        success.truncate(MOST_OPERATIONS);
        let written = self.swap(connection, making, &api::is_at(&name, reading.written), &success)?;
        if let Written::At(revision) = written {
            self.has_come(revision, shown.map(|(_, end)| end));
            if let Some(me) = self.me.filter(|me| matches!(record.standing(*me), Standing::Waiting(_))) {
                let left = reading.after(record, revision, shown.map(|(id, _)| (level(me), id)));
                *lock(&self.register.queued) = Some((me, left, Moment::now()));
            }
        }
        Ok(written)
    }

    /// Makes leases, and does what needs them if this is so. A member does one after the other, so all of it is sent at once.
    fn swap(
        &self,
        connection: &mut Connection,
        making: impl IntoIterator<Item = Request>,
        compare: &Value,
        success: &[Value],
    ) -> Result<Written, Failure> {
        let at = Moment::now();
        let of = self.register.address.of(self.key);
        let txn = api::txn(compare, success, (&of, &end_of(&of)));
        let requests: Vec<Request> = making.into_iter().chain([txn]).collect();
        let mut answers = connection.ask_all(&requests, self.until)?;
        let swapped = answers.pop().ok_or(Failure::Garbage)?;
        // Without its lease the transaction was not done.
        for made in answers {
            read::<Value>(made).map_err(Failure::before)?;
        }
        match read::<api::Txn>(swapped) {
            Ok(txn) if txn.succeeded => Ok(Written::At(txn.header.revision)),
            Ok(txn) => {
                let done = txn.responses.into_iter().next();
                Ok(Written::Not(done.map(|done| (at, Range { header: txn.header, ..done.response_range }))))
            }
            Err(failure) if failure.refusal().is_some_and(api::Refusal::is_ended_lease) => Ok(Written::Not(None)),
            Err(failure) => Err(failure),
        }
    }

    /// It is known what became of the leases that were made for this.
    fn has_come(&mut self, revision: i64, shown_until: Option<Moment>) {
        self.spare = None;
        if let Some(me) = self.me {
            if let Some(end) = shown_until {
                self.register.saw(&level(me), revision, end);
            }
            lock(&self.register.made).remove(&me);
        }
    }

    /// Renews a hold of which nothing else is new. No, if something has become of it meanwhile.
    fn renew(
        &mut self,
        connection: &mut Connection,
        me: LevelId,
        life: Life,
        ttl: Duration,
        reading: &Reading,
    ) -> Result<Written, Failure> {
        let sent = Moment::now();
        // It never ends sooner than it would have.
        let ttl = ttl.max(self.register.left_of(&level(me), life.revision));
        let lease = self.lease(me, ttl)?;
        let name = format!("{}{}", self.register.address.of(self.key), level(me));
        let renewal = [api::put(&name, b"", Some(lease.id))];
        match self.swap(connection, lease.making, &api::is_at(&name, life.revision), &renewal) {
            Err(failure) if failure.refusal().is_some_and(api::Refusal::is_full) => {
                Ok(Written::if_so(self.hold_on(connection, me, life, reading)?))
            }
            Ok(Written::At(revision)) => {
                self.has_come(revision, Some(sent.after(ttl)));
                Ok(Written::At(revision))
            }
            written => written,
        }
    }

    /// Renews a hold where there is no room for anything new, by keeping its lease alive. Who answers may be a leader of
    /// yesterday, so it counts only if the same member, with the same term before and after it, still knows what most members
    /// agree to: then there was no other leader meanwhile.
    fn hold_on(&self, connection: &mut Connection, me: LevelId, life: Life, before: &Reading) -> Result<bool, Failure> {
        if !self.register.sign(connection, me, life, self.until)? {
            return Ok(false);
        }
        let after = self.register.look_at(connection, self.key, Some(me), self.until)?;
        Ok(after.member == before.member && after.lives.get(&level(me)) == Some(&life))
    }

    fn is_ruled(&self) -> bool {
        lock(&self.register.clock).is_some()
    }

    /// A lease of etcd's for our level: one that was made for this change and lost a swap, or a new one.
    fn lease(&mut self, me: LevelId, span: Duration) -> Result<Lease, Failure> {
        let is_good = |(_, good_for, made): &(i64, Duration, Moment)| {
            *good_for == span && Moment::now().since(*made) < LEAST_TTL / 2
        };
        if let Some((id, ..)) = self.spare.filter(is_good) {
            return Ok(Lease { id, making: None });
        }
        let lease = self.new_lease(me, span)?;
        self.spare = Some((lease.id, span, Moment::now()));
        Ok(lease)
    }

    /// A new lease. As long as it is not known what became of the change that it is for, it is remembered.
    fn new_lease(&self, me: LevelId, span: Duration) -> Result<Lease, Failure> {
        let mut bytes = [0; 8];
        getrandom::fill(&mut bytes).map_err(|error| Failure::Settings(format!("no random numbers: {error}")))?;
        let id = (i64::from_le_bytes(bytes) & i64::MAX).max(1);
        // Where tests rule time, nothing ends by itself.
        let span = if self.is_ruled() { Duration::from_secs(3600) } else { span.max(LEAST_TTL) };
        let seconds = span.as_secs() + u64::from(span.subsec_nanos() > 0);
        lock(&self.register.made).entry(me).or_default().push(id);
        Ok(Lease { id, making: Some(api::grant(id, seconds)) })
    }

    /// Ends what was made for a level that goes, so that no change of it that got no answer comes late. Whether there was
    /// anything: then the record has to be looked at again.
    fn take_back(&self, connection: &mut Connection, record: &Record) -> Result<bool, Failure> {
        let Some(me) = self.me.filter(|me| record.standing(*me) == Standing::Gone) else { return Ok(false) };
        let made = lock(&self.register.made).remove(&me).unwrap_or_default();
        for (at, id) in made.iter().enumerate() {
            if let Err(failure) = end_lease(connection, *id, self.until) {
                lock(&self.register.made).entry(me).or_default().extend(&made[at..]);
                return Err(failure);
            }
        }
        Ok(!made.is_empty())
    }

    /// Ends the lease of a level that has gone. It would end by itself.
    fn clean_up(&self, connection: &mut Connection, reading: &Reading, record: &Record) {
        let gone = self.me.filter(|me| record.standing(*me) == Standing::Gone);
        if let Some(life) = gone.and_then(|me| reading.lives.get(&level(me)))
            && let Err(failure) = end_lease(connection, life.lease, self.until)
        {
            log::info!("a lease of etcd's was left to end by itself: {}", self.register.error(failure));
        }
    }
}

/// Whether nobody is to be kept out of the way of: we hold the key, or it was offered to us.
fn is_urgent(me: Option<LevelId>, seen: &Record) -> bool {
    me.is_some_and(|me| match seen.standing(me) {
        Standing::Holding { .. } => true,
        Standing::Waiting(at) => seen.queue[at].offered_at.is_some(),
        Standing::Gone => false,
    })
}

/// Signs of life that belong to nobody any more.
fn farewells(prefix: &str, reading: &Reading, record: &Record) -> Vec<Value> {
    let left: Vec<String> = names(record).collect();
    let gone = reading.lives.keys().filter(|name| !left.contains(name));
    gone.map(|name| api::delete(&format!("{prefix}{name}"))).collect()
}

/// Tells those whom a change concerns, by writing their sign of life anew.
fn news(prefix: &str, reading: &Reading, record: &Record, me: Option<LevelId>) -> Vec<Value> {
    let news = turn::news(&reading.seen, record, me).unwrap_or_default();
    let tell = |(to, what): (LevelId, &str)| {
        let life = reading.lives.get(&level(to)).filter(|_| record.standing(to) != Standing::Gone)?;
        Some(api::put(&format!("{prefix}{}", level(to)), what.as_bytes(), Some(life.lease)))
    };
    news.into_iter().filter_map(tell).collect()
}

/// What a change makes of a record, and its answer; no record, if nothing is to be written.
fn applied<T>(
    reading: &Reading,
    me: Option<LevelId>,
    change: &mut impl FnMut(&mut Record, &dyn Clock) -> T,
) -> (Option<Record>, T) {
    let mut record = reading.seen.clone();
    let answer = change(&mut record, &reading.now);
    let Some(lost) = reading.lost.filter(|lost| Some(*lost) == me && record.standing(*lost) == Standing::Gone) else {
        return (Some(record), answer);
    };
    // Our lease has ended, and nobody knows it but us, whose command may still run. Until we give it back, we hold.
    let mut held = reading.seen.clone();
    let levels = held.holders.iter_mut().flat_map(|hold| &mut hold.levels);
    levels
        .filter(|level| level.id == lost)
        .for_each(|level| level.until = Some(reading.now.after(Duration::from_secs(1))));
    let given_back = change(&mut held, &reading.now);
    match held.standing(lost) {
        Standing::Gone => (Some(held), given_back),
        _ => (None, answer),
    }
}

/// What becomes of our level, if anything new does.
fn mine(me: LevelId, reading: &Reading, record: &Record) -> Option<Mine> {
    let end = |record: &Record| -> Option<Stamp> {
        let levels = record.holders.iter().flat_map(|hold| &hold.levels);
        let held = levels.filter(|level| level.id == me).find_map(|level| level.until);
        held.or_else(|| record.queue.iter().find(|waiter| waiter.lease == me).and_then(|waiter| waiter.until))
    };
    let is_new = std::mem::discriminant(&record.standing(me)) != std::mem::discriminant(&reading.seen.standing(me));
    let until = end(record).filter(|until| is_new || Some(*until) != end(&reading.seen))?;
    match record.standing(me) {
        Standing::Holding { .. } => Some(Mine::Holds(until.since(reading.now))),
        Standing::Waiting(_) => Some(Mine::Waits),
        Standing::Gone => None,
    }
}

/// How long the key has to stay taken, if that is new with the hold of this level.
fn new_min_hold(me: LevelId, reading: &Reading, record: &Record) -> Option<Duration> {
    let hold = record.holders.iter().find(|hold| hold.lease == me && reading.seen.hold(me).is_none())?;
    hold.hold_until.map(|until| until.since(reading.now))
}

/// Whether nothing else is new than when our level ends.
fn is_that_all(me: LevelId, reading: &Reading, record: &Record) -> bool {
    let mut as_before = record.clone();
    for level in as_before.holders.iter_mut().flat_map(|hold| &mut hold.levels).filter(|level| level.id == me) {
        let before = reading.seen.holders.iter().flat_map(|hold| &hold.levels).find(|before| before.id == me);
        level.until = before.and_then(|before| before.until);
    }
    for waiter in as_before.queue.iter_mut().filter(|waiter| waiter.lease == me) {
        let before = reading.seen.queue.iter().find(|before| before.lease == me);
        waiter.until = before.and_then(|before| before.until);
    }
    as_before == reading.seen && reading.kept.is_some()
}

/// Ends a lease, if it has not ended.
fn end_lease(connection: &mut Connection, id: i64, until: Moment) -> Result<(), Failure> {
    match connection.ask::<Value>(&api::revoke(id), until) {
        Err(failure) if failure.refusal().is_some_and(api::Refusal::is_ended_lease) => Ok(()),
        ended => ended.map(drop),
    }
}
