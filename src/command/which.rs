//! Which keys are looked at, and reading their records.

use crate::model::{Key, Record};
use crate::store::{Scope, Store, StoreError, Trouble};

/// Which keys are looked at.
#[derive(Clone, Debug)]
pub(super) enum Which {
    /// These, held or not.
    Named(Vec<Key>),
    /// All that begin so and are held or waited for; free ones, too, if `free`.
    Every { prefix: String, free: bool },
}

/// What was read.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) records: Vec<Record>,
    /// Why others are missing: a part of the store does not answer.
    pub(super) unseen: Option<StoreError>,
}

impl Seen {
    /// The records, if none is missing.
    pub(super) fn whole(self) -> Result<Vec<Record>, StoreError> {
        self.unseen.map_or(Ok(self.records), Err)
    }

    /// What one who was shown some must hear.
    pub(super) fn missing(self) -> Option<StoreError> {
        let error = self.unseen?;
        let words = format!("{error}; the keys that it has are missing here");
        Some(StoreError { words, ..error })
    }
}

impl Which {
    /// Reads the records, in order. What is wrong with one that nobody named hides no other, nor does a part of the
    /// store that does not answer.
    pub(super) fn read(&self, store: &dyn Store) -> Result<Seen, StoreError> {
        match self {
            Self::Named(keys) => self.read_these(store, keys),
            Self::Every { free, .. } => {
                let mut listing = store.list(if *free { Scope::All } else { Scope::Live })?;
                listing.keys.retain(|key| self.includes(key));
                let mut seen = self.read_these(store, &listing.keys)?;
                seen.records.retain(|record| self.shows(record));
                seen.unseen = listing.unseen.pop().or(seen.unseen);
                Ok(seen)
            }
        }
    }

    pub(super) fn read_these(&self, store: &dyn Store, keys: &[Key]) -> Result<Seen, StoreError> {
        let mut seen = Seen::default();
        for (key, inspected) in keys.iter().zip(store.inspect_all(keys)?) {
            match (self, inspected) {
                (_, Ok(record)) => seen.records.push(record.unwrap_or_else(|| Record::new(key.clone()))),
                (_, Err(error)) if error.trouble == Trouble::Unreachable => seen.unseen = Some(error),
                (Self::Named(_), Err(error)) => return Err(error),
                (Self::Every { .. }, Err(error)) => log::warn!("{error}"),
            }
        }
        // Nothing is worth no more than a further try.
        if seen.records.is_empty() { seen.whole().map(|_| Seen::default()) } else { Ok(seen) }
    }

    pub(super) fn includes(&self, key: &Key) -> bool {
        match self {
            Self::Named(keys) => keys.contains(key),
            Self::Every { prefix, .. } => key.as_str().starts_with(prefix),
        }
    }

    /// Whether a record is to be seen.
    pub(super) fn shows(&self, record: &Record) -> bool {
        matches!(self, Self::Named(_) | Self::Every { free: true, .. })
            || !record.holders.is_empty()
            || !record.queue.is_empty()
    }

    /// The only key that is looked at, if it is one.
    pub(super) fn only(&self) -> Option<&Key> {
        match self {
            Self::Named(keys) => keys.first().filter(|_| keys.len() == 1),
            Self::Every { .. } => None,
        }
    }
}
