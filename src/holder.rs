//! A lease's life on our side: asking for it, keeping it, giving it back.

use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use std::{fmt, io, thread};

use nix::sys::signal::Signal;

use crate::clock::{Deadline, Moment};
use crate::event::Event;
use crate::model::{
    Answer, Ask, Ending, Fence, Grant, Hold, Key, LeaseId, LevelId, Refusal, Released, Renewed, Standing,
};
use crate::signal;
use crate::store::{Store, StoreError, Trouble, Watch};

/// How long giving a lease back may take. Its ttl frees it if we cannot.
const RELEASE: Duration = Duration::from_secs(2);

/// A command that is over sooner needs nobody to listen for an unlock.
const LISTEN_AFTER: Duration = Duration::from_millis(500);

/// How long to leave alone a store that erred, at most; half of it at least.
const PAUSE: Duration = Duration::from_millis(400);

/// How long one is ready to wait.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// For the key; nothing is as long as it takes, zero is not at all.
    pub wait: Option<Duration>,
    /// For a store that cannot be reached.
    pub store: Duration,
}

/// What became of asking for a key.
pub enum Acquired {
    /// It is ours.
    Lease(Lease),
    /// Others have it: these hold it, and so many wait.
    Busy(Vec<Hold>, usize),
    /// Waiting would not help.
    Refused(Refusal),
    /// A signal ended the wait.
    Signal(Signal),
}

/// A lease that is ours until we release it, or lose it.
pub struct Lease {
    store: Arc<dyn Store>,
    key: Key,
    id: LeaseId,
    level: LevelId,
    ttl: Duration,
    grant: Grant,
    deadline: Option<Deadline>,
}

/// A new lease id.
///
/// # Errors
/// If the operating system has no random bytes.
pub fn new_lease_id() -> io::Result<LeaseId> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(LeaseId::new(bytes))
}

/// An answer of the store, and when it was asked.
type Dated = Result<(Answer, Moment), StoreError>;

/// The answer of the thread that waits in line, and whether it is still wanted. The lock is held while a
/// request is on its way, so whoever does not want the answer any more knows that none will come.
#[derive(Default)]
struct Line {
    given_up: bool,
    answer: Option<Dated>,
}

/// Asks for `key` and waits in line for it, until a signal or a limit ends that. Then nothing of it is
/// left in the queue.
///
/// # Errors
/// [`StoreError`] if the store did not answer.
pub fn acquire(
    store: &Arc<dyn Store>,
    key: &Key,
    ask: &Ask,
    limits: Limits,
    (sender, events): (&Sender<Event>, &Receiver<Event>),
) -> Result<Acquired, StoreError> {
    let since = Moment::now();
    let first = store.acquire(key, ask).map(|answer| (answer, since));
    let again = match &first {
        Ok((answer, _)) => matches!(answer, Answer::Queued(_)),
        Err(error) => error.trouble == Trouble::Unreachable,
    };
    if !again {
        return conclude(store, key, ask, first);
    }
    if first.is_ok() {
        log::info!("waiting for '{key}'");
    }
    let line = Arc::new(Mutex::new(Line::default()));
    let unanswered = first.is_err().then_some(since);
    spawn_waiter(store, key, ask, (limits.store, unanswered), &line, sender)?;
    let until = limits.wait.map(|wait| since.after(wait));
    loop {
        let event = match until {
            Some(until) => events.recv_timeout(until.left()),
            None => events.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match event {
            Ok(Event::Waited) => {
                let answer = line.lock().unwrap_or_else(PoisonError::into_inner).answer.take();
                if let Some(answer) = answer {
                    return conclude(store, key, ask, answer);
                }
            }
            Ok(Event::Signal(Signal::SIGWINCH | Signal::SIGCONT)) => {}
            Ok(Event::Signal(Signal::SIGTSTP)) => {
                let _ = nix::sys::signal::raise(Signal::SIGSTOP);
            }
            Ok(Event::Signal(signal)) => {
                give_up(store, key, ask, &line)?;
                return Ok(Acquired::Signal(signal));
            }
            Ok(_) => {}
            Err(_) => {
                if let Some(answer) = give_up(store, key, ask, &line)? {
                    return conclude(store, key, ask, answer);
                }
                let record = store.inspect(key)?;
                let (holders, waiting) = record.map_or_else(Default::default, |r| (r.holders, r.queue.len()));
                return Ok(Acquired::Busy(holders, waiting));
            }
        }
    }
}

fn spawn_waiter(
    store: &Arc<dyn Store>,
    key: &Key,
    ask: &Ask,
    patience: (Duration, Option<Moment>),
    line: &Arc<Mutex<Line>>,
    sender: &Sender<Event>,
) -> Result<(), StoreError> {
    let (store, key, ask, line, sender) =
        (Arc::clone(store), key.clone(), ask.clone(), Arc::clone(line), sender.clone());
    let wait = move || {
        wait_in_line(&*store, &key, &ask, patience, &line);
        let _ = sender.send(Event::Waited);
    };
    let spawned = signal::unheard(|| thread::Builder::new().name("line".into()).spawn(wait));
    spawned.map(drop).map_err(|error| StoreError::new(Trouble::Os, format!("cannot start a thread: {error}")))
}

/// Sleeps and asks, until there is an answer or nobody wants one. What an `unanswered` request was granted
/// counts from that request, not from the one that hears of it.
fn wait_in_line(
    store: &dyn Store,
    key: &Key,
    ask: &Ask,
    (patience, mut unanswered): (Duration, Option<Moment>),
    line: &Mutex<Line>,
) {
    loop {
        let awaited = store.await_change(key, &Watch::Turn(ask.level), None);
        let mut line = line.lock().unwrap_or_else(PoisonError::into_inner);
        if line.given_up {
            return;
        }
        let asked = Moment::now();
        match awaited.and_then(|()| store.acquire(key, ask)) {
            Ok(Answer::Queued(_)) => unanswered = None,
            Err(error)
                if error.trouble == Trouble::Unreachable
                    && asked.since(*unanswered.get_or_insert(asked)) < patience =>
            {
                drop(line);
                pause(PAUSE);
            }
            answer => {
                line.answer = Some(answer.map(|answer| (answer, unanswered.unwrap_or(asked))));
                return;
            }
        }
    }
}

/// Leaves the line; the answer, if it was there already and is one that needs nothing given back.
fn give_up(store: &Arc<dyn Store>, key: &Key, ask: &Ask, line: &Mutex<Line>) -> Result<Option<Dated>, StoreError> {
    let mut line = line.lock().unwrap_or_else(PoisonError::into_inner);
    line.given_up = true;
    if let Some(answer) = line.answer.take() {
        return Ok(Some(answer));
    }
    store.release(key, ask.level, None)?;
    Ok(None)
}

fn conclude(store: &Arc<dyn Store>, key: &Key, ask: &Ask, answer: Dated) -> Result<Acquired, StoreError> {
    let (answer, asked) = answer?;
    Ok(match answer {
        Answer::Granted(grant) => {
            let ttl = ask.ttl.unwrap_or_default();
            let deadline = store.capabilities().beats.then(|| Deadline::of_lease(asked, ttl));
            let (store, key) = (Arc::clone(store), key.clone());
            Acquired::Lease(Lease { store, key, id: ask.lease, level: ask.level, ttl, grant, deadline })
        }
        Answer::Busy(holders, waiting) => Acquired::Busy(holders, waiting),
        Answer::Queued(ahead) => Acquired::Busy(Vec::new(), ahead),
        Answer::Refused(refusal) => Acquired::Refused(refusal),
    })
}

/// Leaves a store that erred alone for a random while, so that many do not ask again at once.
fn pause(at_most: Duration) {
    let mut byte = [0];
    let _ = getrandom::fill(&mut byte);
    thread::sleep((PAUSE / 2 + PAUSE / 2 * u32::from(byte[0]) / 256).min(at_most));
}

impl Lease {
    /// The lease's id.
    #[must_use]
    pub const fn id(&self) -> LeaseId {
        self.id
    }

    /// The fence of the hold.
    #[must_use]
    pub const fn fence(&self) -> Fence {
        self.grant.fence
    }

    /// Until when we may count on the lease; nothing if that does not go by time.
    #[must_use]
    pub const fn deadline(&self) -> Option<Deadline> {
        self.deadline
    }

    /// What the guardian keeps, for the store to see that the command lives.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn sign_of_life(&self) -> Result<Option<OwnedFd>, StoreError> {
        self.store.sign_of_life(self.level)
    }

    /// Keeps the lease: renews it with every `beat` where the store wants that, and tells of its loss, or
    /// of a revocation. A lease that could not be renewed is lost `kill_after` before its deadline.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn keep(&self, beat: Duration, kill_after: Duration, events: &Sender<Event>) -> io::Result<()> {
        let heart = Heart {
            store: Arc::clone(&self.store),
            key: self.key.clone(),
            level: self.level,
            ttl: self.ttl,
            beat,
            kill_after,
            events: events.clone(),
        };
        let deadline = self.deadline;
        let live = move || match deadline {
            Some(deadline) => heart.beat(deadline),
            None => heart.listen(),
        };
        thread::Builder::new().name("heartbeat".into()).spawn(live).map(drop)
    }

    /// Gives the lease back.
    ///
    /// # Errors
    /// [`StoreError`] if that could not be done in 2 s.
    pub fn release(self, ending: Option<&Ending>) -> Result<Released, StoreError> {
        let until = Moment::now().after(RELEASE);
        loop {
            match self.store.release(&self.key, self.level, ending.cloned()) {
                Err(error) if error.trouble == Trouble::Unreachable && !until.left().is_zero() => pause(PAUSE),
                answer => return answer,
            }
        }
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("key", &self.key)
            .field("id", &self.id)
            .field("grant", &self.grant)
            .finish_non_exhaustive()
    }
}

/// The thread that keeps a lease.
struct Heart {
    store: Arc<dyn Store>,
    key: Key,
    level: LevelId,
    ttl: Duration,
    beat: Duration,
    kill_after: Duration,
    events: Sender<Event>,
}

impl Heart {
    /// Where the store sees us live: only listens.
    fn listen(&self) {
        thread::sleep(LISTEN_AFTER);
        loop {
            let woken = self.store.await_change(&self.key, &Watch::Hold(self.level), None);
            let standing = woken.and_then(|()| self.store.inspect(&self.key));
            let standing = standing.map(|record| record.map_or(Standing::Gone, |record| record.standing(self.level)));
            match standing {
                Ok(Standing::Holding { revoked: false }) => {}
                Ok(Standing::Holding { revoked: true }) => return self.tell(Event::Revoked),
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
    fn beat(&self, mut deadline: Deadline) {
        let stop_at = |deadline: Deadline| deadline.moment().before(self.kill_after);
        let mut answered = deadline.moment().before(self.ttl);
        loop {
            let next = answered.after(self.beat);
            if !next.left().is_zero() {
                let listening = self.store.await_change(&self.key, &Watch::Hold(self.level), Some(next.left()));
                if listening.is_err() {
                    thread::sleep(next.left());
                }
            }
            let asked = Moment::now();
            match self.store.renew(&self.key, self.level, self.ttl) {
                Ok(Renewed::Until(_)) => {
                    answered = asked;
                    deadline = Deadline::of_lease(asked, self.ttl);
                    self.tell(Event::Renewed(deadline));
                }
                Ok(Renewed::Revoked) => return self.tell(Event::Revoked),
                Ok(Renewed::NotYours) => {
                    let place = self.store.describe();
                    return self.tell(Event::Lost(format!("{place} does not know this lease any more")));
                }
                Err(error) if stop_at(deadline).left().is_zero() => {
                    let silent =
                        humantime::format_duration(Duration::from_secs(Moment::now().since(answered).as_secs()));
                    let ttl = humantime::format_duration(self.ttl);
                    return self.tell(Event::Lost(format!("no answer for {silent} of a {ttl} lease: {error}")));
                }
                Err(_) => pause(stop_at(deadline).left()),
            }
        }
    }

    fn tell(&self, event: Event) {
        // Once the run is over nobody wants to know.
        let _ = self.events.send(event);
    }
}
