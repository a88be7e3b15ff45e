//! A lease's life on our side: asking for it, keeping it, giving it back.

mod heart;
mod line;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;
use std::{fmt, io, thread};

use nix::sys::signal::Signal;

use crate::clock::{Deadline, Moment, some_of};
use crate::event::Event;
use crate::model::{Ending, Fence, Grant, Hold, Key, LeaseId, LevelId, Refusal, Released};
use crate::store::{Store, StoreError, Trouble};
use heart::Heart;
pub use line::acquire;

/// How long one request may take: a reply that was lost on its way does not use up all our patience.
pub const REQUEST: Duration = Duration::from_secs(5);

/// How long giving a lease back may take, and each try of it. Its ttl frees it if we cannot.
const RELEASE: (Duration, Duration) = (Duration::from_secs(2), Duration::from_millis(700));

/// How long to leave alone a store that erred, at most; half of it at least.
pub const PAUSE: Duration = Duration::from_millis(400);

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

/// What goes on while one waits, say that it is shown. It is dropped when the wait is over.
pub trait Meanwhile {
    /// We are about to be stopped (SIGTSTP), go on after that (SIGCONT), or have a terminal of another size
    /// (SIGWINCH).
    fn hear(&mut self, signal: Signal);
}

/// Nothing goes on.
impl Meanwhile for () {
    fn hear(&mut self, _: Signal) {}
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

/// Tries `work` again for as long as the store cannot be reached and `patience` lasts.
///
/// # Errors
/// The last [`StoreError`].
pub fn patiently<T>(patience: Duration, mut work: impl FnMut() -> Result<T, StoreError>) -> Result<T, StoreError> {
    let until = Moment::now().after(patience);
    let mut told = false;
    loop {
        match work() {
            Err(error) if error.trouble == Trouble::Unreachable => {
                if until.left().is_zero() {
                    return Err(gave_up(&error, patience));
                }
                if !std::mem::replace(&mut told, true) {
                    log::info!("{error}; trying again");
                }
                pause(PAUSE.min(until.left()));
            }
            done => return done,
        }
    }
}

/// The error of one who tried for so long.
#[must_use]
pub fn gave_up(error: &StoreError, patience: Duration) -> StoreError {
    let words = format_args!("{error}; gave up after {}", humantime::format_duration(patience)).to_string();
    StoreError { trouble: error.trouble, maybe_done: error.maybe_done, words }
}

/// Leaves a store that erred alone for a random while, so that many do not ask again at once.
pub fn pause(at_most: Duration) {
    thread::sleep(at_most / 2 + some_of(at_most / 2));
}

impl Lease {
    /// The lease's id.
    #[must_use]
    pub const fn id(&self) -> LeaseId {
        self.id
    }

    /// Our level of it.
    #[must_use]
    pub const fn level(&self) -> LevelId {
        self.level
    }

    /// The fence of the hold.
    #[must_use]
    pub const fn fence(&self) -> Fence {
        self.grant.fence
    }

    /// How long it counts unrenewed.
    #[must_use]
    pub const fn ttl(&self) -> Duration {
        self.ttl
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
            lease: self.id,
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
        release(&*self.store, &self.key, self.level, ending, RELEASE.0)
    }
}

/// Gives a level back, whoever took it.
///
/// # Errors
/// [`StoreError`] if that could not be done in the time given.
pub fn release(
    store: &dyn Store,
    key: &Key,
    level: LevelId,
    ending: Option<&Ending>,
    within: Duration,
) -> Result<Released, StoreError> {
    let until = Moment::now().after(within);
    let mut tried = false;
    loop {
        match store.release(key, level, ending.cloned(), RELEASE.1.min(until.left())) {
            Err(error) if error.trouble == Trouble::Unreachable && until.left() > PAUSE => {
                tried |= error.maybe_done;
                pause(PAUSE / 4);
            }
            // It was our request without an answer that did it.
            Ok(Released::NotYours) if tried => return Ok(Released::Freed),
            answer => return answer,
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
