//! Waiting for a change on several nodes: for the first one that tells of one.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Duration;

use super::node::{Node, spawn};
use super::tally::Tally;
use super::{Quorum, Voter};
use crate::clock::{Moment, some_of};
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

/// One who waits for words of several nodes, asleep at each of them. Nobody else must be: a word is gone once it was heard.
pub(super) struct Line {
    key: Key,
    watch: Watch,
    told: Receiver<Told>,
    sleepers: Vec<Sleeper>,
}

/// The place of a node, and whether it had a word.
type Told = (usize, Result<bool, StoreError>);

/// What waits for a word of one node.
struct Sleeper {
    at: usize,
    /// Has it sleep once more, at most for so long.
    sleep: Sender<Option<Duration>>,
    asleep: bool,
    /// Whether the node has us in its queue, as it said last.
    queued: bool,
}

/// Leaves others alone for a random while.
pub(super) fn pause(at_most: Duration) {
    thread::sleep(some_of(at_most));
}

impl Quorum {
    /// What to do until the key may be had: these nodes have us in their queues.
    pub(super) fn stand_in_line(&self, key: &Key, level: LevelId, tally: &Tally) {
        let mut state = self.state();
        if state.over.contains(&level) {
            return;
        }
        let line = state.waiting.entry(level).or_insert_with(|| Line::new(&self.nodes, key, &Watch::Turn(level)));
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

    /// Sleeps until any of the nodes tells of a change. What others tell meanwhile is heard the next time: who was told
    /// by the first one may have asked the others before these knew.
    pub(super) fn await_any(&self, key: &Key, watch: &Watch, timeout: Option<Duration>) -> Result<(), StoreError> {
        let mut state = self.state();
        let known = state.listening.iter().position(|line| line.is_for(key, watch));
        let line = known.map(|at| state.listening.swap_remove(at));
        drop(state);
        let mut line = line.unwrap_or_else(|| Line::new(&self.nodes, key, watch));
        let errors = line.listen(timeout, self.nodes.len() - self.majority());
        let mut state = self.state();
        if !matches!(watch, Watch::Hold(level) if state.over.contains(level)) {
            state.listening.push(line);
        }
        drop(state);
        if errors.is_empty() { Ok(()) } else { Err(self.too_few(errors)) }
    }
}

impl Line {
    fn new(nodes: &[Node], key: &Key, watch: &Watch) -> Self {
        let (sender, told) = mpsc::channel();
        let sleeper = |(at, node): (usize, &Node)| {
            let (sleep, begin) = mpsc::channel();
            let (store, key, watch, tell) = (Arc::clone(&node.store), key.clone(), watch.clone(), sender.clone());
            // Without a thread for it, no word of this node wakes us.
            let _ = spawn(move || listen(&*store, &key, &watch, &begin, |woken| tell.send((at, woken)).is_ok()));
            Sleeper { at, sleep, asleep: false, queued: false }
        };
        let sleepers = nodes.iter().enumerate().map(sleeper).collect();
        Self { key: key.clone(), watch: watch.clone(), told, sleepers }
    }

    pub(super) fn is_for(&self, key: &Key, watch: &Watch) -> bool {
        self.key == *key && self.watch == *watch
    }

    /// Sleeps until nodes have told that it is our turn; how many have.
    fn sleep(&mut self, at_most: Duration, enough: usize) -> usize {
        for sleeper in &mut self.sleepers {
            if sleeper.queued && !sleeper.asleep {
                sleeper.asleep = sleeper.sleep.send(None).is_ok();
            }
        }
        let mut until = Moment::now().after(at_most);
        let mut told = BTreeSet::new();
        while let Ok((at, _)) = self.told.recv_timeout(until.left()) {
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

    /// Sleeps until a node has a word for us, none has any more for that long, or more than these can be `spared` have
    /// failed. Then their errors are returned.
    fn listen(&mut self, timeout: Option<Duration>, spared: usize) -> Vec<(usize, StoreError)> {
        let mut errors = Vec::new();
        for sleeper in &mut self.sleepers {
            if !sleeper.asleep {
                sleeper.asleep = sleeper.sleep.send(timeout).is_ok();
                if !sleeper.asleep {
                    errors.push((sleeper.at, StoreError::new(Trouble::Os, "cannot start a thread")));
                }
            }
        }
        let until = timeout.map(|timeout| Moment::now().after(timeout));
        while errors.len() <= spared && self.sleepers.iter().any(|sleeper| sleeper.asleep) {
            let told = match until {
                Some(until) => self.told.recv_timeout(until.left()).ok(),
                None => self.told.recv().ok(),
            };
            let Some((at, woken)) = told else { return Vec::new() };
            self.sleepers[at].asleep = false;
            match woken {
                Ok(true) => return Vec::new(),
                Ok(false) => {}
                Err(error) => errors.push((at, error)),
            }
        }
        if errors.len() > spared { errors } else { Vec::new() }
    }
}

/// Waits for a word of a node each time that it is told to, and tells of it, for as long as anybody hears that.
fn listen(
    store: &dyn Voter,
    key: &Key,
    watch: &Watch,
    begin: &Receiver<Option<Duration>>,
    tell: impl Fn(Result<bool, StoreError>) -> bool,
) {
    while let Ok(timeout) = begin.recv() {
        let woken = store.await_word(key, watch, timeout);
        if woken.is_err() {
            // What it says to the next question says more.
            thread::sleep(PAUSE);
        }
        if !tell(woken) {
            return;
        }
    }
}
