//! Redlock: a lease that most of several independent stores agree to. No store knows of the others.
//!
//! Sources: Redlock (S. Sanfilippo, 2014, "Distributed Locks with Redis"), and its critique (M. Kleppmann, 2016, "How to do
//! distributed locking"). Unlike there, the one who asks proposes the fence of the lease, and a node agrees to rising
//! ones only, like an acceptor of Paxos (L. Lamport, 1998) to rising ballots. Two majorities have a node in common, so
//! leases have fences in the order in which they were given, even if nodes lose them.

mod node;
mod propose;
mod tally;
mod view;
mod voter;
mod wait;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use node::{Answered, Node, Round, silence};
use tally::majority;
pub use voter::{Origin, Tenure, Vote, Voter};

use super::nodes;
use super::observers::Observers;
use super::{Capabilities, Examination, Inspected, Listing, Observer, Scope, Store, StoreError, Trouble, Watch, lock};
use crate::clock::Moment;
use crate::model::{
    Answer, Ask, Ending, Info, Key, LeaseId, LevelId, Record, Refusal, Released, Renewed, Stamp, Unlocked,
};

/// Once most have answered, the others have as long again, and so much.
const GRACE: Duration = Duration::from_millis(20);

/// How long it may take to send, without an answer, that a lease has ended: to a node that is late anyway and has nothing
/// of it as far as is known, and to one that may have.
const PARTING: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(200));

/// A lease that most nodes agree to.
pub struct Quorum {
    nodes: Vec<Node>,
    identity: String,
    name: String,
    /// How long what has no limit of its own may take.
    patience: Duration,
    state: Mutex<State>,
    /// Which nodes have answered to a vote on which level, and so may have something of it.
    voted: Arc<Mutex<HashSet<(usize, LevelId)>>>,
}

/// What is known of the levels that were asked for.
#[derive(Default)]
struct State {
    /// Those that were given back: a request that comes late must not ask for them again.
    over: HashSet<LevelId>,
    waiting: HashMap<LevelId, wait::Line>,
    /// Those that hear what becomes of a hold, while they do not.
    listening: Vec<wait::Line>,
}

impl Quorum {
    /// The quorum of these nodes. What has no limit of its own may take `patience`.
    #[must_use]
    pub fn new(
        nodes: impl IntoIterator<Item = Arc<dyn Voter>>,
        identity: String,
        name: String,
        patience: Duration,
    ) -> Self {
        let nodes = nodes.into_iter().map(Node::new).collect();
        Self { nodes, identity, name, patience, state: Mutex::default(), voted: Arc::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn majority(&self) -> usize {
        majority(self.nodes.len())
    }

    /// Asks all nodes.
    fn ask_all<T: Send + 'static>(
        &self,
        until: Moment,
        ask: impl Fn(&dyn Voter, Duration) -> Result<T, StoreError> + Send + Sync + 'static,
    ) -> Round<T> {
        Round::begin(&self.nodes, 0..self.nodes.len(), until, ask)
    }

    /// The answers of all nodes that answer about as soon as most do.
    ///
    /// # Errors
    /// [`StoreError`] if too few answer.
    fn gather<T: Send + 'static>(
        &self,
        within: Duration,
        ask: impl Fn(&dyn Voter, Duration) -> Result<T, StoreError> + Send + Sync + 'static,
    ) -> Result<Vec<(usize, T)>, StoreError> {
        let began = Moment::now();
        let mut until = began.after(within);
        let mut round = self.ask_all(until, ask);
        let (mut answers, mut errors) = (Vec::new(), Vec::new());
        while let Some((at, answer)) = round.next(until) {
            match answer {
                Ok(answer) => answers.push((at, answer)),
                Err(error) => errors.push((at, error)),
            }
            if answers.len() == self.majority() {
                let took = Moment::now().since(began);
                until = until.min(Moment::now().after(took + GRACE));
            }
        }
        if answers.len() < self.majority() {
            errors.extend(silence(&self.nodes, &round.silent));
            return Err(self.too_few(errors));
        }
        answers.sort_unstable_by_key(|(at, _)| *at);
        Ok(answers)
    }

    /// See [`Store::inspect`].
    fn look(&self, key: &Key, within: Duration) -> Result<Option<Record>, StoreError> {
        let asked = key.clone();
        let seen = self.gather(within, move |node, _| node.inspect(&asked))?;
        Ok(view::merge(self.nodes.len(), seen.into_iter().map(|(_, record)| record).collect()))
    }

    /// Why most nodes cannot be had. If that is more than that they cannot be reached, it will not go over.
    fn too_few(&self, mut errors: Vec<(usize, StoreError)>) -> StoreError {
        errors.sort_by_key(|(at, _)| *at);
        let others = self.nodes.len() - self.majority();
        let lasting = |(_, error): &&(usize, StoreError)| error.trouble != Trouble::Unreachable;
        let trouble = match errors.iter().find(lasting) {
            Some((_, error)) if errors.iter().filter(lasting).count() > others => error.trouble,
            _ => Trouble::Unreachable,
        };
        let words: Vec<&str> = errors.iter().map(|(_, error)| &*error.words).collect();
        let words = if words.is_empty() { "its nodes do not answer".into() } else { words.join("; ") };
        let error = StoreError::new(trouble, format_args!("redis quorum: {words}"));
        if errors.iter().all(|(_, error)| !error.maybe_done) { error.before_anything() } else { error }
    }

    /// Sees to it that nodes have been sent what was asked of them at the end of a level, since this process may end, too.
    /// Those that are late are not waited for.
    fn send_off(&self, round: &mut Round<Released>, level: LevelId, mut hear: impl FnMut(Answered<Released>)) {
        let has = lock(&self.voted);
        let all_late = round.hurry_late(&self.nodes, |at| has.contains(&(at, level)));
        drop(has);
        let spans: &[Duration] = if all_late { &[PARTING.0] } else { &[GRACE, PARTING.1] };
        for span in spans {
            let until = Moment::now().after(*span);
            while let Some(answered) = round.next(until) {
                hear(answered);
            }
            round.hurry_all(&self.nodes);
        }
    }

    /// Enters a lease again, on all nodes that have it.
    fn enter_again(&self, key: &Key, ask: &Ask, within: Duration) -> Result<Answer, StoreError> {
        let until = Moment::now().after(within);
        let (key, question) = (key.clone(), ask.clone());
        let mut round = self.ask_all(until, move |node, within| node.acquire(&key, &question, within));
        let (mut grants, mut refusals, mut errors) = (Vec::new(), Vec::new(), Vec::new());
        while let Some((at, answer)) = round.next(until) {
            match answer {
                Ok(Answer::Granted(grant)) => grants.push(grant),
                Ok(Answer::Refused(refusal)) => refusals.push(refusal),
                Ok(_) => refusals.push(Refusal::Lost),
                Err(error) => errors.push((at, error)),
            }
            if grants.len() == self.majority() {
                return Ok(Answer::Granted(grants[0]));
            }
        }
        errors.extend(silence(&self.nodes, &round.silent));
        match refusals.first() {
            // A node that forgot the lease says that it is lost; the others know better.
            Some(first) if refusals.len() > self.nodes.len() - self.majority() => {
                let other = refusals.iter().find(|refusal| **refusal != Refusal::Lost);
                Ok(Answer::Refused(*other.unwrap_or(first)))
            }
            _ => Err(self.too_few(errors)),
        }
    }
}

impl fmt::Debug for Quorum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Quorum").field("identity", &self.identity).finish_non_exhaustive()
    }
}

impl Store for Quorum {
    fn identity(&self) -> &str {
        &self.identity
    }

    fn describe(&self) -> String {
        self.name.clone()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { shared: false, slots: false, fifo: false, beats: true, least_ttl: Duration::ZERO }
    }

    fn acquire(&self, key: &Key, ask: &Ask, within: Duration) -> Result<Answer, StoreError> {
        if ask.level == ask.lease { self.propose(key, ask, within) } else { self.enter_again(key, ask, within) }
    }

    fn renew(&self, key: &Key, level: LevelId, ttl: Duration, within: Duration) -> Result<Renewed, StoreError> {
        let mut until = Moment::now().after(within);
        let asked = key.clone();
        let mut round = self.ask_all(until, move |node, within| node.renew(&asked, level, ttl, within));
        let (mut kept, mut lost, mut errors) = (Vec::new(), Vec::new(), Vec::new());
        while let Some((at, answer)) = round.next(until) {
            match answer {
                Ok(Renewed::Until(until)) => kept.push(until),
                Ok(Renewed::Revoked) => return Ok(Renewed::Revoked),
                Ok(Renewed::NotYours) => lost.push(at),
                Err(error) => errors.push((at, error)),
            }
            if lost.len() > self.nodes.len() - self.majority() {
                return Ok(Renewed::NotYours);
            }
            if kept.len() == self.majority() {
                // There is no hurry, and others may have lost it.
                until = until.min(Moment::now().after(GRACE));
            }
        }
        if kept.len() < self.majority() {
            errors.extend(silence(&self.nodes, &round.silent));
            return Err(self.too_few(errors));
        }
        if !lost.is_empty() {
            self.heal(key, level, ttl, &lost);
        }
        Ok(Renewed::Until(kept.into_iter().min().flatten()))
    }

    fn release(
        &self,
        key: &Key,
        level: LevelId,
        ending: Option<Ending>,
        within: Duration,
    ) -> Result<Released, StoreError> {
        let until = Moment::now().after(within);
        let asked = key.clone();
        let mut round = {
            let mut state = self.state();
            state.over.insert(level);
            state.waiting.remove(&level);
            state.listening.retain(|line| !line.is_for(key, &Watch::Hold(level)));
            self.ask_all(until, move |node, within| node.release(&asked, level, ending.clone(), within))
        };
        let (mut answers, mut errors) = (Vec::new(), Vec::new());
        let mut hear = |(at, answer): Answered<Released>| match answer {
            Ok(answer) => answers.push(answer),
            Err(error) => errors.push((at, error)),
        };
        let mut heard = 0;
        while let Some(answered) = round.next(until) {
            heard += usize::from(answered.1.is_ok());
            hear(answered);
            if heard == self.majority() {
                break;
            }
        }
        if heard == self.majority() {
            self.send_off(&mut round, level, hear);
        }
        if answers.len() < self.majority() {
            errors.extend(silence(&self.nodes, &round.silent));
            return Err(self.too_few(errors));
        }
        let is = |answer: Released| answers.contains(&answer);
        let best =
            [Released::Freed, Released::Cooling, Released::Left, Released::Unqueued].into_iter().find(|a| is(*a));
        let gone = answers.iter().filter(|answer| **answer == Released::NotYours).count();
        Ok(best.filter(|_| gone < self.majority()).unwrap_or(Released::NotYours))
    }

    fn revoke(&self, key: &Key, leases: &[LeaseId], force: bool, by: &Info) -> Result<Unlocked, StoreError> {
        let (key, leases, by) = (key.clone(), leases.to_vec(), by.clone());
        let done = self.gather(self.patience, move |node, _| node.revoke(&key, &leases, force, &by))?;
        let most = |count: fn(&Unlocked) -> usize| done.iter().map(|(_, done)| count(done)).max().unwrap_or_default();
        Ok(Unlocked { ended: most(|done| done.ended), told: most(|done| done.told) })
    }

    fn inspect(&self, key: &Key) -> Result<Option<Record>, StoreError> {
        self.look(key, self.patience)
    }

    fn now(&self) -> Stamp {
        view::middle(self.nodes.iter().map(|node| node.store.now()).filter(|now| *now != Stamp::default()))
    }

    fn inspect_all(&self, keys: &[Key]) -> Result<Vec<Inspected>, StoreError> {
        let asked = keys.to_vec();
        let seen = self.gather(self.patience, move |node, _| node.inspect_all(&asked))?;
        let mut columns: Vec<_> = seen.into_iter().map(|(at, records)| (at, records.into_iter())).collect();
        let row = |_| {
            let row = columns.iter_mut().filter_map(|(at, records)| Some((*at, records.next()?)));
            let (records, errors): (Vec<_>, Vec<_>) = row.partition(|(_, record)| record.is_ok());
            if records.len() < self.majority() {
                return Err(
                    self.too_few(errors.into_iter().filter_map(|(at, error)| Some((at, error.err()?))).collect())
                );
            }
            let records = records.into_iter().filter_map(|(_, record)| record.ok()).collect();
            Ok(view::merge(self.nodes.len(), records))
        };
        Ok(keys.iter().map(row).collect())
    }

    fn ask_clock(&self) -> Result<Stamp, StoreError> {
        let clocks = self.gather(self.patience, |node, _| node.ask_clock())?;
        Ok(view::middle(clocks.into_iter().map(|(_, clock)| clock)))
    }

    fn examine(&self, silence: Duration) -> Result<Examination, StoreError> {
        let means = "one more that fails may be one too many: with most of the nodes gone no lock can be taken, and those \
                     that are held are lost";
        let stores: Vec<&dyn Store> = self.nodes.iter().map(|node| &*node.store as &dyn Store).collect();
        nodes::examine(&stores, silence, means)
    }

    fn list(&self, scope: Scope) -> Result<Listing, StoreError> {
        // A lease is on most nodes, so most nodes know of all leases.
        let lists = self.gather(self.patience, move |node, _| node.list(scope))?;
        let mut listing = Listing::default();
        for (_, list) in lists {
            listing.keys.extend(list.keys);
            list.unseen.into_iter().for_each(|error| listing.miss(error));
        }
        listing.keys.sort_unstable();
        listing.keys.dedup();
        Ok(listing)
    }

    fn observe(&self, key: Option<&Key>) -> Result<Box<dyn Observer>, StoreError> {
        let key = key.cloned();
        let observers = self.gather(self.patience, move |node, _| node.observe(key.as_ref()))?;
        let observers: Vec<_> = observers.into_iter().map(|(_, observer)| observer).collect();
        let spare = observers.len() - self.majority();
        let all = Observers::new(observers, spare);
        Ok(Box::new(all.map_err(|error| StoreError::new(Trouble::Os, format!("cannot start a thread: {error}")))?))
    }

    fn await_change(&self, key: &Key, watch: &Watch, timeout: Option<Duration>) -> Result<(), StoreError> {
        match watch {
            Watch::Turn(level) => {
                self.await_turn(*level, timeout);
                Ok(())
            }
            Watch::Hold(_) | Watch::Ends(_) => self.await_any(key, watch, timeout),
        }
    }
}
