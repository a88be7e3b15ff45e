//! Changing a record: it is read, and what the law makes of it is written if nobody else wrote it meanwhile. Whether that was
//! so, the answer to the write tells, and nothing else does.
//!
//! **Time.** The law works with an instant that the leader of the stream named *after* we were asked to do something, and
//! before the change is written. So it is not before the moment from which the holder counts his lease, and not after the
//! moment at which others' leases are judged: nobody counts on a lease longer than the store does, whatever time replies
//! take. Servers from 2.10 on tell the time together with the settings of the bucket, in one round trip with the record. An
//! older one only stamps what is written, so something is; whoever only looks, or was too slow and tries again, goes by his own
//! clock from there, which may be behind and never ahead.
//!
//! Whoever led and is cut off from the others does not know at once that somebody else leads. It cannot write, so nothing that it
//! grants counts; and what it has is not looked at once the others were silent for so long that they may have chosen another.
//!
//! Each leader has a clock of its own. A record says by whose clock its instants are, and what the time was there when it was
//! written; under another leader they are moved so that no time has passed since. What lives may live up to a ttl longer
//! then, and never shorter.

use std::time::Duration;

use serde::Deserialize;

use super::bucket::{self, StreamInfo};
use super::connection::{Connection, Request, plain};
use super::trouble::{Failure, Refusal, Said};
use super::value::{Life, Reading, Value, dated};
use super::{Heard, NatsRegister, lock};
use crate::clock::{Moment, some_of};
use crate::model::{Clock, Key, LevelId, Record, Stamp, Standing};
use crate::store::trouble::no_record;

/// Whoever lost a swap waits for a random part of this, more each time up to so many times as much. A renewal does not.
const PAUSE: (Duration, u32) = (Duration::from_millis(2), 8);

/// How often it is looked whether a bucket that was made is known to whoever leads.
const LOOKED_EVERY: Duration = Duration::from_millis(20);

/// What is left of the largest message for those who hold, when more and more wait.
const ROOM: usize = 32 << 10;

/// The answer to something that was written.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Written {
    error: Option<Refusal>,
    seq: u64,
}

impl NatsRegister {
    pub(super) fn change<T>(
        &self,
        key: &Key,
        me: Option<LevelId>,
        until: Moment,
        mut change: impl FnMut(&mut Record, &dyn Clock) -> T,
    ) -> Result<T, Failure> {
        let (mut connection, mut reading) =
            self.with_connection(until, |connection| self.read_to_change(connection, key, true, until))?;
        let mut lost = 0;
        loop {
            let Some(Reading { seen, now, .. }) = &reading else {
                // Whoever only looks finds what there is: nothing.
                let answer = change(&mut Record::new(key.clone()), &crate::store::Register::now(self));
                self.idle.keep(connection);
                return Ok(answer);
            };
            let mut record = seen.clone();
            let answer = change(&mut record, now);
            let holds = me.is_some_and(|me| matches!(seen.standing(me), Standing::Holding { .. }));
            let server = connection.server.clone();
            let written = self.write(&mut connection, key, me, reading.as_ref(), &record, until);
            if written.map_err(|failure| failure.by(&server))? {
                self.idle.keep(connection);
                return Ok(answer);
            }
            if until.left().is_zero() {
                return Err(Failure::Contended.by(&server).before());
            }
            if !holds {
                // Where all keys are one, there are more to keep out of the way of.
                let pause =
                    if reading.as_ref().is_some_and(|reading| reading.last.is_some()) { PAUSE.0 * 8 } else { PAUSE.0 };
                std::thread::sleep(some_of(pause * lost).min(until.left()));
                lost = PAUSE.1.min(lost + 1);
            }
            let read = self.read_to_change(&mut connection, key, false, until);
            reading = read.map_err(|failure| failure.by(&server).before())?;
        }
    }

    /// What there is of a key, with the bucket made if it is missing and may be.
    fn read_to_change(
        &self,
        connection: &mut Connection,
        key: &Key,
        anew: bool,
        until: Moment,
    ) -> Result<Option<Reading>, Failure> {
        let reading = self.look_at(connection, key, anew, until)?;
        if reading.is_some() || !self.makes {
            return Ok(reading);
        }
        bucket::make(connection, &self.address, until)?;
        // In a cluster not all servers know of it at once.
        loop {
            if let Some(reading) = self.look_at(connection, key, true, until)? {
                return Ok(Some(reading));
            }
            if until.left().is_zero() {
                let name = &self.address.bucket.name;
                return Err(Failure::Odd(format!("bucket '{name}' is removed as soon as it is made")));
            }
            std::thread::sleep(LOOKED_EVERY.min(until.left()));
        }
    }

    /// What there is of a key, and what the time is, which is told `anew` or may be behind; nothing if there is no bucket.
    pub(super) fn look_at(
        &self,
        connection: &mut Connection,
        key: &Key,
        anew: bool,
        until: Moment,
    ) -> Result<Option<Reading>, Failure> {
        let looked = self.look_at_many(connection, std::slice::from_ref(key), anew, until)?;
        looked.and_then(|mut all| all.pop()).transpose()
    }

    /// The same of many keys. What is wrong with one record hides no other.
    pub(super) fn look_at_many(
        &self,
        connection: &mut Connection,
        keys: &[Key],
        anew: bool,
        until: Moment,
    ) -> Result<Option<Vec<Result<Reading, Failure>>>, Failure> {
        let bucket = &self.address.bucket;
        let requests = || {
            let gets = keys.iter().flat_map(|key| [self.get(&bucket.record(key)), self.get(&bucket.life(key))]);
            std::iter::once(plain(bucket.ask("INFO"), "")).chain(gets)
        };
        let mut replies = connection.ask(&requests().collect::<Vec<_>>(), until)?;
        let judge = |reply: &[u8]| bucket::judge(reply, &self.address);
        let Some(info) = judge(&replies[0])? else { return Ok(None) };
        if info.may_be_outdated() {
            return Err(Failure::Said(Said::NobodyThere));
        }
        let heard = lock(&self.heard).clone().filter(|heard| !anew && heard.clock == info.leader());
        let told = if let Some(now) = info.stamp() {
            now
        } else if let Some(heard) = &heard {
            heard.now()
        } else {
            // An old server: what it stamps now comes after we were asked.
            let tick = Request { subject: bucket.way_to(&bucket.clock()), headers: String::new(), payload: Vec::new() };
            let ticked = written(&connection.ask(&[tick], until)?[0])?;
            let again = requests().chain([self.get(&bucket.clock())]);
            replies = connection.ask(&again.collect::<Vec<_>>(), until)?;
            let clock = replies.pop().map(|clock| Value::parse(&clock)).transpose()?.flatten();
            clock.filter(|clock| clock.sequence >= ticked.seq).ok_or(Failure::Said(Said::NobodyThere))?.stamp
        };
        let Some(again) = judge(&replies[0])? else { return Ok(None) };
        if again.leader() != info.leader() {
            return Err(Failure::Said(Said::NobodyThere));
        }
        if info.stamp().is_some() || heard.is_none() {
            *lock(&self.heard) = Some(Heard { clock: info.leader(), stamp: told, at: Moment::now() });
        }
        let now = lock(&self.clock).unwrap_or(told);
        let read = |(key, pair): (&Key, &[Vec<u8>])| self.reading(key, &again, now, &pair[0], &pair[1]);
        Ok(Some(keys.iter().zip(replies[1..].chunks(2)).map(read).collect()))
    }

    /// The last value under a subject, as the leader has it.
    pub(super) fn get(&self, subject: &str) -> Request {
        plain(self.address.bucket.ask("MSG.GET"), serde_json::json!({ "last_by_subj": subject }).to_string())
    }

    /// Writes a record if it is not as it was, and tells those who have to know. Whether nobody was faster.
    fn write(
        &self,
        connection: &mut Connection,
        key: &Key,
        me: Option<LevelId>,
        reading: Option<&Reading>,
        record: &Record,
        until: Moment,
    ) -> Result<bool, Failure> {
        let Some(reading) = reading else { return Ok(true) };
        if *record == reading.seen && !reading.is_moved {
            return Ok(true);
        }
        if let Some((level, good_until)) = me.and_then(|me| Some((me, sign_alone(me, reading, record)?))) {
            self.sign(connection, key, reading, level, good_until, until)?;
            return Ok(true);
        }
        let payload = record.encode();
        let most = connection.info.max_payload.saturating_sub(ROOM);
        if payload.len() > most && record.queue.len() > reading.seen.queue.len() {
            return Err(Failure::Said(Said::TooLarge(payload.len(), most)).before());
        }
        let bucket = &self.address.bucket;
        let headers = reading.expecting(&bucket.stream(), reading.sequence, reading.last);
        let request = Request { subject: bucket.way_to(&bucket.record(key)), headers, payload };
        if !swap(connection, request, until)? {
            return Ok(false);
        }
        // What follows tells others sooner what they find out by themselves.
        let followed = self.follow(connection, key, me, reading, record, until);
        if let Err(failure) = followed {
            log::info!("'{key}' was changed, and not all were told: {}", self.error(failure));
        }
        Ok(true)
    }

    fn follow(
        &self,
        connection: &mut Connection,
        key: &Key,
        me: Option<LevelId>,
        reading: &Reading,
        record: &Record,
        until: Moment,
    ) -> Result<(), Failure> {
        let news = self.news(key, &reading.seen, record, me);
        if !news.is_empty() {
            connection.tell(&news, until)?;
        }
        if reading.life.is_stale_for(record) {
            let life = Life { signs: reading.life.counting(record), sequence: reading.life.sequence };
            self.write_life(connection, key, reading, &life, until)?;
        }
        Ok(())
    }

    /// Shows that one who waits lives.
    pub(super) fn sign(
        &self,
        connection: &mut Connection,
        key: &Key,
        reading: &Reading,
        me: LevelId,
        good_until: Stamp,
        until: Moment,
    ) -> Result<(), Failure> {
        let mut life = reading.life.clone();
        let mut lost = 0;
        loop {
            // Those that are over say nothing any more.
            life.signs.retain(|_, sign| *sign > reading.now);
            life.signs.insert(me, good_until);
            let is_written = self.write_life(connection, key, reading, &life, until)?;
            if is_written && reading.last.is_none() {
                return Ok(());
            }
            if until.left().is_zero() {
                return Err(Failure::Contended.before());
            }
            std::thread::sleep(some_of(PAUSE.0 * lost).min(until.left()));
            lost = PAUSE.1.min(lost + 1);
            let now = &connection.ask(&[self.get(&self.address.bucket.life(key))], until)?[0];
            life = Life::read(Value::parse(now)?.as_ref(), &reading.clock, reading.now);
            // Where two may win, a sign counts once it is seen to be there.
            if is_written && life.signs.get(&me) == Some(&good_until) {
                return Ok(());
            }
        }
    }

    fn write_life(
        &self,
        connection: &mut Connection,
        key: &Key,
        reading: &Reading,
        life: &Life,
        until: Moment,
    ) -> Result<bool, Failure> {
        let bucket = &self.address.bucket;
        let headers = reading.expecting(&bucket.stream(), life.sequence, None);
        let request = Request { subject: bucket.way_to(&bucket.life(key)), headers, payload: life.encode() };
        swap(connection, request, until)
    }

    /// What messages say: record, signs of life, and by whose clock.
    fn reading(
        &self,
        key: &Key,
        info: &StreamInfo,
        now: Stamp,
        record: &[u8],
        life: &[u8],
    ) -> Result<Reading, Failure> {
        let clock = info.leader();
        let value = Value::parse(record)?;
        let life = Life::read(Value::parse(life)?.as_ref(), &clock, now);
        let (kept, ahead) = match value.as_ref().filter(|value| !value.payload.is_empty()) {
            Some(value) => {
                let kept = value.record(key).map_err(|why| {
                    Failure::Odd(no_record(key, &format!(" in bucket '{}'", self.address.bucket.name), &why))
                })?;
                (Some(kept), dated(&value.headers, &clock, now))
            }
            // What was deleted by hand leaves a mark, which is swapped like a record.
            None => (None, None),
        };
        let kept = kept.map(|kept| ahead.map_or(kept.clone(), |ahead| kept.moved(ahead)));
        let mut seen = kept.clone().unwrap_or_else(|| Record::new(key.clone()));
        for waiter in &mut seen.queue {
            let sign = life.signs.get(&waiter.lease).copied();
            waiter.until = waiter.until.map(|until| sign.map_or(until, |sign| sign.max(until)));
        }
        Ok(Reading {
            sequence: value.map_or(0, |value| value.sequence),
            last: info.is_old_cluster().then_some(info.state.last_seq),
            is_moved: ahead.is_some(),
            kept,
            seen,
            life,
            now,
            clock,
        })
    }
}

/// Writes something unless somebody else did. Whether nobody had.
fn swap(connection: &mut Connection, request: Request, until: Moment) -> Result<bool, Failure> {
    match written(&connection.ask(&[request], until)?[0]) {
        Err(Failure::Said(Said::Refused(refusal))) if refusal.is_lost_swap() => Ok(false),
        written => written.map(|_| true),
    }
}

/// The answer to something that was written.
fn written(answer: &[u8]) -> Result<Written, Failure> {
    let mut written: Written = serde_json::from_slice(answer).map_err(|_| Failure::Garbage)?;
    match written.error.take() {
        Some(refusal) => Err(refusal.into()),
        None => Ok(written),
    }
}

/// The new end of our sign of life, if nothing else is new.
fn sign_alone(me: LevelId, reading: &Reading, record: &Record) -> Option<Stamp> {
    let at = record.queue.iter().position(|waiter| waiter.lease == me)?;
    let mut as_before = record.clone();
    as_before.queue[at].until = reading.seen.queue.get(at)?.until;
    // One that ends sooner than the one before would not count beside it.
    (as_before == reading.seen && reading.kept.is_some() && !reading.is_moved).then_some(())?;
    record.queue[at].until.filter(|until| Some(*until) >= as_before.queue[at].until)
}
