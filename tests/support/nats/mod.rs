//! NATS servers of a test's own: on an address that no other test uses, and killed with the test.

mod client;
mod cluster;
pub(crate) mod operator;
pub(crate) mod proxy;
pub(crate) mod routes;
mod shared;

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

pub(crate) use self::client::{Answer, Client};
pub(crate) use self::cluster::Cluster;
pub(crate) use self::shared::{shared_cluster, shared_server};
use super::activity::local_addresses;
use super::address::{PORT, new_host, new_prefix};
use super::{Running, Store, command, finish, has, wait_for};

/// NATS as Debian has it: the oldest that dlock is made for.
pub(crate) const NATS_2_9: &str = "nats-server";

/// The newest, from `PyPI`.
pub(crate) const NATS: &str = "nats-server-2.15";

/// Where a server tells of its connections, and where dlock looks for what it tells of itself.
const MONITOR: u16 = PORT + 4000;

/// A server. Killed at the end.
pub(crate) struct Server {
    program: &'static str,
    dir: TempDir,
    pub(crate) host: String,
    child: Child,
}

/// Where the bucket of a store is.
pub(crate) struct Place {
    /// The servers, if they are the test's own.
    own: Vec<Server>,
    /// Where they are; the first is the one that a test asks.
    hosts: Vec<String>,
    prefix: String,
}

/// What the promises of all stores are tested on.
#[derive(Clone, Copy)]
pub(crate) struct SetUp {
    program: &'static str,
    is_cluster: bool,
}

/// As `DLOCK_TEST_NATS` has it: `old` or `cluster` for the oldest version or for three servers, `oldcluster` for both.
pub(crate) fn set_up() -> SetUp {
    let which = std::env::var("DLOCK_TEST_NATS").unwrap_or_default();
    let (program, is_cluster) = match &*which {
        "" => (NATS, false),
        "old" => (NATS_2_9, false),
        "cluster" => (NATS, true),
        "oldcluster" => (NATS_2_9, true),
        other => panic!("DLOCK_TEST_NATS is old, cluster or oldcluster, and not {other:?}"),
    };
    SetUp { program, is_cluster }
}

impl SetUp {
    /// What snapshots of what differs between them are called.
    pub(crate) fn snapshots(self) -> &'static str {
        match (self.program == NATS_2_9, self.is_cluster) {
            (false, false) => "nats",
            (true, false) => "nats_old",
            (false, true) => "nats_cluster",
            (true, true) => "nats_old_cluster",
        }
    }
}

/// Runs a test on a store's share of servers that all tests share.
pub(crate) fn on_a_share(test: fn(&Store)) {
    let SetUp { program, is_cluster } = set_up();
    if !has(program) {
        return;
    }
    if is_cluster {
        return test(&Store::on_nats_cluster(shared_cluster(program)));
    }
    test(&Store::on_nats(program));
}

/// Runs a test with the name of each version that is installed. Both at once.
pub(crate) fn on_both(test: impl Fn(&'static str) + Sync) {
    std::thread::scope(|scope| {
        for program in [NATS, NATS_2_9].into_iter().filter(|program| has(program)) {
            let test = &test;
            scope.spawn(move || test(program));
        }
    });
}

impl Server {
    /// Starts a server with these lines in its configuration besides those that a test wants.
    pub(crate) fn start(program: &'static str, settings: &str) -> Self {
        Self::start_at(program, &new_host(), settings)
    }

    /// The same at this address.
    pub(crate) fn start_at(program: &'static str, host: &str, settings: &str) -> Self {
        let server = Self::launch(program, host, settings);
        server.await_ready();
        server
    }

    /// Starts one, and does not wait for it.
    fn launch(program: &'static str, host: &str, settings: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory for the server");
        let jetstream = if settings.contains("jetstream") {
            String::new()
        } else {
            format!("jetstream {{ store_dir: \"{}\", max_file: 1G, max_mem: 64M }}", dir.path().display())
        };
        let all = format!(
            "listen: \"{host}:{PORT}\"\nhttp: \"{host}:{MONITOR}\"\nserver_name: \"n-{host}\"\n{jetstream}\n{settings}\n"
        );
        fs::write(dir.path().join("conf"), all).expect("a configuration");
        let child = spawn(program, &dir);
        Self { program, dir, host: host.to_owned(), child }
    }

    /// The URL of a store on it.
    pub(crate) fn url(&self) -> String {
        format!("nats://{}:{PORT}", self.host)
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
        self.child = spawn(self.program, &self.dir);
        self.await_ready();
    }

    /// The same as another version.
    pub(crate) fn start_again_as(&mut self, program: &'static str) {
        self.program = program;
        self.start_again();
    }

    /// Puts aside what it keeps, as it is now, or, with `back`, in its place again. It does not run.
    pub(crate) fn keep_aside(&self, back: bool) {
        let [data, aside] = ["jetstream", "aside"].map(|name| self.dir.path().join(name).display().to_string());
        let (from, to) = if back { (aside, data) } else { (data, aside) };
        let _ = fs::remove_dir_all(&to);
        finish(command("cp").args(["-a", &from, &to])).is(0, "", "");
    }

    /// What it is called in its cluster.
    pub(crate) fn name(&self) -> String {
        format!("n-{}", self.host)
    }

    fn await_ready(&self) {
        wait_for("the server to take us in", || monitor(&self.host, "/healthz?js-enabled-only=true").is_some());
    }
}

fn spawn(program: &'static str, dir: &TempDir) -> Child {
    let log = fs::OpenOptions::new().create(true).append(true).open(dir.path().join("log")).expect("a log");
    let mut server = command(program);
    server.arg("-c").arg(dir.path().join("conf")).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    server.process_group(0);
    server.spawn().expect("the server starts")
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What a server tells of itself over HTTP; nothing while it does not.
fn monitor(host: &str, path: &str) -> Option<Value> {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect((host, MONITOR)).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    head.lines().next()?.contains(" 200 ").then(|| serde_json::from_str(body).ok()).flatten()
}

impl Place {
    /// A connection to one of its servers.
    #[track_caller]
    pub(crate) fn client(&self) -> Client {
        let host = self.hosts.iter().find(|host| Client::try_to(host, "{}").is_ok()).expect("one of them takes us in");
        Client::to(host, "{}")
    }

    pub(crate) fn stream(&self) -> String {
        format!("KV_{}", self.prefix)
    }

    fn subjects(&self) -> Vec<String> {
        let ask = json!({ "subjects_filter": ">" });
        let info = self.client().api(&format!("STREAM.INFO.{}", self.stream()), &ask);
        let subjects = info["state"]["subjects"].as_object().map(|all| all.keys().cloned().collect());
        subjects.unwrap_or_default()
    }

    /// All keys that have a record.
    pub(super) fn keys(&self) -> Vec<String> {
        let prefix = format!("$KV.{}.key.", self.prefix);
        self.subjects().iter().filter_map(|subject| subject.strip_prefix(&prefix)).map(str::to_owned).collect()
    }

    /// The last value under a key of the bucket.
    pub(crate) fn value(&self, key: &str) -> Option<Vec<u8>> {
        let subject = format!("$KV.{}.{key}", self.prefix);
        self.client().last(&self.stream(), &subject)
    }

    /// Deletes a value, as the client of NATS does it: what was there is swapped for a mark, at once.
    #[track_caller]
    pub(crate) fn delete(&self, key: &str) {
        let subject = format!("$KV.{}.{key}", self.prefix);
        // Old servers forget to answer when many write at once.
        wait_for("it to be deleted", || {
            let done = self.client().request(&subject, "KV-Operation: DEL", b"");
            matches!(done, Ok(Answer::Message(bytes)) if String::from_utf8_lossy(&bytes).contains("\"seq\""))
        });
    }

    /// The name of the server that leads; nothing while nobody knows.
    pub(crate) fn leader(&self) -> String {
        let all: Vec<String> = self.hosts.iter().map(|host| format!("n-{host}")).collect();
        self.leader_seen_from(&all)
    }

    /// The same, as the first of the servers with these names has it that lets us in.
    pub(crate) fn leader_seen_from(&self, names: &[String]) -> String {
        self.told_by(names)["cluster"]["leader"].as_str().unwrap_or_default().to_owned()
    }

    /// Waits until all copies that there are keep up: of a new bucket they do after a while.
    #[track_caller]
    pub(crate) fn await_copies(&self) {
        let all: Vec<String> = self.hosts.iter().map(|host| format!("n-{host}")).collect();
        wait_for("copies that keep up", || {
            let info = self.told_by(&all);
            let followers = info["cluster"]["replicas"].as_array().cloned().unwrap_or_default();
            info["config"].is_object() && followers.iter().all(|peer| peer["current"] == true)
        });
    }

    /// What JetStream says of the bucket, as the first of these servers has it that lets us in; nothing while it does not.
    fn told_by(&self, names: &[String]) -> Value {
        let subject = format!("$JS.API.STREAM.INFO.{}", self.stream());
        let mut hosts = self.hosts.iter().filter(|host| names.contains(&format!("n-{host}")));
        let client = hosts.find_map(|host| Client::try_to(host, "{}").ok());
        match client.map(|mut client| client.request(&subject, "", b"")) {
            Some(Ok(Answer::Message(bytes))) => serde_json::from_slice(&bytes).unwrap_or_default(),
            _ => Value::Null,
        }
    }

    /// What there is besides records: signs of life.
    pub(super) fn leftovers(&self) -> Vec<String> {
        let mut left = Vec::new();
        let prefix = format!("$KV.{}.", self.prefix);
        for subject in self.subjects().iter().filter(|subject| subject.contains(".life.")) {
            let signs = self.value(subject.strip_prefix(&prefix).expect("it is of the bucket")).unwrap_or_default();
            let signs: Value = serde_json::from_slice(&signs).unwrap_or_default();
            left.extend(signs.as_object().into_iter().flat_map(|signs| signs.keys().cloned()));
        }
        left
    }

    /// Whether a dlock sleeps until it hears from a server: it has looked since it listens.
    pub(super) fn is_asleep(&self, dlock: &Running) -> bool {
        let mine: Vec<String> = local_addresses(dlock.pid().as_raw()).into_iter().map(|(local, _)| local).collect();
        let listens = |connection: &Value| {
            let port = connection["port"].to_string();
            let subjects = connection["subscriptions_list"].as_array();
            let listens = subjects
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .any(|subject| subject.starts_with(&format!("dlock.{}.to.", self.prefix)));
            listens
                && mine.iter().any(|local| local.rsplit(':').next() == Some(&port))
                && ["in_msgs", "out_msgs"].iter().all(|count| connection[*count].as_u64() >= Some(3))
        };
        let all = self.hosts.iter().filter_map(|host| monitor(host, "/connz?subs=1&limit=2000"));
        all.into_iter().any(|told| told["connections"].as_array().is_some_and(|all| all.iter().any(listens)))
    }

    /// What deletes the record of a key, for a shell: as the client of NATS does it.
    pub(crate) fn loss(&self, key: &str) -> String {
        let host = &self.hosts[0];
        let head = "NATS/1.0\r\nKV-Operation: DEL\r\n\r\n";
        let (length, head) = (head.len(), head.escape_default());
        let subject = format!("\\$KV.{}.key.{key}", self.prefix);
        let hello = "CONNECT {\\\"headers\\\":true}";
        let words = format!("{hello}\\r\\nHPUB {subject} {length} {length}\\r\\n{head}\\r\\nPING\\r\\n");
        format!(
            "python3 -c \"import socket; s = socket.create_connection(('{host}', {PORT})); s.sendall(b'{words}'); \
             s.settimeout(20); d = b''\nwhile b'PONG' not in d:\n  d += s.recv(4096) or exit('it hung up')\n\""
        )
    }

    /// What status calls the store.
    pub(super) fn identity(&self) -> String {
        let mut hosts: Vec<String> = self.hosts.iter().map(|host| format!("{host}:{PORT}")).collect();
        hosts.sort_unstable();
        format!("nats://{}?prefix={}", hosts.join(","), self.prefix)
    }
}

impl Store {
    /// A store on the server of this version that all tests share.
    pub(crate) fn on_nats(program: &'static str) -> Self {
        let server = shared_server(program);
        let prefix = new_prefix();
        let url = format!("{}?prefix={prefix}", server.url());
        let place = Place { own: Vec::new(), hosts: vec![server.host.clone()], prefix };
        Self { url, nats: Some(place), ..Self::new() }
    }

    /// A store on a server of its own.
    pub(crate) fn on_own_nats(server: Server) -> Self {
        let place = Place { hosts: vec![server.host.clone()], own: vec![server], prefix: "dlock".into() };
        Self { url: place.own[0].url(), nats: Some(place), ..Self::new() }
    }

    /// A store with a copy on each server of a cluster that all tests share.
    pub(crate) fn on_nats_cluster(cluster: &Cluster) -> Self {
        let prefix = new_prefix();
        let url = format!("{}?prefix={prefix}&replicas=3", cluster.url());
        let place = Place { own: Vec::new(), hosts: cluster.hosts(), prefix };
        Self { url, nats: Some(place), ..Self::new() }
    }

    /// The same with a cluster of its own.
    pub(crate) fn on_own_nats_cluster(cluster: Cluster) -> Self {
        let url = format!("{}?replicas=3", cluster.url());
        let place = Place { hosts: cluster.hosts(), own: cluster.into_servers(), prefix: "dlock".into() };
        Self { url, nats: Some(place), ..Self::new() }
    }

    /// Its bucket.
    #[track_caller]
    pub(crate) fn bucket(&self) -> &Place {
        self.nats.as_ref().expect("it is a store in a bucket")
    }

    /// Its own server.
    #[track_caller]
    pub(crate) fn nats(&self) -> &Server {
        self.bucket().own.first().expect("a server of its own")
    }

    #[track_caller]
    pub(crate) fn nats_mut(&mut self) -> &mut [Server] {
        &mut self.nats.as_mut().expect("it is a store in a bucket").own
    }
}
