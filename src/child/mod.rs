//! The command: who starts it, what it is told, and that it and all that it started are gone in time.
//! Knows nothing of leases.

mod guardian;
mod supervise;
mod tree;

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::Duration;
use std::{io, thread};

use nix::fcntl::{OFlag, open};
use nix::libc;
use nix::sys::prctl;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::stat::Mode;
use nix::sys::wait::WaitPidFlag;
use nix::unistd::{ForkResult, Pid, dup2_stdin, dup2_stdout};

use self::guardian::Order;
use self::supervise::{Action, State};
pub use self::supervise::{Policy, Verdict};
use crate::clock::{Deadline, Moment};
use crate::event::{ChildEvent, Event, Status};
use crate::sys::{self, Inherited};

/// What is to be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// Its name or path.
    pub name: OsString,
    /// Its arguments.
    pub args: Vec<OsString>,
}

/// Changes to an environment: variables with their new values, or none to remove them.
pub type Environment = Vec<(String, Option<OsString>)>;

/// The process that will be the command's parent.
#[derive(Debug)]
pub struct Guardian {
    socket: OwnedFd,
    pid: Pid,
    /// Children that this process had before: whoever became dlock by exec may have had some.
    spared: Vec<Pid>,
    policy: Policy,
    /// Whether there may be a command that only the guardian can end.
    at_work: AtomicBool,
    is_reaped: AtomicBool,
}

/// How a command ended.
#[derive(Debug)]
pub struct Outcome {
    /// How it ended itself; nothing if it could not be started, or ended unseen.
    pub status: Option<Status>,
    /// What is worse than that.
    pub verdict: Option<Verdict>,
    /// The `errno` of a start that failed.
    pub failed: Option<i32>,
    /// The guardian was killed, and the command with it.
    pub orphaned: bool,
    /// There was a command.
    pub started: bool,
}

impl Guardian {
    /// Forks the guardian, before this process has a thread and while it blocks all signals. The command will
    /// start with what it `inherited`. If dlock is killed, and so the command, the guardian says so in its `last_words`.
    /// Nothing is returned in the guardian itself, once its work is done.
    ///
    /// # Errors
    /// What the operating system says; also if `/proc` does not show who descends from whom.
    pub fn fork(
        program: &Program,
        policy: Policy,
        inherited: Inherited,
        last_words: &dyn Fn(),
    ) -> io::Result<Option<Self>> {
        let spared = tree::children().map_err(|error| {
            io::Error::other(format!("/proc does not list the children of a process: {}", sys::words(&error)))
        })?;
        prctl::set_child_subreaper(true)?;
        let flags = SockFlag::SOCK_CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
        match sys::fork()? {
            ForkResult::Parent { child } => {
                let (at_work, is_reaped) = Default::default();
                Ok(Some(Self { socket: ours, pid: child, spared, policy, at_work, is_reaped }))
            }
            ForkResult::Child => {
                drop(ours);
                // dlock sees it gone and says so; two would say it twice.
                let _ = guardian::watch(theirs, program, inherited, last_words);
                Ok(None)
            }
        }
    }

    /// Starts the command with `env` changed in its environment. The guardian keeps `sign_of_life` until
    /// the command's tree is gone, and kills the tree at `deadline`.
    ///
    /// # Errors
    /// If the guardian cannot be told.
    pub fn start(
        &self,
        env: Environment,
        sign_of_life: Option<&OwnedFd>,
        deadline: Option<Deadline>,
        events: &Sender<Event>,
    ) -> io::Result<()> {
        let socket = self.socket.try_clone()?;
        let events = events.clone();
        thread::Builder::new().name("guardian".into()).spawn(move || {
            while let Ok(Some((event, _))) = guardian::receive(&socket) {
                let _ = events.send(Event::Child(event));
            }
            let _ = events.send(Event::Child(ChildEvent::Orphaned));
        })?;
        self.at_work.store(true, Ordering::Relaxed);
        guardian::send(&self.socket, &Order::Start(env, self.end_at(deadline)), sign_of_life)
    }

    /// Looks after the command until it has ended: normally, or with all that it started. Its lease lasts until
    /// `deadline`, unless a beat moves that on. `announce` is called once for each verdict, before anything is
    /// done about it.
    pub fn supervise(
        &self,
        deadline: Option<Deadline>,
        events: &Receiver<Event>,
        mut announce: impl FnMut(&Verdict),
    ) -> Outcome {
        let mut state = State::new(self.policy, Moment::now());
        state.extend(deadline);
        let mut command = None;
        let mut orphaned = false;
        loop {
            let event = match state.due() {
                // The channel waits by a clock that sleeps when the machine does; `due` is looked at again.
                Some(due) => events.recv_timeout(due.left()),
                None => events.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            if let Ok(Event::Child(ChildEvent::Started(pid))) = event {
                command = Some(Pid::from_raw(pid));
                let_go_of_stdio();
            }
            let actions = match event {
                Ok(event) => state.next(Moment::now(), event),
                Err(_) => state.tick(Moment::now()),
            };
            for action in actions {
                match action {
                    Action::Announce(verdict) => announce(&verdict),
                    Action::Pass(signal) => self.tell(&Order::Pass(signal as i32)),
                    Action::Extend(deadline) => self.tell(&Order::Deadline(self.end_at(deadline))),
                    Action::Stop(kill_after) => self.tell(&Order::Stop(kill_after)),
                    Action::Kill => self.tell(&Order::Kill),
                    Action::KillGuardian => self.kill(),
                    Action::KillOrphans => {
                        orphaned = state.status.is_none() && command.is_some();
                        self.kill();
                        tree::destroy(&self.spared, |pid, status| {
                            if Some(pid) == command {
                                state.status.get_or_insert(status);
                            }
                        });
                    }
                    Action::Finish => {
                        self.at_work.store(false, Ordering::Relaxed);
                        let State { verdict, status, failed, .. } = state;
                        return Outcome { status, verdict, failed, orphaned, started: command.is_some() };
                    }
                }
            }
        }
    }

    /// The guardian kills so early that the tree is gone before the deadline.
    fn end_at(&self, deadline: Option<Deadline>) -> Option<Duration> {
        // A command that may go on without the lease has no deadline.
        let deadline = deadline.filter(|_| self.policy.stop_when_lost);
        deadline.map(|deadline| deadline.moment().before(self.policy.margin()).as_duration())
    }

    /// A guardian that cannot be told is dead, which its end of the socket reports, or frozen, which a
    /// stop that is overdue reveals.
    fn tell(&self, order: &Order) {
        let _ = guardian::send(&self.socket, order, None);
    }

    fn kill(&self) {
        // A number that was waited for may be somebody else's by now.
        if !self.is_reaped.swap(true, Ordering::Relaxed) {
            let _ = sys::kill(self.pid, libc::SIGKILL);
            let _ = sys::wait(Some(self.pid), WaitPidFlag::empty());
        }
    }
}

impl Drop for Guardian {
    /// Leaves no process behind: neither the guardian nor, if we fail in the middle, the command's tree,
    /// which the guardian ends when it is told to.
    fn drop(&mut self) {
        if self.at_work.load(Ordering::Relaxed) {
            self.tell(&Order::Kill);
            let _ = sys::wait(Some(self.pid), WaitPidFlag::empty());
        } else {
            self.kill();
        }
    }
}

/// Puts /dev/null in the place of stdin and stdout, which are the command's: while we keep a pipe open,
/// its other end does not see the command close it.
fn let_go_of_stdio() {
    if let Ok(null) = open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty()) {
        let _ = dup2_stdin(&null);
        let _ = dup2_stdout(&null);
    }
}
