//! From a text to an [`Address`], as libpq reads it: `postgres://[USER[:PASSWORD]@][HOST[:PORT],…][/DATABASE][?…]`. What
//! the URL leaves out comes from a service file, from the environment, or is what it is everywhere.

use std::path::{Path, PathBuf};

use nix::unistd::{User, geteuid};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC};

use super::address::{Access, Address, Binding, Mode, Security, Table};
use crate::store::address::{self, absolute, decode, written};
use crate::store::socket::Endpoint;
use crate::store::tls::Tls;

/// The parameters that mean something here, and the variables that stand for them.
const KNOWN: [(&str, &str); 16] = [
    ("host", "PGHOST"),
    ("port", "PGPORT"),
    ("dbname", "PGDATABASE"),
    ("user", "PGUSER"),
    ("password", "PGPASSWORD"),
    ("passfile", "PGPASSFILE"),
    ("service", "PGSERVICE"),
    ("sslmode", "PGSSLMODE"),
    ("sslrootcert", "PGSSLROOTCERT"),
    ("sslcert", "PGSSLCERT"),
    ("sslkey", "PGSSLKEY"),
    ("options", "PGOPTIONS"),
    ("application_name", "PGAPPNAME"),
    ("target_session_attrs", "PGTARGETSESSIONATTRS"),
    ("channel_binding", "PGCHANNELBINDING"),
    ("prefix", ""),
];

/// Parameters of libpq that change nothing here: waits have limits of dlock's own, and so have connections.
const IGNORED: [&str; 11] = [
    "connect_timeout",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_count",
    "tcp_user_timeout",
    "fallback_application_name",
    "client_encoding",
    "gssencmode",
    "sslsni",
    "load_balance_hosts",
];

/// Parameters that are paths.
const PATHS: [&str; 4] = ["passfile", "sslrootcert", "sslcert", "sslkey"];

/// What of a value is written as it is.
const PLAIN: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'_').remove(b'.').remove(b',').remove(b':');

/// The directory of a server's socket, where Debian and others put it, and where PostgreSQL does.
const SOCKETS: [&str; 2] = ["/var/run/postgresql", "/tmp"];

/// What a variable of the environment holds.
type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

impl Address {
    /// Reads a URL. Relative paths in it start at `here`.
    ///
    /// # Errors
    /// What is wrong with it, without any part that may be a password.
    pub fn parse(text: &str, here: &Path) -> Result<Self, String> {
        Self::read(text, here, &|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn read(text: &str, here: &Path, environment: Environment) -> Result<Self, String> {
        let mut parameters = Parameters::of(text, here)?;
        let text = written(text, &parameters.query, PLAIN);
        parameters.take_from_service(environment)?;
        for (name, variable) in KNOWN.into_iter().filter(|(_, variable)| !variable.is_empty()) {
            if let Some(value) = environment(variable) {
                parameters.add(name, || value);
            }
        }
        let user = parameters.take("user").map_or_else(our_name, Ok)?;
        let database = parameters.take("dbname").unwrap_or_else(|| user.clone());
        let hosts = hosts(parameters.take("host"), parameters.take("port"))?;
        let passfile = parameters.take("passfile").map(PathBuf::from);
        let passfile = passfile.or_else(|| environment("HOME").map(|home| Path::new(&home).join(".pgpass")));
        let primary = match parameters.take("target_session_attrs").as_deref() {
            // A standby takes no lock, so among several the other one is meant.
            None => hosts.len() > 1,
            Some("any") => false,
            Some("read-write" | "primary") => true,
            Some("read-only" | "standby" | "prefer-standby") => return Err("a standby takes no locks".into()),
            Some(_) => return Err("'target_session_attrs' is any, read-write or primary".into()),
        };
        let security = security(&mut parameters)?;
        let access = Access {
            user,
            database,
            password: parameters.take("password"),
            passfile,
            options: parameters.take("options"),
            application: parameters.take("application_name").unwrap_or_else(|| "dlock".into()),
        };
        if [&access.user, &access.database, &access.application].into_iter().any(|value| value.contains('\0')) {
            return Err("a name has no %00 in it".into());
        }
        let table = Table::parse(&parameters.take("prefix").unwrap_or_else(|| "dlock".into()))?;
        Ok(Self { hosts, access, security, primary, table, text })
    }
}

fn our_name() -> Result<String, String> {
    let user = User::from_uid(geteuid()).ok().flatten();
    user.map(|user| user.name).ok_or_else(|| "it names no user, and this process has no name of its own".into())
}

/// The servers: as many ports as hosts, or one for all.
fn hosts(hosts: Option<String>, ports: Option<String>) -> Result<Vec<Endpoint>, String> {
    let directory = || SOCKETS.into_iter().find(|path| Path::new(path).is_dir()).unwrap_or("localhost").to_owned();
    let hosts = hosts.unwrap_or_else(directory);
    let ports = ports.unwrap_or_default();
    let (hosts, ports): (Vec<&str>, Vec<&str>) = (hosts.split(',').collect(), ports.split(',').collect());
    if ports.len() != 1 && ports.len() != hosts.len() {
        return Err(format!("it has {} ports for {} hosts", ports.len(), hosts.len()));
    }
    let endpoint = |(at, host): (usize, &&str)| {
        let port = match ports.get(at).or(ports.first()).copied().unwrap_or_default() {
            "" => 5432,
            port => port.parse().ok().filter(|port| *port > 0).ok_or("a port is a number from 1 to 65535")?,
        };
        match *host {
            "" => Err("one of its hosts has no name".to_owned()),
            path if path.starts_with('/') => Ok(Endpoint::Unix(Path::new(path).join(format!(".s.PGSQL.{port}")))),
            host => Ok(Endpoint::Tcp(host.to_lowercase(), port)),
        }
    };
    hosts.iter().enumerate().map(endpoint).collect()
}

fn security(parameters: &mut Parameters) -> Result<Security, String> {
    let Tls { ca, identity } = Tls::of(["sslrootcert", "sslcert", "sslkey"], |name| parameters.take(name))?;
    // libpq takes this word for the system's authorities, and then wants to know all.
    let system = ca.as_deref().is_some_and(|ca| ca.ends_with("system") && !ca.exists());
    let mode = match parameters.take("sslmode").as_deref() {
        None if system => Mode::VerifyFull,
        None | Some("prefer") => Mode::Prefer,
        Some("disable") => Mode::Disable,
        Some("allow") => Mode::Allow,
        // So does libpq, for the sake of old programs.
        Some("require") if ca.is_some() && !system => Mode::VerifyCa,
        Some("require") => Mode::Require,
        Some("verify-ca") => Mode::VerifyCa,
        Some("verify-full") => Mode::VerifyFull,
        Some(_) => return Err("'sslmode' is disable, allow, prefer, require, verify-ca or verify-full".into()),
    };
    let binding = match parameters.take("channel_binding").as_deref() {
        None | Some("prefer") => Binding::Prefer,
        Some("disable") => Binding::Disable,
        Some("require") => Binding::Require,
        Some(_) => return Err("'channel_binding' is disable, prefer or require".into()),
    };
    Ok(Security { mode, tls: Tls { ca: ca.filter(|_| !system), identity }, binding })
}

/// What is known of a store, by the names of libpq.
struct Parameters {
    all: Vec<(String, String)>,
    /// What of it stood behind the `?`.
    query: Vec<(String, String)>,
}

impl Parameters {
    /// Those of a URL, its paths made absolute.
    fn of(text: &str, here: &Path) -> Result<Self, String> {
        let (_, rest) = text.split_once("://").ok_or("it is written postgres://HOST/DATABASE")?;
        if rest.contains('#') {
            return Err("it has a '#', which is written %23 in a password".into());
        }
        let (rest, query) = rest.split_once('?').map_or((rest, None), |(rest, query)| (rest, Some(query)));
        let mut query_pairs = Vec::new();
        for pair in query.into_iter().flat_map(|query| query.split('&')).filter(|pair| !pair.is_empty()) {
            query_pairs.push(parameter(pair, here, &query_pairs)?);
        }
        let mut parameters = Self { all: Vec::new(), query: query_pairs };
        let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
        if database.contains('@') {
            return Err("it has an '@' behind a '/': a '/' in a password is written %2F, an '@' anywhere %40".into());
        }
        let (login, hosts) =
            authority.rsplit_once('@').map_or((None, authority), |(login, hosts)| (Some(login), hosts));
        let (user, password) =
            login.map_or(("", None), |login| login.split_once(':').map_or((login, None), |(u, p)| (u, Some(p))));
        let (names, ports) = split(hosts)?;
        let has_host = names.iter().any(|name| !name.is_empty());
        let has_port = ports.iter().any(|port| !port.is_empty());
        for (name, value) in [
            ("user", Some(user).filter(|user| !user.is_empty()).map(str::to_owned)),
            ("password", password.map(str::to_owned)),
            ("dbname", Some(database).filter(|name| !name.is_empty()).map(str::to_owned)),
            ("host", has_host.then(|| names.join(","))),
            ("port", has_port.then(|| ports.join(","))),
        ] {
            if let Some(value) = value {
                let value = decode(&value)?;
                parameters.add(name, || value);
            }
        }
        for (name, value) in parameters.query.clone() {
            // What stands twice is meant as it stands last, as with libpq.
            parameters.all.retain(|(other, _)| *other != name);
            parameters.all.push((name, value));
        }
        Ok(parameters)
    }

    /// Adds what is not there yet.
    fn add(&mut self, name: &str, value: impl FnOnce() -> String) {
        if self.all.iter().all(|(other, _)| other != name) {
            self.all.push((name.to_owned(), value()));
        }
    }

    fn take(&mut self, name: &str) -> Option<String> {
        let at = self.all.iter().position(|(other, _)| other == name)?;
        Some(self.all.swap_remove(at).1)
    }

    /// Adds what a service file says of the service that is named (libpq, "The Connection Service File").
    fn take_from_service(&mut self, environment: Environment) -> Result<(), String> {
        let Some(service) = self.take("service").or_else(|| environment("PGSERVICE")) else { return Ok(()) };
        let own = environment("PGSERVICEFILE").map(PathBuf::from);
        let own = own.or_else(|| environment("HOME").map(|home| Path::new(&home).join(".pg_service.conf")));
        let common = environment("PGSYSCONFDIR").unwrap_or_else(|| "/etc/postgresql-common".into());
        for file in own.into_iter().chain([Path::new(&common).join("pg_service.conf")]) {
            let Ok(text) = std::fs::read_to_string(&file) else { continue };
            let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
            if lines.by_ref().all(|line| line != format!("[{service}]")) {
                continue;
            }
            for line in lines.take_while(|line| !line.starts_with('[')) {
                let (name, value) = line.split_once('=').unwrap_or((line, ""));
                let (name, value) = (name.trim(), value.trim());
                is_known(name).map_err(|why| format!("'{}': {why}", file.display()))?;
                self.add(name, || value.to_owned());
            }
            return Ok(());
        }
        Err(format!("there is no service '{service}' in ~/.pg_service.conf or in {common}"))
    }
}

/// A parameter behind the `?`.
fn parameter(pair: &str, here: &Path, others: &[(String, String)]) -> Result<(String, String), String> {
    let (name, value) = address::parameter(pair)?;
    if let Err(why) = is_known(&name) {
        let secret = others.iter().any(|(name, _)| name == "password");
        return Err(if secret { "a '&' in a password is written %26".into() } else { why });
    }
    let is_path = PATHS.contains(&&*name) && !(name == "sslrootcert" && value == "system");
    let value = if is_path { absolute(here, &name, &value)? } else { value };
    Ok((name, value))
}

fn is_known(name: &str) -> Result<(), String> {
    if KNOWN.iter().any(|(known, _)| *known == name) || IGNORED.contains(&name) {
        return Ok(());
    }
    Err(format!("dlock knows no '{name}' behind the '?'"))
}

/// The names and the ports of `HOST[:PORT],…`, where an IPv6 address stands in brackets.
fn split(hosts: &str) -> Result<(Vec<&str>, Vec<&str>), String> {
    let one = |host: &'_ str| -> Result<(usize, usize), String> {
        let end = if host.starts_with('[') {
            host.find(']').ok_or("an IPv6 address ends with ']'")? + 1
        } else {
            host.find(':').unwrap_or(host.len())
        };
        match host.get(end..end + 1) {
            None | Some(":") => Ok((end, (end + 1).min(host.len()))),
            Some(_) => Err("behind an IPv6 address there is ':' and a port, or nothing".into()),
        }
    };
    let mut names = Vec::new();
    let mut ports = Vec::new();
    for host in hosts.split(',') {
        let (end, port) = one(host)?;
        names.push(host[..end].trim_start_matches('[').trim_end_matches(']'));
        ports.push(&host[port..]);
    }
    Ok((names, ports))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::address::{Address, Binding, Mode};
    use crate::store::socket::Endpoint;

    fn parse(text: &str) -> Result<Address, String> {
        within(text, &[])
    }

    fn within(text: &str, environment: &[(&str, &str)]) -> Result<Address, String> {
        let value = |name: &str| environment.iter().find(|(known, _)| *known == name).map(|(_, v)| (*v).to_owned());
        Address::read(text, Path::new("/here"), &value)
    }

    fn tcp(host: &str, port: u16) -> Endpoint {
        Endpoint::Tcp(host.into(), port)
    }

    #[test]
    fn a_url_names_hosts_a_login_a_database_and_a_table() {
        let at = parse("postgresql://bob:p%40s%2Fs@Db.Example:7000,[::1],c/work?prefix=team.locks").expect("a URL");
        assert_eq!(at.hosts, [tcp("db.example", 7000), tcp("::1", 5432), tcp("c", 5432)]);
        assert_eq!(
            (&*at.access.user, at.access.password.as_deref(), &*at.access.database, at.table.prefix(), at.primary),
            ("bob", Some("p@s/s"), "work", "team.locks", true)
        );
        assert_eq!(at.identity(), "postgres://[::1]:5432,c:5432,db.example:7000/work?prefix=team.locks");
        assert!(!format!("{at:?}{at}").contains("p@s"), "{at:?}");
        assert_eq!(parse(at.text()).as_ref(), Ok(&at));
        let at = parse("postgres://bob@h").expect("a URL");
        assert_eq!((&*at.access.database, at.primary, at.security.mode), ("bob", false, Mode::Prefer));
    }

    #[test]
    fn a_socket_is_a_host_that_begins_with_a_slash() {
        for text in ["postgres://u@%2Frun%2Fpg:7/d", "postgres://u@/d?host=/run/pg&port=7"] {
            assert_eq!(parse(text).expect(text).hosts, [Endpoint::Unix("/run/pg/.s.PGSQL.7".into())], "{text}");
        }
    }

    #[test]
    fn the_environment_says_what_the_url_leaves_out() {
        let environment =
            [("PGHOST", "a,b"), ("PGPORT", "1,2"), ("PGUSER", "eve"), ("PGPASSWORD", "x"), ("PGSSLMODE", "require")];
        let at = within("postgres:///d?user=bob", &environment).expect("a URL");
        assert_eq!(at.hosts, [tcp("a", 1), tcp("b", 2)]);
        assert_eq!(
            (&*at.access.user, at.access.password.as_deref(), at.security.mode),
            ("bob", Some("x"), Mode::Require)
        );
    }

    #[test]
    fn a_service_says_what_the_url_leaves_out() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("services");
        std::fs::write(&file, "# ours\n[other]\nhost=no\n[locks]\nhost = db\nport=7\ndbname=d\n[last]\nuser=no\n")
            .expect("written");
        let environment = [("PGSERVICEFILE", file.to_str().expect("UTF-8")), ("PGUSER", "bob"), ("PGHOST", "env")];
        let at = within("postgres://?service=locks", &environment).expect("a service");
        assert_eq!((at.hosts.as_slice(), &*at.access.user, &*at.access.database), (&[tcp("db", 7)][..], "bob", "d"));
        assert!(within("postgres://?service=none", &environment).is_err_and(|why| why.contains("no service 'none'")));
    }

    #[test]
    fn paths_are_made_absolute_also_for_the_commands_inside() {
        let at = parse("postgres://u@h?sslrootcert=ca.pem&sslcert=/c&sslkey=k&sslmode=require").expect("a URL");
        assert_eq!(at.security.mode, Mode::VerifyCa, "as libpq does");
        assert_eq!(at.security.tls.ca.as_deref(), Some(Path::new("/here/ca.pem")));
        assert_eq!(at.security.tls.identity, Some(("/c".into(), "/here/k".into())));
        assert_eq!(parse(at.text()).as_ref(), Ok(&at));
        let at = parse("postgres://u@h?sslrootcert=system&channel_binding=require").expect("a URL");
        assert_eq!(
            (at.security.mode, at.security.tls.ca.as_ref(), at.security.binding),
            (Mode::VerifyFull, None, Binding::Require)
        );
        assert_eq!(parse(at.text()).as_ref(), Ok(&at));
    }

    #[test]
    fn what_is_not_good_is_said_without_a_secret() {
        for (text, words) in [
            ("postgres://u:se#cret@h", "%23"),
            ("postgres://u:se?cret@h", "%3F"),
            ("postgres://u:se/cret@h/db", "%2F"),
            ("postgres://u:12/cret@h/db", "%2F"),
            ("postgres://u:se@it/cret@h/db", "%2F"),
            ("postgres://u@h?password=se&cret", "%26"),
            ("postgres://u:secret@h?sslmod=require", "no 'sslmod'"),
            ("postgres://u:secret@h?sslmode=on", "'sslmode' is"),
            ("postgres://u:secret@h?sslcert=c", "need each other"),
            ("postgres://u:secret@h:x", "port"),
            ("postgres://u:secret@a,b?port=1,2,3", "3 ports for 2 hosts"),
            ("postgres://u:secret@a,,b", "no name"),
            ("postgres://u:secret@[::1", "']'"),
            ("postgres://u:secret@h?target_session_attrs=standby", "no locks"),
            ("postgres://u:secret@h?prefix=a-b", "names a table"),
            ("postgres://u:secret@h?prefix=a_life", "_life"),
        ] {
            let why = parse(text).expect_err(text);
            assert!(why.contains(words) && !why.contains("cret"), "{text}: {why}");
        }
    }
}
