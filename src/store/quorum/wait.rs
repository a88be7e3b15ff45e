//! Waiting for a change on several nodes: for the first one that tells of one.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Duration;

use super::node::{Node, spawn};
use super::tally::Tally;
use super::{Quorum, Voter};
use crate::clock::Moment;
use crate::model::{Answer, Key, LevelId};
use crate::store::{Store as _, StoreError, Trouble, Watch};

/// How long to sleep at most if no node tells of anything, a quarter more or less: a word of theirs may be lost.
const SLEEP: Duration = Duration::from_secs(12);

/// How long those who are offered the key by some nodes leave it to others whom all may have offered it, at most.
const RELUCTANCE: Duration = Duration::from_millis(10);

/// Most nodes offer the key to the same one within so much.
const TOGETHER: Duration = Duration::from_millis(2);

/// How long to leave a node alone that erred.
const PAUSE: Duration = Duration::from_millis(400);

/// One who stands in line at several nodes.
pub(super) struct Line {
    key: Key,
    told: Receiver<usize>,
    sleepers: Vec<Sleeper>,
}

/// What waits for a word of one node.
struct Sleeper {
    at: usize,
    /// Has it sleep once more.
    sleep: Sender<()>,
    asleep: bool,
    /// Whether the node has us in its queue, as it said last.
    queued: bool,
}

/// Leaves others alone for a random while.
pub(super) fn pause(at_most: Duration) {
    thread::sleep(some_of(at_most));
}

/// A random part of a span; all of it, where there are no random bytes.
fn some_of(span: Duration) -> Duration {
    let mut byte = [u8::MAX];
    let _ = getrandom::fill(&mut byte);
    span * u32::from(byte[0]) / u32::from(u8::MAX)
}

impl Quorum {
    /// What to do until the key may be had: these nodes have us in their queues.
    pub(super) fn stand_in_line(&self, key: &Key, level: LevelId, tally: &Tally) {
        let mut state = self.state();
        if state.over.contains(&level) {
            return;
        }
        let line = state.waiting.entry(level).or_insert_with(|| Line::new(&self.nodes, key, level));
        for sleeper in &mut line.sleepers {
            sleeper.queued =
                tally.votes.iter().any(|(at, vote)| *at == sleeper.at && matches!(vote.answer, Answer::Queued(_)));
        }
    }

    /// Sleeps until nodes offer us the key.
    pub(super) fn await_turn(&self, level: LevelId, timeout: Option<Duration>) {
        let Some(mut line) = self.state().waiting.remove(&level) else { return };
        let sleep = SLEEP * 3 / 4 + some_of(SLEEP / 2);
        let until = Moment::now().after(timeout.map_or(sleep, |timeout| timeout.min(sleep)));
        loop {
            let told = line.sleep(until.left(), self.majority());
            if told == 0 || told >= self.majority() {
                break;
            }
            // A node that had no part in a lease offers the key while others have it.
            if self.inspect(&line.key).is_ok_and(|record| record.is_none_or(|record| record.holders.is_empty())) {
                pause(RELUCTANCE);
                break;
            }
        }
        let mut state = self.state();
        if !state.over.contains(&level) {
            state.waiting.insert(level, line);
        }
    }

    /// Sleeps until any of the nodes tells of a change.
    pub(super) fn await_any(&self, key: &Key, watch: &Watch, timeout: Option<Duration>) -> Result<(), StoreError> {
        let (sender, told) = mpsc::channel();
        for node in &self.nodes {
            let (store, key, watch, sender) = (Arc::clone(&node.store), key.clone(), watch.clone(), sender.clone());
            let wait = move || {
                // Another one may have told before.
                let _ = sender.send(store.await_change(&key, &watch, timeout));
            };
            spawn(wait).map_err(|error| StoreError::new(Trouble::Os, format!("cannot start a thread: {error}")))?;
        }
        drop(sender);
        let mut errors = Vec::new();
        while let Ok(woken) = told.recv() {
            match woken {
                Ok(()) => return Ok(()),
                Err(error) => errors.push((errors.len(), error)),
            }
            if errors.len() > self.nodes.len() - self.majority() {
                break;
            }
        }
        Err(self.too_few(errors))
    }
}

impl Line {
    fn new(nodes: &[Node], key: &Key, level: LevelId) -> Self {
        let (sender, told) = mpsc::channel();
        let sleeper = |(at, node): (usize, &Node)| {
            let (sleep, begin) = mpsc::channel();
            let (store, key, tell) = (Arc::clone(&node.store), key.clone(), sender.clone());
            // Without a thread for it, no word of this node wakes us.
            let _ = spawn(move || listen(&*store, &key, level, &begin, || tell.send(at).is_ok()));
            Sleeper { at, sleep, asleep: false, queued: false }
        };
        Self { key: key.clone(), told, sleepers: nodes.iter().enumerate().map(sleeper).collect() }
    }

    /// Sleeps until nodes have told that it is our turn; how many have.
    fn sleep(&mut self, at_most: Duration, enough: usize) -> usize {
        for sleeper in &mut self.sleepers {
            if sleeper.queued && !sleeper.asleep {
                sleeper.asleep = sleeper.sleep.send(()).is_ok();
            }
        }
        let mut until = Moment::now().after(at_most);
        let mut told = BTreeSet::new();
        while let Ok(at) = self.told.recv_timeout(until.left()) {
            if told.is_empty() {
                until = Moment::now().after(TOGETHER);
            }
            told.insert(at);
            self.sleepers[at].asleep = false;
            if told.len() >= enough {
                break;
            }
        }
        told.len()
    }
}

/// Waits for our turn at a node each time that it is told to, and tells of it, for as long as anybody hears that.
fn listen(store: &dyn Voter, key: &Key, level: LevelId, begin: &Receiver<()>, tell: impl Fn() -> bool) {
    while begin.recv().is_ok() {
        let woken = store.await_change(key, &Watch::Turn(level), None);
        if woken.is_err() {
            // What it says to the next question says more.
            thread::sleep(PAUSE);
        }
        if !tell() {
            return;
        }
    }
}
