//! etcd servers of a test's own: on an address that no other test uses, and killed with the test.

pub(crate) mod client;
mod cluster;
mod place;
pub(crate) mod proxy;
mod shared;

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use tempfile::TempDir;

pub(crate) use self::cluster::{Cluster, leader};
pub(crate) use self::place::Place;
pub(crate) use self::shared::{shared_cluster, shared_server};
use super::address::{PORT, new_host};
use super::{Done, Store, command, finish, has, wait_for};

/// etcd as Debian has it: the oldest that dlock is made for.
pub(crate) const ETCD_3_4: &str = "etcd";

/// A newer one, from `PyPI`.
pub(crate) const ETCD: &str = "etcd-3.5";

/// Where servers of a cluster speak with each other.
const PEERS: u16 = PORT + 2;

/// A server. Killed at the end.
pub(crate) struct Server {
    program: &'static str,
    dir: TempDir,
    pub(crate) host: String,
    settings: Vec<String>,
    child: Child,
}

/// Runs a test on a store's share of a server that all tests share: with `DLOCK_TEST_ETCD` set to `old`, `cluster` or
/// `oldcluster` of the oldest one, or of three.
pub(crate) fn on_a_share(test: fn(&Store)) {
    let which = std::env::var("DLOCK_TEST_ETCD").unwrap_or_default();
    let program = if which.starts_with("old") { ETCD_3_4 } else { ETCD };
    if !has(program) {
        return;
    }
    if which.ends_with("cluster") {
        return test(&Store::on_etcd_cluster(shared_cluster(program)));
    }
    test(&Store::on_etcd(program));
}

/// Runs a test with the name of each version that is installed. Both at once.
pub(crate) fn on_both(test: impl Fn(&'static str) + Sync) {
    std::thread::scope(|scope| {
        for program in [ETCD, ETCD_3_4].into_iter().filter(|program| has(program)) {
            let test = &test;
            scope.spawn(move || test(program));
        }
    });
}

impl Server {
    /// Starts a server with these settings besides those that a test wants.
    pub(crate) fn start(program: &'static str, settings: &[&str]) -> Self {
        Self::start_at(program, &new_host(), settings)
    }

    /// The same at this address.
    pub(crate) fn start_at(program: &'static str, host: &str, settings: &[&str]) -> Self {
        let server = Self::launch(program, host, settings);
        wait_for("the server to take us in", || server.leads_itself());
        server
    }

    /// Starts one, and does not wait for it.
    fn launch(program: &'static str, host: &str, settings: &[&str]) -> Self {
        let dir = in_memory();
        let scheme = if settings.contains(&"--cert-file") { "https" } else { "http" };
        let client = format!("{scheme}://{host}:{PORT}");
        let peers = format!("http://{host}:{PEERS}");
        let name = name(host);
        let alone = format!("{name}={peers}");
        let data = dir.path().join("data").display().to_string();
        let mut all: Vec<&str> = vec!["--name", &name, "--data-dir", &data];
        // To look at a password takes a processor for a while, unless it is told not to.
        all.extend(["--bcrypt-cost", "4"]);
        all.extend(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        all.extend(["--listen-peer-urls", &peers]);
        if !settings.contains(&"--initial-cluster") {
            all.extend(["--initial-advertise-peer-urls", &peers, "--initial-cluster", &alone]);
        }
        all.extend(settings);
        let settings: Vec<String> = all.into_iter().map(str::to_owned).collect();
        let child = spawn(program, &dir, &settings);
        Self { program, dir, host: host.to_owned(), settings, child }
    }

    /// The URL of a store on it.
    pub(crate) fn url(&self) -> String {
        format!("etcd://{}:{PORT}", self.host)
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Stops it for a while: connections stay, nobody answers.
    pub(crate) fn freeze(&self) {
        kill(self.pid(), Signal::SIGSTOP).expect("it runs");
    }

    pub(crate) fn thaw(&self) {
        kill(self.pid(), Signal::SIGCONT).expect("it runs");
    }

    /// Kills it.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts it again, on the same address and with the files that it left.
    pub(crate) fn start_again(&mut self) {
        self.child = spawn(self.program, &self.dir, &self.settings);
        wait_for("the server to take us in", || self.leads_itself());
    }

    /// Puts what was kept in a snapshot in the place of what it has. It does not run.
    #[track_caller]
    pub(crate) fn restore(&self, snapshot: &str) {
        let data = self.dir.path().join("data");
        fs::remove_dir_all(&data).expect("it had something");
        let setting = |name: &str| {
            let mut words = self.settings.iter().skip_while(|word| *word != name);
            words.nth(1).expect("each server has that").clone()
        };
        let data = data.display().to_string();
        let names = ["--name", "--initial-cluster", "--initial-advertise-peer-urls"];
        let mut args = vec!["snapshot", "restore", snapshot, "--data-dir", &data];
        let values = names.map(setting);
        args.extend(names.iter().zip(&values).flat_map(|(name, value)| [*name, value.as_str()]));
        self.must(&args);
    }

    /// What it wrote to its log.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Whether it answers.
    pub(crate) fn is_up(&self) -> bool {
        client::try_ask(&self.host, "kv/range", &json!({ "key": "AA==" })).is_some()
    }

    /// Runs its own client on it.
    pub(crate) fn etcdctl(&self, args: &[&str]) -> Done {
        etcdctl(self.program, &self.host, args)
    }

    /// The same, which goes well.
    #[track_caller]
    pub(crate) fn must(&self, args: &[&str]) {
        let done = self.etcdctl(args);
        assert!(done.status.success(), "etcdctl {args:?}: {done:#?}");
    }

    /// Lets in only who has a name and a password: `root`, who may do all, and those who are added to him.
    #[track_caller]
    pub(crate) fn enable_auth(&self, password: &str) {
        self.must(&["user", "add", &format!("root:{password}")]);
        self.must(&["user", "grant-role", "root", "root"]);
        self.must(&["auth", "enable"]);
    }

    /// Whether it leads a cluster of one: a server with TLS does not tell us, and its client is asked.
    fn leads_itself(&self) -> bool {
        if self.settings.iter().any(|setting| setting == "--cert-file") {
            return std::net::TcpStream::connect((&*self.host, PORT)).is_ok()
                && self.log().contains("ready to serve client requests");
        }
        // Whom it does not let in it answers, too.
        client::try_ask(&self.host, "kv/range", &json!({ "key": "AA==" })).is_some_and(|answer| {
            let refused = answer["error"].as_str().is_some_and(|words| words.contains("user name is empty"));
            refused || answer["error"].is_null()
        })
    }
}

/// What a server is called in its cluster.
fn name(host: &str) -> String {
    format!("e-{host}")
}

/// A directory in memory, if this machine has any: members wait for their disk before they answer, and a disk that others
/// use, too, makes them lose their leader. Servers that all tests share leave theirs to the next process that makes one.
fn in_memory() -> TempDir {
    const MEMORY: &str = "/dev/shm";
    const NAME: &str = "dlock-test-";
    if !std::path::Path::new(MEMORY).is_dir() {
        return tempfile::tempdir().expect("a directory for the server");
    }
    for entry in fs::read_dir(MEMORY).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix(NAME).and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if owner.is_some_and(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists()) {
            // Another process may be about to do the same.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    let name = format!("{NAME}{}-", std::process::id());
    tempfile::Builder::new().prefix(&name).tempdir_in(MEMORY).expect("a directory for the server")
}

fn spawn(program: &'static str, dir: &TempDir, settings: &[String]) -> Child {
    let log = fs::OpenOptions::new().create(true).append(true).open(dir.path().join("log")).expect("a log");
    let mut server = command(program);
    server.args(settings).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    server.process_group(0);
    server.spawn().expect("the server starts")
}

/// Runs the client of this version.
pub(crate) fn etcdctl(program: &str, host: &str, args: &[&str]) -> Done {
    let mut client = command(&program.replace("etcd", "etcdctl"));
    client.env("ETCDCTL_API", "3").args(["--endpoints", &format!("http://{host}:{PORT}")]).args(args);
    finish(client.stdin(Stdio::null()))
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}
