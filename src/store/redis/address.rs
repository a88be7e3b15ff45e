//! Where servers are, how the one that has a key is found, and how one is let in.

use std::fmt;

use crate::store::address::{sorted, without};
pub(super) use crate::store::socket::Endpoint;
use crate::store::tls::Tls;

/// The address of a store in one server or several.
#[derive(Clone, PartialEq, Eq)]
pub struct Address {
    pub(super) servers: Servers,
    pub(super) access: Access,
    pub(super) prefix: String,
    /// A grant counts once so many replicas have acknowledged it.
    pub(super) replicas: u32,
    /// What messages call it, if it is one of several that know nothing of each other.
    pub(super) label: Option<String>,
    /// As it was written, paths made absolute.
    pub(super) text: String,
}

/// How the server that has a key is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Servers {
    /// There is one.
    One(Endpoint),
    /// Sentinels know who is the master.
    Sentinel(Sentinels),
    /// Every node of a cluster knows who has the key. These are some of them.
    Cluster(Vec<Endpoint>),
}

/// Those who watch a master, and name its successor.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Sentinels {
    pub(super) at: Vec<Endpoint>,
    pub(super) access: Access,
    /// What they call the master.
    pub(super) master: String,
}

/// How one is let in.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Access {
    pub(super) tls: Option<Tls>,
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
    pub(super) db: u32,
    /// Whoever is no master is of no use.
    pub(super) masters_only: bool,
}

impl Address {
    /// The URL itself, which may hold a password.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// What the servers are called in a list of such: `HOST:PORT`.
    #[must_use]
    pub fn name(&self) -> String {
        match &self.servers {
            Servers::One(server) => server.to_string(),
            Servers::Sentinel(Sentinels { at, .. }) | Servers::Cluster(at) => sorted(at),
        }
    }

    /// A server's words. One that does not know AUTH repeats what was said to it.
    pub(super) fn without_password(&self, words: &str) -> String {
        let sentinels = match &self.servers {
            Servers::Sentinel(sentinels) => sentinels.access.password.as_deref(),
            Servers::One(_) | Servers::Cluster(_) => None,
        };
        without(words, [self.access.password.as_deref(), sentinels].into_iter().flatten())
    }

    /// A server of this store, in words.
    pub(super) fn name_of(&self, server: &Endpoint) -> String {
        match &self.servers {
            Servers::Sentinel(sentinels) if sentinels.at.contains(server) => format!("sentinel at {server}"),
            Servers::One(_) if self.label.is_some() => self.to_string(),
            _ => format!("redis at {server}"),
        }
    }

    /// The same text for the same store, and without a password.
    pub(in crate::store) fn identity(&self) -> String {
        let Self { prefix, access: Access { db, .. }, .. } = self;
        match &self.servers {
            Servers::One(Endpoint::Unix(path)) => format!("redis+unix://{}?db={db}&prefix={prefix}", path.display()),
            Servers::One(server) => format!("redis://{server}/{db}?prefix={prefix}"),
            Servers::Sentinel(Sentinels { at, master, .. }) => {
                format!("redis+sentinel://{}/{master}/{db}?prefix={prefix}", sorted(at))
            }
            Servers::Cluster(seeds) => format!("redis+cluster://{}?prefix={prefix}", sorted(seeds)),
        }
    }
}

impl Access {
    /// The same for somebody who has neither a password nor a certificate.
    pub(super) fn for_strangers(&self) -> Self {
        let tls = self.tls.as_ref().map(|tls| Tls { identity: None, ..tls.clone() });
        Self { user: None, password: None, tls, ..self.clone() }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.servers {
            Servers::One(server) => match &self.label {
                Some(label) => write!(f, "{label} ({server})"),
                None => write!(f, "redis at {server}"),
            },
            Servers::Sentinel(sentinels) => write!(f, "redis master '{}'", sentinels.master),
            Servers::Cluster(seeds) => match seeds.first() {
                Some(seed) => write!(f, "redis cluster at {seed}"),
                None => f.write_str("redis cluster"),
            },
        }
    }
}

/// Without what is secret.
impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Address({})", self.identity())
    }
}

/// Without what is secret.
impl fmt::Debug for Sentinels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sentinels({:?}, {})", self.at, self.master)
    }
}
