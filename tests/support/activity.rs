//! Whether a process did anything: a thread that slept all the while was never switched to.

use std::collections::BTreeMap;
use std::fs;
#[cfg(any(feature = "etcd", feature = "nats", feature = "postgres", feature = "redis"))]
use std::net::SocketAddrV4;
use std::thread;
use std::time::Duration;

use super::wait_for;

/// Who does nothing for so long is at rest: a wake-up that is under way takes microseconds.
const REST: Duration = Duration::from_millis(60);

/// What a process has done so far. Equal to what it was before if none of its threads ran in between.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Activity {
    /// How often each thread was switched away from.
    switches: BTreeMap<String, u64>,
    /// The time on a processor, in ticks.
    ticks: u64,
}

impl Activity {
    #[track_caller]
    pub(crate) fn of(pid: i32) -> Self {
        let mut switches = BTreeMap::new();
        for entry in fs::read_dir(format!("/proc/{pid}/task")).expect("the process is there") {
            let entry = entry.expect("its threads can be listed");
            // A thread may end at any time.
            let Ok(status) = fs::read_to_string(entry.path().join("status")) else { continue };
            let counts = status.lines().filter(|line| line.contains("ctxt_switches:"));
            let count = |line: &str| line.split_whitespace().last().and_then(|n| n.parse::<u64>().ok());
            switches.insert(entry.file_name().to_string_lossy().into_owned(), counts.filter_map(count).sum());
        }
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process is there");
        let fields = stat.rsplit(") ").next().unwrap_or_default().split(' ');
        // utime and stime, of threads that have ended, too (proc_pid_stat(5)).
        let ticks = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
        Self { switches, ticks }
    }

    pub(crate) fn threads(&self) -> usize {
        self.switches.len()
    }
}

/// What each of these processes has done, once all of them are at rest.
#[track_caller]
pub(crate) fn at_rest(pids: &[i32]) -> Vec<Activity> {
    let look = || pids.iter().map(|pid| Activity::of(*pid)).collect::<Vec<_>>();
    let mut now = look();
    wait_for("processes at rest", || {
        thread::sleep(REST);
        let before = std::mem::replace(&mut now, look());
        before == now
    });
    now
}

/// What the descriptors of a process lead to.
#[track_caller]
pub(crate) fn open_files(pid: i32) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).expect("the process is there");
    let target = |entry: fs::DirEntry| fs::read_link(entry.path()).ok().map(|path| path.display().to_string());
    entries.filter_map(Result::ok).filter_map(target).collect()
}

/// The TCP connections of a process: its own address with the port, and the address of the other side.
#[cfg(any(feature = "etcd", feature = "nats", feature = "postgres", feature = "redis"))]
pub(crate) fn local_addresses(pid: i32) -> Vec<(String, String)> {
    let files = open_files(pid);
    let table = fs::read_to_string(format!("/proc/{pid}/net/tcp")).expect("the process is there");
    // A row has a number, two addresses, and the inode in its tenth column (proc_pid_net(5)).
    let row = |line: &str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let inode = format!("socket:[{}]", columns.get(9)?);
        let (local, peer) = (address(columns[1])?, address(columns[2])?);
        files.contains(&inode).then(|| (local.to_string(), peer.ip().to_string()))
    };
    table.lines().filter_map(row).collect()
}

/// An address as the kernel lists it: four bytes in the machine's own order, and the port, in hexadecimal.
#[cfg(any(feature = "etcd", feature = "nats", feature = "postgres", feature = "redis"))]
fn address(text: &str) -> Option<SocketAddrV4> {
    let (ip, port) = text.split_once(':')?;
    let ip = u32::from_str_radix(ip, 16).ok()?.to_ne_bytes();
    Some(SocketAddrV4::new(ip.into(), u16::from_str_radix(port, 16).ok()?))
}
