//! Which keys are looked at, and reading their records.

use crate::model::{Key, Record};
use crate::store::{Scope, Store, StoreError};

/// Which keys are looked at.
#[derive(Clone, Debug)]
pub(super) enum Which {
    /// These, held or not.
    Named(Vec<Key>),
    /// All that begin so and are held or waited for; free ones, too, if `free`.
    Every { prefix: String, free: bool },
}

impl Which {
    /// Reads the records, in order. What is wrong with one that nobody named hides no other.
    pub(super) fn read(&self, store: &dyn Store) -> Result<Vec<Record>, StoreError> {
        match self {
            Self::Named(keys) => self.read_these(store, keys),
            Self::Every { free, .. } => {
                let mut keys = store.list(if *free { Scope::All } else { Scope::Live })?;
                keys.retain(|key| self.includes(key));
                let mut records = self.read_these(store, &keys)?;
                records.retain(|record| self.shows(record));
                Ok(records)
            }
        }
    }

    pub(super) fn read_these(&self, store: &dyn Store, keys: &[Key]) -> Result<Vec<Record>, StoreError> {
        let mut records = Vec::with_capacity(keys.len());
        for (key, inspected) in keys.iter().zip(store.inspect_all(keys)?) {
            match (self, inspected) {
                (_, Ok(record)) => records.push(record.unwrap_or_else(|| Record::new(key.clone()))),
                (Self::Named(_), Err(error)) => return Err(error),
                (Self::Every { .. }, Err(error)) => log::warn!("{error}"),
            }
        }
        Ok(records)
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
