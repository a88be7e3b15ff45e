//! What the kernel knows of the connections of a process: whether anybody listens there, and has heard all.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;

use nix::libc;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

/// A TCP connection, as `sock_diag(7)` has it.
struct Connection {
    peer: Ipv4Addr,
    /// How long ago, in milliseconds, anything was sent and anything came.
    sent: u32,
    came: u32,
}

/// Whether a thread of a process sleeps until something comes from one of these hosts, while nothing that it asked for is
/// still to come: the last word was theirs.
pub(crate) fn listens(pid: i32, hosts: &[String]) -> bool {
    let connections = connections();
    let hears = |inode: u64| {
        connections.get(&inode).is_some_and(|connection| {
            hosts.contains(&connection.peer.to_string()) && connection.came <= connection.sent
        })
    };
    waited_for(pid).into_iter().filter_map(|fd| inode(pid, fd)).any(hears)
}

/// The descriptors that the threads of a process sleep on.
fn waited_for(pid: i32) -> Vec<i32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().filter_map(Result::ok);
    let mut found = Vec::new();
    for task in tasks {
        let Ok(line) = fs::read_to_string(task.path().join("syscall")) else { continue };
        let number = |word: &str| i64::from_str_radix(word.trim_start_matches("0x"), 16).ok();
        let mut words = line.split_whitespace();
        // A thread that runs has no call to tell of.
        let Some(call) = words.next().and_then(|call| call.parse::<i64>().ok()) else { continue };
        let args: Vec<i64> = words.filter_map(number).collect();
        if [libc::SYS_read, libc::SYS_recvfrom].contains(&call) {
            found.extend(i32::try_from(args[0]));
        } else if [libc::SYS_poll, libc::SYS_ppoll].contains(&call) {
            found.extend(polled(pid, args[0], args[1]));
        }
    }
    found
}

/// The descriptors in the list at this place of a process's memory, of poll(2).
fn polled(pid: i32, at: i64, count: i64) -> Vec<i32> {
    let Ok(memory) = File::open(format!("/proc/{pid}/mem")) else { return Vec::new() };
    let one = |number: i64| {
        let mut bytes = [0; 4];
        let place = u64::try_from(at + 8 * number).ok()?;
        memory.read_exact_at(&mut bytes, place).ok()?;
        Some(i32::from_ne_bytes(bytes))
    };
    (0..count).filter_map(one).collect()
}

/// The inode of the socket behind a descriptor.
fn inode(pid: i32, fd: i32) -> Option<u64> {
    let target = fs::read_link(format!("/proc/{pid}/fd/{fd}")).ok()?;
    target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// All that the kernel tells of connections, by their inodes.
fn connections() -> BTreeMap<u64, Connection> {
    let kernel = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkSockDiag);
    let kernel = kernel.expect("the kernel tells of sockets");
    send(kernel.as_raw_fd(), &question(), MsgFlags::empty()).expect("it can be asked");
    let mut found = BTreeMap::new();
    while answers(&kernel, &mut found) {}
    found
}

/// The request for all connections over IPv4 and what TCP knows of them: `inet_diag_req_v2` in `linux/inet_diag.h`.
fn question() -> Vec<u8> {
    const LENGTH: u32 = 72;
    /// `SOCK_DIAG_BY_FAMILY`, with `NLM_F_REQUEST` and `NLM_F_DUMP`.
    const KIND: [u16; 2] = [20, 0x301];
    /// The number of the bit of `INET_DIAG_INFO`.
    const INFO: u8 = 1 << 1;
    /// The number of the bit of `TCP_ESTABLISHED`.
    const ESTABLISHED: u32 = 1 << 1;
    let mut bytes = LENGTH.to_ne_bytes().to_vec();
    bytes.extend(KIND.iter().flat_map(|word| word.to_ne_bytes()));
    bytes.extend([0; 8]);
    bytes.extend([2, 6, INFO, 0]);
    bytes.extend(ESTABLISHED.to_ne_bytes());
    bytes.resize(LENGTH as usize, 0);
    bytes
}

/// Takes in the next answers; false after the last one.
fn answers(kernel: &OwnedFd, found: &mut BTreeMap<u64, Connection>) -> bool {
    /// `SOCK_DIAG_BY_FAMILY`: anything else is an end or an error.
    const ONE: u16 = 20;
    let mut bytes = vec![0; 1 << 16];
    let length = recv(kernel.as_raw_fd(), &mut bytes, MsgFlags::empty()).expect("it answers");
    let mut rest = &bytes[..length];
    while rest.len() >= 16 {
        let length = word(rest, 0) as usize;
        if u16::from_ne_bytes([rest[4], rest[5]]) != ONE {
            return false;
        }
        if let Some((inode, connection)) = one(&rest[16..length]) {
            found.insert(inode, connection);
        }
        rest = &rest[length.next_multiple_of(4).min(rest.len())..];
    }
    true
}

/// One connection: `inet_diag_msg` in `linux/inet_diag.h`, and behind it `tcp_info` among its attributes.
fn one(bytes: &[u8]) -> Option<(u64, Connection)> {
    const LENGTH: usize = 72;
    const INFO: u16 = 2;
    let peer = Ipv4Addr::new(bytes[24], bytes[25], bytes[26], bytes[27]);
    let inode = u64::from(word(bytes, LENGTH - 4));
    let mut rest = bytes.get(LENGTH..)?;
    while rest.len() >= 4 {
        let (length, kind) = (u16::from_ne_bytes([rest[0], rest[1]]), u16::from_ne_bytes([rest[2], rest[3]]));
        let length = usize::from(length);
        if kind == INFO {
            let info = &rest[4..length];
            return Some((inode, Connection { peer, sent: word(info, 44), came: word(info, 52) }));
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
    None
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
