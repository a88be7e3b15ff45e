//! A key in a world that the test rules: its clock goes only when told, and who lives is a set.

use std::collections::BTreeSet;
use std::time::Duration;

use dlock::model::{
    Answer, Ask, Clock, Ending, EventKind, Fence, Hold, Info, LeaseId, LevelId, OFFER, Record, Released, Renewed, Role,
    Stamp, Ticket, Unlocked,
};

/// Virtual time, and the tickets whose owners live.
#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) now: Stamp,
    pub(crate) living: BTreeSet<(Ticket, Role)>,
}

/// One operation, and what was answered.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    Acquire(Box<Ask>, Answer),
    Renew(LevelId, Duration, Renewed),
    Release(LevelId, Released),
    Unlock(Vec<LeaseId>, bool, Unlocked),
    Look,
}

/// All that the rules judge by: a record before and after one operation.
#[derive(Debug)]
pub(crate) struct Moment {
    pub(crate) world: World,
    pub(crate) before: Record,
    /// What the rules leave of `before` at this instant, whatever the operation.
    pub(crate) left: Record,
    /// What became of those that `left` lacks or has without levels.
    pub(crate) ended: Vec<(EventKind, Hold)>,
    pub(crate) act: Act,
    pub(crate) after: Record,
}

impl Clock for World {
    fn now(&self) -> Stamp {
        self.now
    }

    fn attends(&self, ticket: Ticket, role: Role) -> bool {
        self.living.contains(&(ticket, role))
    }
}

impl World {
    /// An ordinary day, with nobody alive.
    pub(crate) fn new() -> Self {
        Self { now: Stamp::from_micros(1_700_000_000_000_000), living: BTreeSet::new() }
    }

    pub(crate) fn pass(&mut self, time: Duration) {
        self.now = self.now.after(time);
    }

    pub(crate) fn at(&self, now: Stamp) -> Self {
        Self { now, ..self.clone() }
    }

    /// The owner of `level` shows its life in whatever it does now.
    pub(crate) fn lives(&mut self, record: &Record, level: LevelId) {
        if let Some((ticket, role, _)) = record.sign_of_life(level) {
            self.living.retain(|(other, _)| *other != ticket);
            self.living.insert((ticket, role));
        }
    }

    pub(crate) fn dies(&mut self, record: &Record, level: LevelId) {
        if let Some((ticket, ..)) = record.sign_of_life(level) {
            self.living.retain(|(other, _)| *other != ticket);
        }
    }

    pub(crate) fn acquire(&mut self, record: &mut Record, ask: &Ask) -> Moment {
        let (before, world) = (record.clone(), self.clone());
        let answer = record.acquire(self, ask);
        self.lives(record, ask.level);
        let mut moment = Moment::new(world, before, Act::Acquire(Box::new(ask.clone()), answer), record);
        moment.world = self.clone();
        moment
    }

    pub(crate) fn renew(&self, record: &mut Record, level: LevelId, ttl: Duration) -> Moment {
        let before = record.clone();
        let answer = record.renew(self, level, ttl);
        Moment::new(self.clone(), before, Act::Renew(level, ttl, answer), record)
    }

    pub(crate) fn release(&self, record: &mut Record, level: LevelId) -> Moment {
        let before = record.clone();
        let answer = record.release(self, level, Some(Ending::default()));
        Moment::new(self.clone(), before, Act::Release(level, answer), record)
    }

    pub(crate) fn unlock(&self, record: &mut Record, leases: Vec<LeaseId>, force: bool) -> Moment {
        let before = record.clone();
        let answer = record.unlock(self, &leases, force, &by());
        Moment::new(self.clone(), before, Act::Unlock(leases, force, answer), record)
    }

    pub(crate) fn look(&self, record: &Record) -> Moment {
        Moment::new(self.clone(), record.clone(), Act::Look, &record.clone().seen(self))
    }
}

impl Moment {
    fn new(world: World, before: Record, act: Act, after: &Record) -> Self {
        let caller = if let Act::Acquire(ask, _) = &act { Some(ask.level) } else { None };
        let (left, ended) = what_is_left(&world, &before, caller);
        Self { world, before, left, ended, act, after: after.clone() }
    }

    pub(crate) fn now(&self) -> Stamp {
        self.world.now
    }

    /// Whether the owner of `lease` asked for the key in this operation, and so showed its life.
    pub(crate) fn is_by(&self, lease: LeaseId) -> bool {
        matches!(&self.act, Act::Acquire(ask, _) if ask.lease == lease)
    }

    /// The hold that this operation brought about.
    pub(crate) fn granted(&self) -> Option<&Hold> {
        self.after.holders.iter().find(|hold| self.left.hold(hold.lease).is_none())
    }

    /// The holds that this operation went through, as they were left before it and as they are after it.
    pub(crate) fn kept(&self) -> impl Iterator<Item = (&Hold, &Hold)> {
        self.left.holders.iter().filter_map(|was| Some((was, self.after.hold(was.lease)?)))
    }
}

/// Whether the rules still count the one with this end, or with this ticket if it has none.
fn counts(world: &World, until: Option<Stamp>, ticket: Ticket, role: Role) -> bool {
    until.map_or(world.living.contains(&(ticket, role)), |end| world.now < end)
}

/// What the passing of time and the deaths of owners leave of a record, worked out beside the model.
fn what_is_left(world: &World, before: &Record, caller: Option<LevelId>) -> (Record, Vec<(EventKind, Hold)>) {
    let mut left = before.clone();
    let mut ended = Vec::new();
    left.holders.clear();
    for was in &before.holders {
        let mut hold = was.clone();
        hold.levels.retain(|level| counts(world, level.until, level.ticket, Role::Holding));
        let cools = !hold.revoked && hold.hold_until.is_some_and(|end| world.now < end);
        let goes = hold.levels.is_empty() && !cools;
        if hold.levels.is_empty() && !was.levels.is_empty() {
            ended.push((EventKind::Expired, was.clone()));
            left.counters.expiries += 1;
        } else if goes {
            ended.push((EventKind::Cooled, was.clone()));
        }
        if goes {
            left.fence = Fence(left.fence.0 + 1);
        } else {
            left.holders.push(hold);
        }
    }
    left.queue.retain(|waiter| {
        let passed_over = waiter.offered_at.is_some_and(|offered| offered.after(OFFER) <= world.now);
        let alive = counts(world, waiter.until, waiter.ticket, Role::Waiting);
        caller == Some(waiter.lease) || (alive && !passed_over)
    });
    (left, ended)
}

/// Who unlocks.
pub(crate) fn by() -> Info {
    Info { host: "\"desk\" é".into(), pid: 7, user: "ops".into(), ..Info::default() }
}
