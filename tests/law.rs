//! The law of leases under virtual time: whatever happens to a key, in whatever order, each rule holds.

#[cfg(any(feature = "etcd", feature = "nats", feature = "postgres", feature = "redis"))]
pub(crate) mod differential;
mod examples;
mod rules;
pub(crate) mod world;

use std::time::Duration;

use dlock::model::{
    Ask, Fence, Hold, Info, Key, LeaseId, LevelId, MAX_EVENTS, Mode, OFFER, Patience, Record, Stamp, Standing, Waiter,
};
use proptest::prelude::*;
use proptest::sample::Index;

use world::{Moment, World};

/// How many processes want the key: enough for a queue, few enough that they meet.
const PROCESSES: usize = 5;

/// What a process asks for, apart from the ids.
#[derive(Clone, Debug)]
pub(crate) struct Wish {
    mode: Mode,
    pub(crate) ttl: Option<Duration>,
    pub(crate) patience: Patience,
    if_fence: Option<Expected>,
    min_hold: Duration,
    max_reentry: u32,
    attended: bool,
}

impl Default for Wish {
    fn default() -> Self {
        let (mode, patience, min_hold) = (Mode::Exclusive, Patience::None, Duration::ZERO);
        Self { mode, ttl: None, patience, if_fence: None, min_hold, max_reentry: 0, attended: false }
    }
}

/// The fence that a wish hopes to find.
#[derive(Clone, Debug)]
pub(crate) enum Expected {
    Current,
    Stale,
}

/// Which level is meant.
#[derive(Clone, Debug)]
pub(crate) enum Which {
    /// One of those that hold or wait.
    Known(Index),
    /// One of the last that were ever asked for.
    Any(Index),
}

/// One thing that happens.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// A process asks for the key, or asks again while it waits or holds.
    Ask(usize, Wish),
    /// A process sends one of its questions once more, however late: its reply was lost.
    Repeat(usize, Index),
    /// The process that has this one of the held leases enters it again.
    Enter(Index, Wish),
    Renew(Which, Duration),
    Release(Which),
    /// The processes in this set lose their leases.
    Unlock(Vec<usize>, bool),
    Crash(usize),
    Pass(Duration),
    /// Time goes on to the next instant that the record names, or to a microsecond before or after.
    PassToNext(i8),
    Look,
}

/// A key, its world, and those who want it.
pub(crate) struct Play {
    pub(crate) world: World,
    pub(crate) record: Record,
    /// What each process asked for under its latest lease.
    asks: [Vec<Ask>; PROCESSES],
    /// All levels that were ever asked for.
    levels: Vec<LevelId>,
}

impl Play {
    /// A key that has been held so many times before, with this fence by now.
    pub(crate) fn new(past: usize, fence: Fence) -> Self {
        let record = Record::new(Key::parse("k").expect("a letter is a key"));
        let mut play = Self { world: World::new(), record, asks: Default::default(), levels: Vec::new() };
        for _ in 0..past {
            let ask = play.new_lease(0, &Wish::default());
            play.record.acquire(&play.world, &ask);
            play.record.release(&play.world, ask.level, None);
        }
        play.record.fence = play.record.fence.max(fence);
        play
    }

    /// Does the step; nothing if it does not ask anything of the record.
    pub(crate) fn step(&mut self, step: &Step) -> Option<Moment> {
        match step {
            Step::Ask(who, wish) => {
                let known = self.asks[*who].first();
                let ask = match known.filter(|ask| self.record.standing(ask.level) != Standing::Gone) {
                    Some(ask) => Ask { patience: wish.patience, ..ask.clone() },
                    None => self.new_lease(*who, wish),
                };
                Some(self.world.acquire(&mut self.record, &ask))
            }
            Step::Repeat(who, index) => {
                let ask = one_of(&self.asks[*who], *index)?;
                Some(self.world.acquire(&mut self.record, ask))
            }
            Step::Enter(index, wish) => {
                let lease = one_of(&self.record.holders, *index)?.lease;
                let who = self.asks.iter().position(|asks| asks.first().is_some_and(|ask| ask.lease == lease))?;
                let ask = self.ask(who, lease, wish);
                Some(self.world.acquire(&mut self.record, &ask))
            }
            Step::Renew(which, ttl) => {
                let level = self.level(which)?;
                Some(self.world.renew(&mut self.record, level, *ttl))
            }
            Step::Release(which) => {
                let level = self.level(which)?;
                Some(self.world.release(&mut self.record, level))
            }
            Step::Unlock(whose, force) => {
                let leases = whose.iter().filter_map(|who| Some(self.asks[*who].first()?.lease)).collect();
                Some(self.world.unlock(&mut self.record, leases, *force))
            }
            Step::Crash(who) => {
                self.asks[*who].iter().for_each(|ask| self.world.dies(&self.record, ask.level));
                None
            }
            Step::Pass(time) => {
                self.world.pass(*time);
                None
            }
            Step::PassToNext(off) => {
                let next = self.named_instants().filter(|at| *at > self.world.now).min()?;
                let at = Stamp::from_micros(next.micros().saturating_add_signed((*off).into()));
                self.world.now = self.world.now.max(at);
                None
            }
            Step::Look => Some(self.world.look(&self.record)),
        }
    }

    fn new_lease(&mut self, who: usize, wish: &Wish) -> Ask {
        self.asks[who].clear();
        self.ask(who, id(self.levels.len()), wish)
    }

    /// The question of `who` for a new level of `lease`.
    fn ask(&mut self, who: usize, lease: LeaseId, wish: &Wish) -> Ask {
        let level = id(self.levels.len());
        let if_fence = wish.if_fence.as_ref().map(|expected| match expected {
            Expected::Current => self.record.clone().seen(&self.world).fence,
            Expected::Stale => Fence(1),
        });
        let &Wish { mode, ttl, patience, min_hold, max_reentry, attended, .. } = wish;
        let info = Info::default();
        let ask =
            Ask { lease, level, mode, ttl, patience, if_fence, proposal: None, min_hold, max_reentry, attended, info };
        self.levels.push(level);
        self.asks[who].push(ask.clone());
        ask
    }

    fn level(&self, which: &Which) -> Option<LevelId> {
        match which {
            Which::Any(index) => one_of(&self.levels[self.levels.len().saturating_sub(8)..], *index).copied(),
            Which::Known(index) => {
                let held = self.record.holders.iter().flat_map(|hold| &hold.levels).map(|level| level.id);
                let known: Vec<_> = held.chain(self.record.queue.iter().map(|waiter| waiter.lease)).collect();
                one_of(&known, *index).copied()
            }
        }
    }

    fn named_instants(&self) -> impl Iterator<Item = Stamp> + '_ {
        let ends =
            |hold: &Hold| hold.levels.iter().map(|level| level.until).chain([hold.hold_until]).collect::<Vec<_>>();
        let waits = |waiter: &Waiter| [waiter.until, waiter.offered_at.map(|since| since.after(OFFER))];
        self.record.holders.iter().flat_map(ends).chain(self.record.queue.iter().flat_map(waits)).flatten()
    }

    /// All holders let go, and all who wait and are not `frozen` ask again and again, the last one first,
    /// giving the key back as soon as they have it. Returns those whose turn never comes.
    fn drain(mut self, frozen: &[bool]) -> Vec<Waiter> {
        let held: Vec<_> = self.record.holders.iter().flat_map(|hold| &hold.levels).map(|level| level.id).collect();
        for level in held {
            self.record.release(&self.world, level, None);
        }
        let asks: Vec<_> = self
            .asks
            .iter()
            .zip(frozen)
            .filter_map(|(asks, frozen)| asks.first().filter(|_| !frozen).cloned())
            .collect();
        let mut line = self.record.clone().seen(&self.world).queue;
        line.retain(|waiter| asks.iter().any(|ask| ask.lease == waiter.lease));
        // No hold cools for more than 3 s and no frozen waiter stops the others for longer than an offer.
        for _ in 0..PROCESSES * 41 {
            for waiter in line.clone().iter().rev() {
                let ask = asks.iter().find(|ask| ask.lease == waiter.lease).expect("only these are in the line");
                let moment = self.world.acquire(&mut self.record, ask);
                if moment.granted().is_some() {
                    self.record.release(&self.world, ask.level, None);
                    line.retain(|other| other.lease != ask.lease);
                }
            }
            if line.is_empty() {
                break;
            }
            self.world.pass(Duration::from_millis(100));
        }
        line
    }
}

/// An id that differs from others in the digits that are shown.
fn id(number: usize) -> LeaseId {
    LeaseId::new(((number as u128) << 96).to_be_bytes())
}

fn one_of<T>(all: &[T], index: Index) -> Option<&T> {
    (!all.is_empty()).then(|| index.get(all))
}

fn mode() -> impl Strategy<Value = Mode> {
    let slots = (1u32..4).prop_map(|size| Mode::Slots(size.try_into().expect("it is at least 1")));
    prop_oneof![3 => Just(Mode::Exclusive), 2 => Just(Mode::Shared), 2 => slots]
}

fn ttl() -> impl Strategy<Value = Duration> {
    prop_oneof![1 => Just(1), 9 => Just(500), 9 => Just(2_000), 9 => Just(5_000)].prop_map(Duration::from_millis)
}

fn wish() -> impl Strategy<Value = Wish> {
    let patience = prop_oneof![
        Just(Patience::None),
        Just(Patience::Attended),
        Just(Patience::SignOfLife(Duration::from_millis(700))),
        Just(Patience::SignOfLife(Duration::from_secs(15))),
    ];
    let if_fence = prop_oneof![8 => Just(None), 2 => Just(Some(Expected::Current)), 1 => Just(Some(Expected::Stale))];
    let min_hold = prop_oneof![4 => Just(0), 1 => Just(1), 1 => Just(3)].prop_map(Duration::from_secs);
    (mode(), proptest::option::of(ttl()), patience, if_fence, min_hold, 0u32..4, any::<bool>()).prop_map(
        |(mode, ttl, patience, if_fence, min_hold, max_reentry, attended)| Wish {
            mode,
            ttl,
            patience,
            if_fence,
            min_hold,
            max_reentry,
            attended,
        },
    )
}

fn which() -> impl Strategy<Value = Which> {
    prop_oneof![3 => any::<Index>().prop_map(Which::Known), 1 => any::<Index>().prop_map(Which::Any)]
}

pub(crate) fn step() -> impl Strategy<Value = Step> {
    let who = || 0..PROCESSES;
    let whose = proptest::sample::subsequence(vec![0, 1, 2, 3, 4], 1..PROCESSES);
    let time = prop_oneof![Just(1), Just(1_000), Just(200_000), Just(999_999), Just(1_000_000), Just(2_000_000)];
    let renewal = prop_oneof![9 => ttl(), 1 => Just(Duration::ZERO)];
    prop_oneof![
        8 => (who(), wish()).prop_map(|(who, wish)| Step::Ask(who, wish)),
        2 => (who(), any::<Index>()).prop_map(|(who, index)| Step::Repeat(who, index)),
        3 => (any::<Index>(), wish()).prop_map(|(index, wish)| Step::Enter(index, wish)),
        2 => (which(), renewal).prop_map(|(which, ttl)| Step::Renew(which, ttl)),
        4 => which().prop_map(Step::Release),
        2 => (whose, any::<bool>()).prop_map(|(whose, force)| Step::Unlock(whose, force)),
        1 => who().prop_map(Step::Crash),
        2 => time.prop_map(|micros| Step::Pass(Duration::from_micros(micros))),
        3 => (-1i8..=1).prop_map(Step::PassToNext),
        1 => Just(Step::Look),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_rule_holds_at_every_moment_and_everyone_who_keeps_asking_gets_the_key(
        past in prop_oneof![Just(0), Just(MAX_EVENTS / 2)],
        ahead in prop_oneof![Just(Fence(0)), Just(Fence(1_700_000_003_000_000))],
        steps in proptest::collection::vec(step(), 1..80),
        frozen in proptest::collection::vec(any::<bool>(), PROCESSES),
    ) {
        let mut play = Play::new(past, ahead);
        for step in &steps {
            let Some(moment) = play.step(step) else { continue };
            let broken = rules::broken(&moment);
            prop_assert!(broken.is_empty(), "{broken:?} broken by {moment:?}");
        }
        let read = Record::decode(&play.record.key, &play.record.encode());
        prop_assert_eq!(read.as_ref(), Ok(&play.record));
        let forgotten = play.drain(&frozen);
        prop_assert!(forgotten.is_empty(), "never their turn: {forgotten:?}");
    }
}
