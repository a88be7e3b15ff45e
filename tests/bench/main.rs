//! Measures dlock beside flock(1), in turn, on the same machine: `cargo bench`. On the file store and, where
//! redis-server is installed, on Redis; `etcdctl lock` is measured as well where etcd is installed.
//!
//! A whole run of `true`, and the hand-over of a key: from the end of one command to the start of the next
//! one, with 50 and with 500 waiting. The command is this program, which writes the time at which it
//! starts and ends. Figures are medians; what counts is the ratio.
#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

const RUNS: usize = 300;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if let [_, verb, file] = &args[..]
        && verb == "stamp"
    {
        return stamp(Path::new(file));
    }
    let dir = tempfile::tempdir().expect("a directory");
    let servers: Vec<Server> = [REDIS, ETCD].iter().filter_map(|start| start(dir.path())).collect();
    let tools: Vec<Tool> =
        [Tool::Flock, Tool::File].into_iter().chain(servers.iter().map(|server| server.tool)).collect();
    let mut runs: Vec<Vec<Duration>> = vec![Vec::new(); tools.len()];
    for _ in 0..RUNS {
        for (tool, times) in tools.iter().zip(&mut runs) {
            let start = Instant::now();
            let status = tool.command(dir.path(), "single", &["true"]).status().expect("it starts");
            assert!(status.success());
            times.push(start.elapsed());
        }
    }
    report("run of true", &tools, runs);
    for (waiting, rounds) in [(50, 6), (500, 1)] {
        // Hundreds of etcdctl processes need more memory than a machine may have.
        let tools: Vec<Tool> = tools.iter().copied().filter(|tool| *tool != Tool::Etcd).collect();
        let mut gaps: Vec<Vec<Duration>> = vec![Vec::new(); tools.len()];
        for round in 0..rounds {
            for (tool, gaps) in tools.iter().zip(&mut gaps) {
                gaps.extend(hand_overs(*tool, dir.path(), waiting, round));
            }
        }
        report(&format!("hand-over, {waiting} waiting"), &tools, gaps);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tool {
    Flock,
    File,
    Redis,
    Etcd,
}

/// Addresses of the loopback network that nobody else uses.
const REDIS_AT: &str = "127.94.1.1:6391";
const ETCD_AT: &str = "http://127.94.1.2:2391";

impl Tool {
    fn command(self, dir: &Path, key: &str, words: &[&str]) -> Command {
        let dlock = |store: String| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_dlock"));
            command.arg("run").arg(key).arg("--").args(words).env("DLOCK_STORE", store);
            command
        };
        match self {
            Self::File => dlock(format!("file:{}", dir.join("locks").display())),
            Self::Redis => dlock(format!("redis://{REDIS_AT}")),
            Self::Flock => {
                let mut command = Command::new("flock");
                command.arg(dir.join(key)).args(words);
                command
            }
            Self::Etcd => {
                let mut command = Command::new("etcdctl");
                command.args(["--endpoints", ETCD_AT, "lock", key, "--"]).args(words).env("ETCDCTL_API", "3");
                command
            }
        }
    }
}

/// A server, killed at the end.
struct Server {
    tool: Tool,
    child: Child,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const REDIS: fn(&Path) -> Option<Server> = |dir| {
    let (host, port) = REDIS_AT.split_once(':')?;
    let mut server = Command::new("redis-server");
    start(Tool::Redis, dir, REDIS_AT, server.args(["--bind", host, "--port", port, "--save", ""]))
};

const ETCD: fn(&Path) -> Option<Server> = |dir| {
    let mut server = Command::new("etcd");
    server.args(["--data-dir", "etcd", "--listen-client-urls", ETCD_AT, "--advertise-client-urls", ETCD_AT]);
    server.args(["--listen-peer-urls", "http://127.94.1.2:2392"]);
    start(Tool::Etcd, dir, ETCD_AT.trim_start_matches("http://"), &mut server)
};

fn start(tool: Tool, dir: &Path, at: &str, server: &mut Command) -> Option<Server> {
    let quiet = server.current_dir(dir).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let server = Server { tool, child: quiet.spawn().ok()? };
    let start = Instant::now();
    while TcpStream::connect(at).is_err() {
        assert!(start.elapsed() < Duration::from_secs(20), "{tool:?} does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
    Some(server)
}

/// The times from the end of one command to the start of the next, with so many in line at first.
fn hand_overs(tool: Tool, dir: &Path, waiting: usize, round: usize) -> Vec<Duration> {
    let key = format!("{tool:?}-{waiting}-{round}");
    let log = dir.join(format!("{key}.log"));
    let gate = dir.join(format!("{key}.gate"));
    let me = std::env::current_exe().expect("this program has a path");
    let hold = format!("until [ -e {} ]; do sleep 0.05; done", gate.display());
    let mut holder = tool.command(dir, &key, &["sh", "-c", &hold]).spawn().expect("it starts");
    let stamp = [&*me.to_string_lossy(), "stamp", &*log.to_string_lossy()];
    let start = |_| tool.command(dir, &key, &stamp).stdin(Stdio::null()).spawn().expect("it starts");
    let waiters: Vec<Child> = (0..waiting).map(start).collect();
    // All must be in line before the first hand-over is measured; those that sleep use no time.
    let mut used = Vec::new();
    loop {
        let now: Vec<_> =
            waiters.iter().map(|waiter| fs::read_to_string(format!("/proc/{}/schedstat", waiter.id())).ok()).collect();
        if now == used {
            break;
        }
        used = now;
        std::thread::sleep(Duration::from_millis(300));
    }
    fs::write(gate, "").expect("the gate opens");
    for mut child in waiters {
        assert!(child.wait().expect("it ends").success());
    }
    assert!(holder.wait().expect("it ends").success());
    let text = fs::read_to_string(log).expect("they wrote");
    let mut spans: Vec<(u64, u64)> = text.lines().filter_map(span).collect();
    assert_eq!(spans.len(), waiting, "each got it");
    spans.sort_unstable();
    let gap = |pair: &[(u64, u64)]| {
        assert!(pair[0].1 <= pair[1].0, "two at once");
        Duration::from_nanos(pair[1].0 - pair[0].1)
    };
    spans.windows(2).map(gap).collect()
}

fn span(line: &str) -> Option<(u64, u64)> {
    let (start, end) = line.split_once(' ')?;
    Some((start.parse().ok()?, end.parse().ok()?))
}

/// What runs under the lock: writes when it started and when it ended.
fn stamp(log: &Path) {
    let now = || {
        let now: Duration = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("there is a clock").into();
        now.as_nanos()
    };
    let start = now();
    let mut log = fs::File::options().append(true).create(true).open(log).expect("the log opens");
    log.write_all(format!("{start} {}\n", now()).as_bytes()).expect("the log takes a line");
}

fn report(what: &str, tools: &[Tool], times: Vec<Vec<Duration>>) {
    let median = |mut times: Vec<Duration>| {
        times.sort_unstable();
        times[times.len() / 2]
    };
    let medians: Vec<Duration> = times.into_iter().map(median).collect();
    for (tool, time) in tools.iter().zip(&medians) {
        let ratio = time.as_secs_f64() / medians[0].as_secs_f64();
        println!("{what}: {tool:?} {time:.2?}, {ratio:.2} times flock");
    }
}
