//! From a text to an [`Address`]: `redis://[USER[:PASSWORD]@]HOST[:PORT][/DB]`, the same with `rediss` over TLS,
//! `redis+unix:///SOCKET`, `redis+sentinel://[USER[:PASSWORD]@]SENTINEL[:PORT],…/MASTER[/DB]` and
//! `redis+cluster://[USER[:PASSWORD]@]NODE[:PORT],…`.

use std::path::Path;

use url::{Host, Url};

use super::address::{Access, Address, Endpoint, Sentinels, Servers};
use crate::store::address::{absolute, decode};
use crate::store::tls::Tls;

/// The ports of servers and of sentinels.
const PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26379;

/// Parameters that are paths.
const PATHS: [&str; 6] = ["ca", "cert", "key", "sentinel_ca", "sentinel_cert", "sentinel_key"];

/// More replicas than anybody has: a number with a typo.
const MOST_REPLICAS: u32 = 100;

impl Address {
    /// Reads a URL. Relative paths in it start at `here`.
    ///
    /// # Errors
    /// What is wrong with it, without any part that may be a password.
    pub fn parse(text: &str, here: &Path) -> Result<Self, String> {
        let (mut url, hosts) = split(text)?;
        if url.fragment().is_some() {
            return Err("it has a '#', which is written %23 in a password".into());
        }
        let mut parameters = Parameters::read(&mut url, here)?;
        let scheme = url.scheme().to_owned();
        let (tls, kind) = scheme
            .strip_prefix("rediss")
            .map_or_else(|| (false, scheme.strip_prefix("redis").unwrap_or_default()), |kind| (true, kind));
        let tls = tls.then(|| parameters.tls("")).transpose()?;
        let (user, password) = if kind == "+unix" {
            (parameters.take("user"), parameters.take("password"))
        } else {
            (Some(decode(url.username())?).filter(|user| !user.is_empty()), url.password().map(decode).transpose()?)
        };
        let mut access = Access { tls, user, password, ..Access::default() };
        let (servers, db) = match kind {
            "+unix" => (Servers::One(socket(&url)?), parameters.take("db")),
            "+sentinel" => {
                let (master, db) = master_and_db(&url)?;
                let sentinels = Sentinels {
                    at: endpoints(&url, &hosts, SENTINEL_PORT)?,
                    access: parameters.sentinels(access.tls.as_ref())?,
                    master,
                };
                access.masters_only = true;
                (Servers::Sentinel(sentinels), db)
            }
            "+cluster" => {
                if !["", "/"].contains(&url.path()) {
                    return Err("a cluster has no databases: nothing stands behind its nodes".into());
                }
                (Servers::Cluster(endpoints(&url, &hosts, PORT)?), None)
            }
            _ => {
                let mut all = endpoints(&url, &hosts, PORT)?;
                let server = all.pop().filter(|_| all.is_empty());
                let server = server.ok_or_else(|| {
                    let several =
                        ["sentinel", "cluster", "ring"].map(|kind| format!("'{scheme}+{kind}://'")).join(", ");
                    format!("it names several hosts, which is for {several}")
                })?;
                (Servers::One(server), Some(url.path().trim_start_matches('/').to_owned()))
            }
        };
        let db = db.filter(|db| !db.is_empty());
        access.db =
            db.map_or(Ok(0), |db| db.parse().map_err(|_| "the database is a number, as in 'redis://HOST/1'"))?;
        let prefix = parameters.take("prefix").unwrap_or_else(|| "dlock".into());
        if prefix.is_empty() || prefix.contains(['{', '}']) || prefix.chars().any(char::is_control) {
            return Err("a prefix has at least one character, and no braces".into());
        }
        let replicas = parameters.take("wait_replicas").map_or(Ok(0), |count| {
            let count = count.parse().ok().filter(|count| *count <= MOST_REPLICAS);
            count.ok_or_else(|| format!("'wait_replicas' is a number of replicas, at most {MOST_REPLICAS}"))
        })?;
        parameters.nothing_left(kind)?;
        Ok(Self { servers, access, prefix, replicas, label: None, text: written(&url, text, hosts.len()) })
    }
}

/// The URL with the first of its hosts, and all of them as they were written.
fn split(text: &str) -> Result<(Url, Vec<&str>), String> {
    let (start, end) = authority(text);
    let hosts: Vec<&str> = text[start..end].split(',').collect();
    let first = format!("{}{}{}", &text[..start], hosts[0], &text[end..]);
    Ok((read(&first)?, hosts))
}

/// Where the hosts stand in a URL: behind a user and a password.
fn authority(text: &str) -> (usize, usize) {
    let start = text.find("://").map_or(text.len(), |at| at + 3);
    let end = text[start..].find(['/', '?', '#']).map_or(text.len(), |at| start + at);
    let start = text[start..end].rfind('@').map_or(start, |at| start + at + 1);
    (start, end)
}

fn read(text: &str) -> Result<Url, String> {
    Url::parse(text).map_err(|error| {
        let hint = "'@', ':', '/', '?', '#' and ',' in a password are written %40, %3A, %2F, %3F, %23 and %2C";
        format!("it cannot be read as a URL: {error} ({hint})")
    })
}

/// The URL as it was written, but with the parameters that it has now.
fn written(url: &Url, text: &str, hosts: usize) -> String {
    if hosts == 1 {
        return url.to_string();
    }
    let (_, end) = authority(text);
    let query = url.query().map_or_else(String::new, |query| format!("?{query}"));
    format!("{}{}{query}", &text[..end], url.path())
}

fn endpoints(first: &Url, hosts: &[&str], port: u16) -> Result<Vec<Endpoint>, String> {
    let others = hosts.iter().skip(1).map(|host| endpoint(&read(&format!("{}://{host}", first.scheme()))?, port));
    std::iter::once(endpoint(first, port)).chain(others).collect()
}

fn endpoint(url: &Url, port: u16) -> Result<Endpoint, String> {
    let host = match url.host() {
        Some(Host::Domain("")) | None => {
            return Err(format!("it names no host; that is written {}://HOST", url.scheme()));
        }
        Some(Host::Ipv6(ip)) => ip.to_string(),
        Some(host) => decode(&host.to_string())?.to_lowercase(),
    };
    Ok(Endpoint::Tcp(host, url.port().unwrap_or(port)))
}

fn socket(url: &Url) -> Result<Endpoint, String> {
    if url.host().is_some() || url.path().len() < 2 {
        return Err("a socket is written redis+unix:///PATH, with three slashes".into());
    }
    Ok(Endpoint::Unix(decode(url.path())?.into()))
}

fn master_and_db(url: &Url) -> Result<(String, Option<String>), String> {
    let path = url.path().trim_matches('/');
    let (master, db) = path.split_once('/').map_or((path, None), |(master, db)| (master, Some(db.to_owned())));
    if master.is_empty() {
        return Err(format!("it names no master; that is written {}://SENTINEL/MASTER", url.scheme()));
    }
    Ok((decode(master)?, db))
}

/// What stands behind the `?`.
struct Parameters {
    left: Vec<(String, String)>,
    had_password: bool,
}

impl Parameters {
    /// Reads them, and makes the paths among them absolute.
    fn read(url: &mut Url, here: &Path) -> Result<Self, String> {
        if url.query().is_none() {
            return Ok(Self { left: Vec::new(), had_password: false });
        }
        let mut all = Vec::new();
        for (name, value) in url.query_pairs() {
            let value = if PATHS.contains(&&*name) { absolute(here, &name, &value)? } else { value.to_string() };
            if all.iter().any(|(other, _)| *other == name) {
                return Err(format!("'{name}' stands twice in it"));
            }
            all.push((name.to_string(), value));
        }
        url.query_pairs_mut().clear().extend_pairs(&all);
        let had_password = all.iter().any(|(name, _)| name.ends_with("password"));
        Ok(Self { left: all, had_password })
    }

    fn take(&mut self, name: &str) -> Option<String> {
        let at = self.left.iter().position(|(other, _)| other == name)?;
        Some(self.left.swap_remove(at).1)
    }

    /// The files for TLS whose names begin so.
    fn tls(&mut self, whose: &str) -> Result<Tls, String> {
        let names = ["ca", "cert", "key"].map(|name| format!("{whose}{name}"));
        Tls::of(names.each_ref().map(String::as_str), |name| self.take(name))
    }

    /// How sentinels let us in: with a login of their own, and with the TLS of the servers unless it is said otherwise.
    fn sentinels(&mut self, servers: Option<&Tls>) -> Result<Access, String> {
        let (user, password) = (self.take("sentinel_user"), self.take("sentinel_password"));
        let tls = match self.take("sentinel_tls").as_deref() {
            None => servers.is_some(),
            Some("yes") => true,
            Some("no") => false,
            Some(_) => return Err("'sentinel_tls' is yes or no".into()),
        };
        let tls = tls.then(|| self.tls("sentinel_")).transpose()?.map(|own| match servers {
            Some(servers) => {
                Tls { ca: own.ca.or_else(|| servers.ca.clone()), identity: own.identity.or(servers.identity.clone()) }
            }
            None => own,
        });
        Ok(Access { tls, user, password, ..Access::default() })
    }

    fn nothing_left(&self, kind: &str) -> Result<(), String> {
        match self.left.first() {
            None => Ok(()),
            Some((name, _)) if ["ca", "cert", "key"].contains(&&**name) => {
                Err(format!("'{name}' is for TLS, which is 'rediss{kind}://'"))
            }
            Some((name, _)) if kind == "+sentinel" && PATHS.contains(&&**name) => {
                Err(format!("'{name}' is for TLS to sentinels, which is 'sentinel_tls=yes'"))
            }
            // The '?' may have been one of a password.
            Some((name, value)) if name.contains('@') || value.contains('@') => {
                Err("a '?' in a password is written %3F".into())
            }
            // The '&' before it may have been one, too.
            Some(_) if self.had_password => {
                Err("dlock does not know all that is behind the '?' (a '&' in a password is written %26)".into())
            }
            Some((name, _)) if name.starts_with("sentinel_") => Err(format!("'{name}' is for 'redis+sentinel://'")),
            Some((name, _)) => Err(format!("dlock knows no '{name}' behind the '?'")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Address, Endpoint, Servers, Tls};
    use std::path::Path;

    fn parse(text: &str) -> Result<Address, String> {
        Address::parse(text, Path::new("/here"))
    }

    fn one(host: &str, port: u16) -> Servers {
        Servers::One(Endpoint::Tcp(host.into(), port))
    }

    #[test]
    fn a_url_names_host_port_user_password_database_and_prefix() {
        let at = parse("redis://bob:p%40s%2Fs@Db.Example:7000/3?prefix=team").expect("a URL");
        assert_eq!(at.servers, one("db.example", 7000));
        assert_eq!(
            (at.access.user.as_deref(), at.access.password.as_deref(), at.access.db, &*at.prefix),
            (Some("bob"), Some("p@s/s"), 3, "team")
        );
        assert_eq!(at.identity(), "redis://db.example:7000/3?prefix=team");
        assert!(!format!("{at:?}").contains("p@s"), "{at:?}");
        let at = parse("redis://:secret@[::1]").expect("a URL");
        assert_eq!((&at.servers, at.access.user.as_deref()), (&one("::1", 6379), None));
        assert_eq!(at.to_string(), "redis at [::1]:6379");
        let at = parse("redis+unix:///run/a%20b.sock?db=2&password=x").expect("a URL");
        assert_eq!(
            (at.servers, at.access.password.as_deref(), at.access.db),
            (Servers::One(Endpoint::Unix("/run/a b.sock".into())), Some("x"), 2)
        );
    }

    #[test]
    fn paths_are_made_absolute_also_for_the_commands_inside() {
        let at = parse("rediss://h?ca=ca.pem&cert=/c&key=k").expect("a URL");
        let tls = at.access.tls.clone().expect("it is rediss");
        assert_eq!(tls.ca.as_deref(), Some(Path::new("/here/ca.pem")));
        assert_eq!(tls.identity, Some(("/c".into(), "/here/k".into())));
        assert_eq!(parse(at.text()).as_ref(), Ok(&at));
    }

    #[test]
    fn sentinels_are_a_list_with_a_master_and_a_login_of_their_own() {
        let text = "redis+sentinel://bob:a%2Cb@S1:7000,s2,[::1]:7001/my%20master/3?prefix=p&sentinel_user=u&sentinel_password=s3cret";
        let at = parse(text).expect("a URL");
        let Servers::Sentinel(sentinels) = &at.servers else { panic!("{at:?}") };
        let endpoint = |host: &str, port| Endpoint::Tcp(host.into(), port);
        assert_eq!(sentinels.at, [endpoint("s1", 7000), endpoint("s2", 26379), endpoint("::1", 7001)]);
        assert_eq!(
            (&*sentinels.master, sentinels.access.user.as_deref(), sentinels.access.password.as_deref()),
            ("my master", Some("u"), Some("s3cret"))
        );
        assert_eq!((at.access.password.as_deref(), at.access.db, at.access.masters_only), (Some("a,b"), 3, true));
        assert_eq!(at.identity(), "redis+sentinel://[::1]:7001,s1:7000,s2:26379/my master/3?prefix=p");
        assert_eq!(parse(at.text()).as_ref(), Ok(&at), "{}", at.text());
        assert!(!format!("{at:?}{:?}", at.servers).contains("s3cret"));
        let nested = parse("redis+sentinel://u:node@h/m?sentinel_password=node123").expect("a URL");
        assert_eq!(nested.without_password("AUTH node123 node"), "AUTH (password) (password)");
        let turned = text.replace("S1:7000,s2,", "s2:26379,s1:7000,");
        assert_eq!(parse(&turned).expect("a URL").identity(), at.identity(), "the order says nothing");
    }

    #[test]
    fn sentinels_have_the_tls_of_the_servers_or_their_own_or_none() {
        let tls = |text: &str| {
            let at = parse(text).expect(text);
            let Servers::Sentinel(sentinels) = at.servers else { panic!("{text}") };
            let ca = |tls: Option<Tls>| tls.map(|tls| tls.ca.expect("one is named"));
            (ca(at.access.tls), ca(sentinels.access.tls))
        };
        let (a, b) = (Some("/a".into()), Some("/b".into()));
        assert_eq!(tls("rediss+sentinel://h/m?ca=/a"), (a.clone(), a.clone()));
        assert_eq!(tls("rediss+sentinel://h/m?ca=/a&sentinel_ca=/b"), (a.clone(), b.clone()));
        assert_eq!(tls("rediss+sentinel://h/m?ca=/a&sentinel_tls=no"), (a, None));
        assert_eq!(tls("redis+sentinel://h/m?sentinel_ca=/b&sentinel_tls=yes"), (None, b));
    }

    #[test]
    fn a_cluster_is_a_list_of_some_of_its_nodes() {
        let at = parse("rediss+cluster://u:p@h2,h1:7000/?ca=ca.pem&wait_replicas=2").expect("a URL");
        let nodes = [("h2", 6379), ("h1", 7000)].map(|(host, port)| Endpoint::Tcp(host.into(), port));
        assert_eq!((&at.servers, at.replicas), (&Servers::Cluster(nodes.into()), 2));
        assert_eq!(at.access.tls.as_ref().and_then(|tls| tls.ca.as_deref()), Some(Path::new("/here/ca.pem")));
        assert_eq!(at.identity(), "redis+cluster://h1:7000,h2:6379?prefix=dlock");
        assert_eq!(parse(at.text()).as_ref(), Ok(&at), "{}", at.text());
    }

    #[test]
    fn what_is_no_url_of_a_redis_is_refused_without_repeating_a_password() {
        for (text, words) in [
            ("redis://", "names no host"),
            ("redis:///1", "names no host"),
            ("redis://u:s3cret/x@h", "cannot be read"),
            ("redis://u:s3cret#x@h", ""),
            ("redis://:s3cret@h/x", "database is a number"),
            ("redis://:s3cret@h?ca=x", "'ca' is for TLS"),
            ("redis://:s3cret@h?wait=1", "knows no 'wait'"),
            ("redis://u:12?s3cret@h", "written %3F"),
            ("redis://u:12?s3cret=et@h", "written %3F"),
            ("redis://:s3cret@h?prefix=a&prefix=b", "twice"),
            ("redis://:s3cret@h?prefix=", "prefix"),
            ("rediss://:s3cret@h?cert=x", "need each other"),
            ("redis+unix://sock", "three slashes"),
            ("redis+unix:///sock?password=a&s3cret", "written %26"),
            ("redis://:s3cret@h:99999", "cannot be read"),
            ("redis://:s3cret@h,i", "which is for 'redis+sentinel://', 'redis+cluster://', 'redis+ring://'"),
            ("redis+sentinel://:s3cret@h,i", "names no master; that is written redis+sentinel://SENTINEL/MASTER"),
            ("redis+sentinel://:s3cret@h,/m", "names no host"),
            ("redis+sentinel://:s3cret@h,i/m/x", "database is a number"),
            ("redis+sentinel://h/m?sentinel_password=a&s3cret", "written %26"),
            ("redis+sentinel://:s3cret@h/m?sentinel_ca=x", "'sentinel_tls=yes'"),
            ("redis+sentinel://:s3cret@h/m?sentinel_tls=on", "yes or no"),
            ("redis+sentinel://:s3cret@h/m?ca=x", "'rediss+sentinel://'"),
            ("redis+cluster://:s3cret@h,i/1", "no databases"),
            ("redis+cluster://:s3cret@h,i:x", "cannot be read"),
            ("redis+cluster://:s3cret@h?sentinel_tls=no", "is for 'redis+sentinel://'"),
            ("redis://:s3cret@h?wait_replicas=all", "number of replicas"),
            ("redis://:s3cret@h?wait_replicas=-1", "number of replicas"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(words) && !error.contains("s3cret"), "{text}: {error}");
        }
    }
}
