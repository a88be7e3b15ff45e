//! The tree: all that descends from this process.

use std::collections::BTreeSet;
use std::fs;

use nix::errno::Errno;
use nix::sys::signal::Signal::{self, SIGKILL};
use nix::sys::wait::WaitPidFlag;
use nix::unistd::Pid;

use crate::event::Status;
use crate::sys::{self, Change};

/// The children of this process.
///
/// # Errors
/// If `/proc` does not tell, which also means that trees cannot be found at all.
pub(super) fn children() -> std::io::Result<Vec<Pid>> {
    Ok(below("self")?.into_iter().filter_map(in_our_namespace).collect())
}

/// Sends `signal` to every descendant except `spared` and what descends from those. Returns these.
pub(super) fn signal(spared: &[Pid], signal: Signal) -> BTreeSet<Pid> {
    let mut names = below("self").unwrap_or_default();
    let mut found = BTreeSet::new();
    // All are found before the first one is signalled: the children of one that dies move to us.
    while let Some(name) = names.pop() {
        let Some(pid) = in_our_namespace(name) else { continue };
        if !spared.contains(&pid) && found.insert(pid) {
            names.extend(below(&name.to_string()).unwrap_or_default());
        }
    }
    for pid in &found {
        // Gone in between is as good. What we may not signal (a setuid program) is waited for.
        let _ = sys::kill(*pid, signal as i32);
    }
    found
}

/// Kills every descendant except `spared`, again and again until none is left, and tells how each child
/// ended. Orphans come to us, since this process is a subreaper, so nothing escapes by being orphaned.
pub(super) fn destroy(spared: &[Pid], mut ended: impl FnMut(Pid, Status)) {
    let mut empty = 0;
    // `/proc` may leave out a child while another one ends, so it is believed the second time.
    while empty < 2 {
        let killed = signal(spared, SIGKILL);
        let mut left = children().unwrap_or_default();
        left.retain(|pid| !spared.contains(pid));
        if left.is_empty() {
            let flags = WaitPidFlag::__WALL | WaitPidFlag::WNOHANG;
            match if spared.is_empty() { sys::wait(None, flags) } else { Err(Errno::ECHILD) } {
                Ok(Some((pid, Change::Ended(status)))) => ended(pid, status),
                Err(Errno::ECHILD) => empty += 1,
                _ => {}
            }
        }
        // To look for all the others after each of them would take a time that grows with its square. One that
        // came meanwhile has not been killed yet.
        for pid in left.into_iter().filter(|pid| killed.contains(pid)) {
            if let Ok(Some((pid, Change::Ended(status)))) = sys::wait(Some(pid), WaitPidFlag::__WALL) {
                ended(pid, status);
            }
        }
    }
}

/// The children of a process, by the numbers that this `/proc` uses.
fn below(process: &str) -> std::io::Result<Vec<i32>> {
    let mut all = Vec::new();
    let mut unread = None;
    for task in fs::read_dir(format!("/proc/{process}/task"))? {
        match task.and_then(|task| fs::read_to_string(task.path().join("children"))) {
            Ok(children) => {
                all.extend(children.split_ascii_whitespace().filter_map(|number| number.parse::<i32>().ok()));
            }
            // A thread may end at any time; that of a process as a whole is another matter.
            Err(error) => unread = Some(error),
        }
    }
    unread.filter(|_| all.is_empty()).map_or(Ok(all), Err)
}

/// The number that a process of `/proc` has for us. They differ where a pid namespace was entered without
/// mounting a `/proc` of its own.
fn in_our_namespace(name: i32) -> Option<Pid> {
    let depth = numbers("self")?.len();
    if depth == 1 {
        return Some(Pid::from_raw(name));
    }
    numbers(&name.to_string())?.get(depth - 1).copied().map(Pid::from_raw)
}

/// The numbers of a process in the namespace of `/proc` and in those below, down to its own.
fn numbers(process: &str) -> Option<Vec<i32>> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    line.split_ascii_whitespace().map(|number| number.parse().ok()).collect()
}
