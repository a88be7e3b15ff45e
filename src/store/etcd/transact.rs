//! Changing a record: it is read, and what the law makes of it is written if nobody else wrote it meanwhile, together with
//! the signs of life that come and go with it. Whether that was so, the answer to the write tells, and nothing else does.

use std::time::Duration;

use serde_json::Value;

use super::address::{END, end_of, level, min_hold};
use super::api::{self, Range, Request};
use super::connection::{Connection, read};
use super::events;
use super::look::{Reading, Shown, names};
use super::trouble::Failure;
use super::{EtcdRegister, lock};
use crate::clock::{Moment, some_of};
use crate::model::{Clock, Key, LevelId, Record, SIGN_OF_LIFE, Stamp, Standing};
use crate::store::turn;

/// Whoever lost a swap waits for a random part of this, or of the time that it took, more each time up to so many times as
/// much. A renewal does not.
const PAUSE: (Duration, u32) = (Duration::from_millis(2), 8);

/// No more of the time that it took counts.
const MOST_PAUSE: Duration = Duration::from_millis(20);

/// How many operations fit in a transaction: etcd's own limit is 128.
const MOST_OPERATIONS: usize = 100;

/// What becomes of our own level with a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mine {
    /// It holds, for so long.
    Holds(Duration),
    Waits,
}

/// A change on its way.
pub(super) struct Change<'a> {
    pub(super) register: &'a EtcdRegister,
    pub(super) key: &'a Key,
    pub(super) me: Option<LevelId>,
    pub(super) until: Moment,
    /// A lease of etcd's that was made for it and is not used yet: for how long, and when.
    pub(super) spare: Option<(i64, Duration, Moment)>,
    /// Whether a change that got no answer may still come.
    pub(super) may_come: bool,
}

/// What tells somebody else of a change, or clears away what is his no more.
struct Telling {
    done: Value,
    /// What has to be so, if it is not done together with the change itself.
    if_so: Option<Value>,
}

/// What became of a write.
pub(super) enum Written {
    /// At which revision.
    At(i64),
    /// There was nothing to write.
    Nothing,
    /// Somebody was faster, or a lease has ended. What was read in the place of it, since that moment.
    Not(Option<(Moment, Range)>),
}

impl Written {
    pub(super) fn if_so(done: bool) -> Self {
        if done { Self::Nothing } else { Self::Not(None) }
    }
}

impl EtcdRegister {
    pub(super) fn change<T>(
        &self,
        key: &Key,
        me: Option<LevelId>,
        until: Moment,
        mut change: impl FnMut(&mut Record, &dyn Clock) -> T,
    ) -> Result<T, Failure> {
        // Nobody needs to look again who gives back what he got just now: what was written since keeps him from it.
        let mut known = me.and_then(|me| self.left_behind(me)).filter(|reading| {
            let (record, _) = applied(reading, me, &mut change);
            record.is_some_and(|record| me.is_some_and(|me| record.standing(me) == Standing::Gone))
        });
        let mut is_known = known.is_some();
        let (mut connection, mut reading) = self.with_connection(until, |connection, until| match known.take() {
            Some(reading) => Ok(reading),
            None => self.look_at(connection, key, me, until),
        })?;
        let server = connection.server.clone();
        let mut course = Change { register: self, key, me, until, spare: None, may_come: false };
        let mut lost = 0;
        loop {
            let (record, answer) = applied(&reading, me, &mut change);
            let Some(record) = record else {
                self.idle.keep(connection);
                return Ok(answer);
            };
            // A grant that got no answer may still come, unless its lease is gone.
            let taken_back = course.take_back(&mut connection, &record);
            let mut now = None;
            let mut took = Duration::ZERO;
            if !taken_back.map_err(|failure| failure.by(&server).before())? {
                let sent = Moment::now();
                let written = course.write(&mut connection, &reading, &record);
                took = Moment::now().since(sent);
                if written.as_ref().is_err_and(is_full) {
                    // What cannot be written down can be seen: whoever is gone does not live.
                    course.clean_up(&mut connection, &reading, &record);
                }
                match written.map_err(|failure| failure.by(&server))? {
                    Written::At(_) | Written::Nothing => {
                        course.clean_up(&mut connection, &reading, &record);
                        self.idle.keep(connection);
                        return Ok(answer);
                    }
                    // Whoever shows no life is not in the queue, whatever stands there: that takes no swap.
                    Written::Not(_) if !is_known && course.has_left(&mut connection, &reading, &record)? => {
                        course.clean_up(&mut connection, &reading, &record);
                        self.idle.keep(connection);
                        return Ok(answer);
                    }
                    Written::Not(read) => {
                        // If it was a lease that has ended, it was this one.
                        course.spare = course.spare.filter(|_| read.is_some());
                        now = read;
                    }
                }
            }
            is_known = false;
            if until.left().is_zero() {
                return Err(Failure::Contended.by(&server).before());
            }
            if !is_urgent(me, &reading.seen) {
                let pause = some_of(PAUSE.0.max(took.min(MOST_PAUSE)) * lost).min(until.left());
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
}

impl Change<'_> {
    /// Writes what has changed. Whether nobody was faster.
    fn write(&mut self, connection: &mut Connection, reading: &Reading, record: &Record) -> Result<Written, Failure> {
        if *record == reading.seen && !self.may_come {
            return Ok(Written::Nothing);
        }
        let life_of = |me: LevelId| reading.lives.get(&level(me)).copied();
        let mine = self.me.and_then(|me| Some((me, mine(me, reading, record)?)));
        // What is renewed never ends sooner than it would have.
        let mine = mine.map(|(me, mine)| match (mine, life_of(me), reading.seen.standing(me)) {
            (Mine::Holds(span), Some(life), Standing::Holding { .. }) => {
                (me, Mine::Holds(span.max(self.register.left_of(&level(me), life.revision))))
            }
            _ => (me, mine),
        });
        // Where tests rule time, all of it stands in the record.
        if let Some((me, mine)) = mine
            && let Some(life) = life_of(me)
            && is_that_all(me, reading, record)
            && !self.is_ruled()
        {
            return match mine {
                Mine::Holds(span) => self.renew(connection, me, life, span, reading),
                Mine::Waits => Ok(Written::if_so(self.register.sign(connection, me, life, self.until)?)),
            };
        }
        let address = &self.register.address;
        let (name, prefix) = (address.record(self.key), address.of(self.key));
        let mut success = vec![api::put(&name, &events::without(record).encode(), None)];
        success.extend(events::noted(&address.events(self.key), reading.written, record));
        let (mut shown, mut until) = (None, None);
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
                making.extend(lease.making.clone());
                let name = format!("{prefix}{}", level(me));
                success.push(api::put(&name, lease.span().as_bytes(), Some(lease.id)));
                let end = matches!(mine, Mine::Holds(_)).then(|| self.end(span));
                success.extend(end.map(|end| end.written(&name)));
                until = Some(Moment::now().after(span));
                shown = Some(Shown { name: level(me), lease: lease.id, end });
            }
            if let Some(span) = new_min_hold(me, reading, record) {
                let lease = self.new_lease(me, span)?;
                making.extend(lease.making);
                let name = format!("{prefix}{}", min_hold(me));
                success.push(api::put(&name, b"", Some(lease.id)));
                success.push(self.end(span).written(&name));
            }
        }
        let mut others: Vec<Telling> = news(&prefix, reading, record, self.me);
        others.extend(farewells(&prefix, reading, record));
        let rest = others.split_off(others.len().min(MOST_OPERATIONS - success.len()));
        success.extend(others.into_iter().map(|telling| telling.done));
        let written = self.swap(connection, making, &api::is_at(&name, reading.written), &success)?;
        if let Written::At(revision) = written {
            self.tell(connection, &rest);
            self.has_come(revision, until);
            // A sign of life for the time behind a hold is none of the level's own.
            let is_simple = |me: &LevelId| record.hold(*me).is_none_or(|hold| hold.hold_until.is_none());
            if let Some(me) = self.me.filter(|me| record.standing(*me) != Standing::Gone).filter(is_simple) {
                self.register.remember(me, reading.after(record, revision, shown));
            }
        }
        Ok(written)
    }

    /// Does what had no room in a change that was written. Whoever hears nothing finds it out by himself, later.
    fn tell(&self, connection: &mut Connection, rest: &[Telling]) {
        let requests: Vec<Request> =
            rest.iter().map(|telling| api::one(telling.if_so.as_ref(), &telling.done)).collect();
        let told = if requests.is_empty() { Ok(()) } else { connection.ask_all(&requests, self.until).map(drop) };
        if let Err(failure) = told {
            log::info!("'{}' was changed, and not all were told: {}", self.key, self.register.error(failure));
        }
    }

    /// Makes leases, and does what needs them if this is so. A member does one after the other, so all of it is sent at once.
    pub(super) fn swap(
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
            match read::<Value>(made) {
                // It was made when all of this was asked for the first time, before a login.
                Err(failure) if failure.refusal().is_some_and(api::Refusal::is_known_lease) => {}
                made => drop(made.map_err(Failure::before)?),
            }
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
    pub(super) fn has_come(&mut self, revision: i64, shown_until: Option<Moment>) {
        self.spare = None;
        if let Some(me) = self.me {
            if let Some(end) = shown_until {
                self.register.saw(&level(me), revision, end);
            }
            lock(&self.register.made).remove(&me);
        }
    }

    pub(super) fn is_ruled(&self) -> bool {
        lock(&self.register.clock).is_some()
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

/// Whether there is no room for anything new.
pub(super) fn is_full(failure: &Failure) -> bool {
    failure.refusal().is_some_and(api::Refusal::is_full)
}

/// Signs of life that belong to nobody any more.
fn farewells(prefix: &str, reading: &Reading, record: &Record) -> Vec<Telling> {
    let left: Vec<String> = names(record).collect();
    let is_gone = |name: &&String| !left.contains(*name);
    let lives = reading.lives.keys().filter(is_gone).cloned();
    let ends = reading.ends.keys().filter(is_gone).map(|name| format!("{name}{END}"));
    let delete = |name| Telling { done: api::delete(&format!("{prefix}{name}")), if_so: None };
    lives.chain(ends).map(delete).collect()
}

/// Tells those whom a change concerns, by writing their sign of life anew.
fn news(prefix: &str, reading: &Reading, record: &Record, me: Option<LevelId>) -> Vec<Telling> {
    let news = turn::news(&reading.seen, record, me).unwrap_or_default();
    let tell = |(to, what): (LevelId, &str)| {
        let life = reading.lives.get(&level(to)).filter(|_| record.standing(to) != Standing::Gone)?;
        let name = format!("{prefix}{}", level(to));
        let if_so = Some(api::is_at(&name, life.revision));
        Some(Telling { done: api::put(&name, what.as_bytes(), Some(life.lease)), if_so })
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
