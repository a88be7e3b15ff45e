//! For stores that tell: whom a change of a record concerns, and what one who waits for his turn or keeps a hold sleeps for.

use std::time::Duration;

use super::Watch;
use crate::clock::Moment;
use crate::model::{Hold, LevelId, Record, SIGN_OF_LIFE, Stamp, Standing};

/// How many at the head of a queue look at the instants that the record names.
pub(super) const WATCHERS: usize = 2;

/// When so much is left of a sign of life, the next one is due: there is time for a second try.
const SIGN_WITHIN: Duration = Duration::from_secs(8);

/// If those who watch an instant are dead, too, then others who show their life notice what is overdue by so much.
const OVERDUE: Duration = Duration::from_millis(1500);

/// It is your turn, or something became of your hold.
pub(super) const ACT: &str = "act";

/// Look at the record: it names another instant for you.
pub(super) const LOOK: &str = "look";

/// What to sleep for.
pub(super) struct Plan {
    /// At most until then, by the server's clock; and whether we are the one to watch that.
    pub(super) instant: Option<Stamp>,
    pub(super) watches: bool,
    /// When our sign of life ends.
    pub(super) signed: Option<Stamp>,
}

impl Plan {
    /// Whose sign of life is due.
    pub(super) fn due(&self, watch: &Watch, now: Stamp) -> Option<LevelId> {
        match watch {
            Watch::Turn(me) => self.signed.filter(|signed| signed.since(now) <= SIGN_WITHIN).map(|_| *me),
            Watch::Hold(_) | Watch::Ends(_) => None,
        }
    }

    /// Until when to sleep, where it was `now` over there when we `heard` it: until a sign of life is due, the instant if
    /// that is `mine` to watch, some time has passed in which we were `untold`, or the wait is over.
    pub(super) fn wake(
        &self,
        (now, heard): (Stamp, Moment),
        mine: bool,
        untold: Option<Duration>,
        until: Option<Moment>,
    ) -> Moment {
        let sign = self.signed.map(|signed| signed.since(now).saturating_sub(SIGN_WITHIN));
        let instant = self.instant.filter(|_| mine).map(|instant| instant.since(now));
        let spans = [sign, instant, untold].into_iter().flatten();
        spans.map(|span| heard.after(span)).chain(until).min().unwrap_or_else(|| heard.after(SIGN_OF_LIFE))
    }
}

/// Until when to wait, and how long an answer to a request may take meanwhile.
pub(super) fn limits(watch: &Watch, timeout: Option<Duration>, patience: Duration) -> (Option<Moment>, Duration) {
    let until = timeout.map(|timeout| Moment::now().after(timeout));
    // Whoever holds has beats to think of, and lets none wait for an answer to this.
    let limit = until.filter(|_| matches!(watch, Watch::Hold(_))).map_or(patience, Moment::left);
    (until, limit)
}

/// What to sleep for, given a record as it is kept; nothing if it is time to act.
pub(super) fn plan(kept: &Record, now: Stamp, watch: &Watch) -> Option<Plan> {
    let record = kept.clone().seen(&now);
    match watch {
        Watch::Turn(me) => {
            let Standing::Waiting(at) = record.standing(*me) else { return None };
            let waiter = &record.queue[at];
            if waiter.offered_at.is_some() {
                return None;
            }
            // What has ended must be written down: until then others are offered nothing.
            let watches = at < WATCHERS;
            let patience = if watches { Duration::ZERO } else { OVERDUE };
            let end = kept.next_end();
            if end.is_some_and(|end| end.after(patience) <= now) {
                return None;
            }
            Some(Plan { instant: end.map(|end| end.after(patience)), watches, signed: waiter.until })
        }
        Watch::Hold(me) => {
            let holds = record.standing(*me) == Standing::Holding { revoked: false };
            holds.then_some(Plan { instant: None, watches: true, signed: None })
        }
        Watch::Ends(leases) => {
            let left = record.holders.iter().filter(|hold| leases.contains(&hold.lease));
            let ends: Vec<Option<Stamp>> = left.map(Hold::ends_at).collect();
            (!ends.is_empty()).then(|| Plan { instant: ends.into_iter().flatten().min(), watches: true, signed: None })
        }
    }
}

/// Who is to be told of a change that the caller made, and what: [`ACT`] or [`LOOK`]. Nothing if it changes nothing but the
/// instants that beats and signs of life move on.
pub(super) fn news(before: &Record, after: &Record, me: Option<LevelId>) -> Option<Vec<(LevelId, &'static str)>> {
    if !after.differs_from(before) {
        return None;
    }
    let mut news = Vec::new();
    let sooner = after.next_end() < before.next_end();
    for (at, waiter) in after.queue.iter().enumerate() {
        let place = before.queue.iter().position(|other| other.lease == waiter.lease);
        let was_offered = place.is_some_and(|place| before.queue[place].offered_at.is_some());
        if waiter.offered_at.is_some() && !was_offered {
            news.push((waiter.lease, ACT));
        } else if at < WATCHERS && (sooner || place.is_some_and(|place| place >= WATCHERS)) {
            news.push((waiter.lease, LOOK));
        }
    }
    for hold in &before.holders {
        let left = after.hold(hold.lease);
        let is_news = left.is_none_or(|left| left.revoked && !hold.revoked);
        let levels = hold
            .levels
            .iter()
            .filter(|level| is_news || left.is_some_and(|left| left.levels.iter().all(|other| other.id != level.id)));
        news.extend(levels.map(|level| (level.id, ACT)));
    }
    news.retain(|(level, _)| Some(*level) != me);
    Some(news)
}
