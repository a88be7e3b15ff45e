//! The guardian: the command's parent, in a process of its own. It outlives a dlock that is killed or
//! frozen just long enough to take the command's tree with it, so nothing runs on without its lease.

use std::convert::Infallible;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::Command;
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::Signal::{SIGCHLD, SIGCONT, SIGTERM};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use nix::sys::wait::WaitPidFlag;
use nix::unistd::{Pid, getpgid, getpgrp, getppid};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Environment, Program, tree};
use crate::clock::Moment;
use crate::event::{ChildEvent, Status};
use crate::sys::{self, Change, Inherited};

/// What dlock tells its guardian.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Order {
    /// Start the command with these changes to its environment, and a deadline. The store's sign of life may come with
    /// it, to be kept until the tree is gone.
    Start(Environment, Option<Duration>),
    /// Kill the tree at this time after boot unless told otherwise before; or never.
    Deadline(Option<Duration>),
    /// Pass this signal to the command.
    Pass(i32),
    /// Ask the tree to end, and kill what is left after so long.
    Stop(Duration),
    /// Kill the tree.
    Kill,
}

/// How long after a signal came to the whole process group dlock may pass it on. One that dlock has had
/// together with an earlier one of its kind it never does.
const WITNESSED: Duration = Duration::from_secs(2);

/// No message is longer: the additions to the environment are a few keys and ids.
const MAX_MESSAGE: usize = 128 << 10;

/// Sends a message without ever waiting: a frozen reader must not freeze us.
pub(super) fn send<T: Serialize>(socket: &OwnedFd, message: &T, fd: Option<&OwnedFd>) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    let fds = fd.map(|fd| [fd.as_raw_fd()]);
    let control: Vec<_> = fds.iter().map(|fds| ControlMessage::ScmRights(fds)).collect();
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(&bytes)], &control, flags, None)?;
    Ok(())
}

/// Waits for a message; nothing once the other end is gone.
pub(super) fn receive<T: DeserializeOwned>(socket: &OwnedFd) -> io::Result<Option<(T, Option<OwnedFd>)>> {
    let mut bytes = vec![0; MAX_MESSAGE];
    let mut control = nix::cmsg_space!([std::os::fd::RawFd; 1]);
    let (length, fd) = loop {
        let mut buffer = [IoSliceMut::new(&mut bytes)];
        match recvmsg::<()>(socket.as_raw_fd(), &mut buffer, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC) {
            Ok(message) => {
                let fd = message.cmsgs()?.find_map(|control| match control {
                    ControlMessageOwned::ScmRights(fds) => fds.first().map(|fd| sys::adopt(*fd)),
                    _ => None,
                });
                break (message.bytes, fd);
            }
            // Said once, before what is left to read, if the other end went without reading all of ours.
            Err(Errno::EINTR | Errno::ECONNRESET) => {}
            Err(error) => return Err(error.into()),
        }
    };
    if length == 0 {
        return Ok(None);
    }
    Ok(Some((serde_json::from_slice(&bytes[..length])?, fd)))
}

/// Where the guardian stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// There is no command yet.
    Idle,
    /// The command runs.
    Running,
    /// It was asked to end, and is killed at this moment.
    Stopping(Moment),
}

struct Guard {
    dlock: Pid,
    socket: OwnedFd,
    signals: SignalFd,
    timer: TimerFd,
    inherited: Inherited,
    phase: Phase,
    command: Option<Pid>,
    deadline: Option<Moment>,
    /// Signals that came to us too, and so to the whole process group.
    witnessed: Vec<(Signal, Moment)>,
    sign_of_life: Option<OwnedFd>,
    /// dlock was killed, and with it the command.
    dlock_killed: bool,
}

/// The work of the guardian is done.
struct Done;

/// Waits for orders and carries them out, until the command has ended or its tree is gone.
///
/// # Errors
/// If the guardian cannot be set up.
pub(super) fn watch(socket: OwnedFd, program: &Program, inherited: Inherited, last_words: &dyn Fn()) -> io::Result<()> {
    // Another name than dlock's: who kills every `dlock` by name still has its commands looked after.
    prctl::set_name(c"lock-guardian")?;
    prctl::set_child_subreaper(true)?;
    let all = SigSet::all();
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&all), None)?;
    let mut guard = Guard {
        dlock: getppid(),
        socket,
        signals: SignalFd::with_flags(&all, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?,
        timer: TimerFd::new(ClockId::CLOCK_BOOTTIME, TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK)?,
        inherited,
        phase: Phase::Idle,
        command: None,
        deadline: None,
        witnessed: Vec::new(),
        sign_of_life: None,
        dlock_killed: false,
    };
    let Err(Done) = guard.serve(program);
    drop(guard.sign_of_life.take());
    // The key is free before anybody reads this.
    if guard.dlock_killed {
        last_words();
    }
    Ok(())
}

impl Guard {
    fn serve(&mut self, program: &Program) -> Result<Infallible, Done> {
        loop {
            let mut fds = [self.socket.as_fd(), self.signals.as_fd(), self.timer.as_fd()]
                .map(|fd| PollFd::new(fd, PollFlags::POLLIN));
            if poll(&mut fds, PollTimeout::NONE).is_err() {
                continue;
            }
            let [orders, signals, time] = fds.map(|fd| fd.any().unwrap_or(false));
            if time {
                // Reading it makes it wait again; what is due is decided by the clock.
                let _ = self.timer.wait();
            }
            if signals {
                self.witness();
            }
            if orders {
                let Ok(Some((order, fd))) = receive(&self.socket) else {
                    // Nobody is there to give orders: dlock was killed.
                    self.dlock_killed = self.phase != Phase::Idle;
                    return self.kill();
                };
                self.obey(order, fd, program)?;
            }
            // Every time: carrying out an order may have read the SIGCHLD.
            self.reap()?;
            // If we were frozen, the next order may have moved the deadline on.
            if !orders {
                self.look_at_clock()?;
            }
        }
    }

    fn obey(&mut self, order: Order, fd: Option<OwnedFd>, program: &Program) -> Result<(), Done> {
        match order {
            Order::Start(env, deadline) => {
                self.sign_of_life = fd;
                self.end_at(deadline);
                self.start(program, env)?;
            }
            Order::Deadline(at) => self.end_at(at),
            Order::Pass(number) => self.pass(number),
            Order::Stop(kill_after) => {
                for signal in [SIGTERM, SIGCONT] {
                    tree::signal(&[], signal);
                }
                self.phase = Phase::Stopping(Moment::now().after(kill_after));
                self.set_timer();
            }
            Order::Kill => return self.kill().map(|never| match never {}),
        }
        Ok(())
    }

    fn end_at(&mut self, deadline: Option<Duration>) {
        self.deadline = deadline.map(Moment::since_boot);
        self.set_timer();
    }

    fn start(&mut self, program: &Program, env: Environment) -> Result<(), Done> {
        if self.is_expired() {
            self.report(ChildEvent::Expired);
            return Err(Done);
        }
        let mut command = Command::new(&program.name);
        command.args(&program.args);
        for (name, value) in env {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        self.inherited.hand_to(&mut command);
        let started = command.spawn();
        drop(command);
        match started {
            Ok(child) => {
                let pid = Pid::from_raw(child.id().cast_signed());
                self.command = Some(pid);
                self.phase = Phase::Running;
                // What came to the group until now the command has not had, or not yet been able to handle.
                self.witness();
                self.witnessed.clear();
                super::let_go_of_stdio();
                self.report(ChildEvent::Started(pid.as_raw()));
                Ok(())
            }
            Err(error) => {
                self.report(ChildEvent::Failed(error.raw_os_error().unwrap_or(Errno::EINVAL as i32)));
                Err(Done)
            }
        }
    }

    /// Passes a signal on, unless it came to the whole process group. The kernel signals the members of
    /// a group newest first, and we are newer than dlock: what dlock has from the group, we have by now.
    fn pass(&mut self, number: i32) {
        self.witness();
        let Some(command) = self.command else { return };
        let Ok(signal) = Signal::try_from(number) else { return };
        let oldest = Moment::now().before(WITNESSED);
        self.witnessed.retain(|(_, at)| *at > oldest);
        let witnessed = self.witnessed.iter().position(|(witnessed, _)| *witnessed == signal);
        let to_group = witnessed.map(|at| self.witnessed.remove(at)).is_some();
        let has_it = to_group && getpgid(Some(command)).is_ok_and(|group| group == getpgrp());
        if !has_it {
            let _ = sys::kill(command, number);
        }
    }

    fn witness(&mut self) {
        while let Ok(Some(info)) = self.signals.read_signal() {
            let Ok(signal) = Signal::try_from(info.ssi_signo.cast_signed()) else { continue };
            // The kernel takes back a signal to go on that nobody has read yet when one to stop comes, and the other
            // way round; dlock may have had it by then.
            let taken_back = match signal {
                SIGCHLD => continue,
                Signal::SIGTSTP => Some(SIGCONT),
                SIGCONT => Some(Signal::SIGTSTP),
                _ => None,
            };
            let now = Moment::now();
            self.witnessed.extend([Some(signal), taken_back].into_iter().flatten().map(|signal| (signal, now)));
        }
    }

    fn reap(&mut self) -> Result<(), Done> {
        let flags = WaitPidFlag::WNOHANG | WaitPidFlag::WUNTRACED | WaitPidFlag::WCONTINUED | WaitPidFlag::__WALL;
        loop {
            match sys::wait(None, flags) {
                Ok(Some((pid, change))) => self.changed(pid, change)?,
                Err(Errno::ECHILD) if matches!(self.phase, Phase::Stopping(_)) => {
                    self.report(ChildEvent::Gone);
                    return Err(Done);
                }
                Ok(None) | Err(_) => return Ok(()),
            }
        }
    }

    fn changed(&mut self, pid: Pid, change: Change) -> Result<(), Done> {
        if Some(pid) != self.command {
            return Ok(());
        }
        match change {
            Change::Stopped(libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU) => self.tell_dlock(Signal::SIGSTOP),
            Change::Stopped(_) => {}
            Change::Continued => {
                self.tell_dlock(SIGCONT);
                // dlock will pass it on; by then the command may have been stopped again.
                self.witnessed.push((SIGCONT, Moment::now()));
            }
            Change::Ended(status) => {
                self.report(ChildEvent::Ended(status));
                self.command = None;
                // After a normal end, what the command left behind is left alone. After another one, dlock says
                // how long it has to end.
                if self.phase == Phase::Running && matches!(status, Status::Exited(_)) {
                    return Err(Done);
                }
            }
        }
        Ok(())
    }

    /// Makes dlock stop and go on with its command, so that the shell which has dlock for its job sees it.
    fn tell_dlock(&self, signal: Signal) {
        if getppid() == self.dlock {
            let _ = sys::kill(self.dlock, signal as i32);
        }
    }

    fn kill(&mut self) -> Result<Infallible, Done> {
        if self.phase != Phase::Idle {
            let mut end = None;
            tree::destroy(&[], |pid, status| {
                if Some(pid) == self.command {
                    end = Some(status);
                }
            });
            if let Some(status) = end {
                self.report(ChildEvent::Ended(status));
            }
            self.report(ChildEvent::Gone);
        }
        Err(Done)
    }

    fn look_at_clock(&mut self) -> Result<(), Done> {
        let now = Moment::now();
        if self.is_expired() && self.phase != Phase::Idle {
            self.report(ChildEvent::Expired);
            self.kill()?;
        }
        if let Phase::Stopping(kill_at) = self.phase
            && kill_at <= now
        {
            self.kill()?;
        }
        Ok(())
    }

    fn is_expired(&self) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= Moment::now())
    }

    fn set_timer(&self) {
        let kill_at = if let Phase::Stopping(at) = self.phase { Some(at) } else { None };
        let next = self.deadline.into_iter().chain(kill_at).min();
        let set = match next {
            Some(at) => {
                // A time of zero would disarm it.
                let at = TimeSpec::from(at.as_duration().max(Duration::from_nanos(1)));
                self.timer.set(Expiration::OneShot(at), TimerSetTimeFlags::TFD_TIMER_ABSTIME)
            }
            None => self.timer.unset(),
        };
        debug_assert!(set.is_ok(), "a timer of ours takes any time: {set:?}");
    }

    fn report(&self, event: ChildEvent) {
        // If dlock is gone nobody wants to know.
        let _ = send(&self.socket, &event, None);
    }
}
