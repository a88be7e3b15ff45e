//! From a text to a list of servers that know nothing of each other, for stores that are made of several:
//! `redis+KIND://[USER[:PASSWORD]@]HOST[:PORT],…[/DB]`, the same with `rediss` over TLS. What stands before the first host lets
//! us into all that have no login of their own; database, prefix and files are those of all.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

use super::address::{Address, Endpoint, Servers};

/// The servers that a URL lists.
#[derive(Clone, PartialEq, Eq)]
pub struct Nodes {
    kind: String,
    /// In the order of the URL.
    addresses: Vec<Address>,
    /// As it was written, paths made absolute.
    text: String,
}

impl Nodes {
    /// Reads a URL. Relative paths in it start at `here`.
    ///
    /// # Errors
    /// What is wrong with it, without any part that may be a password.
    pub fn parse(text: &str, here: &Path) -> Result<Self, String> {
        let Some(start) = text.find("://").map(|at| at + 3) else {
            let scheme = text.split(':').next().unwrap_or_default();
            return Err(format!("that is written {scheme}://HOST,HOST,HOST"));
        };
        let end = text[start..].find(['/', '?', '#']).map_or(text.len(), |at| start + at);
        let (scheme, hosts, rest) = (&text[..start], &text[start..end], &text[end..]);
        let kind = scheme.trim_end_matches("://").rsplit('+').next().unwrap_or_default().to_owned();
        let login = hosts.split(',').next().and_then(|first| first.rsplit_once('@')).map(|(login, _)| login);
        let mut addresses = Vec::new();
        let mut names = BTreeSet::new();
        for (at, host) in hosts.split(',').enumerate() {
            if host.is_empty() || host.ends_with('@') {
                return Err(format!("its node {} has no host; that is written {scheme}HOST,HOST,HOST", at + 1));
            }
            let login = login.filter(|_| !host.contains('@')).map_or_else(String::new, |login| format!("{login}@"));
            // What all have in common is wrong with the first one already.
            let mut address =
                Address::parse(&format!("{scheme}{login}{host}{rest}"), here).map_err(|words| match at {
                    0 => words,
                    _ => format!("its node {}: {words}", at + 1),
                })?;
            if !names.insert(address.name()) {
                return Err(format!("'{}' stands twice in it", address.name()));
            }
            address.label = Some(format!("node {}", at + 1));
            addresses.push(address);
        }
        // The paths in the parameters are absolute there.
        let query = addresses.first().and_then(|first| first.text().split_once('?'));
        let query = query.map_or_else(String::new, |(_, query)| format!("?{query}"));
        let path = rest.split('?').next().unwrap_or_default();
        Ok(Self { kind, addresses, text: format!("{scheme}{hosts}{path}{query}") })
    }

    /// The URL itself, which may hold passwords.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The servers, in the order of the URL.
    #[must_use]
    pub fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// A server that was or will be beside these, and lets us in as the first of them does; nothing if that is no name of
    /// one.
    #[must_use]
    pub fn other(&self, name: &str) -> Option<Address> {
        let (host, port) = name.rsplit_once(':')?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let server = Endpoint::Tcp(host, port.parse().ok()?);
        let label = Some("former node".into());
        Some(Address { servers: Servers::One(server), label, ..self.addresses.first()?.clone() })
    }

    /// Whether what they give must be on replicas of theirs.
    #[must_use]
    pub fn waits_for_replicas(&self) -> bool {
        self.addresses.iter().any(|address| address.replicas > 0)
    }

    /// The same text for the same servers in any order, and without a password.
    #[must_use]
    pub fn identity(&self) -> String {
        let mut names: Vec<String> = self.addresses.iter().map(Address::name).collect();
        names.sort_unstable();
        let first = self.addresses.first().map(Address::identity).unwrap_or_default();
        let behind = first.splitn(4, '/').nth(3).unwrap_or_default();
        format!("redis+{}://{}/{behind}", self.kind, names.join(","))
    }
}

/// All servers, in words.
impl fmt::Display for Nodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.addresses.iter().map(Address::name).collect();
        write!(f, "redis {} at {}", self.kind, names.join(","))
    }
}

/// Without what is secret.
impl fmt::Debug for Nodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Nodes({})", self.identity())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{Address, Nodes};

    fn parse(text: &str) -> Result<Nodes, String> {
        Nodes::parse(text, Path::new("/here"))
    }

    #[test]
    fn each_node_has_the_login_of_the_first_one_or_its_own() {
        let text = "redis+ring://bob:a%2Cb%40c@H1:7001,ann:s3cret@h2,[::1]:7003,:x@h4/3?prefix=p";
        let nodes = parse(text).expect("a URL");
        let access = |address: &Address| {
            let Address { access, prefix, .. } = address.clone();
            (address.name(), access.user, access.password.unwrap_or_default(), access.db, prefix)
        };
        let is = |name: &str, user: Option<&str>, password: &str| {
            (name.to_owned(), user.map(str::to_owned), password.to_owned(), 3, "p".to_owned())
        };
        assert_eq!(
            nodes.addresses().iter().map(access).collect::<Vec<_>>(),
            [
                is("h1:7001", Some("bob"), "a,b@c"),
                is("h2:6379", Some("ann"), "s3cret"),
                is("[::1]:7003", Some("bob"), "a,b@c"),
                is("h4:6379", None, "x")
            ]
        );
        assert_eq!(nodes.identity(), "redis+ring://[::1]:7003,h1:7001,h2:6379,h4:6379/3?prefix=p");
        assert_eq!(nodes.to_string(), "redis ring at h1:7001,h2:6379,[::1]:7003,h4:6379");
        assert_eq!(parse(nodes.text()).as_ref(), Ok(&nodes), "{}", nodes.text());
        assert!(!format!("{nodes:?}").contains("s3cret"));
    }

    #[test]
    fn neither_order_nor_login_makes_another_list() {
        let identity = |text: &str| parse(text).expect(text).identity();
        assert_eq!(identity("redis+quorum://a,b,c"), "redis+quorum://a:6379,b:6379,c:6379/0?prefix=dlock");
        for same in ["redis+quorum://c,u:p@B:6379,a/0", "rediss+quorum://:x@b,a,c?prefix=dlock"] {
            assert_eq!(identity(same), identity("redis+quorum://a,b,c"));
        }
    }

    #[test]
    fn paths_are_made_absolute_also_for_the_commands_inside() {
        let nodes = parse("rediss+ring://u:p@a,b/?ca=ca.pem&cert=/c&key=k").expect("a URL");
        let [a, b] = nodes.addresses() else { panic!("{nodes:?}") };
        let tls = b.access.tls.clone().expect("it is rediss");
        assert!(a.access == b.access && tls.ca.as_deref() == Some(Path::new("/here/ca.pem")), "{tls:?}");
        assert_eq!(Nodes::parse(nodes.text(), Path::new("/there")).as_ref(), Ok(&nodes), "{}", nodes.text());
    }

    #[test]
    fn what_is_no_list_of_servers_is_refused_without_repeating_a_password() {
        for (text, words) in [
            ("redis+ring://", "its node 1 has no host; that is written redis+ring://HOST,HOST,HOST"),
            ("redis+quorum:/u:s3cret@h,i,j", "that is written redis+quorum://HOST,HOST,HOST"),
            ("redis+ring://:s3cret@a,", "its node 2 has no host"),
            ("redis+ring://a,,b", "its node 2 has no host"),
            ("redis+ring://a,u:s3cret@A:6379", "'a:6379' stands twice in it"),
            ("redis+ring://a,b:s3cret", "its node 2: it cannot be read"),
            ("redis+ring://u:s3,cret@a", "and %2C"),
            ("redis+ring://:s3cret@a,b/x", "the database is a number"),
            ("redis+ring://:s3cret@a,b?ca=x", "'rediss+ring://'"),
            ("redis+ring://:s3cret@a,b?wait=1", "knows no 'wait'"),
            ("redis+ring://a,u:s3#cret@b", "%23"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(words) && !error.contains("s3cret"), "{text}: {error}");
        }
    }
}
