//! What the runs around this one hold.

use std::env;

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::config;
use crate::exit::Failure;
use crate::model::{Key, LeaseId};

/// The leases that enclosing runs hold, as they stand in `DLOCK_HELD`: `STORE,KEY,LEASE` each, in
/// percent-encoding, outermost first, parted by blanks.
#[derive(Debug, Default)]
pub struct Held(Vec<(String, String, LeaseId)>);

impl Held {
    /// Its name in the environment.
    pub const VARIABLE: &'static str = "DLOCK_HELD";

    /// Reads it.
    ///
    /// # Errors
    /// [`Failure`] with 78 if dlock did not write it: to pass over it could mean to wait for ourselves.
    pub fn read() -> Result<Self, Failure> {
        let text = env::var_os(Self::VARIABLE).unwrap_or_default();
        let held = text.to_str().and_then(Self::parse);
        held.ok_or_else(|| config("DLOCK_HELD is not as dlock writes it; unset it to start afresh"))
    }

    fn parse(text: &str) -> Option<Self> {
        let decode = |part: &str| percent_decode_str(part).decode_utf8().ok().map(String::from);
        let entry = |entry: &str| {
            let mut parts = entry.split(',');
            let (store, key, lease) = (parts.next()?, parts.next()?, parts.next()?);
            Some((decode(store)?, decode(key)?, LeaseId::parse(lease).ok()?)).filter(|_| parts.next().is_none())
        };
        text.split_ascii_whitespace().map(entry).collect::<Option<_>>().map(Self)
    }

    /// The lease of `key` that is held in this store.
    #[must_use]
    pub fn lease(&self, store: &str, key: &Key) -> Option<LeaseId> {
        let same = |(held, name, _): &&(String, String, LeaseId)| held == store && name == key.as_str();
        self.0.iter().rev().find(same).map(|(_, _, lease)| *lease)
    }

    /// With one more, as text.
    #[must_use]
    pub fn with(mut self, store: &str, key: &Key, lease: LeaseId) -> String {
        if self.lease(store, key) != Some(lease) {
            self.0.push((store.into(), key.as_str().into(), lease));
        }
        let encode = |part: &str| utf8_percent_encode(part, NON_ALPHANUMERIC).to_string();
        let entry = |(store, key, lease): &(String, String, LeaseId)| {
            format!("{},{},{}", encode(store), encode(key), lease.secret())
        };
        self.0.iter().map(entry).collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::Held;
    use crate::model::{Key, LeaseId};

    #[test]
    fn what_is_held_reads_back_and_names_the_innermost_lease() {
        let key = Key::parse("a, b%/c").expect("a key");
        let (one, two) = (LeaseId::new([1; 16]), LeaseId::new([2; 16]));
        let text = Held::default().with("file:/x y", &key, one);
        let held = Held::parse(&text).expect("we wrote it");
        assert_eq!(held.lease("file:/x y", &key), Some(one));
        assert_eq!(held.lease("file:/x", &key), None);
        let text = held.with("file:/x y", &key, two);
        assert_eq!(Held::parse(&text).expect("we wrote it").lease("file:/x y", &key), Some(two));
        assert!(Held::parse("nonsense").is_none() && Held::parse("").is_some());
    }
}
