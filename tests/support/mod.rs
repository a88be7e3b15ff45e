//! What tests stand on: a lock directory of their own, dlock processes that die with the test, and
//! conditions to wait for.

pub(crate) mod activity;
#[cfg(any(feature = "etcd", feature = "nats", feature = "postgres", feature = "redis"))]
pub(crate) mod address;
pub(crate) mod ask;
#[cfg(any(feature = "etcd", feature = "nats", feature = "postgres", feature = "redis"))]
pub(crate) mod certificates;
pub(crate) mod crowd;
#[cfg(feature = "etcd")]
pub(crate) mod etcd;
#[cfg(any(feature = "etcd", feature = "redis"))]
pub(crate) mod fake;
pub(crate) mod journal;
#[cfg(any(feature = "etcd", feature = "nats"))]
pub(crate) mod load;
pub(crate) mod mutex;
#[cfg(feature = "nats")]
pub(crate) mod nats;
#[cfg(feature = "postgres")]
pub(crate) mod postgres;
#[cfg(feature = "redis")]
pub(crate) mod proxy;
#[cfg(any(feature = "etcd", feature = "nats"))]
pub(crate) mod race;
#[cfg(feature = "redis")]
pub(crate) mod redis;
#[cfg(any(feature = "etcd", feature = "nats", feature = "postgres", feature = "redis"))]
pub(crate) mod relay;
pub(crate) mod schema;
#[cfg(any(feature = "etcd", feature = "nats", feature = "postgres", feature = "redis"))]
pub(crate) mod shared;
#[cfg(feature = "etcd")]
pub(crate) mod sockets;
pub(crate) mod terminal;
pub(crate) mod tree;

use std::fs;
use std::io::{BufRead, BufReader, PipeWriter, Read, Write};
use std::os::fd::AsFd as _;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use assert_cmd::assert::Assert;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigHandler, Signal, kill, signal};
use nix::unistd::Pid;
use tempfile::TempDir;

/// Nothing that a test waits for takes so long, unless it never comes.
const PATIENCE: Duration = Duration::from_secs(60);

/// The binary under test: what was built with the tests, or another one that was named to the compiler.
pub(crate) const DLOCK: &str = match option_env!("DLOCK_UNDER_TEST") {
    Some(path) => path,
    None => env!("CARGO_BIN_EXE_dlock"),
};

/// A store of a test's own: a lock directory, or a server that dies with the test.
pub(crate) struct Store {
    /// A directory for the test's files; the locks of a file store are in `locks` in it.
    pub(crate) dir: TempDir,
    url: String,
    #[cfg(feature = "redis")]
    servers: Option<redis::Servers>,
    #[cfg(feature = "postgres")]
    postgres: Option<postgres::Place>,
    #[cfg(feature = "nats")]
    nats: Option<nats::Place>,
    #[cfg(feature = "etcd")]
    etcd: Option<etcd::Place>,
}

/// Makes tests of promises, one for each store: of each `fn promise(store: &Store)` that is named. One whose
/// server is not installed is skipped by name.
macro_rules! on_every_store {
    ($($promise:ident),+ $(,)?) => {
        $(mod $promise {
            $crate::support::on_every_store_with_order!(@tests $promise);

            #[cfg(feature = "redis")]
            #[test]
            fn quorum() {
                $crate::support::redis::on_a_share($crate::support::Store::on_quorum, super::$promise);
            }
        })+
    };
}
pub(crate) use on_every_store;

/// The same for promises that only stores give which keep an order and know shared holders and slots.
macro_rules! on_every_store_with_order {
    ($($promise:ident),+ $(,)?) => {
        $(mod $promise {
            $crate::support::on_every_store_with_order!(@tests $promise);
        })+
    };
    (@tests $promise:ident) => {
        $crate::support::on_whole_stores!(@tests $promise);

        #[cfg(feature = "redis")]
        #[test]
        fn ring() {
            $crate::support::redis::on_a_share($crate::support::Store::on_ring, super::$promise);
        }
    };
}
pub(crate) use on_every_store_with_order;

/// The same without stores that are made of several, for what is shown and written down: where keys are says nothing
/// new of that.
macro_rules! on_whole_stores {
    ($($promise:ident),+ $(,)?) => {
        $(mod $promise {
            $crate::support::on_whole_stores!(@tests $promise);
        })+
    };
    (@tests $promise:ident) => {
        $crate::support::on_file_and_redis!(@tests $promise);

        #[cfg(feature = "redis")]
        #[test]
        fn valkey() {
            $crate::support::redis::on_a_server($crate::support::redis::VALKEY, super::$promise);
        }

        #[cfg(feature = "redis")]
        #[test]
        fn sentinel() {
            $crate::support::redis::on_a_share($crate::support::Store::on_sentinels, super::$promise);
        }

        #[cfg(feature = "redis")]
        #[test]
        fn cluster() {
            $crate::support::redis::on_a_share($crate::support::Store::on_cluster, super::$promise);
        }
    };
}
pub(crate) use on_whole_stores;

/// The same without Valkey, for a promise that takes long and of which Valkey says nothing new.
macro_rules! on_file_and_redis {
    ($($promise:ident),+ $(,)?) => {
        $(mod $promise {
            $crate::support::on_file_and_redis!(@tests $promise);
        })+
    };
    (@tests $promise:ident) => {
        #[test]
        fn file() {
            super::$promise(&$crate::support::Store::new());
        }

        #[cfg(feature = "redis")]
        #[test]
        fn redis() {
            $crate::support::redis::on_a_server($crate::support::redis::REDIS, super::$promise);
        }

        #[cfg(feature = "postgres")]
        #[test]
        fn postgres() {
            $crate::support::postgres::on_a_share(super::$promise);
        }

        #[cfg(feature = "nats")]
        #[test]
        fn nats() {
            $crate::support::nats::on_a_share(super::$promise);
        }

        #[cfg(feature = "etcd")]
        #[test]
        fn etcd() {
            $crate::support::etcd::on_a_share(super::$promise);
        }
    };
}
pub(crate) use on_file_and_redis;

/// Makes tests of promises that were made already, behind a pooler that gives each transaction to another session: of those
/// for which sessions matter, or being told. The others are tested there with `DLOCK_TEST_POOLER=all`.
macro_rules! through_a_pooler {
    ($($promise:ident),+ $(,)?) => {
        #[cfg(feature = "postgres")]
        mod pooler {
            $(#[test]
            fn $promise() {
                $crate::support::postgres::through_a_pooler(super::$promise);
            })+
        }
    };
}
pub(crate) use through_a_pooler;

/// How a process ended and what it wrote.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// A process that runs, and is killed with the test.
pub(crate) struct Running {
    pub(crate) child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<std::process::ChildStdout>,
}

impl Store {
    /// A lock directory.
    pub(crate) fn new() -> Self {
        crowd::enter();
        let dir = tempfile::tempdir().expect("a directory for the test");
        let url = format!("file:{}", dir.path().join("locks").display());
        Self {
            dir,
            url,
            #[cfg(feature = "redis")]
            servers: None,
            #[cfg(feature = "postgres")]
            postgres: None,
            #[cfg(feature = "nats")]
            nats: None,
            #[cfg(feature = "etcd")]
            etcd: None,
        }
    }

    /// The same with another URL.
    #[cfg(any(feature = "etcd", feature = "nats", feature = "postgres"))]
    pub(crate) fn at_url(mut self, url: &str) -> Self {
        self.url = url.into();
        self
    }

    /// The URL.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Whether leases of `run` end unless they are renewed.
    pub(crate) fn beats(&self) -> bool {
        !self.url.starts_with("file:")
    }

    /// The shortest lease that it makes: who asks for less gets this one.
    pub(crate) fn least_ttl(&self) -> Duration {
        Duration::from_secs(if self.url.starts_with("etcd") { 2 } else { 0 })
    }

    /// How much later than it is others may see the end of a lease: etcd tells of it in whole seconds.
    pub(crate) fn grain(&self) -> Duration {
        self.least_ttl() / 2
    }

    /// Whether nothing has made anything in it yet.
    pub(crate) fn is_untouched(&self) -> bool {
        #[cfg(feature = "postgres")]
        if let Some(place) = &self.postgres {
            return place.keys().is_empty();
        }
        #[cfg(feature = "nats")]
        if let Some(place) = &self.nats {
            return place.keys().is_empty();
        }
        #[cfg(feature = "redis")]
        if let Some(keys) = self.keys() {
            return keys.is_empty();
        }
        !self.path("locks").exists()
    }

    /// Whether it has anything of a key whose name needs no encoding.
    pub(crate) fn keeps(&self, key: &str) -> bool {
        #[cfg(feature = "postgres")]
        if let Some(place) = &self.postgres {
            return place.keys().iter().any(|name| name == key);
        }
        #[cfg(feature = "nats")]
        if let Some(place) = &self.nats {
            return place.keys().iter().any(|name| name == key);
        }
        #[cfg(feature = "etcd")]
        if let Some(place) = &self.etcd {
            return place.keys().iter().any(|name| name == key);
        }
        #[cfg(feature = "redis")]
        if let Some(keys) = self.keys() {
            return keys.iter().any(|name| name.contains(&format!(":{{{key}}}:")));
        }
        self.key_file(key).exists()
    }

    /// What it has besides what stays of a key that was held.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        #[cfg(feature = "postgres")]
        if let Some(place) = &self.postgres {
            return place.leftovers();
        }
        #[cfg(feature = "nats")]
        if let Some(place) = &self.nats {
            return place.leftovers();
        }
        #[cfg(feature = "etcd")]
        if let Some(place) = &self.etcd {
            return place.leftovers();
        }
        #[cfg(feature = "redis")]
        if let Some(keys) = self.keys() {
            // On a cluster the index is in parts.
            let parts = format!("{}:index:", self.prefix());
            let stays = |name: &String| {
                name.starts_with(&parts)
                    || ["record", "events", "index", "ring", ":node"].iter().any(|part| name.ends_with(part))
            };
            return keys.into_iter().filter(|name| !stays(name)).collect();
        }
        let entries = fs::read_dir(self.path("locks")).expect("keys were held");
        let names = entries.map(|entry| entry.expect("it can be listed").file_name().to_string_lossy().into_owned());
        names.filter(|name| Path::new(name).extension().is_none_or(|kind| kind != "lock")).collect()
    }

    /// What status calls it.
    pub(crate) fn identity(&self) -> String {
        #[cfg(feature = "postgres")]
        if self.postgres.is_some() {
            return postgres::Place::identity(&self.url);
        }
        #[cfg(feature = "nats")]
        if let Some(place) = &self.nats {
            return place.identity();
        }
        #[cfg(feature = "etcd")]
        if let Some(place) = &self.etcd {
            return place.identity();
        }
        #[cfg(feature = "redis")]
        match &self.servers {
            Some(redis::Servers::Own(server)) => return format!("{}/0?prefix=dlock", server.url()),
            Some(_) => {
                // In whatever order they were named.
                let (scheme, rest) = self.url.split_once("://").expect("a URL");
                let end = rest.find(['/', '?']).expect("it has a prefix");
                let mut hosts: Vec<&str> = rest[..end].split(',').collect();
                hosts.sort_unstable();
                return format!("{scheme}://{}{}", hosts.join(","), &rest[end..]);
            }
            None => {}
        }
        format!("file:{}", self.path("locks").canonicalize().expect("it is there").display())
    }

    /// What messages call it, where it is no directory.
    pub(crate) fn words(&self) -> String {
        let (scheme, rest) = self.url.split_once("://").unwrap_or(("", &self.url));
        match scheme {
            "postgres" => {
                let host = rest.rsplit('@').next().unwrap_or_default();
                format!("postgres at {}", host.split('/').next().unwrap_or_default())
            }
            "nats" | "etcd" => format!("{scheme} at {}", rest.split('?').next().unwrap_or_default()),
            "redis+sentinel" => "redis master 'mymaster'".into(),
            "redis+cluster" => format!("redis cluster at {}", rest.split(',').next().unwrap_or_default()),
            "redis+ring" => format!("redis ring at {}", rest.split('/').next().unwrap_or_default()),
            "redis+quorum" => format!("redis quorum at {}", rest.split('/').next().unwrap_or_default()),
            _ => format!("redis at {rest}"),
        }
    }

    /// Waits until a holder listens to what becomes of its lease, which it does once its command has run for a
    /// while.
    #[cfg_attr(
        not(any(feature = "etcd", feature = "nats", feature = "postgres", feature = "redis")),
        expect(clippy::unused_self, reason = "it may be a server that knows")
    )]
    pub(crate) fn await_listening(&self, holder: &Running) {
        let listens = || {
            #[cfg(feature = "postgres")]
            if let Some(place) = &self.postgres {
                return place.is_asleep(holder);
            }
            #[cfg(feature = "nats")]
            if let Some(place) = &self.nats {
                return place.is_asleep(holder);
            }
            #[cfg(feature = "etcd")]
            if let Some(place) = &self.etcd {
                return place.is_asleep(holder);
            }
            #[cfg(feature = "redis")]
            if let Some(asleep) = self.is_asleep(holder) {
                return asleep;
            }
            activity::open_files(holder.pid().as_raw()).iter().any(|file| file.contains("inotify"))
        };
        wait_for("a holder that listens", listens);
    }

    /// A file of the test.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The file that keeps a key whose name needs no encoding.
    pub(crate) fn key_file(&self, key: &str) -> PathBuf {
        self.path("locks").join(format!("{key}.lock"))
    }

    /// A dlock with these arguments, on this store.
    pub(crate) fn dlock(&self, args: &[&str]) -> Command {
        let mut command = command(DLOCK);
        command.args(args).env("DLOCK_STORE", &self.url);
        command
    }

    /// Runs a dlock to its end.
    pub(crate) fn run(&self, args: &[&str]) -> Done {
        finish(self.dlock(args).stdin(Stdio::null()))
    }

    /// A dlock that runs `script` while it holds `key`. Returned once the script has written `ready`.
    pub(crate) fn holding(&self, key: &str, options: &[&str], script: &str) -> Running {
        let mut args = vec!["run", key];
        args.extend(options);
        args.extend(["--", "sh", "-c", script]);
        let mut running = Running::start(&mut self.dlock(&args));
        running.await_line("ready");
        running
    }

    /// A dlock that holds `key` until its stdin is closed.
    pub(crate) fn hold(&self, key: &str) -> Running {
        self.holding(key, &[], "echo ready; cat >/dev/null")
    }

    /// `status --json` of a key.
    pub(crate) fn status(&self, key: &str) -> serde_json::Value {
        let done = self.run(&["status", "--json", key]);
        let status: serde_json::Value = serde_json::from_str(&done.stdout).expect("status prints JSON");
        status["keys"][0].clone()
    }

    /// Waits until so many wait for a key.
    pub(crate) fn await_waiting(&self, key: &str, waiting: usize) {
        wait_for(&format!("{waiting} waiting for {key}"), || {
            self.status(key)["queue"].as_array().is_some_and(|queue| queue.len() == waiting)
        });
    }
}

/// A command in a clean environment, which is killed when the test ends or is killed.
#[expect(unsafe_code, reason = "only so can a child be tied to the life of its parent and hear all signals")]
pub(crate) fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("DLOCK_") {
            command.env_remove(name);
        }
    }
    // The machine may have a config file, and so may its user.
    command.env("DLOCK_CONFIG", "/dev/null").env("HOME", "/nonexistent").env_remove("XDG_CONFIG_HOME");
    let prepare = || {
        // A shell that runs the tests in its background has these ignored, and so would dlock.
        for heard in [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGHUP] {
            // SAFETY: no handler is set that could do harm.
            unsafe { signal(heard, SigHandler::SigDfl) }?;
        }
        set_pdeathsig(Signal::SIGKILL).map_err(Into::into)
    };
    // SAFETY: signal and prctl are plain system calls.
    unsafe { command.pre_exec(prepare) };
    command
}

/// Runs a command to its end.
pub(crate) fn finish(command: &mut Command) -> Done {
    let output = command.output().expect("the command starts");
    Done {
        status: output.status,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

impl Done {
    /// Checks code, stdout and stderr at once.
    #[track_caller]
    pub(crate) fn is(&self, code: i32, stdout: &str, stderr: &str) {
        let output = Output {
            status: self.status,
            stdout: self.stdout.clone().into_bytes(),
            stderr: self.stderr.clone().into_bytes(),
        };
        Assert::new(output).code(code).stdout(stdout.to_owned()).stderr(stderr.to_owned());
    }

    /// Checks the code, and that stderr is one line that begins with `dlock: ` and holds all of `words`.
    #[track_caller]
    pub(crate) fn says(&self, code: i32, words: &[&str]) {
        assert_eq!(self.status.code(), Some(code), "{self:#?}");
        assert!(self.stderr.starts_with("dlock: ") && self.stderr.lines().count() == 1, "{self:#?}");
        for word in words {
            assert!(self.stderr.contains(word), "{word:?} is missing: {self:#?}");
        }
    }

    /// Checks that it died of a signal.
    #[track_caller]
    pub(crate) fn died_of(&self, signal: Signal) {
        assert_eq!(self.status.signal(), Some(signal as i32), "{self:#?}");
    }
}

impl Running {
    /// Starts a command with pipes on stdin, stdout and stderr.
    pub(crate) fn start(command: &mut Command) -> Self {
        let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = pipes.spawn().expect("the command starts");
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
        Self { child, stdin, stdout }
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("it runs");
    }

    #[cfg(feature = "redis")]
    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("it is ours").is_some()
    }

    /// Stops it, and waits until that is done: until its first thread stops, the others may run.
    #[track_caller]
    pub(crate) fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
        let pid = self.pid().as_raw();
        wait_for(&format!("{pid} to stop"), || state(pid) == Some('T'));
    }

    /// Reads lines until one is `line`; the test fails if there is none.
    #[track_caller]
    pub(crate) fn await_line(&mut self, line: &str) {
        while let Some(read) = self.read_line() {
            if read == line {
                return;
            }
        }
        let mut stderr = String::new();
        let _ = self.child.stderr.take().map(|mut pipe| pipe.read_to_string(&mut stderr));
        panic!("it ended without writing {line:?}: {stderr}");
    }

    /// The next line that it writes; nothing at the end.
    pub(crate) fn read_line(&mut self) -> Option<String> {
        let mut line = String::new();
        let length = self.stdout.read_line(&mut line).expect("stdout can be read");
        (length > 0).then(|| line.trim_end_matches('\n').to_owned())
    }

    /// Writes a line to its stdin.
    pub(crate) fn write_line(&mut self, line: &str) {
        writeln!(self.stdin.as_mut().expect("stdin is open"), "{line}").expect("it reads");
    }

    pub(crate) fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Closes its stdin, and waits for its end.
    pub(crate) fn finish(mut self) -> Done {
        self.stdin = None;
        let mut stdout = String::new();
        self.stdout.read_to_string(&mut stdout).expect("stdout is text");
        let output = self.child.wait_with_output().expect("it can be waited for");
        Done { status: output.status, stdout, stderr: String::from_utf8_lossy(&output.stderr).into_owned() }
    }
}

/// Waits until `condition` holds. What is dear to look at, such as what a process says, is looked at less often: all tests
/// share the machine.
#[track_caller]
pub(crate) fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    let mut looked = start;
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "waited in vain for: {what}");
        let pause = looked.elapsed() * 3;
        std::thread::sleep(pause.clamp(Duration::from_millis(2), Duration::from_millis(60)));
        looked = Instant::now();
    }
}

/// A pipe that nobody reads. A process that another test starts has the other end, too, until it is another program.
pub(crate) fn unread_pipe() -> PipeWriter {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    wait_for("nobody who reads", || {
        let mut asked = [PollFd::new(writer.as_fd(), PollFlags::empty())];
        poll(&mut asked, PollTimeout::ZERO).is_ok_and(|count| count == 1)
    });
    writer
}

/// Waits until a file holds a number, say the pid that a script wrote to it.
#[track_caller]
pub(crate) fn await_number(path: &Path) -> i32 {
    let mut number = None;
    wait_for(&format!("a number in {}", path.display()), || {
        let text = fs::read_to_string(path).unwrap_or_default();
        number = text.strip_suffix('\n').and_then(|text| text.trim().parse().ok());
        number.is_some()
    });
    number.expect("it was waited for")
}

/// Whether a process is there and can do anything: it is no zombie, and not on its way to become one.
pub(crate) fn is_alive(pid: i32) -> bool {
    /// `PF_EXITING` in include/linux/sched.h.
    const EXITING: u64 = 0x4;
    let flags = stat(pid).get(6).and_then(|flags| flags.parse().ok()).unwrap_or(0);
    state(pid).is_some_and(|state| !['Z', 'X'].contains(&state)) && flags & EXITING == 0
}

/// The only child of a process: for a dlock that runs, its guardian.
#[track_caller]
pub(crate) fn child_of(pid: i32) -> i32 {
    let mut child = None;
    wait_for(&format!("a child of {pid}"), || {
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        child = children.split_whitespace().next().and_then(|child| child.parse().ok());
        child.is_some()
    });
    child.expect("it was waited for")
}

/// Whether a program that a test needs is there. If not, the test is skipped by name, or fails where
/// nothing may be skipped.
pub(crate) fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|folder| folder.join(program).is_file());
    found || skipped(&format!("{program} is not installed"))
}

/// Says that a test, or a part of it, is skipped, and why; fails where nothing may be skipped.
#[expect(clippy::print_stderr, reason = "whoever runs the tests wants to know")]
pub(crate) fn skipped(why: &str) -> bool {
    assert!(std::env::var_os("DLOCK_DEMAND_ALL").is_none(), "{why}");
    eprintln!("skipped: {why}");
    false
}

/// The state of a process, as proc(5) has it; nothing if it is not there.
pub(crate) fn state(pid: i32) -> Option<char> {
    stat(pid).first().and_then(|state| state.chars().next())
}

/// What `/proc/PID/stat` tells of a process behind its name: state, parent, process group, session, terminal, the group
/// in its foreground, flags …
fn stat(pid: i32) -> Vec<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let (_, rest) = stat.rsplit_once(')').unwrap_or_default();
    rest.split_whitespace().map(str::to_owned).collect()
}
