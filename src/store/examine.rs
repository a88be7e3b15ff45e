//! What an examination of a store comes to: whether it can be trusted with locks. What there is to look at each
//! backend knows itself.

use std::fmt;

use super::{StoreError, Trouble};

/// What is known of a store, and what is wrong with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Examination {
    /// What it is and how it is set up: names in `snake_case`, which stay as they are, and values.
    pub facts: Vec<(&'static str, String)>,
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// What a server calls itself since it was started, and no other does.
    pub run: Option<String>,
}

/// One thing that is wrong with a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What was found.
    pub what: String,
    /// What that means for locks.
    pub why: String,
    /// What to do about it.
    pub remedy: String,
}

/// How bad it is. The worst comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// No lock can be taken.
    Error,
    /// A lock may be lost.
    Warning,
    /// Good to know.
    Note,
}

impl Examination {
    /// Adds a fact.
    pub fn know(&mut self, name: &'static str, value: impl Into<String>) {
        self.facts.push((name, value.into()));
    }
}

impl Finding {
    /// A lock may be lost.
    pub fn warning(what: impl Into<String>, why: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, what: what.into(), why: why.into(), remedy: remedy.into() }
    }

    /// Good to know.
    pub fn note(what: impl Into<String>, why: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { severity: Severity::Note, ..Self::warning(what, why, remedy) }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        })
    }
}

/// A store that does not answer, or with which nothing can be done.
impl From<&StoreError> for Finding {
    fn from(error: &StoreError) -> Self {
        const NO_LOCK: &str = "without its store dlock starts no command, and stops those that run before their \
                               leases end";
        let (why, remedy) = match error.trouble {
            Trouble::Unreachable => (
                NO_LOCK,
                "see that the server runs, that its address is right and that nothing between here and there is in the way",
            ),
            Trouble::Stuck => {
                (NO_LOCK, "look for a dlock that is stopped (state T of ps), and let it go on or kill it")
            }
            Trouble::Refused => (
                NO_LOCK,
                "check user, password and certificate, and what the user may do: README and 'dlock setup --print' have the rule",
            ),
            Trouble::Unprepared => {
                (NO_LOCK, "'dlock setup' makes it ready, and 'dlock setup --print' tells how that is done")
            }
            Trouble::Unfit => (NO_LOCK, "mend what is said above, or name another store with --store"),
            Trouble::Untrusted => (
                "dlock takes no lock where two could hold the same key, or where others could take it away or forge it",
                "mend what is said above, or name another directory with '--store file:DIR'",
            ),
            Trouble::Os => (NO_LOCK, "give this machine what it lacks"),
        };
        Self { severity: Severity::Error, ..Self::warning(&error.words, why, remedy) }
    }
}
