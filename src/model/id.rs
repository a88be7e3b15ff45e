//! Lease ids and fences.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A lease id: 16 random bytes, written as 32 hex digits. It is a secret: whoever knows it can renew or
/// release the lease, so its `Debug` form and [`LeaseId::short`] show the first 8 digits only.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LeaseId([u8; 16]);

/// One level of re-entry into a lease. The first level carries the id of the lease itself.
pub type LevelId = LeaseId;

/// A text that is no lease id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotALease;

impl LeaseId {
    /// How many digits of an id are shown, and are enough to name it.
    pub const SHORT: usize = 8;

    /// The id made of these (random) bytes.
    #[must_use]
    pub const fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Reads the 32 hex digits of an id.
    ///
    /// # Errors
    /// [`NotALease`] for anything else.
    pub fn parse(text: &str) -> Result<Self, NotALease> {
        let digits = text.as_bytes();
        if digits.len() != 32 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(NotALease);
        }
        u128::from_str_radix(text, 16).map(|n| Self(n.to_be_bytes())).map_err(|_| NotALease)
    }

    /// All 32 digits. For the store and for the lease's owner alone.
    #[must_use]
    pub fn secret(self) -> String {
        format!("{:032x}", u128::from_be_bytes(self.0))
    }

    /// The first 8 digits, for people.
    #[must_use]
    pub fn short(self) -> String {
        let mut digits = self.secret();
        digits.truncate(Self::SHORT);
        digits
    }
}

impl fmt::Debug for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}…", self.short())
    }
}

impl TryFrom<String> for LeaseId {
    type Error = NotALease;

    fn try_from(text: String) -> Result<Self, NotALease> {
        Self::parse(&text)
    }
}

impl From<LeaseId> for String {
    fn from(id: LeaseId) -> Self {
        id.secret()
    }
}

impl fmt::Display for NotALease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a lease id has 32 hex digits")
    }
}

impl std::error::Error for NotALease {}

/// The fencing token of a key (Kleppmann, "How to do distributed locking", 2016): it rises at every grant
/// and at every end of a hold, so a resource that remembers the highest fence it has seen can refuse a
/// stale holder. 0 means that the key was never held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fence(pub u64);

impl Fence {
    /// Whether it is 0, the fence of nobody.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::{LeaseId, NotALease};

    #[test]
    fn an_id_reads_back_what_it_writes_and_hides_most_of_it_from_people() {
        let id = LeaseId::new([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 255]);
        assert_eq!(id.secret(), "000102030405060708090a0b0c0d0eff");
        assert_eq!(LeaseId::parse(&id.secret()), Ok(id));
        assert_eq!(id.short(), "00010203");
        assert_eq!(format!("{id:?}"), "00010203…");
    }

    #[test]
    fn a_text_that_is_no_lease_id_is_refused() {
        for text in ["", "00", "+00102030405060708090a0b0c0d0eff", "g00102030405060708090a0b0c0d0eff"] {
            assert_eq!(LeaseId::parse(text), Err(NotALease), "{text:?}");
        }
    }
}
