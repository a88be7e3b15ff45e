//! What a node of a ring knows of the list of nodes that it belongs to, and what it can be told about that.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};
use std::time::Duration;

use md5::{Digest, Md5};

use crate::model::{Fence, Key, Stamp};
use crate::store::{Finding, Store, StoreError, Trouble};

/// The names of the nodes of a ring, in their own order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct List(BTreeSet<String>);

/// What a node keeps of its list, as names and values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roll(pub BTreeMap<String, String>);

/// A step of installing a list, taken by somebody who has a name that nobody else has.
#[derive(Clone, Copy, Debug)]
pub enum Step<'a> {
    /// Tells what there is.
    Look,
    /// No key is given out any more, and the node is to belong to this list; unless somebody else closed it, and was
    /// heard of not so long ago.
    Close(&'a str, &'a List, Duration),
    /// Whoever closed it is still at it.
    Keep(&'a str),
    /// Keys are given out by the list that it was closed for.
    Open(&'a str),
    /// It belongs to no list any more.
    Leave(&'a str),
    /// It is what it was before it was closed.
    Undo(&'a str),
}

/// What became of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was done, now or before.
    Done,
    /// Another one is installing a list.
    Busy,
    /// Another one has taken it over since.
    Taken,
}

/// What a node told.
#[derive(Clone, Debug)]
pub struct Told {
    /// What became of the step.
    pub outcome: Outcome,
    /// The node's clock.
    pub now: Stamp,
    /// What it knew before the step.
    pub roll: Roll,
}

/// What is known of a key that nobody holds: its fence, its counters, its events, as those keep them who hand them on
/// to each other.
#[derive(Clone, Debug)]
pub struct Past {
    /// The key.
    pub key: Key,
    /// Its fence.
    pub fence: Fence,
    /// Names and values, one after the other.
    pub fields: Vec<String>,
    /// The newest one first.
    pub events: Vec<String>,
}

/// A store that can be a node of a ring. It gives out keys only while it is open for the list that it was made for.
pub trait Node: Store {
    /// What it is called in lists: `HOST:PORT`.
    fn name(&self) -> &str;

    /// Takes a step, at once.
    ///
    /// # Errors
    /// [`StoreError`]: it is not known whether it was taken.
    fn step(&self, step: Step) -> Result<Told, StoreError>;

    /// The past of keys that nobody holds; of one that has none, nothing.
    ///
    /// # Errors
    /// [`StoreError`].
    fn past(&self, keys: &[Key]) -> Result<Vec<Past>, StoreError>;

    /// Takes over the past of keys, where it knows nothing newer. Whoever wants that must have closed it.
    ///
    /// # Errors
    /// [`StoreError`]: it is not known of which keys.
    fn adopt(&self, by: &str, past: &[Past]) -> Result<Outcome, StoreError>;
}

impl List {
    /// The list of these.
    pub fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        Self(names.into_iter().map(str::to_owned).collect())
    }

    /// The names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// Whether this one is in it.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.0.contains(name)
    }

    /// What tells it from other lists.
    #[must_use]
    pub fn stamp(&self) -> String {
        let digest: [u8; 16] = Md5::digest(self.to_string()).into();
        digest.iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }
}

/// As it is kept, and shown.
impl fmt::Display for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, name) in self.names().enumerate() {
            write!(f, "{}{name}", if at == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl Roll {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Whether the node has never belonged to a list, or has forgotten all.
    #[must_use]
    pub fn is_blank(&self) -> bool {
        self.0.is_empty()
    }

    /// The stamp of the list by which it gives out keys.
    #[must_use]
    pub fn open(&self) -> Option<&str> {
        self.get("open")
    }

    /// Who closed or opened it.
    #[must_use]
    pub fn by(&self) -> Option<&str> {
        self.get("by")
    }

    /// Whether it is closed, and is to belong to its list.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.get("for").is_some()
    }

    /// The list that it was taken out for, if it belongs to none.
    #[must_use]
    pub fn left_for(&self) -> Option<List> {
        let left = self.open().is_none() && !self.is_closed();
        self.get("left").filter(|_| left).map(|names| List::new(names.split(',')))
    }

    /// The list that it belongs to, or is to belong to.
    #[must_use]
    pub fn list(&self) -> Option<List> {
        self.get("list").map(|names| List::new(names.split(',')))
    }

    /// The lists by which keys may be given out or held somewhere, as far as this node knows.
    #[must_use]
    pub fn lists(&self) -> Vec<List> {
        let old = self.0.iter().filter(|(name, _)| name.starts_with("old:"));
        let old = old.map(|(_, names)| List::new(names.split(',')));
        old.chain(self.list()).collect()
    }

    /// Whether keys may be held by the list with this stamp.
    #[must_use]
    pub fn remembers(&self, stamp: &str) -> bool {
        self.open() == Some(stamp) || self.0.contains_key(&format!("old:{stamp}"))
    }

    /// The same as what is wrong with a node of this name.
    pub(super) fn finding(&self, name: &str) -> Finding {
        let (_, words) = self.trouble();
        if self.is_blank() {
            return Finding::note(
                format!("{name}: it does not belong to the ring yet"),
                "that is so before the first lock, and after all that it had was lost",
                "nothing: whoever takes the next lock sees to it, if all nodes can be reached; or 'dlock setup'",
            );
        }
        let why = "it gives out no key to those who have this list";
        Finding::warning(
            format!("{name}: {words}"),
            why,
            "the same list of nodes wherever dlock is used, and 'dlock setup'",
        )
    }

    /// The same, of this node.
    pub(super) fn error(&self, node: &dyn Node) -> StoreError {
        let (trouble, words) = self.trouble();
        StoreError::new(trouble, format_args!("{}: {words}", node.describe())).before_anything()
    }

    /// Why nothing is to be had from a node that does not belong to our list.
    pub(in crate::store) fn trouble(&self) -> (Trouble, String) {
        if let Some(list) = self.left_for() {
            let words = format!(
                "it was taken out of its ring, whose nodes are now '{list}'; name these, or run 'dlock setup' to take it back"
            );
            return (Trouble::Unfit, words);
        }
        match self.list() {
            None => (Trouble::Unprepared, "it is not set up for the ring; run 'dlock setup'".into()),
            Some(_) if self.is_closed() => (
                Trouble::Unreachable,
                "it is being set up; if no 'dlock setup' is at it any more, run that again".into(),
            ),
            Some(list) => (
                Trouble::Unfit,
                format!(
                    "its ring has other nodes, '{list}'; name these, or run 'dlock setup' to install those of the URL"
                ),
            ),
        }
    }

    /// How long it was closed without a word of whoever closed it, when its clock shows `now`; nothing if it is not closed.
    #[must_use]
    pub fn silence(&self, now: Stamp) -> Option<Duration> {
        let since = self.get("since")?.parse().map(Stamp::from_micros).ok()?;
        // A clock that was set back tells nothing.
        (self.is_closed() && since <= now).then(|| now.since(since))
    }
}

#[cfg(test)]
mod tests {
    use super::List;

    #[test]
    fn a_stamp_is_that_of_the_sorted_names() {
        // printf a:1,b:2 | md5sum
        assert_eq!(List::new(["b:2", "a:1"]).stamp(), "5ef6f5e369927a8ee94a37430c04b278");
        assert_ne!(List::new(["b:2"]).stamp(), List::new(["b:2", "a:1"]).stamp());
    }
}
