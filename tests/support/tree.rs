//! Commands that start a tree of processes, and what shows that nothing of it is left.

#[cfg(any(feature = "etcd", feature = "nats", feature = "postgres", feature = "redis"))]
use std::fs::File;
#[cfg(any(feature = "etcd", feature = "nats", feature = "postgres", feature = "redis"))]
use std::time::SystemTime;

#[cfg(any(feature = "etcd", feature = "nats", feature = "postgres", feature = "redis"))]
use nix::fcntl::{Flock, FlockArg};

use super::{Running, Store, is_alive};

/// A dlock that runs a tree of processes, or waits to.
pub(crate) struct Tree {
    pub(crate) dlock: Running,
    pids: Vec<i32>,
}

impl Store {
    /// The beginning of a script: it writes `overlap` if anything lives of another command that began so.
    /// All that the script starts inherits a lock of the kernel, so no process can forget to say so, and
    /// none that was killed can go on saying it.
    pub(crate) fn alone(&self) -> String {
        format!("cd '{}' || exit 9; exec 9>>alone; flock -n 9 || echo overlap", self.dir.path().display())
    }

    /// Starts a dlock that runs a tree while it holds `k`. One process of it has a session of its own and
    /// ignores what asks it to end.
    pub(crate) fn tree(&self, options: &[&str]) -> Tree {
        let script = format!(
            r#"echo started; {}; rm -f grandchild
            setsid sh -c 'trap "" TERM HUP INT; echo $$ >grandchild; sleep 60; :' >/dev/null 2>&1 &
            until [ -s grandchild ]; do sleep 0.005; done
            echo $$ $(cat grandchild); wait"#,
            self.alone()
        );
        let mut args = vec!["run", "k"];
        args.extend(options);
        args.extend(["--", "sh", "-c", &script]);
        Tree { dlock: Running::start(&mut self.dlock(&args)), pids: Vec::new() }
    }

    /// Waits until nothing is left of a tree that is complete, and returns when that was.
    #[cfg(any(feature = "etcd", feature = "nats", feature = "postgres", feature = "redis"))]
    pub(crate) fn await_end_of_tree(&self) -> SystemTime {
        let file = File::open(self.path("alone")).expect("the tree has opened it");
        let alone = Flock::lock(file, FlockArg::LockExclusive);
        let now = SystemTime::now();
        drop(alone.map_err(|(_, error)| error).expect("it is free when all who have it are gone"));
        now
    }

    /// A tree that holds `k` and is complete.
    pub(crate) fn holding_tree(&self, options: &[&str]) -> Tree {
        let mut tree = self.tree(options);
        tree.await_start();
        tree.await_all();
        tree
    }
}

impl Tree {
    /// Waits until the command runs.
    #[track_caller]
    pub(crate) fn await_start(&mut self) {
        self.dlock.await_line("started");
    }

    /// Waits until the tree is complete; fails if anything of another one was alive when it began.
    #[track_caller]
    pub(crate) fn await_all(&mut self) {
        let line = self.dlock.read_line().expect("the tree writes its process ids");
        self.pids = line.split(' ').map(|pid| pid.parse().unwrap_or_else(|_| panic!("{line}"))).collect();
    }

    /// Fails if anything of it lives.
    #[track_caller]
    pub(crate) fn is_gone(&self) {
        let left: Vec<_> = self.pids.iter().filter(|pid| is_alive(**pid)).collect();
        assert!(!self.pids.is_empty() && left.is_empty(), "{left:?} of {:?} live", self.pids);
    }
}
