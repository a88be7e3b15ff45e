//! The law of leases: who may hold a key, who waits, what an end of a hold does.
//!
//! Pure. No I/O, and no clock but the [`Clock`] that is handed in, so the same law serves every store
//! that keeps a [`Record`], and is the oracle for those that speak it natively.

mod ask;
mod id;
mod key;
mod law;
mod mode;
mod record;
mod stamp;

pub use ask::{
    Answer, Ask, Clock, Grant, Passage, Patience, Proposal, Refusal, Released, Renewed, Role, Standing, Unlocked,
};
pub use id::{Fence, LeaseId, LevelId, NotALease};
pub use key::{Key, KeyError};
pub use law::{AHEAD, OFFER, OFFERS, SIGN_OF_LIFE};
pub use mode::Mode;
pub use record::{
    Counters, Ending, Event, EventKind, Hold, Info, LAYOUT, Level, MAX_EVENTS, Record, RecordError, Ticket, Waiter,
};
pub use stamp::Stamp;
