//! What sentinels and a cluster have in common: the addresses and certificates of their servers.

use std::time::Duration;

use tempfile::TempDir;

use super::{AT_ONCE, LOGIN, PORT, Server, TESTS, arguments, new_dir, new_host, tls};

/// How the servers of a group are to be.
pub(crate) struct Setup<'a> {
    /// Options of each server that has data, besides those of the group.
    pub(crate) server: &'a [&'a str],
    /// Lines of the config file of each sentinel, besides those of the group.
    pub(crate) sentinel: &'a [&'a str],
    /// Whether they speak TLS with each other, and with others at `tls::PORT`.
    pub(crate) tls: bool,
    /// One that is silent for so long counts as dead.
    pub(crate) down_after: Duration,
}

impl Default for Setup<'_> {
    fn default() -> Self {
        Self { server: &[], sentinel: &[], tls: false, down_after: Duration::from_secs(1) }
    }
}

/// Where the servers of a group are and what they show each other.
pub(super) struct Ground {
    pub(super) hosts: Vec<String>,
    /// What `tls::certify` made, if they speak TLS.
    pub(super) certificates: Option<TempDir>,
}

impl Ground {
    /// For so many servers.
    pub(super) fn new(count: usize, setup: &Setup) -> Self {
        let hosts: Vec<String> = (0..count).map(|_| new_host()).collect();
        let certificates = setup.tls.then(new_dir);
        if let Some(dir) = &certificates {
            let names: Vec<String> = hosts.iter().map(|host| format!("IP:{host}")).collect();
            tls::certify(dir.path(), &names.join(","));
        }
        Self { hosts, certificates }
    }

    /// The port at which they speak with each other.
    pub(super) fn port(&self) -> u16 {
        if self.certificates.is_some() { tls::PORT } else { PORT }
    }

    /// The start of a URL.
    pub(super) fn scheme(&self) -> &'static str {
        if self.certificates.is_some() { "rediss" } else { "redis" }
    }

    /// `h1:6390,h2:6390` of those with these numbers.
    pub(super) fn addresses(&self, numbers: std::ops::Range<usize>) -> String {
        let address = |host: &String| format!("{host}:{}", self.port());
        self.hosts[numbers].iter().map(address).collect::<Vec<_>>().join(",")
    }

    /// The lines of a config file that all of them have.
    pub(super) fn lines(&self) -> Vec<String> {
        let tls = self.certificates.as_ref().map(|dir| tls::lines(dir.path()));
        tls.unwrap_or_default().into_iter().chain([TESTS.into()]).collect()
    }

    /// The arguments of the server with this number: those of all, `own` and those that a test wants.
    pub(super) fn arguments(&self, number: usize, own: &[&str], setup: &Setup) -> Vec<String> {
        let mut all = arguments(&self.hosts[number], &[&AT_ONCE, own].concat());
        for line in self.lines() {
            all.extend(format!("--{line}").split(' ').map(str::to_owned));
        }
        all.extend(setup.server.iter().map(ToString::to_string));
        all
    }
}

impl Server {
    /// Starts one of a group and does not wait for it.
    pub(super) fn in_group(program: &'static str, dir: TempDir, host: &str, arguments: Vec<String>) -> Self {
        let mut server = Self::launch(program, dir, host.to_owned(), arguments);
        server.login = Some(LOGIN);
        server
    }
}
