//! From a URL to a store. A new backend is one line in [`Url::parse`] and one in [`open`].

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

#[cfg(feature = "redis")]
use super::{Address, Node, Nodes, Quorum, RedisStore, Ring, Voter};
#[cfg(feature = "etcd")]
use super::{EtcdAddress, EtcdRegister};
use super::{FileRegister, Ledger, Store, StoreError};
#[cfg(feature = "redis")]
use super::{List, Trouble};
#[cfg(feature = "nats")]
use super::{NatsAddress, NatsRegister};
#[cfg(feature = "postgres")]
use super::{PostgresAddress, PostgresRegister};

/// Where a store is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Url {
    /// `file:DIR`: a directory of this machine.
    File(PathBuf),
    /// `redis://…`: a Redis or Valkey server, or several.
    #[cfg(feature = "redis")]
    Redis(Box<Address>),
    /// `redis+ring://…`: keys spread over servers that know nothing of each other.
    #[cfg(feature = "redis")]
    Ring(Box<Nodes>),
    /// `redis+quorum://…`: most of several servers.
    #[cfg(feature = "redis")]
    Quorum(Box<Nodes>),
    /// `postgres://…`: a table in a PostgreSQL database.
    #[cfg(feature = "postgres")]
    Postgres(Box<PostgresAddress>),
    /// `nats://…`: a bucket in NATS JetStream.
    #[cfg(feature = "nats")]
    Nats(Box<NatsAddress>),
    /// `etcd://…`: keys in etcd.
    #[cfg(feature = "etcd")]
    Etcd(Box<EtcdAddress>),
}

/// What this dlock was built with.
const KNOWN: &[&str] = &[
    "'file:DIR'",
    #[cfg(feature = "redis")]
    "'redis://HOST'",
    #[cfg(feature = "redis")]
    "'rediss://HOST'",
    #[cfg(feature = "redis")]
    "'redis+unix:///SOCKET'",
    #[cfg(feature = "redis")]
    "'redis+sentinel://HOST,HOST/MASTER'",
    #[cfg(feature = "redis")]
    "'redis+cluster://HOST,HOST'",
    #[cfg(feature = "redis")]
    "'redis+ring://HOST,HOST'",
    #[cfg(feature = "redis")]
    "'redis+quorum://HOST,HOST,HOST'",
    #[cfg(feature = "postgres")]
    "'postgres://HOST/DATABASE'",
    #[cfg(feature = "nats")]
    "'nats://HOST'",
    #[cfg(feature = "nats")]
    "'nats+tls://HOST'",
    #[cfg(feature = "etcd")]
    "'etcd://HOST,HOST'",
    #[cfg(feature = "etcd")]
    "'etcds://HOST,HOST'",
];

/// A text that names no store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadUrl(String);

impl Url {
    /// Reads the URL of a store. A relative path starts at `here`.
    ///
    /// # Errors
    /// [`BadUrl`], which does not repeat what may be a password.
    pub fn parse(text: &str, here: &Path) -> Result<Self, BadUrl> {
        let Some((scheme, rest)) = text.split_once(':') else {
            if text.contains('@') {
                return Err(BadUrl("it is no store URL: it has no scheme, as in 'redis://HOST'".into()));
            }
            let known = KNOWN.join(", ");
            let directory = text.contains('/').then(|| format!("a directory is written 'file:{text}'; "));
            let directory = directory.unwrap_or_default();
            return Err(BadUrl(format!("'{text}' is no store URL; {directory}this dlock knows {known}")));
        };
        match scheme {
            "file" => {
                let path = rest.strip_prefix("//").filter(|rest| rest.starts_with('/')).unwrap_or(rest);
                if path.is_empty() {
                    return Err(BadUrl("'file:' needs a directory".into()));
                }
                if path.starts_with("//") {
                    return Err(BadUrl("'file:' has no host: a directory is written 'file:/DIR'".into()));
                }
                if path.starts_with('~') {
                    return Err(BadUrl(
                        "'file:' knows no '~', which a shell replaces at the start of a word only".into(),
                    ));
                }
                Ok(Self::File(here.join(path)))
            }
            #[cfg(feature = "redis")]
            "redis" | "rediss" | "redis+unix" | "redis+sentinel" | "rediss+sentinel" | "redis+cluster"
            | "rediss+cluster" => match Address::parse(text, here) {
                Ok(address) => Ok(Self::Redis(Box::new(address))),
                Err(words) => Err(BadUrl(format!("this '{scheme}:' URL is not good: {words}"))),
            },
            #[cfg(feature = "redis")]
            "redis+ring" | "rediss+ring" => match Nodes::parse(text, here) {
                Ok(nodes) => Ok(Self::Ring(Box::new(nodes))),
                Err(words) => Err(BadUrl(format!("this '{scheme}:' URL is not good: {words}"))),
            },
            #[cfg(feature = "redis")]
            "redis+quorum" | "rediss+quorum" => match Nodes::parse(text, here).and_then(quorum_of) {
                Ok(nodes) => Ok(Self::Quorum(Box::new(nodes))),
                Err(words) => Err(BadUrl(format!("this '{scheme}:' URL is not good: {words}"))),
            },
            #[cfg(feature = "postgres")]
            "postgres" | "postgresql" => match PostgresAddress::parse(text, here) {
                Ok(address) => Ok(Self::Postgres(Box::new(address))),
                Err(words) => Err(BadUrl(format!("this '{scheme}:' URL is not good: {words}"))),
            },
            #[cfg(feature = "etcd")]
            "etcd" | "etcds" => match EtcdAddress::parse(text, here) {
                Ok(address) => Ok(Self::Etcd(Box::new(address))),
                Err(words) => Err(BadUrl(format!("this '{scheme}:' URL is not good: {words}"))),
            },
            #[cfg(feature = "nats")]
            "nats" | "nats+tls" => match NatsAddress::parse(text, here) {
                Ok(address) => Ok(Self::Nats(Box::new(address))),
                Err(words) => Err(BadUrl(format!("this '{scheme}:' URL is not good: {words}"))),
            },
            // What stands before a ':' alone may be a password.
            _ if !rest.starts_with("//") => {
                Err(BadUrl(format!("it is no store URL; this dlock knows {}", KNOWN.join(", "))))
            }
            _ => Err(BadUrl(format!("this dlock knows no store '{scheme}:'; it knows {}", KNOWN.join(", ")))),
        }
    }

    /// The directory that it names; nothing if it is no `file:` URL.
    #[must_use]
    pub fn directory(&self) -> Option<&Path> {
        match self {
            Self::File(path) => Some(path),
            #[cfg(feature = "redis")]
            Self::Redis(_) | Self::Ring(_) | Self::Quorum(_) => None,
            #[cfg(feature = "postgres")]
            Self::Postgres(_) => None,
            #[cfg(feature = "nats")]
            Self::Nats(_) => None,
            #[cfg(feature = "etcd")]
            Self::Etcd(_) => None,
        }
    }

    /// Whether a text that may be a URL holds a password: behind a user's name, or as a parameter.
    #[must_use]
    pub fn holds_password(text: &str) -> bool {
        let Some((scheme, rest)) = text.split_once("://") else { return false };
        let (address, query) = rest.split_once('?').unwrap_or((rest, ""));
        let authority = address.split('/').next().unwrap_or_default();
        // Where each host may have a login of its own, a ',' of a password is written %2C.
        let own = ["+ring", "+quorum"].iter().any(|kind| scheme.ends_with(kind));
        let hosts: Vec<&str> = if own { authority.split(',').collect() } else { vec![authority] };
        let logins = hosts.iter().filter_map(|host| host.rsplit_once('@'));
        // In NATS a login without a ':' is a token.
        let is_token = |login: &str| scheme.starts_with("nats") && !login.is_empty() && !login.contains(':');
        let token = logins.clone().any(|(login, _)| is_token(login));
        let behind_user =
            logins.filter_map(|(login, _)| login.split_once(':')).any(|(_, password)| !password.is_empty());
        token
            || behind_user
            || query
                .split('&')
                .filter_map(|parameter| parameter.split_once('='))
                .any(|(name, value)| ["password", "sentinel_password"].contains(&name) && !value.is_empty())
    }

    /// What [`Store::identity`] says, even of a store that cannot be opened.
    #[must_use]
    pub fn identity(&self) -> String {
        match self {
            Self::File(path) => format!("file:{}", path.display()),
            #[cfg(feature = "redis")]
            Self::Redis(address) => address.identity(),
            #[cfg(feature = "redis")]
            Self::Ring(nodes) => nodes.identity(),
            #[cfg(feature = "redis")]
            Self::Quorum(nodes) => nodes.identity(),
            #[cfg(feature = "postgres")]
            Self::Postgres(address) => address.identity(),
            #[cfg(feature = "nats")]
            Self::Nats(address) => address.identity(),
            #[cfg(feature = "etcd")]
            Self::Etcd(address) => address.identity(),
        }
    }

    /// The URL itself, paths absolute. It may hold a password.
    #[must_use]
    pub fn text(&self) -> OsString {
        match self {
            Self::File(path) => {
                let mut text = OsString::from("file:");
                text.push(path);
                text
            }
            #[cfg(feature = "redis")]
            Self::Redis(address) => address.text().into(),
            #[cfg(feature = "redis")]
            Self::Ring(nodes) => nodes.text().into(),
            #[cfg(feature = "redis")]
            Self::Quorum(nodes) => nodes.text().into(),
            #[cfg(feature = "postgres")]
            Self::Postgres(address) => address.text().into(),
            #[cfg(feature = "nats")]
            Self::Nats(address) => address.text().into(),
            #[cfg(feature = "etcd")]
            Self::Etcd(address) => address.text().into(),
        }
    }
}

/// What a store is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intent {
    /// To take keys: what is missing is made.
    Lock,
    /// To look, and to change only what is there.
    Look,
}

/// Opens a store. Makes no thread. What has no limit of its own may take `patience`.
///
/// # Errors
/// [`StoreError`] if it is known at once that the store cannot be used.
#[cfg_attr(
    not(any(feature = "etcd", feature = "nats", feature = "postgres", feature = "redis")),
    expect(unused_variables, reason = "the file store has limits of its own")
)]
pub fn open(url: &Url, intent: Intent, patience: Duration) -> Result<Arc<dyn Store>, StoreError> {
    match url {
        Url::File(path) => Ok(Arc::new(Ledger::new(FileRegister::open(path, intent == Intent::Lock)?))),
        #[cfg(feature = "redis")]
        Url::Redis(address) => Ok(Arc::new(RedisStore::new(address, patience))),
        #[cfg(feature = "redis")]
        Url::Ring(nodes) => Ok(Arc::new(ring(nodes, patience))),
        #[cfg(feature = "redis")]
        Url::Quorum(nodes) => {
            let stamp = list_of(nodes).stamp();
            let voter = |address: &Address| Arc::new(RedisStore::voter(address, &stamp, patience)) as Arc<dyn Voter>;
            let voters = nodes.addresses().iter().map(voter);
            Ok(Arc::new(Quorum::new(voters, nodes.identity(), nodes.to_string(), patience)))
        }
        #[cfg(feature = "postgres")]
        Url::Postgres(address) => {
            Ok(Arc::new(Ledger::new(PostgresRegister::new(address, intent == Intent::Lock, patience))))
        }
        #[cfg(feature = "nats")]
        Url::Nats(address) => Ok(Arc::new(Ledger::new(NatsRegister::new(address, intent == Intent::Lock, patience)))),
        #[cfg(feature = "etcd")]
        Url::Etcd(address) => Ok(Arc::new(Ledger::new(EtcdRegister::new(address, patience)))),
    }
}

/// Of how many nodes there can be a quorum.
#[cfg(feature = "redis")]
fn quorum_of(nodes: Nodes) -> Result<Nodes, String> {
    match nodes.addresses().len() {
        0..3 => Err("a quorum has at least three nodes: of two none may fail".into()),
        even if even % 2 == 0 => {
            Err(format!("a quorum has an odd number of nodes: {even} of them can lose no more than {} can", even - 1))
        }
        _ if nodes.waits_for_replicas() => {
            Err("'wait_replicas' is not for a quorum, whose nodes are each other's replicas".into())
        }
        _ => Ok(nodes),
    }
}

#[cfg(feature = "redis")]
fn list_of(nodes: &Nodes) -> List {
    let names: Vec<String> = nodes.addresses().iter().map(Address::name).collect();
    List::new(names.iter().map(String::as_str))
}

/// A ring of servers.
#[cfg(feature = "redis")]
fn ring(listed: &Nodes, patience: Duration) -> Ring {
    let list = list_of(listed);
    let node = |address| Arc::new(RedisStore::node(address, Some(&list), patience)) as Arc<dyn Node>;
    let nodes = listed.addresses().iter().map(node).collect();
    let all = listed.clone();
    let connect = move |name: &str, patience| {
        let known = all.addresses().iter().find(|address| address.name() == name).cloned();
        let address = known.or_else(|| all.other(name));
        let odd = || StoreError::new(Trouble::Unfit, format_args!("'{name}' is no name of a node of a ring"));
        Ok(Arc::new(RedisStore::node(&address.ok_or_else(odd)?, None, patience)) as Arc<dyn Node>)
    };
    Ring::new(listed.identity(), listed.to_string(), nodes, Box::new(connect), patience)
}

/// Opens what `dlock guard` remembers in a directory, which is made if it is missing. Makes no thread.
///
/// # Errors
/// [`StoreError`] if it cannot be made, or not be trusted.
pub fn open_guards(directory: &Path) -> Result<Arc<Ledger<FileRegister>>, StoreError> {
    Ok(Arc::new(Ledger::new(FileRegister::guards(directory)?)))
}

/// As [`Store::describe`] does.
impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            #[cfg(feature = "redis")]
            Self::Redis(address) => write!(f, "{address}"),
            #[cfg(feature = "redis")]
            Self::Ring(nodes) => write!(f, "{nodes}"),
            #[cfg(feature = "redis")]
            Self::Quorum(nodes) => write!(f, "{nodes}"),
            #[cfg(feature = "postgres")]
            Self::Postgres(address) => write!(f, "{address}"),
            #[cfg(feature = "nats")]
            Self::Nats(address) => write!(f, "{address}"),
            #[cfg(feature = "etcd")]
            Self::Etcd(address) => write!(f, "{address}"),
        }
    }
}

impl fmt::Display for BadUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BadUrl {}

#[cfg(test)]
mod tests {
    use super::Url;

    #[test]
    fn a_password_is_seen_in_any_url() {
        for text in [
            "redis://:x@h",
            "rediss://u:x@h:1/2?ca=f",
            "postgres://u:x@h1,h2/db",
            "redis+unix:///s?db=1&password=x",
            "redis+sentinel://h1,h2/m?sentinel_password=x",
            "redis+ring://h1,u:x@h2",
            "redis+quorum://h1:1,u:x@h2:2,h3",
            "nats://u:x@h1,h2",
            "nats+tls://token@h",
            "etcd://u:x@h1,h2",
        ] {
            assert!(Url::holds_password(text), "{text}");
        }
        for text in [
            "",
            "file:/a:b@c",
            "file:///a:b@c",
            "redis://h:1/0",
            "redis://u@h:1",
            "redis://:@h",
            "redis+quorum://h1:1,u@h2:2,h3",
            "redis+unix:///s?password=",
            "redis+ring://h1:7000,u@h2",
            "nats://h1,h2?creds=/f",
        ] {
            assert!(!Url::holds_password(text), "{text}");
        }
    }
}
