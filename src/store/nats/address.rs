//! Where servers are, how one is let in, and what the bucket is called.

use std::fmt;
use std::path::PathBuf;

use crate::model::{Key, LevelId};
use crate::store::address::{listed, sorted, without};
use crate::store::socket::Endpoint;
use crate::store::tls::Tls;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use sha2::{Digest as _, Sha256};

/// What of a key's name does not stand for itself in the key of a bucket.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'/');

/// The address of a store in a bucket.
#[derive(Clone, PartialEq, Eq)]
pub struct Address {
    /// The first that lets us in is the one.
    pub(super) hosts: Vec<Endpoint>,
    pub(super) access: Access,
    /// Speaks TLS whatever the server says.
    pub(super) secure: bool,
    /// TLS begins before the server says anything.
    pub(super) tls_first: bool,
    pub(super) tls: Tls,
    pub(super) bucket: Bucket,
    /// As it was written, paths made absolute.
    pub(super) text: String,
}

/// How one is let in.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Access {
    /// As whoever the server takes a stranger for, or by a certificate.
    Anybody,
    User {
        user: String,
        password: String,
    },
    Token(String),
    /// A file with a seed, which signs what the server says.
    Nkey(PathBuf),
    /// A file with a JWT and a seed.
    Creds(PathBuf),
}

/// What the records are kept in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bucket {
    pub(super) name: String,
    /// How many servers have a copy; if nothing was said, one, or as many as there are.
    pub(super) replicas: Option<u32>,
    pub(super) storage: Storage,
    /// Whose JetStream it is, if it is not the server's own.
    pub(super) domain: Option<String>,
}

/// Where a bucket is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Storage {
    File,
    Memory,
}

impl Storage {
    /// As a server calls it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Memory => "memory",
        }
    }
}

impl Address {
    /// The URL itself, which may hold a password.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// A server's words, which may repeat ours.
    pub(super) fn without_password(&self, words: &str) -> String {
        let secret = match &self.access {
            Access::User { password: secret, .. } | Access::Token(secret) => Some(&**secret),
            Access::Anybody | Access::Nkey(_) | Access::Creds(_) => None,
        };
        without(words, secret)
    }

    /// The same text for the same store, and without a password.
    pub(in crate::store) fn identity(&self) -> String {
        let domain = self.bucket.domain.as_ref().map_or_else(String::new, |domain| format!("&domain={domain}"));
        format!("nats://{}?prefix={}{domain}", sorted(&self.hosts), self.bucket.name)
    }
}

impl Bucket {
    /// The stream that it is.
    pub(super) fn stream(&self) -> String {
        format!("KV_{}", self.name)
    }

    /// Where something is asked of JetStream.
    pub(super) fn api(&self, what: &str) -> String {
        match &self.domain {
            Some(domain) => format!("$JS.{domain}.API.{what}"),
            None => format!("$JS.API.{what}"),
        }
    }

    /// The same of the stream.
    pub(super) fn ask(&self, what: &str) -> String {
        self.api(&format!("STREAM.{what}.{}", self.stream()))
    }

    /// Where something is written that is kept there under this subject.
    pub(super) fn way_to(&self, subject: &str) -> String {
        if self.domain.is_some() { self.api(subject) } else { subject.to_owned() }
    }

    /// All that is kept in it.
    pub(super) fn all(&self) -> String {
        format!("$KV.{}.>", self.name)
    }

    /// What the records of all keys are kept under.
    pub(super) fn records(&self) -> String {
        format!("$KV.{}.key.", self.name)
    }

    /// What the record of a key is kept under.
    pub(super) fn record(&self, key: &Key) -> String {
        self.records() + &encode(key)
    }

    /// What the signs of life of those who wait for a key are kept under.
    pub(super) fn life(&self, key: &Key) -> String {
        format!("$KV.{}.life.{}", self.name, encode(key))
    }

    /// What is written there has no other purpose than the time that the server gives it.
    pub(super) fn clock(&self) -> String {
        format!("$KV.{}.clock", self.name)
    }

    /// On what it is told that something concerns this level. It says nothing of a lease's id: whoever may subscribe sees
    /// it.
    pub(super) fn to_level(&self, level: LevelId) -> String {
        let digest = Sha256::digest(level.secret());
        let (half, _) = digest.split_at(16);
        format!(
            "dlock.{}.to.{:032x}",
            self.name,
            half.iter().fold(0, |number: u128, byte| number << 8 | u128::from(*byte))
        )
    }

    /// On what changes of keys are told.
    pub(super) fn changes(&self) -> String {
        format!("dlock.{}.changed.", self.name)
    }

    /// On what changes of a key are told.
    pub(super) fn changes_of(&self, key: &Key) -> String {
        self.changes() + &encode(key)
    }
}

/// A key as one token of a subject: what the key of a bucket may have in it stands for itself, and every other byte is
/// written `=` and two digits.
fn encode(key: &Key) -> String {
    utf8_percent_encode(key.as_str(), ENCODED).to_string().replace('%', "=")
}

/// The key that a token stands for, if it is one of ours.
pub(super) fn decode(token: &str) -> Option<Key> {
    let text = token.replace('=', "%");
    let key = Key::parse(&percent_decode_str(&text).decode_utf8().ok()?).ok()?;
    (encode(&key) == token).then_some(key)
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nats at {}", listed(&self.hosts))
    }
}

/// Without what is secret.
impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Address({})", self.identity())
    }
}

#[cfg(test)]
mod tests {
    use super::{decode, encode};
    use crate::model::Key;

    #[test]
    fn a_key_is_one_token_and_back() {
        for (text, token) in [("deploy/prod_1-a", "deploy/prod_1-a"), ("a.b *>%=é", "a=2Eb=20=2A=3E=25=3D=C3=A9")] {
            let key = Key::parse(text).expect("a key");
            assert_eq!(encode(&key), token);
            assert_eq!(decode(token), Some(key));
        }
        let longest = Key::parse(&"é".repeat(100)).expect("a key");
        assert_eq!(decode(&encode(&longest)), Some(longest));
        for strange in ["", "a=2eb", "=61", "a.b", "=FF", "=0A"] {
            assert_eq!(decode(strange), None, "{strange}");
        }
    }
}
