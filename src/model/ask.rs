//! What is asked of a record, by whose clock, and what it answers.

use std::time::Duration;

use super::record::{Hold, Info, Ticket};
use super::{Fence, LeaseId, LevelId, Mode, Stamp};

/// The store's clock, and what the store itself knows of the life of holders and waiters.
pub trait Clock {
    /// Now, by the store.
    fn now(&self) -> Stamp;

    /// Whether the store sees a sign of life of this ticket in this role. Asked only where the record
    /// has no instant for it.
    fn attends(&self, ticket: Ticket, role: Role) -> bool;
}

/// An instant is a clock that shows it, where nobody lives but by time.
impl Clock for Stamp {
    fn now(&self) -> Stamp {
        *self
    }

    fn attends(&self, _: Ticket, _: Role) -> bool {
        false
    }
}

/// What a ticket is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Its owner waits.
    Waiting,
    /// Its owner holds.
    Holding,
}

/// What one asks for with [`super::Record::acquire`].
#[derive(Clone, Debug)]
pub struct Ask {
    /// The lease: a new one, or the one to enter again.
    pub lease: LeaseId,
    /// The level: that of the lease itself, or another one to enter again. The same level asked for
    /// again gets the same answer.
    pub level: LevelId,
    /// How to hold the key.
    pub mode: Mode,
    /// How long the lease counts unrenewed; nothing where the store itself sees the holder die.
    pub ttl: Option<Duration>,
    /// Whether to wait in line.
    pub patience: Patience,
    /// Take it only if the fence is still this one and nobody holds the key; never wait for that.
    pub if_fence: Option<Fence>,
    /// What one of several nodes is to agree to; without it the record decides alone.
    pub proposal: Option<Proposal>,
    /// How long the key stays taken at least.
    pub min_hold: Duration,
    /// How many levels may be open beside the first one.
    pub max_reentry: u32,
    /// Whether a `dlock run` attends to the lease.
    pub attended: bool,
    /// Who asks.
    pub info: Info,
}

/// The fence of a lease that holds if most of several nodes, each with a record of its own, agree to the same one.
///
/// Two majorities have a node in common, and that one agrees to rising fences only. With a proposal [`Ask::if_fence`]
/// is the highest fence that a node may have seen, and those who wait are only registered: whoever of them asks
/// first gets the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// The fence, higher than any that a node has seen unless it is asked `again`.
    pub fence: Fence,
    /// The lease is held by most nodes already, and this one has lost it or was never asked.
    pub again: bool,
}

/// Whether one who cannot have the key at once waits in line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// It does not.
    None,
    /// It does, and the store itself sees it die.
    Attended,
    /// It does, and this sign of life is good for so long.
    SignOfLife(Duration),
}

/// The answer to [`super::Record::acquire`].
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// The key is ours.
    Granted(Grant),
    /// We wait, with so many ahead of us in the queue.
    Queued(usize),
    /// Others have it, and we do not wait. These hold it, and so many wait.
    Busy(Vec<Hold>, usize),
    /// Not now and not by waiting.
    Refused(Refusal),
}

/// A key that was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The fence of the hold: the same for all its levels.
    pub fence: Fence,
    /// How many levels are open, this one included.
    pub depth: usize,
    /// How long we had waited, by the store's clock.
    pub waited: Duration,
}

/// Why waiting would not help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The fence is not the expected one, or as high as the one proposed: this.
    Fence(Fence),
    /// The proposed fence is so far ahead of the record's clock that it would be a burden to all that follow.
    Ahead(Duration),
    /// The lease may not be entered more often than this.
    TooDeep(u32),
    /// The lease is held in this mode, which does not contain the one asked for.
    Narrower(Mode),
    /// The lease to enter again is not held any more, or the level asked for again has ended before the lease.
    Lost,
}

/// The answer to [`super::Record::renew`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewed {
    /// The level counts at least until then; nothing where the store itself sees the holder die.
    Until(Option<Stamp>),
    /// The holder was asked to give the key back; nothing was extended.
    Revoked,
    /// The level is not held any more.
    NotYours,
}

/// The answer to [`super::Record::release`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Released {
    /// The hold has ended.
    Freed,
    /// The hold has ended for its holder; the key stays taken for a while.
    Cooling,
    /// One level was left, the lease goes on.
    Left,
    /// The queue was left.
    Unqueued,
    /// There was nothing of ours.
    NotYours,
}

/// The answer to [`super::Record::unlock`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unlocked {
    /// How many of the leases have ended.
    pub ended: usize,
    /// How many were told to end.
    pub told: usize,
}

/// The answer to [`super::Record::pass`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage {
    /// The fence is not older than any that was seen, and is remembered.
    Open,
    /// This one was seen before, and is newer.
    Stale(Fence),
    /// The level does not hold the key.
    NotYours,
}

/// How a level stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It holds the key.
    Holding {
        /// Whether it was asked to give it back.
        revoked: bool,
    },
    /// It waits, with so many ahead of it in the queue.
    Waiting(usize),
    /// The key knows nothing of it.
    Gone,
}
