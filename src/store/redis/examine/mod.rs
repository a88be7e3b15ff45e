//! Whether the servers of a store can be trusted with locks: what each says of itself, what those say who watch or
//! know them, and whether their clocks agree. Asks for what changes nothing.

mod clocks;
mod cluster;
mod sentinel;
mod server;

use std::time::Duration;

use super::RedisStore;
use super::address::Servers;
use super::trouble::Failure;
use crate::store::nodes::each_once;
use crate::store::{Examination, Finding};

/// How long it takes at least to choose another master once the old one counts as dead, and to find it.
const FAILOVER: Duration = Duration::from_secs(2);

impl RedisStore {
    /// Looks at all servers of the store. A holder can do without an answer for `silence`.
    pub(super) fn look_into(&self, silence: Duration) -> Result<Examination, Failure> {
        match (&self.address.servers, self.router.cluster()) {
            (Servers::Sentinel(sentinels), _) => self.look_into_sentinels(sentinels, silence),
            (_, Some(map)) => self.look_into_cluster(map, silence),
            (Servers::One(server), None) => self.look_at_the_only_one(server),
            (Servers::Cluster(_), None) => Err(Failure::Unknown("it has no nodes".into())),
        }
    }

    /// Something that is not told to us, and the rule with which it would be.
    fn unknown(&self, command: &str, words: &str, what: &str) -> Finding {
        let user = self.address.access.user.as_deref().unwrap_or("default");
        let more = if self.router.cluster().is_some() { " +cluster|info +cluster|slots" } else { "" };
        Finding::warning(
            format!("it does not answer '{command}' to us ('{words}'), so this is not known: {what}"),
            "what is not known may be what loses a lock",
            format!(
                "'ACL SETUSER {user} +info +config|get{more}', or ask as a user who may; whoever rents a server finds it \
                 in the provider's console"
            ),
        )
    }
}

/// What several servers say, each thing once.
fn distinct(values: impl IntoIterator<Item = String>) -> String {
    let mut seen: Vec<String> = Vec::new();
    for value in values {
        if !seen.contains(&value) {
            seen.push(value);
        }
    }
    seen.join(" or ")
}

/// A master counts as dead after some time, by this setting: whether leases end before another one takes its place.
fn is_replaced_too_late(setting: &str, after: Duration, silence: Duration) -> Option<Finding> {
    (after + FAILOVER >= silence).then(|| {
        Finding::warning(
            format!("its {setting} is {}, and a holder can do without an answer for {}", span(after), span(silence)),
            "when a master dies, all its leases are lost and their commands stopped before another one has taken its \
             place",
            format!("a shorter {setting}, or a longer --ttl; the failover itself takes some two seconds more"),
        )
    })
}

/// A span in words.
fn span(span: Duration) -> String {
    let millis = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
    humantime::format_duration(Duration::from_millis(millis)).to_string()
}

/// A number, and what there are so many of.
fn count(number: usize, one: &str) -> String {
    format!("{number} {one}{}", if number == 1 { "" } else { "s" })
}
