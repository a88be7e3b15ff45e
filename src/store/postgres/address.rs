//! Where servers are, how one is let in, and what the tables are called.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::store::address::{listed, sorted, without};
use crate::store::socket::Endpoint;
use crate::store::tls::Tls;

/// The address of a store in a database.
#[derive(Clone, PartialEq, Eq)]
pub struct Address {
    /// The first that lets us in is the one.
    pub(super) hosts: Vec<Endpoint>,
    pub(super) access: Access,
    pub(super) security: Security,
    /// Whoever is a standby is passed over.
    pub(super) primary: bool,
    pub(super) table: Table,
    /// As it was written, paths made absolute.
    pub(super) text: String,
}

/// How one is let in.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Access {
    pub(super) user: String,
    pub(super) password: Option<String>,
    /// Where to look for a password, if there is none.
    pub(super) passfile: Option<PathBuf>,
    pub(super) database: String,
    /// What a session is set to (`-c name=value`).
    pub(super) options: Option<String>,
    /// What the server calls us.
    pub(super) application: String,
}

/// How safe a connection is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Security {
    pub(super) mode: Mode,
    pub(super) tls: Tls,
    pub(super) binding: Binding,
}

/// `sslmode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Without TLS.
    Disable,
    /// Without TLS if that will do.
    Allow,
    /// With TLS if the server can do it.
    Prefer,
    /// With TLS, whoever it may be.
    Require,
    /// With TLS, and a certificate by somebody whom we trust.
    VerifyCa,
    /// The same, and for the name of the host.
    VerifyFull,
}

/// `channel_binding`: whether a login is bound to the certificate that was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Binding {
    Disable,
    Prefer,
    Require,
}

/// The names of the tables: of the records, and of the signs of life of those who wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Table {
    prefix: String,
}

impl Address {
    /// The URL itself, which may hold a password.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// A server's words, which may repeat ours.
    pub(super) fn without_password(&self, words: &str) -> String {
        without(words, self.access.password.as_deref())
    }

    /// The same text for the same store, and without a password.
    pub(in crate::store) fn identity(&self) -> String {
        format!("postgres://{}/{}?prefix={}", sorted(&self.hosts), self.access.database, self.table.prefix)
    }

    /// The password for a server: that of the URL or of the environment, or the one that a file has for it.
    pub(super) fn password(&self, server: &Endpoint) -> Option<String> {
        self.access.password.clone().or_else(|| {
            let text = std::fs::read_to_string(readable_by_us_alone(self.access.passfile.as_deref()?)?).ok()?;
            let (host, port) = match server {
                Endpoint::Tcp(host, port) => (host.clone(), port.to_string()),
                // As libpq has it: whoever uses a socket writes 'localhost'.
                Endpoint::Unix(path) => {
                    ("localhost".into(), path.extension().unwrap_or_default().to_string_lossy().into_owned())
                }
            };
            let wanted = [&host, &port, &self.access.database, &self.access.user];
            text.lines().filter(|line| !line.starts_with('#')).find_map(|line| password_of(line, wanted))
        })
    }
}

/// A file with passwords that others may read is not used, as with libpq.
fn readable_by_us_alone(path: &Path) -> Option<&Path> {
    use std::os::unix::fs::PermissionsExt as _;
    let meta = std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file)?;
    if meta.permissions().mode() & 0o077 != 0 {
        log::warn!("'{}' is not used: others may read it; 'chmod 600' it", path.display());
        return None;
    }
    Some(path)
}

/// The password in a line `host:port:database:user:password`, if it is for these.
fn password_of(line: &str, wanted: [&String; 4]) -> Option<String> {
    let mut fields = Vec::new();
    let mut field = String::new();
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => field.extend(characters.next()),
            ':' if fields.len() < 4 => fields.push(std::mem::take(&mut field)),
            other => field.push(other),
        }
    }
    fields.push(field);
    let [host, port, database, user, password] = <[String; 5]>::try_from(fields).ok()?;
    let fits = |(field, wanted): (&String, &String)| *field == "*" || field == wanted;
    [&host, &port, &database, &user].into_iter().zip(wanted).all(fits).then_some(password)
}

impl Table {
    /// The tables whose names begin so: with a schema before it, or none.
    pub(super) fn parse(prefix: &str) -> Result<Self, String> {
        let is_name = |part: &str| {
            let mut bytes = part.bytes();
            bytes.next().is_some_and(|first| first.is_ascii_lowercase() || first == b'_')
                && bytes.all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
                && part.len() <= 40
        };
        let parts = prefix.split('.');
        if parts.clone().count() > 2 || !parts.clone().all(is_name) {
            return Err(
                "a prefix names a table, or 'SCHEMA.TABLE': small letters, digits and '_', at most 40 each".into()
            );
        }
        if prefix.ends_with("_life") {
            return Err("a prefix does not end in '_life', as the other table of a store does".into());
        }
        Ok(Self { prefix: prefix.to_owned() })
    }

    /// As it was written.
    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The table of the records, for a statement.
    pub(super) fn records(&self) -> String {
        format!("\"{}\"", self.prefix.replace('.', "\".\""))
    }

    /// The table of the signs of life, for a statement.
    pub(super) fn life(&self) -> String {
        format!("\"{}_life\"", self.prefix.replace('.', "\".\""))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "postgres at {}", listed(&self.hosts))
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
    use super::{Table, password_of};

    #[test]
    fn a_line_of_passwords_is_for_whom_it_names() {
        let wanted = ["h:1", "5432", "db", "bob"].map(str::to_owned);
        let password = |line: &str| password_of(line, [&wanted[0], &wanted[1], &wanted[2], &wanted[3]]);
        assert_eq!(password(r"h\:1:5432:db:bob:a:\\b").as_deref(), Some(r"a:\b"));
        assert_eq!(password("*:*:*:*:x").as_deref(), Some("x"));
        assert_eq!(password("*:*:*:alice:x"), None);
        assert_eq!(password("*:*:*"), None);
    }

    #[test]
    fn a_prefix_is_a_name_that_needs_no_thought() {
        assert_eq!(Table::parse("a.b_1").map(|table| (table.records(), table.life())), {
            Ok(("\"a\".\"b_1\"".into(), "\"a\".\"b_1_life\"".into()))
        });
        for bad in ["", "a.b.c", "a.", "1a", "a\"b", "A", "a-b", &"a".repeat(41)] {
            assert!(Table::parse(bad).is_err(), "{bad}");
        }
    }
}
