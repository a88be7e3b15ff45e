//! The operations on a record. Each first drops holders past their end and waiters without a sign of
//! life, then decides, then marks those in the queue who could now take the key.

use std::time::Duration;

use super::ask::{
    Answer, Ask, Clock, Grant, Passage, Patience, Proposal, Refusal, Released, Renewed, Role, Standing, Unlocked,
};
use super::record::{Ending, EventKind, Hold, Info, Level, Record, Ticket, Waiter};
use super::{Fence, LeaseId, LevelId, Mode, Stamp};

/// How long one who could take the key may leave it lying before it is passed over. Longer than a loaded
/// machine needs to wake a process, short enough that nobody takes a frozen waiter for a holder.
pub const OFFER: Duration = Duration::from_secs(1);

/// To how many the key is offered at once. All of a crowd of readers could not take it in the time of an offer,
/// and those who did not would lose their place.
pub const OFFERS: usize = 16;

/// How long a sign of life of one who waits is good, where it goes by time. Half as long again as it takes
/// to the next one, and long enough that all of them together do not disturb a server.
pub const SIGN_OF_LIFE: Duration = Duration::from_secs(24);

/// How far ahead of a record's clock a proposed fence may be: clocks that are further apart are wrong, and a fence
/// that is years ahead would stay so.
pub const AHEAD: Duration = Duration::from_secs(10);

impl Record {
    /// Asks for the key, or asks again.
    pub fn acquire(&mut self, clock: &dyn Clock, ask: &Ask) -> Answer {
        self.prune(clock, Some(ask.level));
        let answer = self.decide(clock.now(), ask);
        self.offer(clock.now());
        answer
    }

    fn decide(&mut self, now: Stamp, ask: &Ask) -> Answer {
        if let Some(hold) = self.holders.iter().find(|hold| hold.levels.iter().any(|level| level.id == ask.level)) {
            return Answer::Granted(hold.grant());
        }
        let again = ask.proposal.is_some_and(|proposal| proposal.again);
        if again && self.hold(ask.lease).is_some() {
            return self.remember(now, ask);
        }
        if ask.level != ask.lease && !again {
            return self.enter_again(now, ask);
        }
        if self.hold(ask.lease).is_some() {
            // Its first level has ended and other levels or the cooling go on: a late echo of its request.
            return Answer::Refused(Refusal::Lost);
        }
        if self.contradicts(ask) {
            return Answer::Refused(Refusal::Fence(self.fence));
        }
        let place = self.queue.iter().position(|waiter| waiter.lease == ask.lease);
        let ahead = match (ask.proposal, place) {
            // Nodes differ in who came first, and none must wait for another one.
            (Some(proposal), place) if proposal.again || place.is_some() => 0,
            (_, place) => place.unwrap_or(self.queue.len()),
        };
        let admitted = (ask.if_fence.is_none() || self.holders.is_empty()) && self.admits(ask.mode, ahead);
        if admitted {
            if let Some(refusal) = ask.proposal.and_then(|proposal| self.objection(now, proposal)) {
                return Answer::Refused(refusal);
            }
            let waiter = place.map(|place| self.queue.remove(place));
            return Answer::Granted(self.grant(now, ask, waiter.as_ref()));
        }
        // The fence changes with whoever comes first in the queue, so to wait for an old one is in vain.
        let patience = if ask.if_fence.is_some() { Patience::None } else { ask.patience };
        match patience {
            Patience::None => {
                self.queue.retain(|waiter| waiter.lease != ask.lease);
                Answer::Busy(self.holders.clone(), self.queue.len())
            }
            Patience::Attended => self.enqueue(now, ask, place, None),
            Patience::SignOfLife(good_for) => self.enqueue(now, ask, place, Some(now.after(good_for))),
        }
    }

    /// Whether the fence is not the expected one.
    fn contradicts(&self, ask: &Ask) -> bool {
        ask.if_fence.is_some_and(
            |expected| {
                if ask.proposal.is_some() { expected < self.fence } else { expected != self.fence }
            },
        )
    }

    /// Why the record cannot have this fence.
    fn objection(&self, now: Stamp, proposal: Proposal) -> Option<Refusal> {
        let at = Stamp::from_micros(proposal.fence.0);
        if now.after(AHEAD) <= at {
            return Some(Refusal::Ahead(at.since(now)));
        }
        (!proposal.again && proposal.fence <= self.fence).then_some(Refusal::Fence(self.fence))
    }

    fn enqueue(&mut self, now: Stamp, ask: &Ask, place: Option<usize>, until: Option<Stamp>) -> Answer {
        let place = place.unwrap_or_else(|| {
            let ticket = self.next_ticket();
            self.queue.push(Waiter {
                lease: ask.lease,
                mode: ask.mode,
                ticket,
                asked_at: now,
                until,
                offered_at: None,
                info: ask.info.clone(),
                unknown: serde_json::Map::new(),
            });
            self.queue.len() - 1
        });
        self.queue[place].until = until;
        Answer::Queued(place)
    }

    /// Whether a newcomer in `mode` fits all holders and all of the first `ahead` in the queue. Who waits
    /// counts like a holder, so nobody barges in and a writer does not starve.
    fn admits(&self, mode: Mode, ahead: usize) -> bool {
        let holders = self.holders.iter().map(|hold| hold.mode);
        mode.fits(holders.chain(self.queue[..ahead].iter().map(|waiter| waiter.mode)))
    }

    fn grant(&mut self, now: Stamp, ask: &Ask, waiter: Option<&Waiter>) -> Grant {
        let ticket = waiter.map_or_else(|| self.next_ticket(), |waiter| waiter.ticket);
        // A counter alone repeats itself after a failover or a restored snapshot; the clock does not.
        let fence = ask.proposal.map_or_else(|| Fence((self.fence.0 + 1).max(now.micros())), |proposal| proposal.fence);
        self.fence = self.fence.max(fence);
        let hold = Hold {
            lease: ask.lease,
            mode: ask.mode,
            levels: vec![Level::new(ask.level, ticket, ask.ttl.map(|ttl| now.after(ttl)))],
            fence,
            granted_at: now,
            asked_at: waiter.map_or(now, |waiter| waiter.asked_at),
            hold_until: (!ask.min_hold.is_zero()).then(|| now.after(ask.min_hold)),
            attended: ask.attended,
            revoked: false,
            info: ask.info.clone(),
            unknown: serde_json::Map::new(),
        };
        self.counters.grants += 1;
        self.note(hold.event(EventKind::Granted, now, now.since(hold.asked_at), None));
        let grant = hold.grant();
        self.holders.push(hold);
        grant
    }

    /// Takes over a level of a lease that others have already.
    fn remember(&mut self, now: Stamp, ask: &Ask) -> Answer {
        let ticket = self.next_ticket();
        let Some(hold) = self.holders.iter_mut().find(|hold| hold.lease == ask.lease) else {
            return Answer::Refused(Refusal::Lost);
        };
        hold.levels.push(Level::new(ask.level, ticket, ask.ttl.map(|ttl| now.after(ttl))));
        Answer::Granted(hold.grant())
    }

    fn enter_again(&mut self, now: Stamp, ask: &Ask) -> Answer {
        let ticket = self.last_ticket + 1;
        let Some(hold) = self.holders.iter_mut().find(|hold| hold.lease == ask.lease && !hold.is_cooling()) else {
            return Answer::Refused(Refusal::Lost);
        };
        if hold.revoked {
            return Answer::Refused(Refusal::Lost);
        }
        if ask.if_fence.is_some_and(|expected| expected != self.fence) {
            return Answer::Refused(Refusal::Fence(self.fence));
        }
        if !hold.mode.contains(ask.mode) {
            return Answer::Refused(Refusal::Narrower(hold.mode));
        }
        if hold.levels.len() > ask.max_reentry as usize {
            return Answer::Refused(Refusal::TooDeep(ask.max_reentry));
        }
        hold.levels.push(Level::new(ask.level, ticket, ask.ttl.map(|ttl| now.after(ttl))));
        let at_least = (!ask.min_hold.is_zero()).then(|| now.after(ask.min_hold));
        hold.hold_until = hold.hold_until.max(at_least);
        self.last_ticket = ticket;
        Answer::Granted(hold.grant())
    }

    fn next_ticket(&mut self) -> Ticket {
        self.last_ticket += 1;
        self.last_ticket
    }

    /// Extends a level to `ttl` from now; never shortens it, and never brings back one that has ended.
    pub fn renew(&mut self, clock: &dyn Clock, level: LevelId, ttl: Duration) -> Renewed {
        self.prune(clock, None);
        let until = clock.now().after(ttl);
        let answer = self.extend(level, until);
        self.offer(clock.now());
        answer
    }

    fn extend(&mut self, id: LevelId, until: Stamp) -> Renewed {
        for hold in &mut self.holders {
            if let Some(level) = hold.levels.iter_mut().find(|level| level.id == id) {
                if hold.revoked {
                    return Renewed::Revoked;
                }
                level.until = level.until.map(|old| old.max(until));
                return Renewed::Until(level.until);
            }
        }
        Renewed::NotYours
    }

    /// Leaves the queue, or takes off one level; the last one ends the hold. Without an `ending` there was no
    /// command, and so nothing to keep others out for.
    pub fn release(&mut self, clock: &dyn Clock, level: LevelId, ending: Option<Ending>) -> Released {
        self.prune(clock, None);
        let answer = self.leave(clock.now(), level, ending, true);
        self.offer(clock.now());
        answer
    }

    fn leave(&mut self, now: Stamp, id: LevelId, ending: Option<Ending>, noted: bool) -> Released {
        if let Some(place) = self.queue.iter().position(|waiter| waiter.lease == id) {
            self.queue.remove(place);
            return Released::Unqueued;
        }
        let Some(at) = self.holders.iter().position(|hold| hold.levels.iter().any(|level| level.id == id)) else {
            return Released::NotYours;
        };
        let hold = &mut self.holders[at];
        hold.levels.retain(|level| level.id != id);
        if !hold.levels.is_empty() {
            return Released::Left;
        }
        let cooling = ending.is_some() && hold.hold_until.is_some_and(|until| now < until) && !hold.revoked;
        let event = hold.event(EventKind::Released, now, now.since(hold.granted_at), ending);
        if noted {
            self.note(event);
        }
        if cooling {
            return Released::Cooling;
        }
        self.end(at);
        Released::Freed
    }

    /// Takes back what was asked for with a proposal that most nodes did not agree to: the key was not held.
    pub fn withdraw(&mut self, clock: &dyn Clock, lease: LeaseId) -> Released {
        self.prune(clock, None);
        let hold = self.hold(lease).filter(|hold| hold.levels.len() == 1);
        let fence = hold.map(|hold| hold.fence);
        let answer = self.leave(clock.now(), lease, None, false);
        if let (Some(fence), Released::Freed) = (fence, answer) {
            let short = lease.short();
            self.events.retain(|event| (&event.lease, event.fence) != (&short, fence));
            self.counters.grants -= 1;
        }
        self.offer(clock.now());
        answer
    }

    /// Forced unlock of `leases`: tells attended holders to give the key back, or with `force` takes it
    /// from them; a lease that nobody attends to, or that is cooling, goes at once. The record keeps who did it.
    pub fn unlock(&mut self, clock: &dyn Clock, leases: &[LeaseId], force: bool, by: &Info) -> Unlocked {
        self.prune(clock, None);
        let now = clock.now();
        let mut done = Unlocked::default();
        for lease in leases {
            let Some(at) = self.holders.iter().position(|hold| hold.lease == *lease) else { continue };
            let hold = &mut self.holders[at];
            if force || !hold.attended || hold.is_cooling() {
                let event = hold.event(EventKind::Evicted, now, now.since(hold.granted_at), None).by(by);
                self.counters.evictions += 1;
                self.note(event);
                self.end(at);
                done.ended += 1;
            } else {
                if !hold.revoked {
                    hold.revoked = true;
                    let event = hold.event(EventKind::Revoked, now, now.since(hold.granted_at), None).by(by);
                    self.note(event);
                }
                done.told += 1;
            }
        }
        self.offer(now);
        done
    }

    /// Asks whether a command with this `fence`, of a lock elsewhere, may use the resource that the key stands for
    /// and that `level` holds; if so, remembers the fence, and no older one passes any more.
    pub fn pass(&mut self, level: LevelId, fence: Fence) -> Passage {
        match self.standing(level) {
            Standing::Waiting(_) | Standing::Gone => Passage::NotYours,
            Standing::Holding { .. } if fence < self.passed => Passage::Stale(self.passed),
            Standing::Holding { .. } => {
                self.passed = fence;
                Passage::Open
            }
        }
    }

    /// What an operation would find now, without the operation.
    #[must_use]
    pub fn seen(mut self, clock: &dyn Clock) -> Self {
        self.prune(clock, None);
        self.offer(clock.now());
        self
    }

    /// How a level stands in this record as it is.
    #[must_use]
    pub fn standing(&self, id: LevelId) -> Standing {
        if let Some(hold) = self.holders.iter().find(|hold| hold.levels.iter().any(|level| level.id == id)) {
            return Standing::Holding { revoked: hold.revoked };
        }
        self.queue.iter().position(|waiter| waiter.lease == id).map_or(Standing::Gone, Standing::Waiting)
    }

    /// The sign of life that the store must see of a level: its ticket, what it is used for, and the mode.
    /// Nothing if the level goes by time, or is not there.
    #[must_use]
    pub fn sign_of_life(&self, id: LevelId) -> Option<(Ticket, Role, Mode)> {
        for hold in &self.holders {
            if let Some(level) = hold.levels.iter().find(|level| level.id == id) {
                return level.until.is_none().then_some((level.ticket, Role::Holding, hold.mode));
            }
        }
        let waiter = self.queue.iter().find(|waiter| waiter.lease == id && waiter.until.is_none())?;
        Some((waiter.ticket, Role::Waiting, waiter.mode))
    }

    /// Drops what has ended. The caller itself shows its life by calling, and takes an offer late rather
    /// than never if nobody has passed it over yet.
    fn prune(&mut self, clock: &dyn Clock, caller: Option<LevelId>) {
        let now = clock.now();
        let lives =
            |until: Option<Stamp>, ticket, role| until.map_or_else(|| clock.attends(ticket, role), |until| now < until);
        let mut at = 0;
        while at < self.holders.len() {
            let hold = &mut self.holders[at];
            let was_cooling = hold.is_cooling();
            let level_ends = hold.levels.iter().map(|level| level.until.unwrap_or(now)).max();
            hold.levels.retain(|level| lives(level.until, level.ticket, Role::Holding));
            if !hold.is_cooling() {
                at += 1;
                continue;
            }
            let kept = hold.hold_until.is_some_and(|until| now < until) && !hold.revoked;
            let (kind, end) =
                if was_cooling { (EventKind::Cooled, hold.hold_until) } else { (EventKind::Expired, level_ends) };
            // Nobody may have looked for long.
            let end = end.unwrap_or(now).min(now);
            let event = hold.event(kind, end, end.since(hold.granted_at), None);
            if !was_cooling {
                self.counters.expiries += 1;
            }
            if !(was_cooling && kept) {
                self.note(event);
            }
            if kept {
                at += 1;
            } else {
                self.end(at);
            }
        }
        self.queue.retain(|waiter| {
            let missed = waiter.offered_at.is_some_and(|offered| offered.after(OFFER) <= now);
            Some(waiter.lease) == caller || (!missed && lives(waiter.until, waiter.ticket, Role::Waiting))
        });
    }

    /// Ends a hold. The fence rises, so that one read during the hold does not match after it.
    fn end(&mut self, at: usize) {
        self.holders.remove(at);
        self.fence.0 += 1;
    }

    /// Marks those who could take the key now, and since when.
    fn offer(&mut self, now: Stamp) {
        for at in 0..self.queue.len() {
            let offered = at < OFFERS && self.admits(self.queue[at].mode, at);
            let waiter = &mut self.queue[at];
            // A clock that was set back does not prolong an offer.
            waiter.offered_at = offered.then(|| waiter.offered_at.map_or(now, |since| since.min(now)));
        }
    }
}

impl Hold {
    fn grant(&self) -> Grant {
        Grant { fence: self.fence, depth: self.levels.len(), waited: self.granted_at.since(self.asked_at) }
    }
}
