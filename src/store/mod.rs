//! Where leases are kept.
//!
//! [`Store`] is what the holder uses. A new backend is a [`Register`]: it keeps one record for each key and
//! changes it as a whole; [`Ledger`] makes a `Store` of it by running the law of [`crate::model`] inside
//! [`Register::transact`].

#[cfg(any(feature = "etcd", feature = "nats", feature = "postgres", feature = "redis"))]
mod address;
#[cfg(feature = "etcd")]
mod etcd;
mod examine;
#[cfg(any(feature = "etcd", feature = "nats", feature = "postgres"))]
mod failure;
mod file;
#[cfg(any(feature = "etcd", feature = "nats", feature = "postgres", feature = "redis"))]
mod hurry;
#[cfg(any(feature = "etcd", feature = "nats", feature = "postgres"))]
mod idle;
mod ledger;
#[cfg(any(feature = "etcd", feature = "nats"))]
mod location;
#[cfg(feature = "nats")]
mod nats;
#[cfg(feature = "redis")]
mod nodes;
#[cfg(feature = "redis")]
mod observers;
#[cfg(feature = "redis")]
mod parallel;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "redis")]
mod quorum;
#[cfg(feature = "redis")]
mod redis;
mod registry;
#[cfg(feature = "redis")]
mod ring;
#[cfg(any(feature = "etcd", feature = "nats", feature = "postgres", feature = "redis"))]
mod socket;
#[cfg(any(feature = "etcd", feature = "nats", feature = "postgres", feature = "redis"))]
mod tls;
mod trouble;
#[cfg(any(feature = "etcd", feature = "nats", feature = "postgres"))]
mod turn;
#[cfg(any(feature = "etcd", feature = "nats", feature = "postgres", feature = "redis"))]
mod wire;

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

#[cfg(feature = "etcd")]
pub use etcd::{EtcdAddress, EtcdRegister};
pub use examine::{Examination, Finding, Severity};
pub use file::FileRegister;
pub use ledger::Ledger;
#[cfg(feature = "nats")]
pub use nats::{NatsAddress, NatsRegister};
#[cfg(feature = "postgres")]
pub use postgres::{PostgresAddress, PostgresRegister};
#[cfg(feature = "redis")]
pub use quorum::{Origin, Quorum, Tenure, Vote, Voter};
#[cfg(feature = "redis")]
pub use redis::{Address, Nodes, RedisStore};
pub use registry::{BadUrl, Intent, Url, open, open_guards};
#[cfg(feature = "redis")]
pub use ring::{Connect, List, Node, Outcome, Past, Ring, Roll, Step, Told};
pub use trouble::{StoreError, Trouble};

use crate::model::{
    Answer, Ask, Clock, Ending, Info, Key, LeaseId, LevelId, Mode, Record, Released, Renewed, Stamp, Unlocked,
};

/// A place that keeps leases. Answers are yes or a definite no; an error only ever means "unknown". What
/// has a `within` takes no longer than that, where the store is on another machine; the rest takes no longer
/// than what [`open`] was told.
pub trait Store: Send + Sync {
    /// The same text for the same store, and without a password.
    fn identity(&self) -> &str;

    /// The store in words, for messages.
    fn describe(&self) -> String;

    /// What the store can do.
    fn capabilities(&self) -> Capabilities;

    /// Asks for a key, or asks again.
    ///
    /// # Errors
    /// [`StoreError`]: it is not known whether the key is ours.
    fn acquire(&self, key: &Key, ask: &Ask, within: Duration) -> Result<Answer, StoreError>;

    /// Extends a level.
    ///
    /// # Errors
    /// [`StoreError`]: it is not known whether the level was extended.
    fn renew(&self, key: &Key, level: LevelId, ttl: Duration, within: Duration) -> Result<Renewed, StoreError>;

    /// Gives a level back, or leaves the queue.
    ///
    /// # Errors
    /// [`StoreError`]: it is not known whether the level is still there.
    fn release(
        &self,
        key: &Key,
        level: LevelId,
        ending: Option<Ending>,
        within: Duration,
    ) -> Result<Released, StoreError>;

    /// Forced unlock of exactly these leases, asked for by somebody; see [`Record::unlock`].
    ///
    /// # Errors
    /// [`StoreError`]: it is not known whether they were unlocked.
    fn revoke(&self, key: &Key, leases: &[LeaseId], force: bool, by: &Info) -> Result<Unlocked, StoreError>;

    /// The record of a key as an operation would find it now; nothing if the key was never held. Changes
    /// nothing.
    ///
    /// # Errors
    /// [`StoreError`].
    fn inspect(&self, key: &Key) -> Result<Option<Record>, StoreError>;

    /// The store's clock as far as it is known here, to tell ages by. Decisions are made in the store.
    fn now(&self) -> Stamp;

    /// The same for many keys, in their order.
    ///
    /// # Errors
    /// [`StoreError`] if the store did not answer; what is wrong with one record hides no other.
    fn inspect_all(&self, keys: &[Key]) -> Result<Vec<Inspected>, StoreError> {
        one_by_one(keys, |key| self.inspect(key))
    }

    /// Asks for the store's clock, which costs what the cheapest request costs.
    ///
    /// # Errors
    /// [`StoreError`].
    fn ask_clock(&self) -> Result<Stamp, StoreError>;

    /// By how much [`Store::ask_clock`] may be wrong however fast the answer comes, since the store tells no more.
    fn clock_grain(&self) -> Duration {
        Duration::ZERO
    }

    /// Looks whether the store can be trusted with locks, beyond what keeps it from being used at all. A holder can do
    /// without an answer for `silence`, and then its command is stopped. Changes nothing.
    ///
    /// # Errors
    /// [`StoreError`].
    fn examine(&self, silence: Duration) -> Result<Examination, StoreError>;

    /// Makes the store ready for locks, where that takes more than the first of them does by itself. To do it again
    /// changes nothing. Where it has to wait for those who hold keys, it does so as long as somebody wants it to.
    ///
    /// # Errors
    /// [`StoreError`]: it may not be ready.
    #[expect(unused_variables, reason = "where there is nothing to make, nobody is waited for")]
    fn set_up(&self, goes_on: &dyn Fn() -> bool) -> Result<SetUp, StoreError> {
        self.ask_clock().map(|_| SetUp::NotNeeded)
    }

    /// What somebody would run by hand to the same end, ready for his client; nothing if there is nothing to run. Asks
    /// the store for nothing.
    fn set_up_script(&self) -> Option<String> {
        None
    }

    /// The keys that have a record. Those that are neither held nor waited for may be missing where the scope does not
    /// need them.
    ///
    /// # Errors
    /// [`StoreError`] if nothing is known.
    fn list(&self, scope: Scope) -> Result<Listing, StoreError>;

    /// Begins to listen to all changes of a key, or of all keys.
    ///
    /// # Errors
    /// [`StoreError`].
    fn observe(&self, key: Option<&Key>) -> Result<Box<dyn Observer>, StoreError>;

    /// Sleeps until what is watched may have changed, at most for `timeout`. May return too early, never
    /// too late.
    ///
    /// # Errors
    /// [`StoreError`].
    fn await_change(&self, key: &Key, watch: &Watch, timeout: Option<Duration>) -> Result<(), StoreError>;

    /// What shows the store that the level's holder lives, where a descriptor does: for the guardian, to
    /// keep until the command's tree is gone.
    ///
    /// # Errors
    /// [`StoreError`].
    #[expect(unused_variables, reason = "most stores see that a holder lives by what it does")]
    fn sign_of_life(&self, level: LevelId) -> Result<Option<OwnedFd>, StoreError> {
        Ok(None)
    }
}

/// Keeps one [`Record`] for each key.
pub trait Register: Send + Sync {
    /// See [`Store::identity`].
    fn identity(&self) -> &str;

    /// See [`Store::describe`].
    fn describe(&self) -> String;

    /// See [`Store::capabilities`].
    fn capabilities(&self) -> Capabilities;

    /// Hands the key's record (a new one if it has none) and the store's clock to `change`, and stores
    /// what it makes of it if that differs. `change` may be called again, so it is pure. The level `me` is
    /// the caller's own: its sign of life follows what [`Record::sign_of_life`] says of it. Takes no longer than
    /// `within`, where the records are on another machine; without it no longer than what [`open`] was told.
    ///
    /// # Errors
    /// [`StoreError`]: it is not known whether the record was changed.
    fn transact<T>(
        &self,
        key: &Key,
        me: Option<LevelId>,
        within: Option<Duration>,
        change: impl FnMut(&mut Record, &dyn Clock) -> T,
    ) -> Result<T, StoreError>;

    /// See [`Store::inspect`].
    ///
    /// # Errors
    /// [`StoreError`].
    fn read(&self, key: &Key) -> Result<Option<Record>, StoreError>;

    /// See [`Store::inspect_all`].
    ///
    /// # Errors
    /// [`StoreError`].
    fn read_all(&self, keys: &[Key]) -> Result<Vec<Inspected>, StoreError> {
        one_by_one(keys, |key| self.read(key))
    }

    /// See [`Store::now`].
    fn now(&self) -> Stamp {
        Stamp::default().after(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
    }

    /// See [`Store::ask_clock`].
    ///
    /// # Errors
    /// [`StoreError`].
    fn ask_clock(&self) -> Result<Stamp, StoreError>;

    /// See [`Store::clock_grain`].
    fn clock_grain(&self) -> Duration {
        Duration::ZERO
    }

    /// See [`Store::examine`].
    ///
    /// # Errors
    /// [`StoreError`].
    fn examine(&self, silence: Duration) -> Result<Examination, StoreError>;

    /// See [`Store::set_up`].
    ///
    /// # Errors
    /// [`StoreError`].
    fn set_up(&self) -> Result<SetUp, StoreError> {
        self.ask_clock().map(|_| SetUp::NotNeeded)
    }

    /// See [`Store::set_up_script`].
    fn set_up_script(&self) -> Option<String> {
        None
    }

    /// See [`Store::list`].
    ///
    /// # Errors
    /// [`StoreError`].
    fn keys(&self, scope: Scope) -> Result<Vec<Key>, StoreError>;

    /// See [`Store::observe`].
    ///
    /// # Errors
    /// [`StoreError`].
    fn observe(&self, key: Option<&Key>) -> Result<Box<dyn Observer>, StoreError>;

    /// See [`Store::await_change`].
    ///
    /// # Errors
    /// [`StoreError`].
    fn await_change(&self, key: &Key, watch: &Watch, timeout: Option<Duration>) -> Result<(), StoreError>;

    /// See [`Store::sign_of_life`].
    ///
    /// # Errors
    /// [`StoreError`].
    #[expect(unused_variables, reason = "most stores see that a holder lives by what it does")]
    fn sign_of_life(&self, level: LevelId) -> Result<Option<OwnedFd>, StoreError> {
        Ok(None)
    }
}

/// What a thread that panicked left is as good as before, where no change of it takes two steps.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The answer to [`Store::inspect`] for one of many.
pub type Inspected = Result<Option<Record>, StoreError>;

/// Reads each by itself. What is wrong with one record hides no other.
fn one_by_one(
    keys: &[Key],
    read: impl Fn(&Key) -> Result<Option<Record>, StoreError>,
) -> Result<Vec<Inspected>, StoreError> {
    let read = |key| match read(key) {
        Err(error) if !matches!(error.trouble, Trouble::Unfit | Trouble::Untrusted) => Err(error),
        inspected => Ok(inspected),
    };
    keys.iter().map(read).collect()
}

/// What came of [`Store::set_up`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SetUp {
    /// The store answers, and is ready for locks as it is.
    NotNeeded,
    /// The store is ready for locks, and was made so, now or before.
    Ready,
    /// All is as it was, since these keys are held and would be elsewhere.
    Held(Vec<Key>),
}

/// Which keys are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All that have a record.
    All,
    /// Those that may be held or waited for.
    Live,
}

/// The keys that a store has.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// Sorted.
    pub keys: Vec<Key>,
    /// Why those are missing that a part of the store has which does not answer.
    pub unseen: Vec<StoreError>,
}

impl Listing {
    /// A part of the store does not answer.
    pub fn miss(&mut self, error: StoreError) {
        if self.unseen.iter().all(|known| known.words != error.words) {
            self.unseen.push(error);
        }
    }
}

/// One who hears of all changes, while the lock goes on without him. Nothing that happened since it was made is
/// missed.
pub trait Observer: Send {
    /// Sleeps until something may have changed that is not in what is `shown`, at most for `timeout`. Nobody tells
    /// of instants that pass: for those there is [`Record::next_end`].
    ///
    /// # Errors
    /// [`StoreError`]: changes may be missed from here on, and a new observer is needed.
    fn next(&mut self, shown: &[Record], timeout: Option<Duration>) -> Result<Changed, StoreError>;
}

/// What may have changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changed {
    /// The records of these keys; nothing, if none.
    Keys(BTreeSet<Key>),
    /// Any record.
    Any,
}

/// What is watched by [`Store::await_change`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Watch {
    /// The turn of this one in the queue.
    Turn(LevelId),
    /// This holder being asked to give the key back, or losing it.
    Hold(LevelId),
    /// The end of all these leases.
    Ends(Vec<LeaseId>),
}

/// What a store can do. What it lacks is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a capability of its own")]
pub struct Capabilities {
    /// Shared holders.
    pub shared: bool,
    /// Slots.
    pub slots: bool,
    /// First come, first served.
    pub fifo: bool,
    /// Leases of `run` end unless renewed. Without it the store itself sees a holder die.
    pub beats: bool,
    /// The shortest time that a lease lives.
    pub least_ttl: Duration,
}

impl Capabilities {
    /// Whether a key can be held in this mode.
    #[must_use]
    pub fn allow(self, mode: Mode) -> bool {
        match mode {
            Mode::Exclusive => true,
            Mode::Shared => self.shared,
            Mode::Slots(_) => self.slots,
        }
    }
}
