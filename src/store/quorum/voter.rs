//! What one of several independent stores must do for a quorum, besides being a [`Store`].

use std::time::Duration;

use crate::model::{Answer, Ask, Key, LevelId, Released};
use crate::store::{Store, StoreError, Watch};

/// A store that agrees to leases with others of its kind, or does not.
pub trait Voter: Store {
    /// Asks for a key with a proposal: [`Ask::proposal`] is set. Nothing, if leases may live that another list of voters
    /// agreed to, in which it stands, too: then it has no vote here.
    ///
    /// # Errors
    /// [`StoreError`]: it is not known whether the voter agreed.
    fn vote(&self, key: &Key, ask: &Ask, within: Duration) -> Result<Option<Vote>, StoreError>;

    /// From now on counts the one that had this `life` when it voted among those who founded the quorum, which have
    /// forgotten nothing.
    ///
    /// # Errors
    /// [`StoreError`]: it is not known whether that was done.
    fn found(&self, life: &str, within: Duration) -> Result<(), StoreError>;

    /// Takes back what was asked for, or leaves the queue: most others did not agree.
    ///
    /// # Errors
    /// [`StoreError`]: it is not known whether that was done.
    fn withdraw(&self, key: &Key, level: LevelId, within: Duration) -> Result<Released, StoreError>;

    /// Does what [`Store::await_change`] does, and says whether there was a reason to wake up but that time is over.
    ///
    /// # Errors
    /// [`StoreError`]: it is not known whether anything has changed.
    fn await_word(&self, key: &Key, watch: &Watch, timeout: Option<Duration>) -> Result<bool, StoreError>;

    /// Whether to wait for no answer any more: what is asked for is sent where that takes no time, and a request that
    /// has no answer yet is taken for one that gets none.
    fn hurry(&self, on: bool);
}

/// The answer to [`Voter::vote`].
#[derive(Clone, Debug)]
pub struct Vote {
    /// What it answered. A key that was granted is so by this one alone.
    pub answer: Answer,
    /// What it knows of itself.
    pub tenure: Tenure,
}

/// How far the memory of a voter goes back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenure {
    /// Another one each time that it is started.
    pub life: String,
    /// How it began.
    pub origin: Origin,
    /// How long it has been there since.
    pub age: Duration,
    /// The longest time to live of the leases that it heard of and that may still count.
    pub longest: Duration,
}

/// How a voter began its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// There was nothing in it: it is new, or has forgotten all.
    New,
    /// With the memory of an earlier life, of which the last part may be missing.
    Restarted,
    /// It was there when the quorum was founded.
    Founder,
}

/// Whoever has been there for so long is not asked any more what he may have forgotten before.
const OLD: Duration = Duration::from_secs(3600);

impl Tenure {
    /// Whether it can have forgotten no lease that may still count, by what it knows.
    #[must_use]
    pub fn is_beyond_doubt(&self) -> bool {
        self.origin == Origin::Founder || self.age >= OLD
    }

    /// The same, if no lease that it may have forgotten lives longer than this.
    #[must_use]
    pub fn is_trusted(&self, longest: Duration) -> bool {
        self.origin == Origin::Founder || self.age >= longest
    }
}
