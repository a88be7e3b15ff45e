//! What commands under a lock write about themselves: lines of one file, in the order in which they were
//! written, whoever wrote them; and the queue of a key, as the waiting see it.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::PathBuf;

use super::{Running, Store, wait_for};

/// A file to which lines are appended. A command writes `enter NAME …` first and `leave NAME` last.
pub(crate) struct Journal(PathBuf);

impl Journal {
    pub(crate) fn new(store: &Store) -> Self {
        let path = store.path("journal");
        File::create(&path).expect("the test's directory is writable");
        Self(path)
    }

    /// A script that enters, does `body`, and leaves.
    pub(crate) fn visit(&self, name: &str, body: &str) -> String {
        let path = self.0.display();
        format!("echo \"enter {name} $DLOCK_FENCE\" >>'{path}'; {body}; echo 'leave {name}' >>'{path}'")
    }

    /// A script that enters, and leaves when its stdin ends.
    pub(crate) fn stay(&self, name: &str) -> String {
        self.visit(name, "cat >/dev/null")
    }

    /// Adds a line of the test's own.
    pub(crate) fn write(&self, line: &str) {
        let mut file = OpenOptions::new().append(true).open(&self.0).expect("the journal is there");
        file.write_all(format!("{line}\n").as_bytes()).expect("the journal is writable");
    }

    /// The words of each line so far.
    pub(crate) fn lines(&self) -> Vec<Vec<String>> {
        let text = fs::read_to_string(&self.0).expect("the journal is there");
        text.lines().map(|line| line.split_whitespace().map(str::to_owned).collect()).collect()
    }

    /// Who entered, in this order.
    pub(crate) fn entered(&self) -> Vec<String> {
        self.lines().into_iter().filter(|line| line[0] == "enter").map(|mut line| line.swap_remove(1)).collect()
    }

    /// The fences of those who entered, in this order.
    pub(crate) fn fences(&self) -> Vec<u64> {
        let entries = self.lines().into_iter().filter(|line| line[0] == "enter");
        entries.map(|line| line[2].parse().expect("a fence is a number")).collect()
    }

    /// Waits until somebody has entered.
    #[track_caller]
    pub(crate) fn await_entry(&self, name: &str) {
        wait_for(&format!("{name} to enter"), || self.entered().iter().any(|entered| entered == name));
    }

    /// Who was inside, after each line.
    pub(crate) fn inside(&self) -> Vec<Vec<String>> {
        let mut inside: Vec<String> = Vec::new();
        let step = |line: Vec<String>| {
            match &*line[0] {
                "enter" => inside.push(line[1].clone()),
                "leave" => inside.retain(|name| *name != line[1]),
                _ => {}
            }
            inside.clone()
        };
        self.lines().into_iter().map(step).collect()
    }

    /// How many were inside at once, at most.
    pub(crate) fn most_at_once(&self) -> usize {
        self.inside().iter().map(Vec::len).max().unwrap_or(0)
    }
}

impl Store {
    /// The process ids of those who wait for a key, in their order.
    pub(crate) fn queue(&self, key: &str) -> Vec<i32> {
        let status = self.status(key);
        let queue = status["queue"].as_array().expect("status names the queue");
        let pid = |waiter: &serde_json::Value| waiter["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
        queue.iter().map(|waiter| pid(waiter).expect("a waiter has a pid")).collect()
    }

    /// A dlock that will run `script` once it has `key`. Returned when it is in the queue.
    #[track_caller]
    pub(crate) fn waiting(&self, key: &str, options: &[&str], script: &str) -> Running {
        let mut args = vec!["run", key];
        args.extend(options);
        args.extend(["--", "sh", "-c", script]);
        let waiter = Running::start(&mut self.dlock(&args));
        let pid = waiter.pid().as_raw();
        wait_for(&format!("{pid} in the queue of {key}"), || self.queue(key).contains(&pid));
        waiter
    }
}
