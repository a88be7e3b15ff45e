//! Keys spread over several stores that know nothing of each other: each key is on one of them, by consistent hashing, and
//! so a node that is dead takes its own keys with it and no other. All who ask must have the same list of nodes, or two of
//! them would look for a key at different places: so each node knows its list, and gives out keys only to those who have
//! that one.

mod install;
mod points;
mod roll;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use self::install::{Installed, Installer, Right};
use self::points::Points;
pub use self::roll::{List, Node, Outcome, Past, Roll, Step, Told};
use super::observers::Observers;
use super::parallel::at_once;
use super::{
    Capabilities, Examination, Inspected, Listing, Observer, Scope, SetUp, Store, StoreError, Trouble, Watch, nodes,
};
use crate::clock::Moment;
use crate::model::{Answer, Ask, Ending, Info, Key, LeaseId, LevelId, Record, Released, Renewed, Stamp, Unlocked};

/// Makes a node of its name, which need not be in the list, and of how long what has no limit of its own may take. It has
/// whatever is there, by any list.
pub type Connect = dyn Fn(&str, Duration) -> Result<Arc<dyn Node>, StoreError> + Send + Sync;

/// What it means for locks that a node does not answer.
const DEAD: &str = "no key of this node can be taken, and whoever holds one is stopped before its lease ends; those of other \
                    nodes can";

/// A ring of stores.
pub struct Ring {
    identity: String,
    words: String,
    /// As they are listed.
    nodes: Vec<Arc<dyn Node>>,
    list: List,
    points: Points,
    connect: Box<Connect>,
    patience: Duration,
    /// Which node is asked for the clock first.
    timekeeper: AtomicUsize,
}

impl Ring {
    /// The ring of these nodes, which were made for their list.
    pub fn new(
        identity: String,
        words: String,
        nodes: Vec<Arc<dyn Node>>,
        connect: Box<Connect>,
        patience: Duration,
    ) -> Self {
        let names: Vec<String> = nodes.iter().map(|node| node.name().to_owned()).collect();
        let list = List::new(names.iter().map(String::as_str));
        let (points, timekeeper) = (Points::new(&names), AtomicUsize::new(0));
        Self { identity, words, nodes, list, points, connect, patience, timekeeper }
    }

    fn node_of(&self, key: &Key) -> &dyn Node {
        &*self.nodes[self.points.node_of(key.as_str())]
    }

    fn installer<'a>(&'a self, right: Right, connect: &'a install::Connect<'a>) -> Result<Installer<'a>, StoreError> {
        let mut name = [0; 16];
        getrandom::fill(&mut name).map_err(|error| os("there are no random bytes", &io::Error::other(error)))?;
        Ok(Installer::new(&self.list, right, LeaseId::new(name).secret(), connect))
    }

    /// Installs the list if all nodes are new, or have forgotten all and belong to no other list.
    fn begin(&self, within: Duration) -> Result<(), StoreError> {
        let connect = |name: &str| (self.connect)(name, within);
        self.installer(Right::First, &connect)?.install(&|| false).map(drop)
    }

    /// Whether a node is closed, to be opened for our list, by somebody who died before he came to that: say a first run.
    fn is_forsaken(&self, node: &dyn Node, error: &StoreError) -> bool {
        error.trouble == Trouble::Unreachable
            && !error.maybe_done
            && node.step(Step::Look).is_ok_and(|told| install::is_forsaken(&told, &self.list))
    }

    /// What each node answers, in their order. One that is silent takes no time from the others.
    fn each<T: Send>(&self, ask: impl Fn(&dyn Node) -> T + Sync) -> Result<Vec<T>, StoreError> {
        at_once(&self.nodes, |node| ask(&**node)).map_err(|error| os("cannot start a thread", &error))
    }

    /// What a node answered, or, if it has never belonged to a list, `nothing`; unless others belong to another list
    /// than ours.
    fn unless_blank<T>(&self, answer: Result<T, StoreError>, nothing: impl FnOnce() -> T) -> Result<T, StoreError> {
        match answer {
            Err(error) if error.trouble == Trouble::Unprepared => {
                for looked in self.each(|node| self.may_look(node))? {
                    looked.or_else(|error| if error.trouble == Trouble::Unreachable { Ok(()) } else { Err(error) })?;
                }
                Ok(nothing())
            }
            answer => answer,
        }
    }

    /// Whether a node may be asked what keys it has: it belongs to our list, or did so a moment ago, or has nothing.
    fn may_look(&self, node: &dyn Node) -> Result<(), StoreError> {
        let roll = node.step(Step::Look)?.roll;
        if roll.is_blank() || roll.remembers(&self.list.stamp()) { Ok(()) } else { Err(roll.error(node)) }
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring").field("list", &self.list).finish_non_exhaustive()
    }
}

fn os(what: &str, error: &io::Error) -> StoreError {
    StoreError::new(Trouble::Os, format_args!("{what}: {}", crate::sys::words(error))).before_anything()
}

impl Store for Ring {
    fn identity(&self) -> &str {
        &self.identity
    }

    fn describe(&self) -> String {
        self.words.clone()
    }

    fn capabilities(&self) -> Capabilities {
        let none = Capabilities { shared: true, slots: true, fifo: true, beats: true, least_ttl: Duration::ZERO };
        self.nodes.first().map_or(none, |node| node.capabilities())
    }

    fn acquire(&self, key: &Key, ask: &Ask, within: Duration) -> Result<Answer, StoreError> {
        let until = Moment::now().after(within);
        let node = self.node_of(key);
        match node.acquire(key, ask, within) {
            Err(error) if error.trouble == Trouble::Unprepared || self.is_forsaken(node, &error) => {
                self.begin(until.left()).map_err(StoreError::before_anything)?;
                node.acquire(key, ask, until.left())
            }
            answer => answer,
        }
    }

    fn renew(&self, key: &Key, level: LevelId, ttl: Duration, within: Duration) -> Result<Renewed, StoreError> {
        self.node_of(key).renew(key, level, ttl, within)
    }

    fn release(
        &self,
        key: &Key,
        level: LevelId,
        ending: Option<Ending>,
        within: Duration,
    ) -> Result<Released, StoreError> {
        self.node_of(key).release(key, level, ending, within)
    }

    fn revoke(&self, key: &Key, leases: &[LeaseId], force: bool, by: &Info) -> Result<Unlocked, StoreError> {
        self.node_of(key).revoke(key, leases, force, by)
    }

    fn inspect(&self, key: &Key) -> Result<Option<Record>, StoreError> {
        self.unless_blank(self.node_of(key).inspect(key), || None)
    }

    fn now(&self) -> Stamp {
        // Those that were not heard of know no time.
        self.nodes.iter().map(|node| node.now()).max().unwrap_or_default()
    }

    fn inspect_all(&self, keys: &[Key]) -> Result<Vec<Inspected>, StoreError> {
        let mut of_each: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (at, key) in keys.iter().enumerate() {
            of_each.entry(self.points.node_of(key.as_str())).or_default().push(at);
        }
        let of_each: Vec<_> = of_each.into_iter().collect();
        let look = |(node, places): &(usize, Vec<usize>)| {
            let keys: Vec<Key> = places.iter().map(|at| keys[*at].clone()).collect();
            let inspected = self.nodes[*node].inspect_all(&keys);
            let inspected = self.unless_blank(inspected, || keys.iter().map(|_| Ok(None)).collect());
            inspected.unwrap_or_else(|error| keys.iter().map(|_| Err(error.clone())).collect())
        };
        let looked = at_once(&of_each, look).map_err(|error| os("cannot start a thread", &error))?;
        let places = of_each.iter().flat_map(|(_, places)| places);
        let mut inspected: Vec<(&usize, Inspected)> = places.zip(looked.into_iter().flatten()).collect();
        inspected.sort_by_key(|(at, _)| **at);
        Ok(inspected.into_iter().map(|(_, inspected)| inspected).collect())
    }

    fn ask_clock(&self) -> Result<Stamp, StoreError> {
        let mut failed = None;
        for _ in 0..self.nodes.len() {
            let first = self.timekeeper.load(Ordering::Relaxed);
            match self.nodes[first % self.nodes.len()].ask_clock() {
                Ok(now) => return Ok(now),
                Err(error) => failed = Some(error),
            }
            // It is not asked again, even if it is back.
            self.timekeeper.store(first + 1, Ordering::Relaxed);
        }
        Err(failed.unwrap_or_else(|| StoreError::new(Trouble::Unfit, "the ring has no nodes")))
    }

    fn examine(&self, silence: Duration) -> Result<Examination, StoreError> {
        let stores: Vec<&dyn Store> = self.nodes.iter().map(|node| &**node as &dyn Store).collect();
        let mut found = nodes::examine(&stores, silence, DEAD)?;
        for told in self.each(|node| Ok::<_, StoreError>((node.describe(), node.step(Step::Look)?.roll)))? {
            // Whoever does not answer was found already.
            let Ok((name, roll)) = told else { continue };
            if roll.open() != Some(&self.list.stamp()) {
                found.findings.push(roll.finding(&name));
            }
        }
        Ok(found)
    }

    fn set_up(&self, goes_on: &dyn Fn() -> bool) -> Result<SetUp, StoreError> {
        let connect = |name: &str| (self.connect)(name, self.patience);
        Ok(match self.installer(Right::Replace, &connect)?.install(goes_on)? {
            Installed::Done => SetUp::Ready,
            Installed::Held(keys) => SetUp::Held(keys),
        })
    }

    fn list(&self, scope: Scope) -> Result<Listing, StoreError> {
        let listed = self.each(|node| self.may_look(node).and_then(|()| node.list(scope)))?;
        let mut listing = Listing::default();
        for (at, listed) in listed.into_iter().enumerate() {
            match listed {
                Ok(mut part) => {
                    // What is left of a key that was here by another list is not what became of it.
                    part.keys.retain(|key| self.points.node_of(key.as_str()) == at);
                    listing.keys.extend(part.keys);
                    part.unseen.into_iter().for_each(|error| listing.miss(error));
                }
                Err(error) if error.trouble == Trouble::Unreachable => listing.miss(error),
                Err(error) => return Err(error),
            }
        }
        match listing.unseen.first() {
            Some(error) if listing.unseen.len() == self.nodes.len() => return Err(error.clone()),
            _ => listing.keys.sort_unstable(),
        }
        Ok(listing)
    }

    fn observe(&self, key: Option<&Key>) -> Result<Box<dyn Observer>, StoreError> {
        if let Some(key) = key {
            return self.node_of(key).observe(Some(key));
        }
        let observers = self.each(|node| self.may_look(node).and_then(|()| node.observe(None)))?;
        let all = Observers::new(observers.into_iter().collect::<Result<_, _>>()?, 0);
        Ok(Box::new(all.map_err(|error| os("cannot start a thread", &error))?))
    }

    fn await_change(&self, key: &Key, watch: &Watch, timeout: Option<Duration>) -> Result<(), StoreError> {
        self.node_of(key).await_change(key, watch, timeout)
    }

    fn sign_of_life(&self, level: LevelId) -> Result<Option<OwnedFd>, StoreError> {
        self.nodes.first().map_or(Ok(None), |node| node.sign_of_life(level))
    }
}
