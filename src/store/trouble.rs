//! Why a store did not answer.

use std::fmt;

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
