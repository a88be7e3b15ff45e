//! Byte locks on a key's file. They belong to the open file description (`F_OFD_SETLK`, fcntl(2)), so they
//! last as long as any process has it open, and the kernel drops them when the last one is gone.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use crate::model::{Mode, Role, Ticket};

/// The byte that is locked for each change.
const MUTEX: Range<u64> = 0..1;

/// The bytes that a level keeps locked as its sign of life. A holder that is alone keeps the place that it
/// had in the queue: who slept on it may sleep on.
pub(super) fn bytes(ticket: Ticket, role: Role, mode: Mode) -> Range<u64> {
    match (role, mode) {
        (Role::Waiting, _) => place(ticket)..place(ticket) + 1,
        (Role::Holding, Mode::Exclusive) => place(ticket)..place(ticket) + 2,
        (Role::Holding, _) => place(ticket) + 1..place(ticket) + 2,
    }
}

/// The byte that shows a ticket's place in the queue.
pub(super) const fn place(ticket: Ticket) -> u64 {
    2 * ticket
}

/// The same file by an open file description of its own, whose locks end with it. By its name another file
/// may be found by now.
pub(super) fn reopen(file: &File) -> io::Result<File> {
    File::options().read(true).write(true).open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// Takes the mutex of a key's file; nothing if another process kept it for longer than `patience`.
pub(super) fn take_mutex(file: File, patience: Duration) -> io::Result<Option<File>> {
    if try_lock(&file, &MUTEX)? {
        return Ok(Some(file));
    }
    // Only the kernel wakes us in time and in turn, but it cannot be told a limit: so a thread waits for it.
    // If it comes too late, the file comes back to nobody, is closed, and the lock with it.
    let (taken, result) = mpsc::sync_channel(1);
    thread::Builder::new().name("mutex".into()).stack_size(64 << 10).spawn(move || {
        let locked = set(&file, libc::F_WRLCK, &MUTEX, true);
        let _ = taken.send(locked.map(|_| file));
    })?;
    match result.recv_timeout(patience) {
        Ok(file) => file.map(Some),
        Err(_) => Ok(None),
    }
}

/// Locks bytes for writing; `false` if somebody else has one of them.
pub(super) fn try_lock(file: &File, bytes: &Range<u64>) -> io::Result<bool> {
    set(file, libc::F_WRLCK, bytes, false)
}

/// Unlocks bytes. What else has the open file description open loses the lock, too.
pub(super) fn unlock(file: &File, bytes: &Range<u64>) -> io::Result<()> {
    set(file, libc::F_UNLCK, bytes, false).map(drop)
}

/// Sleeps until nobody has a byte locked for writing.
pub(super) fn await_unlock(file: &File, byte: u64) -> io::Result<()> {
    set(file, libc::F_RDLCK, &(byte..byte + 1), true).map(drop)
}

/// Whether somebody has one of the bytes locked for writing, by another open file description than `file`.
pub(super) fn is_locked(file: &File, bytes: &Range<u64>) -> io::Result<bool> {
    let mut lock = flock(libc::F_RDLCK, bytes);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock))?;
    Ok(libc::c_int::from(lock.l_type) != libc::F_UNLCK)
}

fn set(file: &File, kind: libc::c_int, bytes: &Range<u64>, wait: bool) -> io::Result<bool> {
    let lock = flock(kind, bytes);
    loop {
        let set = if wait { FcntlArg::F_OFD_SETLKW(&lock) } else { FcntlArg::F_OFD_SETLK(&lock) };
        match fcntl(file, set) {
            Ok(_) => return Ok(true),
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN | Errno::EACCES) if !wait => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
}

fn flock(kind: libc::c_int, bytes: &Range<u64>) -> libc::flock {
    let offset = |byte: u64| libc::off_t::try_from(byte).expect("tickets count acquisitions, and stay far below 2^62");
    libc::flock {
        l_type: libc::c_short::try_from(kind).expect("lock types are 0, 1 and 2"),
        l_whence: libc::c_short::try_from(libc::SEEK_SET).expect("SEEK_SET is 0"),
        l_start: offset(bytes.start),
        l_len: offset(bytes.end - bytes.start),
        // Must be zero for locks of an open file description.
        l_pid: 0,
    }
}
