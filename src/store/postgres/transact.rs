//! Changing a record: its row is locked in one round trip, and what the law makes of it is written and committed in a
//! second one. Between these the server waits for us, and not for long: whoever freezes there holds up nobody.

use std::time::Duration;

use serde_json::json;

use super::connection::{Connection, Done, Statement, plain, with};
use super::table::{self, BEGIN, LIMITS};
use super::trouble::{Failure, Said};
use super::{PostgresRegister, Reading, lock};
use crate::clock::{Moment, some_of};
use crate::model::{Clock, Key, LevelId, Record, Stamp, Standing};
use crate::store::trouble::shown;

/// How long the server waits for us in a transaction.
const IDLE: Duration = Duration::from_millis(900);

/// Whoever lost against others waits for a random part of this, more each time up to so many times as much.
const PAUSE: (Duration, u32) = (Duration::from_millis(4), 16);

/// How many connections without an answer are kept at most.
const MAX_STUCK: usize = 8;

/// One at a time makes tables: this is the name of the lock for it, 'dlock' as a number.
const MAKING: &str = "SELECT pg_advisory_xact_lock(431350379371)";

/// A connection on which a change was committed, for all we know: there was no answer.
pub(super) struct Stuck {
    connection: Connection,
    level: LevelId,
    key: Key,
    /// What the record is, if it was.
    record: Record,
    now: Stamp,
}

impl PostgresRegister {
    pub(super) fn change<T>(
        &self,
        key: &Key,
        me: Option<LevelId>,
        until: Moment,
        mut change: impl FnMut(&mut Record, &dyn Clock) -> T,
    ) -> Result<T, Failure> {
        let mut makes = self.makes;
        let mut lost = 0;
        loop {
            match self.attempt(key, me, until, &mut change) {
                Ok(Some(answer)) => {
                    // Whatever was without an answer is over: our row lock came after it.
                    lock(&self.stuck).retain(|stuck| Some(stuck.level) != me || stuck.key != *key);
                    return Ok(answer);
                }
                Ok(None) => pause_after(&mut lost, until),
                Err(failure) if failure.is_collision() => {
                    log::debug!("{}; once more", self.error(failure));
                    pause_after(&mut lost, until);
                }
                Err(failure) if failure.is_missing_table() && makes => {
                    self.make_tables(until)?;
                    makes = false;
                }
                // Whoever only looks finds what there is: nothing.
                Err(failure) if failure.is_missing_table() && !self.makes => {
                    return Ok(change(&mut Record::new(key.clone()), &crate::store::Register::now(self)));
                }
                Err(failure) => {
                    if let Some(level) = me.filter(|_| failure.is_silence()) {
                        self.take_back(key, level, &mut change);
                    }
                    return Err(failure);
                }
            }
            if until.left().is_zero() {
                return Err(Failure::Silent.before());
            }
        }
    }

    /// Tries once; nothing if somebody else made the row while we did.
    fn attempt<T>(
        &self,
        key: &Key,
        me: Option<LevelId>,
        until: Moment,
        change: &mut impl FnMut(&mut Record, &dyn Clock) -> T,
    ) -> Result<Option<T>, Failure> {
        let (mut connection, done) = self.lock_row(key, until)?;
        let server = connection.server.clone();
        let reading = match self.locked(key, &done) {
            Ok(reading) => reading,
            Err(failure) => {
                if connection.roll_back(until) {
                    self.idle.keep(connection);
                }
                return Err(failure.by(&server).before());
            }
        };
        let mut record = reading.seen.clone();
        let answer = change(&mut record, &reading.now);
        let statements = self.writing(key, me, &reading, &record);
        if statements.is_empty() {
            // What was answered does not depend on how that ends.
            if connection.roll_back(until) {
                self.idle.keep(connection);
            }
            return Ok(Some(answer));
        }
        match connection.ask(&statements, until) {
            Ok(done) => {
                self.idle.keep(connection);
                let written = done.first().is_some_and(|done| done.changed() > 0);
                let committed = done.last().is_some_and(|done| done.tag == "COMMIT");
                Ok((written && committed).then_some(answer))
            }
            Err(failure) => {
                match (&failure, me) {
                    (Failure::Silent, Some(level)) if lock(&self.stuck).len() < MAX_STUCK => {
                        let (key, now) = (key.clone(), reading.now);
                        lock(&self.stuck).push(Stuck { connection, level, key, record, now });
                    }
                    (Failure::Silent, _) => {}
                    _ if connection.roll_back(until) => self.idle.keep(connection),
                    _ => {}
                }
                Err(failure.by(&server))
            }
        }
    }

    /// Locks the row of a key over a connection that is idle, or a new one.
    fn lock_row(&self, key: &Key, until: Moment) -> Result<(Connection, Vec<Done>), Failure> {
        self.idle.with(None, 0, || self.open(until), |connection| self.lock_row_on(connection, key, until))
    }

    fn lock_row_on(
        &self,
        mut connection: Connection,
        key: &Key,
        until: Moment,
    ) -> Result<(Connection, Vec<Done>), Failure> {
        // Zero would be no limit at all, and the server counts no further than that.
        let millis = |span: Duration| span.as_millis().clamp(1, 0x7fff_ffff).to_string();
        let name = key.as_str().to_owned();
        let statements = [
            plain(BEGIN),
            // That a row is locked we want to hear before our time is over.
            with(LIMITS, [millis(until.left() * 9 / 10), millis(until.left()), millis(IDLE)]),
            with(&self.statements.lock, [name.clone()]),
            with(&self.statements.clock_and_life, [name]),
        ];
        match connection.ask(&statements, until) {
            Ok(done) => {
                connection.served_by(done.last().and_then(|done| done.value(2)));
                Ok((connection, done))
            }
            Err(failure) => {
                let failure = failure.by(&connection.server).before();
                self.keep_if_good(connection, &failure, until);
                Err(failure)
            }
        }
    }

    fn locked(&self, key: &Key, done: &[Done]) -> Result<Reading, Failure> {
        let [_, _, row, clock] = done else { return Err(Failure::Garbage) };
        let now = clock.value(0).and_then(|micros| micros.parse().ok()).ok_or(Failure::Garbage)?;
        self.reading(key, row.value(0), Stamp::from_micros(now), clock.value(1))
    }

    /// What writes a record, and commits it; nothing if it is as it was.
    fn writing(&self, key: &Key, me: Option<LevelId>, reading: &Reading, record: &Record) -> Vec<Statement<'_>> {
        if *record == reading.seen {
            return Vec::new();
        }
        if let Some((level, until)) = me.and_then(|me| Some((me, sign_alone(me, reading, record)?))) {
            let sign = with(&self.statements.sign, [key.as_str().into(), level.secret(), until.micros().to_string()]);
            return vec![sign, plain("COMMIT")];
        }
        let statement = if reading.kept.is_some() { &self.statements.update } else { &self.statements.insert };
        let mut statements = vec![with(statement, [key.as_str().into(), text(record)])];
        // Of those who wait no more, or whose life is to end sooner.
        let counts = |lease: &LevelId, until: &Stamp| {
            let waiter = record.queue.iter().find(|waiter| waiter.lease == *lease);
            waiter.and_then(|waiter| waiter.until).is_some_and(|own| own >= *until)
        };
        let gone: Vec<String> = reading
            .signed
            .iter()
            .filter(|(lease, until)| !counts(lease, until))
            .map(|(lease, _)| lease.secret())
            .collect();
        if !gone.is_empty() {
            statements.push(with(&self.statements.bury, [key.as_str().into(), json!(gone).to_string()]));
        }
        statements.extend(self.channels.news(key, &reading.seen, record, me));
        statements.push(plain("COMMIT"));
        statements
    }

    /// Sends a change after each one of this level that got no answer, if it is that the level goes: the server may read
    /// both later, and nobody would be there to give back what it granted.
    fn take_back<T>(&self, key: &Key, level: LevelId, change: &mut impl FnMut(&mut Record, &dyn Clock) -> T) {
        let stuck = std::mem::take(&mut *lock(&self.stuck));
        for Stuck { connection, level: whose, key: of, record, now } in stuck {
            let mut without = record.clone();
            if whose == level && of == *key {
                change(&mut without, &now);
            }
            if record.standing(whose) == Standing::Gone || without.standing(whose) != Standing::Gone {
                lock(&self.stuck).push(Stuck { connection, level: whose, key: of, record, now });
                continue;
            }
            let mut statements =
                vec![with(&self.statements.replace, [key.as_str().into(), text(&record), text(&without)])];
            statements.extend(self.channels.news(key, &record, &without, Some(level)));
            connection.send_last(&statements);
        }
    }

    /// Makes the tables, if they are not there.
    pub(super) fn make_tables(&self, until: Moment) -> Result<(), Failure> {
        let table = &self.address.table;
        let there = "SELECT to_regclass($1) IS NOT NULL AND to_regclass($2) IS NOT NULL";
        let there = self.ask(&[with(there, [table.records(), table.life()])], until)?;
        if there.first().and_then(|done| done.value(0)) == Some("t") {
            return Ok(());
        }
        let creation = table::creation(table);
        let mut statements = vec![plain(BEGIN), plain(MAKING)];
        statements.extend(creation.split(';').map(str::trim).filter(|text| !text.is_empty()).map(plain));
        statements.push(plain("COMMIT"));
        match self.ask(&statements, until) {
            // insufficient_privilege
            Err(failure) if failure.code() == "42501" => {
                let Failure::Said(Said::Refused(refusal)) = failure.bare() else { return Err(failure) };
                Err(Failure::Said(Said::Unprepared(shown(&refusal.words))).before())
            }
            // invalid_schema_name
            Err(failure) if failure.code() == "3F000" => Err(Failure::Said(Said::NoSchema).before()),
            done => done.map(drop),
        }
    }
}

/// Leaves others alone for a random while, a longer one each time that they were faster.
fn pause_after(lost: &mut u32, until: Moment) {
    std::thread::sleep(some_of(PAUSE.0 * *lost).min(until.left()));
    *lost = PAUSE.1.min(*lost + 1);
}

/// The new end of our sign of life, if nothing else is new.
fn sign_alone(me: LevelId, reading: &Reading, record: &Record) -> Option<Stamp> {
    let at = record.queue.iter().position(|waiter| waiter.lease == me)?;
    let mut as_before = record.clone();
    as_before.queue[at].until = reading.seen.queue.get(at)?.until;
    // One that ends sooner than the one before would not count beside it.
    (as_before == reading.seen && reading.kept.is_some()).then_some(())?;
    record.queue[at].until.filter(|until| Some(*until) >= as_before.queue[at].until)
}

fn text(record: &Record) -> String {
    String::from_utf8_lossy(&record.encode()).into_owned()
}
