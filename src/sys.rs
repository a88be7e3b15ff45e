//! All `unsafe` code of the house: what neither the standard library nor nix offers as a safe call.
#![expect(unsafe_code, reason = "this is the room for it; each block says why it is sound")]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use nix::errno::Errno;
use nix::libc;
use nix::sys::prctl;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use nix::sys::wait::WaitPidFlag;
use nix::unistd::{ForkResult, Pid, getppid};

use crate::event::Status;

/// Signals that we ignore, as what they stand for is an error of a write as well: nobody reads, or a file may not grow.
/// The Rust runtime ignores the first one.
const ERRORS: [libc::c_int; 2] = [libc::SIGPIPE, libc::SIGXFSZ];

/// What these did when the process was started. This is noted before the Rust runtime starts.
static ERRORS_AT_START: [AtomicUsize; 2] = [const { AtomicUsize::new(libc::SIG_DFL) }; 2];

/// Whether stdout could be written to when the process was started. The Rust runtime opens /dev/null in the place of
/// one that is closed, and takes what cannot be written to one that is open for reading only as written.
static STDOUT_AT_START: AtomicBool = AtomicBool::new(true);

// SAFETY: the linker section of functions that run before main; the function below has the signature that
// the C library calls it with (it may ignore the arguments) and touches nothing but atomics and system calls.
#[unsafe(link_section = ".init_array")]
#[used]
static NOTE_START: extern "C" fn() = note_start;

extern "C" fn note_start() {
    for (signal, at_start) in ERRORS.into_iter().zip(&ERRORS_AT_START) {
        at_start.store(disposition(signal), Ordering::Relaxed);
        ignore(signal);
    }
    // SAFETY: this asks for flags, and touches no memory.
    let flags = unsafe { libc::fcntl(libc::STDOUT_FILENO, libc::F_GETFL) };
    let writable = flags >= 0 && flags & libc::O_PATH == 0 && flags & libc::O_ACCMODE != libc::O_RDONLY;
    STDOUT_AT_START.store(writable, Ordering::Relaxed);
}

/// Whether what is written to stdout goes anywhere.
#[must_use]
pub fn has_stdout() -> bool {
    STDOUT_AT_START.load(Ordering::Relaxed)
}

fn disposition(signal: libc::c_int) -> usize {
    let mut now = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: a null new action only asks; `now` is valid for writes, and all zeroes is a valid sigaction.
    let now = unsafe {
        libc::sigaction(signal, ptr::null(), now.as_mut_ptr());
        now.assume_init()
    };
    now.sa_sigaction
}

/// What the operating system says, as the end of a sentence.
#[must_use]
pub fn words(error: &io::Error) -> String {
    let known = error.raw_os_error().map(|code| Errno::from_raw(code).desc().to_lowercase());
    known.unwrap_or_else(|| error.to_string())
}

/// Whether a signal is ignored in this process.
#[must_use]
pub fn is_ignored(signal: Signal) -> bool {
    disposition(signal as libc::c_int) == libc::SIG_IGN
}

/// Lets a signal do what it does by default.
pub fn restore_default(signal: libc::c_int) {
    // SAFETY: SIG_DFL is a valid disposition and runs no code of ours.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}

/// Ignores a signal, here and in what is started from here.
pub fn ignore(signal: libc::c_int) {
    // SAFETY: SIG_IGN is a valid disposition and runs no code of ours.
    unsafe { libc::signal(signal, libc::SIG_IGN) };
}

/// Dies of a signal, as the command did. Returns if the kernel does not let us: as pid 1 of a namespace,
/// or of a signal that kills nobody.
pub fn die_of(signal: libc::c_int) {
    // The command may have left a core; ours would only hide it.
    let _ = prctl::set_dumpable(false);
    restore_default(signal);
    // SAFETY: plain system calls on a signal set of our own, which sigemptyset makes valid.
    unsafe {
        let mut only = MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigemptyset(only.as_mut_ptr());
        libc::sigaddset(only.as_mut_ptr(), signal);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, only.as_ptr(), ptr::null_mut());
        libc::raise(signal);
    }
}

/// Sends a signal that nix may have no name for (the real-time ones).
///
/// # Errors
/// The `errno` of kill(2).
pub fn kill(pid: Pid, signal: libc::c_int) -> Result<(), Errno> {
    // SAFETY: kill touches no memory.
    Errno::result(unsafe { libc::kill(pid.as_raw(), signal) }).map(drop)
}

/// Forks.
///
/// # Errors
/// The `errno` of fork(2).
///
/// # Panics
/// In a debug build, if this process has more than one thread: the others would be missing in the child,
/// their locks held.
pub fn fork() -> Result<ForkResult, Errno> {
    let threads = || std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    debug_assert_eq!(threads(), 1, "the guardian is forked before any thread exists");
    // SAFETY: there is one thread, so the child has all of the process.
    unsafe { nix::unistd::fork() }
}

/// What wait(2) reports of a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It ended.
    Ended(Status),
    /// It was stopped by the signal with this number.
    Stopped(i32),
    /// It goes on after a stop.
    Continued,
}

/// Waits for a change of the child `pid`, or of any. nix forgets a child that died of a real-time signal.
///
/// # Errors
/// The `errno` of waitpid(2): ECHILD if there is no such child.
pub fn wait(pid: Option<Pid>, flags: WaitPidFlag) -> Result<Option<(Pid, Change)>, Errno> {
    let mut status = 0;
    let which = pid.map_or(-1, Pid::as_raw);
    // SAFETY: `status` is valid for writes.
    let pid = Errno::result(unsafe { libc::waitpid(which, &raw mut status, flags.bits()) })?;
    let change = if libc::WIFEXITED(status) {
        Change::Ended(Status::Exited(libc::WEXITSTATUS(status)))
    } else if libc::WIFSIGNALED(status) {
        Change::Ended(Status::Killed(libc::WTERMSIG(status)))
    } else if libc::WIFSTOPPED(status) {
        Change::Stopped(libc::WSTOPSIG(status))
    } else {
        Change::Continued
    };
    Ok((pid != 0).then_some((Pid::from_raw(pid), change)))
}

/// Takes a descriptor that came over a socket.
#[must_use]
pub fn adopt(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just put it into our table for us (SCM_RIGHTS), so nobody else owns it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// What the command inherits as it was when dlock was started.
#[derive(Clone, Copy, Debug)]
pub struct Inherited {
    mask: SigSet,
    child_ignored: bool,
}

impl Inherited {
    /// Notes the signal mask and dispositions, and makes SIGCHLD one that can be waited for: ignored, it
    /// would make the kernel forget how children ended.
    ///
    /// # Errors
    /// The `errno` of a failed system call.
    pub fn note() -> Result<Self, Errno> {
        let child_ignored = is_ignored(Signal::SIGCHLD);
        if child_ignored {
            restore_default(libc::SIGCHLD);
        }
        Ok(Self { mask: SigSet::thread_get_mask()?, child_ignored })
    }

    /// Makes `command` start with what was noted, and die when this process dies.
    pub fn hand_to(self, command: &mut Command) {
        let parent = Pid::this();
        let set_up = move || -> io::Result<()> {
            prctl::set_pdeathsig(Signal::SIGKILL)?;
            if getppid() != parent {
                return Err(Errno::ESRCH.into());
            }
            // SAFETY: these dispositions run no code, and signal(2) is async-signal-safe.
            unsafe {
                for (signal, at_start) in ERRORS.into_iter().zip(&ERRORS_AT_START) {
                    libc::signal(signal, at_start.load(Ordering::Relaxed));
                }
                if self.child_ignored {
                    libc::signal(libc::SIGCHLD, libc::SIG_IGN);
                }
            }
            pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&self.mask), None)?;
            Ok(())
        };
        // SAFETY: between fork and exec the closure makes system calls only; it takes no lock and does not allocate.
        unsafe { command.pre_exec(set_up) };
    }
}
