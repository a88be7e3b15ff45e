//! From a text to an [`Address`]: `nats://[LOGIN@]HOST[:PORT],…[?…]`. A login is `USER:PASSWORD`, or a token alone.

use std::path::{Path, PathBuf};

use super::address::{Access, Address, Bucket, Storage};
use crate::store::address::decode;
use crate::store::location::Location;
use crate::store::tls::Tls;

/// The port of NATS.
const PORT: u16 = 4222;

/// What may stand behind the `?`.
const KNOWN: [&str; 10] =
    ["prefix", "replicas", "storage", "domain", "nkey", "creds", "ca", "cert", "key", "tls_first"];

/// Parameters that are paths.
const PATHS: [&str; 5] = ["nkey", "creds", "ca", "cert", "key"];

impl Address {
    /// Reads a URL. Relative paths in it start at `here`.
    ///
    /// # Errors
    /// What is wrong with it, without any part that may be a password.
    pub fn parse(text: &str, here: &Path) -> Result<Self, String> {
        let mut at = Location::read(text, "nats://HOST", (&KNOWN, &PATHS), here)?;
        let [nkey, creds] = ["nkey", "creds"].map(|name| at.take(name).map(PathBuf::from));
        let access = match (at.login, nkey, creds) {
            (None, None, None) => Access::Anybody,
            (Some(login), None, None) => match login.split_once(':') {
                Some((user, password)) => Access::User { user: decode(user)?, password: decode(password)? },
                None => Access::Token(decode(login)?),
            },
            (None, Some(file), None) => Access::Nkey(file),
            (None, None, Some(file)) => Access::Creds(file),
            _ => return Err("it has more than one login: before the '@', 'nkey' and 'creds'".into()),
        };
        let tls = at.tls()?;
        let tls_first = match at.take("tls_first").as_deref() {
            None | Some("false") => false,
            Some("true") => true,
            Some(_) => return Err("'tls_first' is true or false".into()),
        };
        let secure = at.scheme == "nats+tls";
        if !secure && (tls != Tls::default() || tls_first) {
            return Err("'ca', 'cert', 'key' and 'tls_first' are for nats+tls://".into());
        }
        let replicas = at.take("replicas").map(|count| match count.parse() {
            Ok(count @ (1 | 3 | 5)) => Ok(count),
            _ => Err("'replicas' is 1, 3 or 5"),
        });
        let storage = match at.take("storage").as_deref() {
            None | Some("file") => Storage::File,
            Some("memory") => Storage::Memory,
            Some(_) => return Err("'storage' is file or memory".into()),
        };
        let bucket = Bucket {
            name: at.take("prefix").map_or_else(|| Ok("dlock".into()), |name| token(name, "prefix"))?,
            replicas: replicas.transpose()?,
            storage,
            domain: at.take("domain").map(|name| token(name, "domain")).transpose()?,
        };
        Ok(Self { hosts: at.hosts(PORT)?, access, secure, tls_first, tls, bucket, text: at.text })
    }
}

/// The name of a bucket, or of a domain.
fn token(name: String, what: &str) -> Result<String, String> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || [b'-', b'_'].contains(&byte);
    if name.is_empty() || name.len() > 64 || !name.bytes().all(is_plain) {
        return Err(format!("'{what}' is 1 to 64 letters, digits, '-' and '_'"));
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::address::{Access, Address, Storage};
    use crate::store::socket::Endpoint;

    fn parse(text: &str) -> Result<Address, String> {
        Address::parse(text, Path::new("/here"))
    }

    fn tcp(host: &str, port: u16) -> Endpoint {
        Endpoint::Tcp(host.into(), port)
    }

    #[test]
    fn a_url_names_hosts_a_login_and_a_bucket() {
        let at =
            parse("nats://bob:p%40s%2Fs@N1.Example:7000,[::1],c?prefix=team&replicas=3&domain=hub").expect("a URL");
        assert_eq!(at.hosts, [tcp("n1.example", 7000), tcp("::1", 4222), tcp("c", 4222)]);
        assert!(matches!(&at.access, Access::User { user, password } if user == "bob" && password == "p@s/s"));
        assert_eq!((at.bucket.replicas, at.bucket.storage, at.secure), (Some(3), Storage::File, false));
        assert_eq!(at.identity(), "nats://[::1]:4222,c:4222,n1.example:7000?prefix=team&domain=hub");
        assert_eq!(at.bucket.ask("INFO"), "$JS.hub.API.STREAM.INFO.KV_team");
        assert!(!format!("{at:?}{at}").contains("p@s"), "{at:?}");
        assert_eq!(parse(at.text()).as_ref(), Ok(&at));
    }

    #[test]
    fn a_login_may_be_a_token_or_a_file() {
        assert!(matches!(parse("nats://s3cret@h").expect("a URL").access, Access::Token(token) if token == "s3cret"));
        let at = parse("nats+tls://h/?creds=me.creds&ca=ca.pem&tls_first=true&storage=memory").expect("a URL");
        assert!(matches!(&at.access, Access::Creds(file) if file == Path::new("/here/me.creds")));
        assert_eq!(at.tls.ca.as_deref(), Some(Path::new("/here/ca.pem")), "also for the commands inside");
        assert_eq!((at.secure, at.tls_first, at.bucket.storage), (true, true, Storage::Memory));
        assert_eq!(parse(at.text()).as_ref(), Ok(&at));
    }

    #[test]
    fn what_is_not_good_is_said_without_a_secret() {
        for (text, words) in [
            ("nats://u:se#cret@h", "%23"),
            ("nats://u:se?cret@h", "%3F"),
            ("nats://u:se/cret", "%2F"),
            ("nats://u:se/cret@h", "%2F"),
            ("nats://se/cret@h", "%2F"),
            ("nats://u:secret@h?prefx=a", "no 'prefx'"),
            ("nats://u:secret@h?prefix=a.b", "'prefix' is"),
            ("nats://u:secret@h?domain=", "'domain' is"),
            ("nats://u:secret@h?replicas=2", "'replicas' is"),
            ("nats://u:secret@h?storage=disk", "'storage' is"),
            ("nats://u:secret@h?creds=f", "more than one login"),
            ("nats://u:secret@h?ca=f", "nats+tls"),
            ("nats+tls://u:secret@h?cert=f", "need each other"),
            ("nats://u:secret@h:x", "port"),
            ("nats://u:secret@a,,b", "no name"),
            ("nats://u:secret@[::1", "']'"),
            ("nats://u:secret@h?prefix=a&prefix=b", "twice"),
        ] {
            let why = parse(text).expect_err(text);
            assert!(why.contains(words) && !why.contains("cret"), "{text}: {why}");
        }
    }
}
