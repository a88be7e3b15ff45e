//! The nodes of a quorum. Each has a thread that asks it one thing after the other, so that what is taken back comes
//! after what was asked for, and a node that is slow takes no time from the others.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use super::Voter;
use crate::clock::Moment;
use crate::signal;
use crate::store::{StoreError, Trouble, lock};

/// What a thread of a node needs at most; that of a program's first thread would be 8 MiB.
const STACK: usize = 512 << 10;

/// One of several independent stores.
pub(super) struct Node {
    pub(super) store: Arc<dyn Voter>,
    /// Where its thread takes its work from, once there is one.
    work: Mutex<Option<Sender<Job>>>,
    /// How much of it is not done yet.
    undone: Arc<AtomicUsize>,
}

type Question = Box<dyn FnOnce(&dyn Voter) + Send>;

/// Something to ask a node.
struct Job {
    ask: Question,
    /// Whether nobody waits for the answer any more.
    hasty: Arc<AtomicBool>,
}

/// What was asked of several nodes at once.
pub(super) struct Round<T> {
    answers: Receiver<Answered<T>>,
    /// Those that did not answer yet.
    pub(super) silent: Vec<usize>,
    asked: Vec<Asked>,
}

/// A node that was asked.
struct Asked {
    at: usize,
    /// Whether it had not answered what it was asked before.
    late: bool,
    hasty: Arc<AtomicBool>,
}

/// The place of a node, and its answer.
pub(super) type Answered<T> = (usize, Result<T, StoreError>);

impl Node {
    pub(super) fn new(store: Arc<dyn Voter>) -> Self {
        Self { store, work: Mutex::default(), undone: Arc::default() }
    }

    /// Has something asked; whether something else was still to be answered.
    fn enqueue(&self, job: Job) -> io::Result<bool> {
        let mut work = lock(&self.work);
        if work.is_none() {
            let (sender, jobs) = mpsc::channel();
            let (store, undone) = (Arc::clone(&self.store), Arc::clone(&self.undone));
            spawn(move || answer(&*store, &jobs, &undone))?;
            *work = Some(sender);
        }
        let sender = work.as_ref().expect("it was made just now");
        let late = self.undone.fetch_add(1, Ordering::SeqCst) > 0;
        // It is there as long as the sender is, unless it panicked.
        sender.send(job).map(|()| late).map_err(|_| io::Error::other("the thread of this node has died"))
    }
}

/// Asks a node whatever is to be asked, until nobody is left who could want something.
fn answer(store: &dyn Voter, jobs: &Receiver<Job>, undone: &AtomicUsize) {
    while let Ok(job) = jobs.recv() {
        store.hurry(job.hasty.load(Ordering::SeqCst));
        (job.ask)(store);
        undone.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Starts a thread on which no signal is heard.
pub(super) fn spawn(work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let builder = || thread::Builder::new().name("node".into()).stack_size(STACK);
    signal::unheard(|| builder().spawn(work)).map(drop)
}

impl<T: Send + 'static> Round<T> {
    /// Asks these of the nodes. Whoever's turn does not come in time, or who answers in words that say that there was no
    /// time, has not answered.
    pub(super) fn begin(
        nodes: &[Node],
        whom: impl IntoIterator<Item = usize>,
        until: Moment,
        ask: impl Fn(&dyn Voter, Duration) -> Result<T, StoreError> + Send + Sync + 'static,
    ) -> Self {
        Self::begin_at(nodes, whom, until, move |_, store, within| ask(store, within))
    }

    /// The same, where the place of the node matters.
    pub(super) fn begin_at(
        nodes: &[Node],
        whom: impl IntoIterator<Item = usize>,
        until: Moment,
        ask: impl Fn(usize, &dyn Voter, Duration) -> Result<T, StoreError> + Send + Sync + 'static,
    ) -> Self {
        let ask = Arc::new(ask);
        let (sender, answers) = mpsc::channel();
        let (mut silent, mut asked) = (Vec::new(), Vec::new());
        for at in whom {
            let hasty = Arc::new(AtomicBool::new(false));
            let (ask, answers) = (Arc::clone(&ask), sender.clone());
            let work = move |store: &dyn Voter| {
                // Nobody may wait for it any more.
                let _ = answers.send((at, ask(at, store, until.left())));
            };
            silent.push(at);
            let job = Job { ask: Box::new(work), hasty: Arc::clone(&hasty) };
            match nodes[at].enqueue(job) {
                Ok(late) => asked.push(Asked { at, late, hasty }),
                Err(error) => {
                    let error = StoreError::new(Trouble::Os, format_args!("{}: {error}", nodes[at].store.describe()));
                    let _ = sender.send((at, Err(error)));
                }
            }
        }
        Self { answers, silent, asked }
    }

    /// The next answer; nothing if all have answered, or there is none in time.
    pub(super) fn next(&mut self, until: Moment) -> Option<Answered<T>> {
        if self.silent.is_empty() {
            return None;
        }
        let (at, answer) = self.answers.recv_timeout(until.left()).ok()?;
        self.silent.retain(|other| *other != at);
        Some((at, answer))
    }

    /// The answers of those are not worth waiting for any more that had not answered before either, unless there is
    /// something to take back that they `have`. They are asked all the same, if that takes no time. Whether all that are
    /// silent are such.
    pub(super) fn hurry_late(&self, nodes: &[Node], have: impl Fn(usize) -> bool) -> bool {
        self.hurry(nodes, |asked| asked.late && !have(asked.at))
    }

    /// No answer is worth waiting for any more.
    pub(super) fn hurry_all(&self, nodes: &[Node]) {
        self.hurry(nodes, |_| true);
    }

    fn hurry(&self, nodes: &[Node], whom: impl Fn(&&Asked) -> bool) -> bool {
        let silent = self.asked.iter().filter(|asked| self.silent.contains(&asked.at));
        let (hurried, others): (Vec<_>, Vec<_>) = silent.partition(whom);
        for asked in hurried {
            asked.hasty.store(true, Ordering::SeqCst);
            nodes[asked.at].store.hurry(true);
        }
        others.is_empty()
    }
}

/// The errors of those who did not answer in time.
pub(super) fn silence(nodes: &[Node], silent: &[usize]) -> Vec<(usize, StoreError)> {
    let words = |at: &usize| format!("{}: it did not answer in time", nodes[*at].store.describe());
    silent.iter().map(|at| (*at, StoreError::new(Trouble::Unreachable, words(at)))).collect()
}
