//! Redis and Valkey servers of a test's own: on an address that no other test uses, and killed with the test.

mod cluster;
mod group;
mod nodes;
mod sentinel;
mod shared;
pub(crate) mod tls;

use std::collections::HashMap;
use std::net::TcpStream;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{SigHandler, Signal, kill, signal};
use nix::unistd::Pid;
use redis::{Commands as _, Connection, FromRedisValue, RedisResult, Value};
use tempfile::TempDir;

pub(crate) use self::cluster::Cluster;
pub(crate) use self::group::Setup;
pub(crate) use self::nodes::Nodes;
pub(crate) use self::sentinel::Sentinels;
pub(crate) use self::shared::{shared_cluster, shared_nodes, shared_sentinels};
use super::activity::local_addresses;
use super::address::new_prefix;
pub(crate) use super::address::{PORT, new_host};
use super::{Running, Store, command, has, state, wait_for};

/// Redis as Debian has it.
pub(crate) const REDIS: &str = "redis-server";

/// The oldest that is supported, from `PyPI`.
pub(crate) const REDIS_6: &str = "redis-server-6.2";

/// Valkey, from `PyPI`.
pub(crate) const VALKEY: &str = "valkey-server";

/// A server. Killed at the end.
pub(crate) struct Server {
    program: &'static str,
    dir: TempDir,
    /// Its address: one of the many of the loopback network, so that tests do not fight for ports.
    pub(crate) host: String,
    arguments: Vec<String>,
    /// The user and the password that let the test in, if it needs any.
    login: Option<[&'static str; 2]>,
    child: Child,
}

/// The servers of a store.
pub(crate) enum Servers {
    /// One of its own.
    Own(Server),
    /// Those of sentinels that all tests share.
    Sentinels(&'static Sentinels),
    /// Those of a cluster that all tests share.
    Cluster(&'static Cluster),
    /// Some that know nothing of each other, and that all tests share.
    Nodes(&'static Nodes),
}

/// The user as which a test speaks with the servers of a group, whatever they want of others. Any password is good.
const TESTS: &str = "user tests on nopass ~* &* +@all";

/// How the test logs in as that user.
const LOGIN: [&str; 2] = ["tests", "any"];

/// What makes a replica have its master's data as soon as it can.
const AT_ONCE: [&str; 6] =
    ["--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1"];

/// Runs a test on a server's store, if that server is installed.
pub(crate) fn on_a_server(program: &'static str, test: fn(&Store)) {
    if has(program) {
        test(&Store::on(Server::start(program, &[])));
    }
}

/// Runs a test on a store's share of a group of servers, if that kind is installed.
pub(crate) fn on_a_share(make: fn() -> Store, test: fn(&Store)) {
    if has(REDIS) {
        test(&make());
    }
}

/// Runs a test with the name of each kind of server that is installed. Both at once.
pub(crate) fn on_each(test: impl Fn(&'static str) + Sync) {
    thread::scope(|scope| {
        for program in [REDIS, VALKEY].into_iter().filter(|program| has(program)) {
            let test = &test;
            scope.spawn(move || test(program));
        }
    });
}

/// Runs a test on each kind of server that is installed.
pub(crate) fn on_both(test: impl Fn(&Store) + Sync) {
    on_both_with(&[], |store| test(store));
}

/// The same, with options for the server. Both at once.
pub(crate) fn on_both_with(options: &[&str], test: impl Fn(&mut Store) + Sync) {
    thread::scope(|scope| {
        for program in [REDIS, VALKEY] {
            if has(program) {
                scope.spawn(|| test(&mut Store::on(Server::start(program, options))));
            }
        }
    });
}

impl Server {
    /// Starts a server with these options besides those that a test wants.
    pub(crate) fn start(program: &'static str, options: &[&str]) -> Self {
        Self::start_at(program, &new_host(), options)
    }

    /// The same at this address.
    pub(crate) fn start_at(program: &'static str, host: &str, options: &[&str]) -> Self {
        let server = Self::launch(program, new_dir(), host.to_owned(), arguments(host, options));
        server.await_ready();
        server
    }

    /// Starts one, and does not wait for it.
    fn launch(program: &'static str, dir: TempDir, host: String, arguments: Vec<String>) -> Self {
        let child = spawn(program, &dir, &arguments);
        Self { program, dir, host, arguments, login: None, child }
    }

    /// The URL of its store.
    pub(crate) fn url(&self) -> String {
        format!("redis://{}:{PORT}", self.host)
    }

    /// What it is.
    pub(crate) fn program(&self) -> &'static str {
        self.program
    }

    /// A file of the server's.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("it runs");
    }

    /// Stops it for a while: connections stay, nobody answers.
    pub(crate) fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
    }

    pub(crate) fn thaw(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// Kills it.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts it again, on the same address and with the files that it left.
    pub(crate) fn start_again(&mut self) {
        self.child = spawn(self.program, &self.dir, &self.arguments);
        self.await_ready();
    }

    /// A connection of the test's own.
    pub(crate) fn connection(&self) -> Connection {
        self.try_connect().expect("the server takes us in")
    }

    fn try_connect(&self) -> RedisResult<Connection> {
        let login = self.login.map_or_else(String::new, |[user, password]| format!("{user}:{password}@"));
        let client = redis::Client::open(self.url().replace("//", &format!("//{login}"))).expect("a URL");
        client.get_connection_with_timeout(Duration::from_secs(20))
    }

    /// Does a command.
    pub(crate) fn ask(&self, words: &[&str]) -> Value {
        self.try_ask(words).unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    /// The same, of a server that may be away or not ready yet.
    pub(crate) fn try_ask<T: FromRedisValue>(&self, words: &[&str]) -> RedisResult<T> {
        redis::cmd(words[0]).arg(&words[1..]).query(&mut self.try_connect()?)
    }

    /// Whether it can answer: it was not killed, and is not frozen.
    fn is_awake(&self) -> bool {
        state(self.pid().as_raw()).is_some_and(|state| !['T', 'Z', 'X'].contains(&state))
    }

    /// All keys of its first database, sorted.
    pub(crate) fn keys(&self) -> Vec<String> {
        let mut keys: Vec<String> = self.connection().keys("*").expect("it has keys");
        keys.sort();
        keys
    }

    /// The fields of a key's record.
    pub(crate) fn record(&self, key: &str) -> HashMap<String, String> {
        self.connection().hgetall(format!("dlock:{{{key}}}:record")).expect("it is a hash")
    }

    /// Whether a key is offered to somebody who waits for it.
    pub(crate) fn has_offered(&self, key: &str) -> bool {
        self.record(key).keys().any(|field| field.starts_with("o:"))
    }

    /// How often a command was called, those in scripts included.
    pub(crate) fn calls(&self, command: &str) -> u64 {
        let stats: String =
            redis::cmd("INFO").arg("commandstats").query(&mut self.connection()).expect("it counts commands");
        let line = stats.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
        line.and_then(|line| line.split(',').next()).map_or(0, |count| count.parse().expect("a number"))
    }

    /// The addresses of the clients that sleep on a list.
    pub(crate) fn sleepers(&self) -> Vec<String> {
        let list = redis::cmd("CLIENT").arg("LIST").query::<String>(&mut self.connection()).expect("it has clients");
        let asleep = list.lines().filter(|client| client.contains(" cmd=blpop "));
        let address = |client: &str| client.split(' ').find_map(|word| word.strip_prefix("addr=")).map(str::to_owned);
        asleep.filter_map(address).collect()
    }

    fn await_ready(&self) {
        wait_for("the server to listen", || TcpStream::connect((&*self.host, PORT)).is_ok());
        // Those who test a single server want to see it load, and count what it is asked.
        let in_group = self.login.is_some();
        let loads = || self.try_ask::<Value>(&["PING"]).is_err_and(|error| error.code() == Some("LOADING"));
        wait_for("the server to know what it had on disk", || !in_group || !loads());
    }
}

/// A directory for a server.
fn new_dir() -> TempDir {
    tempfile::tempdir().expect("a directory for the server")
}

/// The arguments of a server at `host`.
fn arguments(host: &str, options: &[&str]) -> Vec<String> {
    let port = PORT.to_string();
    let own = ["--bind", host, "--port", &port, "--save", ""];
    own.iter().chain(options).map(ToString::to_string).collect()
}

#[expect(unsafe_code, reason = "only so can a child ignore a signal from its start")]
fn spawn(program: &str, dir: &TempDir, arguments: &[String]) -> Child {
    let mut server = command(program);
    server.current_dir(dir.path()).args(arguments);
    server.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // What may write no more is to say so, as on a full disk, and not to die.
    // SAFETY: it ignores a signal, and runs no code.
    unsafe {
        server.pre_exec(|| signal(Signal::SIGXFSZ, SigHandler::SigIgn).map(drop).map_err(Into::into));
    }
    server.spawn().expect("the server starts")
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Store {
    /// The store on a server.
    pub(crate) fn on(server: Server) -> Self {
        Self { url: server.url(), servers: Some(Servers::Own(server)), ..Self::new() }
    }

    /// A store on the servers of the sentinels that all tests share.
    pub(crate) fn on_sentinels() -> Self {
        let group = shared_sentinels();
        Self { url: with_prefix(&group.url()), servers: Some(Servers::Sentinels(group)), ..Self::new() }
    }

    /// A store on the cluster that all tests share.
    pub(crate) fn on_cluster() -> Self {
        let group = shared_cluster();
        Self { url: with_prefix(&group.url()), servers: Some(Servers::Cluster(group)), ..Self::new() }
    }

    /// A store on a ring of three of the servers that all tests share.
    pub(crate) fn on_ring() -> Self {
        let nodes = shared_nodes();
        let url = with_prefix(&nodes.url("ring", some_nodes()));
        Self { url, servers: Some(Servers::Nodes(nodes)), ..Self::new() }
    }

    /// A quorum of the independent servers that all tests share.
    pub(crate) fn on_quorum() -> Self {
        let nodes = shared_nodes();
        Self {
            url: with_prefix(&nodes.url("quorum", some_nodes())),
            servers: Some(Servers::Nodes(nodes)),
            ..Self::new()
        }
    }

    /// Its server, which must be its own: what a test does to it is done to all that is on it.
    #[track_caller]
    pub(crate) fn server(&self) -> &Server {
        match &self.servers {
            Some(Servers::Own(server)) => server,
            Some(_) => panic!("this test needs a server of its own, and has a share of a group: {}", self.url),
            None => panic!("this test needs a server, and has a directory: {}", self.url),
        }
    }

    #[track_caller]
    pub(crate) fn server_mut(&mut self) -> &mut Server {
        match &mut self.servers {
            Some(Servers::Own(server)) => server,
            _ => panic!("this test needs a server of its own, and has none: {}", self.url),
        }
    }

    /// The servers that have its keys; nothing if it is a directory.
    fn masters(&self) -> Option<Vec<&Server>> {
        self.servers.as_ref().map(|servers| match servers {
            Servers::Own(server) => vec![server],
            Servers::Sentinels(group) => vec![group.master()],
            Servers::Cluster(group) => group.masters(),
            Servers::Nodes(nodes) => nodes.0.iter().collect(),
        })
    }

    /// All keys that its servers have of it; nothing if it is a directory. Who has a server alone has all of it.
    pub(super) fn keys(&self) -> Option<Vec<String>> {
        let mut keys: Vec<String> = self.masters()?.iter().flat_map(|server| server.keys()).collect();
        if !matches!(self.servers, Some(Servers::Own(_))) {
            keys.retain(|key| key.starts_with(&format!("{}:", self.prefix())));
        }
        Some(keys)
    }

    /// Whether a dlock sleeps until it hears from a server; nothing if the store is a directory.
    pub(super) fn is_asleep(&self, dlock: &Running) -> Option<bool> {
        let masters = self.masters()?;
        let mine = local_addresses(dlock.pid().as_raw());
        let sleeps = |(local, peer): &(String, String)| {
            masters.iter().any(|server| server.host == *peer && server.sleepers().contains(local))
        };
        Some(mine.iter().any(sleeps))
    }

    /// What deletes the record of a key in a server, for a shell.
    pub(crate) fn loss(&self, key: &str) -> String {
        let name = format!("{}:{{{key}}}:record", self.prefix());
        let servers = match &self.servers {
            Some(Servers::Sentinels(group)) => vec![group.master()],
            Some(Servers::Cluster(group)) => vec![&group.nodes[group.master_of(&name)]],
            // One of them has it.
            Some(Servers::Nodes(nodes)) => nodes.0.iter().collect(),
            _ => vec![self.server()],
        };
        let loss = |server: &Server| format!("redis-cli -h {} -p {PORT} DEL '{name}' >/dev/null", server.host);
        servers.into_iter().map(loss).collect::<Vec<_>>().join("; ")
    }

    /// What its keys in a server begin with.
    pub(crate) fn prefix(&self) -> &str {
        self.url.split_once("prefix=").map_or("dlock", |(_, prefix)| prefix)
    }

    /// The same with another URL.
    pub(crate) fn at(mut self, url: &str) -> Self {
        self.url = url.into();
        self
    }
}

/// Of how many of the servers that all tests share a store is made: of three, or, with `DLOCK_TEST_NODES=5`, of all.
fn some_nodes() -> &'static [usize] {
    const ALL: &[usize] = &[0, 1, 2, 3, 4];
    if std::env::var_os("DLOCK_TEST_NODES").is_some_and(|count| count == "5") { ALL } else { &ALL[..3] }
}

/// The URL with a prefix that no other test uses.
fn with_prefix(url: &str) -> String {
    format!("{url}?prefix={}", new_prefix())
}
