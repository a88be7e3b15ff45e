//! Where a Redis is, and how one is let in: `redis://[USER[:PASSWORD]@]HOST[:PORT][/DB]`, the same with
//! `rediss` over TLS, and `redis+unix:///SOCKET`.

use std::fmt;
use std::path::{Path, PathBuf};

use percent_encoding::percent_decode_str;
use url::{Host, Url};

const PORT: u16 = 6379;

/// The address of one server.
#[derive(Clone, PartialEq, Eq)]
pub struct Address {
    pub(super) endpoint: Endpoint,
    pub(super) tls: Option<Tls>,
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
    pub(super) db: u32,
    pub(super) prefix: String,
    /// As it was written, paths made absolute.
    text: String,
}

/// What to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Endpoint {
    /// A host, without the brackets of an IPv6 address, and a port.
    Tcp(String, u16),
    /// A socket of this machine.
    Unix(PathBuf),
}

/// Files in PEM that TLS needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tls {
    /// The authorities to trust, in place of the system's.
    pub(super) ca: Option<PathBuf>,
    /// Our own certificate and its key.
    pub(super) identity: Option<(PathBuf, PathBuf)>,
}

impl Address {
    /// Reads a URL. Relative paths in it start at `here`.
    ///
    /// # Errors
    /// What is wrong with it, without any part that may be a password.
    pub fn parse(text: &str, here: &Path) -> Result<Self, String> {
        let mut url = Url::parse(text).map_err(|error| {
            let hint = "'@', ':', '/', '?' and '#' in a password are written %40, %3A, %2F, %3F and %23";
            format!("it cannot be read as a URL: {error} ({hint})")
        })?;
        if url.fragment().is_some() {
            return Err("it has a '#', which is written %23 in a password".into());
        }
        let unix = url.scheme() == "redis+unix";
        let mut parameters = Parameters::read(&mut url, here)?;
        let (user, password) = if unix {
            (parameters.take("user"), parameters.take("password"))
        } else {
            (Some(decode(url.username())?).filter(|user| !user.is_empty()), url.password().map(decode).transpose()?)
        };
        let (endpoint, db) = if unix {
            if url.host().is_some() || url.path().len() < 2 {
                return Err("a socket is written redis+unix:///PATH, with three slashes".into());
            }
            (Endpoint::Unix(decode(url.path())?.into()), parameters.take("db"))
        } else {
            let host = match url.host() {
                Some(Host::Domain("")) | None => return Err("it names no host; that is written redis://HOST".into()),
                Some(Host::Ipv6(ip)) => ip.to_string(),
                Some(host) => decode(&host.to_string())?.to_lowercase(),
            };
            let db = url.path().trim_start_matches('/');
            (Endpoint::Tcp(host, url.port().unwrap_or(PORT)), (!db.is_empty()).then(|| db.to_owned()))
        };
        let db = db.map_or(Ok(0), |db| db.parse().map_err(|_| "the database is a number, as in 'redis://HOST/1'"))?;
        let tls = (url.scheme() == "rediss").then(|| parameters.tls()).transpose()?;
        let prefix = parameters.take("prefix").unwrap_or_else(|| "dlock".into());
        if prefix.is_empty() || prefix.contains(['{', '}']) || prefix.chars().any(char::is_control) {
            return Err("a prefix has at least one character, and no braces".into());
        }
        parameters.nothing_left()?;
        Ok(Self { endpoint, tls, user, password, db, prefix, text: url.into() })
    }

    /// The URL itself, which may hold a password.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// A server's words. One that does not know AUTH repeats what was said to it.
    pub(super) fn without_password(&self, words: &str) -> String {
        match self.password.as_deref() {
            Some(password) if !password.is_empty() => words.replace(password, "(password)"),
            _ => words.into(),
        }
    }

    /// The address as it is for somebody who has neither a password nor a certificate.
    pub(super) fn for_strangers(&self) -> Self {
        let tls = self.tls.as_ref().map(|tls| Tls { identity: None, ..tls.clone() });
        Self { user: None, password: None, tls, ..self.clone() }
    }

    /// The same text for the same store, and without a password.
    pub(in crate::store) fn identity(&self) -> String {
        let Self { db, prefix, .. } = self;
        match &self.endpoint {
            Endpoint::Tcp(host, port) => format!("redis://{host}:{port}/{db}?prefix={prefix}"),
            Endpoint::Unix(path) => format!("redis+unix://{}?db={db}&prefix={prefix}", path.display()),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.endpoint {
            Endpoint::Tcp(host, port) if host.contains(':') => write!(f, "redis at [{host}]:{port}"),
            Endpoint::Tcp(host, port) => write!(f, "redis at {host}:{port}"),
            Endpoint::Unix(path) => write!(f, "redis at {}", path.display()),
        }
    }
}

/// Without what is secret.
impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Address({})", self.identity())
    }
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
            let is_path = ["ca", "cert", "key"].contains(&&*name);
            let path =
                || here.join(&*value).into_os_string().into_string().map_err(|_| format!("'{name}' is not UTF-8"));
            let value = if is_path { path()? } else { value.to_string() };
            if all.iter().any(|(other, _)| *other == name) {
                return Err(format!("'{name}' stands twice in it"));
            }
            all.push((name.to_string(), value));
        }
        url.query_pairs_mut().clear().extend_pairs(&all);
        let had_password = all.iter().any(|(name, _)| name == "password");
        Ok(Self { left: all, had_password })
    }

    fn take(&mut self, name: &str) -> Option<String> {
        let at = self.left.iter().position(|(other, _)| other == name)?;
        Some(self.left.swap_remove(at).1)
    }

    fn tls(&mut self) -> Result<Tls, String> {
        let ca = self.take("ca").map(PathBuf::from);
        match (self.take("cert"), self.take("key")) {
            (Some(cert), Some(key)) => Ok(Tls { ca, identity: Some((cert.into(), key.into())) }),
            (None, None) => Ok(Tls { ca, identity: None }),
            _ => Err("'cert' and 'key' need each other".into()),
        }
    }

    fn nothing_left(&self) -> Result<(), String> {
        match self.left.first() {
            None => Ok(()),
            Some((name, _)) if ["ca", "cert", "key"].contains(&&**name) => {
                Err(format!("'{name}' is for TLS, which is 'rediss://'"))
            }
            // The '?' may have been one of a password.
            Some((name, value)) if name.contains('@') || value.contains('@') => {
                Err("a '?' in a password is written %3F".into())
            }
            // The '&' before it may have been one, too.
            Some(_) if self.had_password => {
                Err("dlock does not know all that is behind the '?' (a '&' in a password is written %26)".into())
            }
            Some((name, _)) => Err(format!("dlock knows no '{name}' behind the '?'")),
        }
    }
}

fn decode(text: &str) -> Result<String, String> {
    let text = percent_decode_str(text).decode_utf8().map_err(|_| "it is not UTF-8")?;
    Ok(text.into_owned())
}

#[cfg(test)]
mod tests {
    use super::{Address, Endpoint};
    use std::path::Path;

    fn parse(text: &str) -> Result<Address, String> {
        Address::parse(text, Path::new("/here"))
    }

    #[test]
    fn a_url_names_host_port_user_password_database_and_prefix() {
        let at = parse("redis://bob:p%40s%2Fs@Db.Example:7000/3?prefix=team").expect("a URL");
        assert_eq!(at.endpoint, Endpoint::Tcp("db.example".into(), 7000));
        assert_eq!(
            (at.user.as_deref(), at.password.as_deref(), at.db, &*at.prefix),
            (Some("bob"), Some("p@s/s"), 3, "team")
        );
        assert_eq!(at.identity(), "redis://db.example:7000/3?prefix=team");
        assert!(!format!("{at:?}").contains("p@s"), "{at:?}");
        let at = parse("redis://:secret@[::1]").expect("a URL");
        assert_eq!((at.endpoint.clone(), at.user.as_deref()), (Endpoint::Tcp("::1".into(), 6379), None));
        assert_eq!(at.to_string(), "redis at [::1]:6379");
        let at = parse("redis+unix:///run/a%20b.sock?db=2&password=x").expect("a URL");
        assert_eq!(
            (at.endpoint, at.password.as_deref(), at.db),
            (Endpoint::Unix("/run/a b.sock".into()), Some("x"), 2)
        );
    }

    #[test]
    fn paths_are_made_absolute_also_for_the_commands_inside() {
        let at = parse("rediss://h?ca=ca.pem&cert=/c&key=k").expect("a URL");
        let tls = at.tls.clone().expect("it is rediss");
        assert_eq!(tls.ca.as_deref(), Some(Path::new("/here/ca.pem")));
        assert_eq!(tls.identity, Some(("/c".into(), "/here/k".into())));
        assert_eq!(parse(at.text()).as_ref(), Ok(&at));
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
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(words) && !error.contains("s3cret"), "{text}: {error}");
        }
    }
}
