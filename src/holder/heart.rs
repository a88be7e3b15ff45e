//! The thread that keeps a lease.

use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Duration;

use super::{PAUSE, pause};
use crate::clock::{Deadline, Moment};
use crate::event::{Event, NOT_IN_TIME};
use crate::model::{Key, LeaseId, LevelId, Renewed, Standing};
use crate::store::{Store, Trouble, Watch};

/// A command that is over sooner needs nobody to listen for an unlock.
const LISTEN_AFTER: Duration = Duration::from_millis(500);

/// If no more time is left, there is no further try: what one meets that is cut short says nothing.
const TOO_SHORT: Duration = Duration::from_millis(50);

/// The thread that keeps a lease.
pub(super) struct Heart {
    pub(super) store: Arc<dyn Store>,
    pub(super) key: Key,
    pub(super) lease: LeaseId,
    pub(super) level: LevelId,
    pub(super) ttl: Duration,
    pub(super) beat: Duration,
    pub(super) kill_after: Duration,
    pub(super) events: Sender<Event>,
}

impl Heart {
    /// Where the store sees us live: only listens.
    pub(super) fn listen(&self) {
        thread::sleep(LISTEN_AFTER);
        loop {
            let woken = self.store.await_change(&self.key, &Watch::Hold(self.level), None);
            let standing = woken.and_then(|()| self.store.inspect(&self.key));
            let standing = standing.map(|record| record.map_or(Standing::Gone, |record| record.standing(self.level)));
            match standing {
                Ok(Standing::Holding { revoked: false }) => {}
                Ok(Standing::Holding { revoked: true }) => return self.tell_revoked(),
                Ok(_) => {
                    let place = self.store.describe();
                    let words = format!("{place} does not know this lease any more: unlocked by force, or deleted");
                    return self.tell(Event::Lost(words));
                }
                // Unknown is not lost.
                Err(_) => pause(PAUSE),
            }
        }
    }

    /// Renews the lease until it is lost.
    pub(super) fn beat(&self, mut deadline: Deadline) {
        let stop_at = |deadline: Deadline| deadline.moment().before(self.kill_after);
        let started = Moment::now();
        let mut answered = deadline.moment().before(self.ttl);
        let mut failed = 0;
        loop {
            if failed == 0 {
                self.sleep(started, answered.after(self.beat));
                if stop_at(deadline).left().is_zero() {
                    return self.tell(Event::Lost(NOT_IN_TIME.into()));
                }
            }
            let asked = Moment::now();
            match self.store.renew(&self.key, self.level, self.ttl, self.bound(failed).min(stop_at(deadline).left())) {
                Ok(Renewed::Until(_)) => {
                    failed = 0;
                    answered = asked;
                    deadline = Deadline::of_lease(asked, self.ttl);
                    self.tell(Event::Renewed(deadline));
                }
                Ok(Renewed::Revoked) => return self.tell_revoked(),
                Ok(Renewed::NotYours) => {
                    let place = self.store.describe();
                    return self.tell(Event::Lost(format!("{place} does not know this lease any more")));
                }
                Err(error) if stop_at(deadline).left() < TOO_SHORT => {
                    thread::sleep(stop_at(deadline).left());
                    let silent = Moment::now().since(answered);
                    // In milliseconds only where seconds would say nothing.
                    let silent = if silent < Duration::from_secs(10) {
                        Duration::from_millis(u64::try_from(silent.as_millis()).unwrap_or(u64::MAX))
                    } else {
                        Duration::from_secs(silent.as_secs())
                    };
                    let (silent, ttl) = (humantime::format_duration(silent), humantime::format_duration(self.ttl));
                    return self.tell(Event::Lost(format!("no answer for {silent} of a {ttl} lease: {error}")));
                }
                Err(error) => {
                    log::info!("cannot renew '{}': {error}; trying again", self.key);
                    failed += 1;
                    pause(PAUSE.min(self.beat / 2).min(stop_at(deadline).left() / 2));
                }
            }
        }
    }

    /// Sleeps until the next beat, or until the store tells that something has become of the lease. A store
    /// that hung up may come back with nothing in it, so whoever had listened for a while asks at once.
    fn sleep(&self, started: Moment, next: Moment) {
        thread::sleep(started.after(LISTEN_AFTER).left().min(next.left()));
        // Less is not worth a connection.
        if next.left() < LISTEN_AFTER / 10 {
            return thread::sleep(next.left());
        }
        let begun = Moment::now();
        match self.store.await_change(&self.key, &Watch::Hold(self.level), Some(next.left())) {
            Err(error) if error.trouble == Trouble::Unreachable && Moment::now().since(begun) > LISTEN_AFTER => {}
            Err(_) => thread::sleep(next.left()),
            Ok(()) => {}
        }
    }

    /// How long a try to renew may take, after so many that failed: a third of a beat, so that there are
    /// several, but where that is very short, more each time for a store that is far away.
    fn bound(&self, failed: u32) -> Duration {
        let third = self.beat / 3;
        third.saturating_mul(2_u32.saturating_pow(failed)).min(third.max(Duration::from_secs(1)))
    }

    fn tell_revoked(&self) {
        // Who it was is good to know; that it was, is known.
        let record = self.store.inspect(&self.key).ok().flatten();
        self.tell(Event::Revoked(record.and_then(|record| record.unlocked_by(self.lease).map(ToString::to_string))));
    }

    fn tell(&self, event: Event) {
        // Once the run is over nobody wants to know.
        let _ = self.events.send(event);
    }
}
