//! Why a store did not answer.

use std::fmt;

#[cfg(any(feature = "etcd", feature = "nats", feature = "postgres"))]
use crate::model::{Key, RecordError};

#[cfg(any(feature = "etcd", feature = "nats", feature = "postgres", feature = "redis"))]
/// How much of a server's own words is shown.
const SHOWN: usize = 200;

/// What kind of trouble it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The store cannot be reached; trying again may help.
    Unreachable,
    /// Another client holds up the store.
    Stuck,
    /// The store refused us.
    Refused,
    /// The store was not made ready for locks: see [`set_up`](super::Store::set_up).
    Unprepared,
    /// The store is not as it must be, or is newer than we are.
    Unfit,
    /// The lock directory or a file in it cannot be trusted.
    Untrusted,
    /// The operating system refused.
    Os,
}

/// Why a store did not answer.
#[derive(Clone, Debug)]
pub struct StoreError {
    /// The kind of trouble.
    pub trouble: Trouble,
    /// Whether the store may have done what was asked, and only the answer is missing.
    pub maybe_done: bool,
    /// What happened, cause last.
    pub words: String,
}

impl StoreError {
    /// An error with its words.
    pub fn new(trouble: Trouble, words: impl fmt::Display) -> Self {
        Self { trouble, maybe_done: true, words: words.to_string() }
    }

    /// The same, where it is known that nothing was done.
    #[must_use]
    pub fn before_anything(self) -> Self {
        Self { maybe_done: false, ..self }
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words)
    }
}

impl std::error::Error for StoreError {}

#[cfg(any(feature = "etcd", feature = "nats", feature = "postgres", feature = "redis"))]
/// Words of a server, on one line that is not too long.
pub(super) fn shown(words: &str) -> String {
    let clean = words.chars().map(|c| if c.is_control() { ' ' } else { c });
    clean.take(SHOWN).collect::<String>().trim_end().to_owned()
}

/// Why bytes are not the record of a key, which is kept in this `place`: words behind its name.
#[cfg(any(feature = "etcd", feature = "nats", feature = "postgres"))]
pub(super) fn no_record(key: &Key, place: &str, why: &RecordError) -> String {
    match why {
        RecordError::Newer(layout) => {
            format!("the record of '{key}' was written by a newer version of dlock (layout {layout}); use that one")
        }
        RecordError::Corrupt(why) => format!("the record of '{key}'{place} is not one of dlock's: {why}"),
    }
}
