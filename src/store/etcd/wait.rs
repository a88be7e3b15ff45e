//! How one sleeps until a key's record may have changed in a way that matters: until one is told, and until an instant at
//! which something may end.

use std::thread;
use std::time::Duration;

use super::EtcdRegister;
use super::address::{END, LIVES, end_of, level};
use super::api::{self, Event, Watched};
use super::connection::{Connection, Watching};
use super::look::Reading;
use super::trouble::{Failure, no_more};
use crate::clock::Moment;
use crate::model::{Key, SIGN_OF_LIFE, Standing};
use crate::store::Watch;
use crate::store::turn::{ACT, LOOK, WATCHERS, limits, plan};

/// Whoever was told nothing looks so often: what a member tells may be lost between here and there.
const UNTOLD: Duration = Duration::from_secs(15);

/// Whoever is not the next leaves it for so long to those ahead to see to what has ended.
const AHEAD: Duration = Duration::from_millis(300);

/// How long one who listens is left to it at least before he listens anew.
const PAUSE: Duration = Duration::from_millis(500);

/// From when on one listens. Whoever wants to hear of what has been is told all else late, too: a member looks for that
/// ten times a second (etcd, `watchable_store.go`: `watchResyncPeriod`).
const NOW: i64 = 0;

/// Whoever comes to the head of the queue listens to more only if the turn is not his so soon: where a key changes hands fast,
/// each of those who wait would do it for nothing.
const CALLED: Duration = Duration::from_millis(100);

/// What to do about what was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Told {
    Nothing,
    /// Look at the record, unless others tell more soon.
    LookSoon,
    /// Look at the record.
    Look,
    /// The same, as one who is at the head of the queue from now on.
    Called,
    /// It is time to act.
    Act,
    /// Nothing more is told.
    NoMore,
}

/// What is watched, and by whom it is told.
struct Ear {
    watching: Watching,
    /// Whether the ends of others count.
    others: bool,
    since: Moment,
}

impl EtcdRegister {
    pub(super) fn wait(&self, key: &Key, watch: &Watch, timeout: Option<Duration>) -> Result<(), Failure> {
        let (until, limit) = limits(watch, timeout, self.patience);
        let me = match watch {
            Watch::Turn(me) | Watch::Hold(me) => Some(*me),
            Watch::Ends(_) => None,
        };
        let mut ear: Option<Ear> = None;
        let mut known = self.queued(watch);
        let mut is_called = false;
        loop {
            let by = Moment::now().after(limit);
            let (mut connection, reading) = match known.take() {
                Some(reading) => {
                    self.with_connection(by, |_, _| Ok(())).map(|(connection, ())| (connection, reading))?
                }
                None => self.with_connection(by, |connection, by| {
                    // Whoever listens before he looks need not look again.
                    if is_called && ear.as_ref().is_none_or(|ear| !ear.others) {
                        ear = Some(self.listen(connection, key, watch, true, by)?);
                    }
                    self.look_at(connection, key, me, by)
                })?,
            };
            let server = connection.server.clone();
            let slept = self.sleep(&mut connection, &mut ear, (key, watch), &reading, (until, by));
            if slept.is_ok() {
                self.idle.keep(connection);
            }
            match slept.map_err(|failure| failure.by(&server))? {
                Told::Act => return Ok(()),
                told => is_called = told == Told::Called && matches!(watch, Watch::Turn(_)),
            }
        }
    }

    /// What there was when we began to wait just now, unless we have to know more of those who hold.
    fn queued(&self, watch: &Watch) -> Option<Reading> {
        let Watch::Turn(me) = watch else { return None };
        let reading = self.left_behind(*me)?;
        matches!(reading.seen.standing(*me), Standing::Waiting(at) if at >= WATCHERS).then_some(reading)
    }

    /// Sleeps until it is time to look again, or to act.
    fn sleep(
        &self,
        connection: &mut Connection,
        ear: &mut Option<Ear>,
        (key, watch): (&Key, &Watch),
        reading: &Reading,
        (until, by): (Option<Moment>, Moment),
    ) -> Result<Told, Failure> {
        let heard = Moment::now();
        let now = reading.now;
        let Some(mut plan) = plan(&reading.seen, now, watch) else { return Ok(Told::Act) };
        if until.is_some_and(|until| until.left().is_zero()) {
            return Ok(Told::Act);
        }
        if let Some(me) = plan.due(watch, now) {
            let life = reading.lives.get(&level(me)).copied();
            let is_signed = life.map(|life| self.sign(connection, me, life, by)).transpose()?;
            if is_signed != Some(true) {
                return Ok(Told::Act);
            }
            plan.signed = Some(now.after(SIGN_OF_LIFE));
        }
        let others = plan.watches && !matches!(watch, Watch::Hold(_));
        // Who told is to be who answers: of one that is cut off nobody hears.
        let is_good =
            ear.as_ref().is_some_and(|ear| ear.others == others && *ear.watching.server() == connection.server);
        if !is_good {
            *ear = Some(self.listen(connection, key, watch, others, by)?);
        }
        let Some(heard_by) = ear else { return Ok(Told::Nothing) };
        // Those at the head see to what is overdue. Whoever finds that somebody was offered the key sees to that, too: they
        // may be frozen.
        let is_offered = reading.seen.queue.iter().any(|waiter| waiter.offered_at.is_some());
        let mut wake = plan.wake((now, heard), plan.watches || is_offered, Some(UNTOLD), until);
        let is_next = matches!(watch, Watch::Turn(me) if reading.seen.standing(*me) == Standing::Waiting(0));
        let mut is_called = false;
        loop {
            let told = match heard_by.watching.next(wake) {
                Ok(None) if is_called => return Ok(Told::Called),
                Ok(None) => return Ok(Told::Nothing),
                Ok(Some(told)) => self.meaning(key, watch, is_next, &told)?.max(unheard(reading, &told)),
                Err(failure) if failure.is_stale() => Told::NoMore,
                Err(failure) => return Err(failure),
            };
            match told {
                // Whoever wants to hear more has to listen anew; what was missed is in the record.
                Told::NoMore => {
                    // Where nobody may listen for long, it is not tried without a pause.
                    thread::sleep(PAUSE.saturating_sub(Moment::now().since(heard_by.since)).min(wake.left()));
                    *ear = None;
                    return Ok(told);
                }
                Told::Nothing => {}
                Told::LookSoon => wake = wake.min(Moment::now().after(AHEAD)),
                Told::Called if !heard_by.others => {
                    is_called = true;
                    wake = wake.min(Moment::now().after(CALLED));
                }
                Told::Look | Told::Called | Told::Act => return Ok(told),
            }
        }
    }

    /// Listens to all that concerns a level from now on.
    fn listen(
        &self,
        connection: &Connection,
        key: &Key,
        watch: &Watch,
        others: bool,
        by: Moment,
    ) -> Result<Ear, Failure> {
        let of = self.address.of(key);
        let record = self.address.record(key);
        let creations = match watch {
            // All that shows life, and the record if it is deleted: each change of it would be more than one has to hear.
            Watch::Turn(_) if others => vec![
                api::watch(&format!("{of}{}", LIVES.0), Some(&format!("{of}{}", LIVES.1)), NOW, false),
                api::watch(&record, None, NOW, true),
            ],
            Watch::Turn(me) | Watch::Hold(me) => {
                vec![api::watch(&format!("{of}{}", level(*me)), None, NOW, false)]
            }
            Watch::Ends(_) => {
                vec![api::watch(&record, None, NOW, false), api::watch(&of, Some(&end_of(&of)), NOW, true)]
            }
        };
        let own = Connection::open(&connection.server, &self.address, &self.tls, &self.login, by)?;
        Ok(Ear { watching: own.watch(&creations, by)?, others, since: Moment::now() })
    }

    fn meaning(&self, key: &Key, watch: &Watch, is_next: bool, told: &Watched) -> Result<Told, Failure> {
        if told.canceled {
            // What was to be told is compacted away, or the member has no leader any more.
            if told.compact_revision > 0 {
                return Ok(Told::NoMore);
            }
            return Err(no_more(&told.cancel_reason));
        }
        let of = self.address.of(key);
        let of_one = |event: &Event| {
            let name = event.kv.key.strip_prefix(&of).unwrap_or_default();
            match watch {
                Watch::Turn(me) | Watch::Hold(me) if name == level(*me) => match &*event.kv.value {
                    _ if event.is_end() => Told::Act,
                    ACT => Told::Act,
                    LOOK => Told::Called,
                    // We wrote it.
                    _ => Told::Nothing,
                },
                // Who shows his life may count on it for so long, and we let him.
                Watch::Turn(_) if !event.is_end() => {
                    if let Ok(seconds) = event.kv.value.parse() {
                        self.saw(name, event.kv.mod_revision, Moment::now().after(Duration::from_secs(seconds)));
                    }
                    Told::Nothing
                }
                Watch::Turn(_) if name.ends_with(END) => Told::Nothing,
                // Whoever is next takes what a holder leaves.
                Watch::Turn(_) if is_next => Told::Act,
                Watch::Turn(_) => Told::LookSoon,
                _ => Told::Look,
            }
        };
        Ok(told.events.iter().map(of_one).max().unwrap_or(Told::Nothing))
    }
}

/// What was there before we began to listen, and after we had looked, is in the record.
fn unheard(reading: &Reading, told: &Watched) -> Told {
    if told.created && told.header.revision > reading.revision { Told::Look } else { Told::Nothing }
}
