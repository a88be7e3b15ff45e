//! Where the members are, how one is let in, and what keys in etcd are called.

use std::fmt;
use std::path::Path;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::model::{Key, LeaseId, LevelId};
use crate::store::address::{decode, listed, sorted, without};
use crate::store::location::Location;
use crate::store::socket::Endpoint;
use crate::store::tls::Tls;

/// The port for clients.
const PORT: u16 = 2379;

/// What may stand behind the `?`.
const KNOWN: [&str; 4] = ["prefix", "ca", "cert", "key"];

/// Parameters that are paths.
const PATHS: [&str; 3] = ["ca", "cert", "key"];

/// What stands behind a prefix.
const PARTS: [&str; 2] = ["key", "event"];

/// The name of a record among what is kept of a key.
pub(super) const RECORD: &str = "record";

/// What of a key's name does not stand for itself in etcd: a `/` does not, so that no key's names begin with another's.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.');

/// The address of a store in etcd.
#[derive(Clone, PartialEq, Eq)]
pub struct Address {
    pub(super) hosts: Vec<Endpoint>,
    pub(super) access: Option<Access>,
    pub(super) secure: bool,
    pub(super) tls: Tls,
    /// What the names of all our keys begin with.
    pub(super) prefix: String,
    /// As it was written, paths made absolute.
    text: String,
}

/// Who we are.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Access {
    pub(super) user: String,
    pub(super) password: String,
}

impl Address {
    /// Reads a URL, `etcd://[USER:PASSWORD@]HOST[:PORT],…[?…]`. Relative paths in it start at `here`.
    ///
    /// # Errors
    /// What is wrong with it, without any part that may be a password.
    pub fn parse(text: &str, here: &Path) -> Result<Self, String> {
        let mut at = Location::read(text, "etcd://HOST", (&KNOWN, &PATHS), here)?;
        let access = match at.login.map(|login| login.split_once(':')) {
            None => None,
            Some(Some((user, password))) if !user.is_empty() => {
                Some(Access { user: decode(user)?, password: decode(password)? })
            }
            Some(_) => return Err("before the '@' there is a user, ':' and a password".into()),
        };
        let tls = at.tls()?;
        let secure = at.scheme == "etcds";
        if !secure && tls != Tls::default() {
            return Err("'ca', 'cert' and 'key' are for etcds://".into());
        }
        let prefix = at.take("prefix").map_or_else(|| Ok("dlock".into()), prefix)?;
        Ok(Self { hosts: at.hosts(PORT)?, access, secure, tls, prefix, text: at.text })
    }

    /// The URL itself, which may hold a password.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// A server's words, which may repeat ours.
    pub(super) fn without_password(&self, words: &str) -> String {
        without(words, self.access.as_ref().map(|access| &*access.password))
    }

    /// The same text for the same store, and without a password.
    pub(in crate::store) fn identity(&self) -> String {
        format!("etcd://{}?prefix={}", sorted(&self.hosts), self.prefix)
    }

    /// What the names of all that is kept begin with.
    pub(super) fn all(&self) -> String {
        format!("{}/key/", self.prefix)
    }

    /// The same of a key: its record, and signs of life, each with the name of a level or of [`min_hold`]. So one read finds
    /// all that there is of it.
    pub(super) fn of(&self, key: &Key) -> String {
        format!("{}{}/", self.all(), encode(key))
    }

    /// What the record of a key is kept under.
    pub(super) fn record(&self, key: &Key) -> String {
        self.of(key) + RECORD
    }

    /// What the names of all that happened to a key begin with. It stands elsewhere, so that those who only want the key need
    /// not read it.
    pub(super) fn events(&self, key: &Key) -> String {
        format!("{}/event/{}/", self.prefix, encode(key))
    }

    /// What is kept under this name: something of which key, and whether it is the record; nothing if it is none of ours.
    pub(super) fn meaning(&self, name: &str) -> Option<(Key, bool)> {
        let (key, part) = name.strip_prefix(&self.all())?.split_once('/')?;
        Some((key_of(key)?, part == RECORD))
    }
}

/// The sign of life of a level.
pub(super) fn level(level: LevelId) -> String {
    level.secret()
}

/// The sign that a key has to stay taken by a lease.
pub(super) fn min_hold(lease: LeaseId) -> String {
    lease.secret() + ".min"
}

/// Between which names of what is kept of a key signs of life are: they begin with a digit of a level's.
pub(super) const LIVES: (&str, &str) = ("0", "g");

/// Until when a level was renewed last: what is left to tell of one whose sign of life has ended.
pub(super) const END: &str = ".end";

/// Behind all names that begin with this one, which ends with '/'.
pub(super) fn end_of(prefix: &str) -> String {
    format!("{}0", prefix.strip_suffix('/').unwrap_or(prefix))
}

fn prefix(mut text: String) -> Result<String, String> {
    while text.ends_with('/') {
        text.pop();
    }
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte);
    if text.is_empty() || text.len() > 200 || !text.bytes().all(is_plain) {
        return Err("'prefix' is 1 to 200 letters, digits, '-', '_', '.' and '/'".into());
    }
    // It would be in the middle of what another prefix has.
    if text.split('/').any(|part| PARTS.contains(&part)) {
        return Err("no part of 'prefix' is 'key' or 'event': those are what dlock puts behind it".into());
    }
    Ok(text)
}

fn encode(key: &Key) -> String {
    utf8_percent_encode(key.as_str(), ENCODED).to_string()
}

/// The key that a name stands for, if it is one of ours.
fn key_of(name: &str) -> Option<Key> {
    let key = Key::parse(&percent_decode_str(name).decode_utf8().ok()?).ok()?;
    (encode(&key) == name).then_some(key)
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "etcd at {}", listed(&self.hosts))
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
    use std::path::Path;

    use super::{Address, end_of};
    use crate::model::Key;
    use crate::store::socket::Endpoint;

    fn parse(text: &str) -> Result<Address, String> {
        Address::parse(text, Path::new("/here"))
    }

    #[test]
    fn a_url_names_members_a_login_and_a_prefix() {
        let at = parse("etcds://bob:p%40s%2Fs@E1.Example:7000,[::1],c?prefix=/team/locks/&ca=ca.pem").expect("a URL");
        let hosts = [("e1.example", 7000), ("::1", 2379), ("c", 2379)];
        assert_eq!(at.hosts, hosts.map(|(host, port)| Endpoint::Tcp(host.into(), port)));
        assert!(at.access.as_ref().is_some_and(|access| access.user == "bob" && access.password == "p@s/s"));
        assert_eq!(at.identity(), "etcd://[::1]:2379,c:2379,e1.example:7000?prefix=/team/locks");
        assert_eq!(at.tls.ca.as_deref(), Some(Path::new("/here/ca.pem")), "also for the commands inside");
        assert!(!format!("{at:?}{at}").contains("p@s"), "{at:?}");
        assert_eq!(parse(at.text()).as_ref(), Ok(&at));
    }

    #[test]
    fn names_of_one_key_do_not_begin_with_those_of_another() {
        let at = parse("etcd://h").expect("a URL");
        let [key, inner] = ["deploy", "deploy/prod é"].map(|text| Key::parse(text).expect("a key"));
        assert_eq!(at.record(&inner), "dlock/key/deploy%2Fprod%20%C3%A9/record");
        assert!(!at.of(&inner).starts_with(&at.of(&key)));
        assert!(at.of(&key) < end_of(&at.of(&key)) && end_of(&at.of(&key)) == "dlock/key/deploy0");
        assert_eq!(at.meaning(&at.record(&inner)), Some((inner.clone(), true)));
        assert_eq!(at.meaning(&(at.of(&inner) + "x")), Some((inner, false)));
        for strange in
            ["dlock/key/", "dlock/key/a", "dlock/key/%61/record", "other/key/a/record", "dlock/key/%FF/record"]
        {
            assert_eq!(at.meaning(strange), None, "{strange}");
        }
    }

    #[test]
    fn what_is_not_good_is_said_without_a_secret() {
        for (text, words) in [
            ("etcd://u:se#cret@h", "%23"),
            ("etcd://u:se?cret@h", "%3F"),
            ("etcd://u:se/cret@h", "%2F"),
            ("etcd://h/secret", "%2F"),
            ("etcd://secret@h", "a password"),
            ("etcd://u:secret@h?prefx=a", "no 'prefx'"),
            ("etcd://u:secret@h?prefix=a*b", "'prefix' is"),
            ("etcd://u:secret@h?prefix=/", "'prefix' is"),
            ("etcd://u:secret@h?prefix=dlock/event", "no part of 'prefix'"),
            ("etcd://u:secret@h?prefix=dlock/key/k", "no part of 'prefix'"),
            ("etcd://u:secret@h?ca=f", "etcds"),
            ("etcds://u:secret@h?cert=f", "need each other"),
            ("etcd://u:secret@h:x", "port"),
            ("etcd://u:secret@a,,b", "no name"),
            ("etcd://u:secret@[::1", "']'"),
            ("etcd://u:secret@h?prefix=a&prefix=b", "twice"),
        ] {
            let why = parse(text).expect_err(text);
            assert!(why.contains(words) && !why.contains("cret"), "{text}: {why}");
        }
    }
}
