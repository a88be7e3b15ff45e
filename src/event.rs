//! Everything that can happen to a run, on one channel, so that one loop decides.

use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use crate::clock::Deadline;

/// One thing that happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// We got a signal.
    Signal(Signal),
    /// The thread that waits for the key has its answer.
    Waited,
    /// A beat moved the deadline of the lease on.
    Renewed(Deadline),
    /// The lease is not ours any more; why.
    Lost(String),
    /// We were asked to give the key back; by whom, if that is known.
    Revoked(Option<String>),
    /// Something about the command.
    Child(ChildEvent),
}

/// Why a lease is lost that nobody tried to renew in time.
pub const NOT_IN_TIME: &str = "its time is over: dlock itself was stopped, or its machine was asleep or too busy";

/// What the guardian reports of the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChildEvent {
    /// It runs, with this process id.
    Started(i32),
    /// It could not be started: an `errno`.
    Failed(i32),
    /// It ended.
    Ended(Status),
    /// The deadline of the lease has passed, and it is killed for that.
    Expired,
    /// It and all that it started are gone.
    Gone,
    /// The guardian itself is gone.
    Orphaned,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Status {
    /// With this exit code.
    Exited(i32),
    /// Of the signal with this number.
    Killed(i32),
}
