//! Redis and Valkey servers of a test's own: on an address that no other test uses, and killed with the test.

use std::collections::HashMap;
use std::net::TcpStream;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{SigHandler, Signal, kill, signal};
use nix::unistd::Pid;
use redis::{Commands as _, Connection, Value};
use tempfile::TempDir;

use super::{Store, command, has, wait_for};

/// Redis as Debian has it.
pub(crate) const REDIS: &str = "redis-server";

/// The oldest that is supported, from `PyPI`.
pub(crate) const REDIS_6: &str = "redis-server-6.2";

/// Valkey, from `PyPI`.
pub(crate) const VALKEY: &str = "valkey-server";

/// The port of every server and proxy of the tests.
pub(crate) const PORT: u16 = 6390;

/// A server. Killed at the end.
pub(crate) struct Server {
    program: &'static str,
    dir: TempDir,
    /// Its address: one of the many of the loopback network, so that tests do not fight for ports.
    pub(crate) host: String,
    options: Vec<String>,
    child: Child,
}

/// Runs a test on a server's store, if that server is installed.
pub(crate) fn on_a_server(program: &'static str, test: fn(&Store)) {
    if has(program) {
        test(&Store::on(Server::start(program, &[])));
    }
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

/// An address of the loopback network that nobody else uses.
pub(crate) fn new_host() -> String {
    static USED: AtomicUsize = AtomicUsize::new(1);
    let [.., high, low] = std::process::id().to_be_bytes();
    let number = USED.fetch_add(1, Ordering::Relaxed);
    assert!(number < 250 * 4, "a process of tests has a thousand addresses");
    format!("127.{}.{low}.{}", 4 * (high % 60) as usize + 4 + number / 250, number % 250 + 1)
}

impl Server {
    /// Starts a server with these options besides those that a test wants.
    pub(crate) fn start(program: &'static str, options: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a directory for the server");
        let options: Vec<String> = options.iter().map(ToString::to_string).collect();
        let host = new_host();
        let child = spawn(program, &dir, &host, &options);
        let server = Self { program, dir, host, options, child };
        server.await_ready();
        server
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
        self.child = spawn(self.program, &self.dir, &self.host, &self.options);
        self.await_ready();
    }

    /// A connection of the test's own.
    pub(crate) fn connection(&self) -> Connection {
        let client = redis::Client::open(self.url()).expect("a URL");
        client.get_connection_with_timeout(Duration::from_secs(20)).expect("the server takes us in")
    }

    /// Does a command.
    pub(crate) fn ask(&self, words: &[&str]) -> Value {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]).query(&mut self.connection()).unwrap_or_else(|error| panic!("{words:?}: {error}"))
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

    /// Whether a client sleeps on a list.
    pub(crate) fn has_sleeper(&self) -> bool {
        let list = redis::cmd("CLIENT").arg("LIST").query::<String>(&mut self.connection()).expect("it has clients");
        list.lines().any(|client| client.contains(" cmd=blpop "))
    }

    fn await_ready(&self) {
        wait_for("the server to listen", || TcpStream::connect((&*self.host, PORT)).is_ok());
    }
}

#[expect(unsafe_code, reason = "only so can a child ignore a signal from its start")]
fn spawn(program: &str, dir: &TempDir, host: &str, options: &[String]) -> Child {
    let mut server = command(program);
    server.current_dir(dir.path()).args(["--bind", host, "--port", &PORT.to_string(), "--save", ""]).args(options);
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
        Self { url: server.url(), server: Some(server), ..Self::new() }
    }

    /// Its server.
    pub(crate) fn server(&self) -> &Server {
        self.server.as_ref().expect("a store on a server")
    }

    pub(crate) fn server_mut(&mut self) -> &mut Server {
        self.server.as_mut().expect("a store on a server")
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
