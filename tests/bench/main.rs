//! Measures dlock beside flock(1), in turn, on the same machine: `cargo bench`.
//!
//! A whole run of `true`, and the hand-over of a key: from the end of one command to the start of the next
//! one, with 50 and with 500 waiting. The command is this program, which writes the time at which it
//! starts and ends. Figures are medians; what counts is the ratio.
#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::fs;
use std::io::Write;
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
    let tools = [Tool::Dlock, Tool::Flock];
    let mut runs = [Vec::new(), Vec::new()];
    for _ in 0..RUNS {
        for (tool, times) in tools.iter().zip(&mut runs) {
            let start = Instant::now();
            let status = tool.command(dir.path(), "single", &["true"]).status().expect("it starts");
            assert!(status.success());
            times.push(start.elapsed());
        }
    }
    report("run of true", &mut runs);
    for (waiting, rounds) in [(50, 6), (500, 1)] {
        let mut gaps = [Vec::new(), Vec::new()];
        for round in 0..rounds {
            for (tool, gaps) in tools.iter().zip(&mut gaps) {
                gaps.extend(hand_overs(*tool, dir.path(), waiting, round));
            }
        }
        report(&format!("hand-over, {waiting} waiting"), &mut gaps);
    }
}

#[derive(Clone, Copy, Debug)]
enum Tool {
    Dlock,
    Flock,
}

impl Tool {
    fn command(self, dir: &Path, key: &str, words: &[&str]) -> Command {
        match self {
            Self::Dlock => {
                let mut command = Command::new(env!("CARGO_BIN_EXE_dlock"));
                command.arg("run").arg(key).arg("--").args(words);
                command.env("DLOCK_STORE", format!("file:{}", dir.join("locks").display()));
                command
            }
            Self::Flock => {
                let mut command = Command::new("flock");
                command.arg(dir.join(key)).args(words);
                command
            }
        }
    }
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

fn report(what: &str, times: &mut [Vec<Duration>; 2]) {
    let [dlock, flock] = times.each_mut().map(|times| {
        times.sort_unstable();
        times[times.len() / 2]
    });
    let ratio = dlock.as_secs_f64() / flock.as_secs_f64();
    println!("{what}: dlock {dlock:.2?}, flock {flock:.2?}, ratio {ratio:.2}");
}
