//! How one sleeps until a key's record may have changed in a way that matters: until one is told, and until an instant that
//! the record names. Whoever is not told looks every now and then.

use std::time::Duration;

use super::connection::{Connection, Note, plain, with};
use super::table::BEGIN;
use super::trouble::Failure;
use super::{PostgresRegister, Reading};
use crate::clock::Moment;
use crate::model::{Key, LevelId, SIGN_OF_LIFE, Stamp};
use crate::store::Watch;
use crate::store::turn::{LOOK, limits, plan};

/// How often one looks who is not told: soon enough to take a key that was offered before one is passed over.
const UNTOLD: Duration = Duration::from_millis(600);

/// The same for those at the head of a queue, of whom there are few.
const UNTOLD_AT_THE_HEAD: Duration = Duration::from_millis(100);

/// What one sees of a record without reading it.
#[derive(Default)]
struct Glance {
    /// A digest of those who hold the key.
    holders: Option<String>,
    version: Option<String>,
    /// Whether one in the queue is near its head, or was offered the key.
    concerns: bool,
}

impl PostgresRegister {
    pub(super) fn wait(&self, key: &Key, watch: &Watch, timeout: Option<Duration>) -> Result<(), Failure> {
        let (until, limit) = limits(watch, timeout, self.patience);
        let (channel, left) = match watch {
            Watch::Turn(level) => (self.channels.of_level(*level), 0),
            // Whoever holds leaves a connection for the end of the command.
            Watch::Hold(level) => (self.channels.of_level(*level), 1),
            Watch::Ends(_) => (self.channels.changes.clone(), 0),
        };
        let mut connection = self.listen(&channel, left, Moment::now().after(limit))?;
        let server = connection.server.clone();
        // What was told before we look is in the record.
        let slept = self.sleep(&mut connection, key, watch, (until, limit));
        if slept.is_ok() {
            self.idle.keep(connection);
        }
        slept.map_err(|failure| failure.by(&server))
    }

    fn sleep(
        &self,
        connection: &mut Connection,
        key: &Key,
        watch: &Watch,
        (until, limit): (Option<Moment>, Duration),
    ) -> Result<(), Failure> {
        let mut first = true;
        loop {
            let by = Moment::now().after(limit);
            // What changes after it is seen at the next one, and looked at twice.
            let glance = if self.is_deaf() { self.glance(connection, key, watch, by)? } else { Glance::default() };
            let Some(Reading { seen, now, .. }) = self.look_at(connection, key, by)? else { return Ok(()) };
            let heard = Moment::now();
            let Some(mut plan) = plan(&seen, now, watch) else { return Ok(()) };
            if until.is_some_and(|until| until.left().is_zero()) {
                return Ok(());
            }
            if let Some(me) = plan.due(watch, now) {
                let good_until = now.after(SIGN_OF_LIFE);
                self.sign(connection, key, me, good_until)?;
                plan.signed = Some(good_until);
            }
            // As long as all goes well, an instant is not for those farther behind: who has just asked looks once.
            let mine = plan.watches || std::mem::take(&mut first);
            let wake = plan.wake((now, heard), mine, None, until);
            if self.is_deaf() {
                self.look_out(connection, key, watch, &glance, wake, limit)?;
            } else if is_told(connection, key, watch, wake)? {
                return Ok(());
            }
        }
    }

    /// Sleeps until that moment, or until a glance at the record shows that it is time to look at it.
    fn look_out(
        &self,
        connection: &mut Connection,
        key: &Key,
        watch: &Watch,
        before: &Glance,
        wake: Moment,
        limit: Duration,
    ) -> Result<(), Failure> {
        let is_next = matches!(watch, Watch::Turn(_)) && before.concerns;
        let often = if is_next { UNTOLD_AT_THE_HEAD } else { UNTOLD };
        loop {
            std::thread::sleep(often.min(wake.left()));
            if wake.left().is_zero() {
                return Ok(());
            }
            let now = self.glance(connection, key, watch, Moment::now().after(limit))?;
            let is_news = match watch {
                Watch::Turn(_) => now.concerns != before.concerns || now.concerns && now.version != before.version,
                Watch::Hold(_) | Watch::Ends(_) => now.holders != before.holders,
            };
            if is_news {
                return Ok(());
            }
        }
    }

    fn glance(&self, connection: &mut Connection, key: &Key, watch: &Watch, by: Moment) -> Result<Glance, Failure> {
        let me = if let Watch::Turn(level) = watch { level.secret() } else { String::new() };
        let done = connection.ask(&[with(&self.statements.glance, [key.as_str().into(), me])], by);
        let done = match done {
            Err(failure) if failure.is_missing_table() => return Ok(Glance::default()),
            done => done?,
        };
        let value = |column: usize| done.first().and_then(|done| done.value(column)).map(str::to_owned);
        Ok(Glance { holders: value(0), version: value(1), concerns: value(2).as_deref() == Some("t") })
    }

    /// The record of a key; nothing if it has none.
    fn look_at(&self, connection: &mut Connection, key: &Key, by: Moment) -> Result<Option<Reading>, Failure> {
        let done = connection.ask(&[with(&self.statements.look, [key.as_str().into()])], by);
        let done = match done {
            Err(failure) if failure.is_missing_table() => return Ok(None),
            done => done?,
        };
        done.first().and_then(|done| done.rows.first()).map(|row| self.read_row(key, row)).transpose()
    }

    fn sign(&self, connection: &mut Connection, key: &Key, me: LevelId, until: Stamp) -> Result<(), Failure> {
        let values = [key.as_str().into(), me.secret(), until.micros().to_string()];
        connection.ask(&[plain(BEGIN), with(&self.statements.sign, values), plain("COMMIT")], self.until()).map(drop)
    }
}

/// Sleeps until that moment, or until we are told to look. Whether we were told to act.
fn is_told(connection: &mut Connection, key: &Key, watch: &Watch, wake: Moment) -> Result<bool, Failure> {
    while let Some(Note { channel, words }) = connection.next_note(wake)? {
        if !connection.channels.contains(&channel) {
            continue;
        }
        match watch {
            Watch::Ends(_) if words == key.as_str() => return Ok(false),
            Watch::Ends(_) => {}
            _ => return Ok(words != LOOK),
        }
    }
    Ok(false)
}
