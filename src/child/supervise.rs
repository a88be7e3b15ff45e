//! What is done about what happens to a command: a pure `next(event) -> actions`.

use std::time::Duration;

use nix::sys::signal::Signal::{self, SIGINT, SIGQUIT, SIGTERM};

use crate::clock::{Deadline, Moment};
use crate::event::{ChildEvent, Event, Status};

/// How long the guardian may take for a stop beyond the time that the command has, before dlock takes
/// over. It has nothing to do then but to kill, so a guardian this late is frozen.
const OVERDUE: Duration = Duration::from_secs(1);

/// What a run wants of its command.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// Whether a lost lease stops the command.
    pub stop_when_lost: bool,
    /// How long the command has between SIGTERM and SIGKILL.
    pub kill_after: Duration,
    /// How long the command may run.
    pub max_run: Option<Duration>,
}

/// What is worse than the command's own end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The lease was lost; why.
    Lost(String),
    /// We were asked to give the key back.
    Revoked,
    /// The command ran for too long.
    MaxRun,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Action {
    /// Tell the user of the verdict.
    Announce(Verdict),
    /// Pass a signal to the command.
    Pass(Signal),
    /// Move the guardian's deadline.
    Extend(Option<Deadline>),
    /// Ask the tree to end, and kill what is left after so long.
    Stop(Duration),
    /// Kill the tree.
    Kill,
    /// Kill the guardian, which does not answer.
    KillGuardian,
    /// The guardian is dead: kill the tree ourselves.
    KillOrphans,
    /// The run is over.
    Finish,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Running,
    /// Until then the guardian must have answered.
    Stopping(Moment),
}

/// Where a run stands.
#[derive(Debug)]
pub(super) struct State {
    policy: Policy,
    phase: Phase,
    max_run_at: Option<Moment>,
    /// How often the user asked for the end.
    asked: u32,
    pub(super) verdict: Option<Verdict>,
    pub(super) status: Option<Status>,
    /// The `errno` of a start that failed.
    pub(super) failed: Option<i32>,
}

impl State {
    pub(super) fn new(policy: Policy, now: Moment) -> Self {
        let max_run_at = policy.max_run.map(|span| now.after(span));
        Self { policy, phase: Phase::Running, max_run_at, asked: 0, verdict: None, status: None, failed: None }
    }

    /// When [`State::tick`] is due.
    pub(super) fn due(&self) -> Option<Moment> {
        match self.phase {
            Phase::Running => self.max_run_at,
            Phase::Stopping(overdue) => Some(overdue),
        }
    }

    /// What is to be done now that time has passed.
    pub(super) fn tick(&mut self, now: Moment) -> Vec<Action> {
        match self.phase {
            Phase::Running if self.max_run_at.is_some_and(|at| at <= now) => self.condemn(now, Verdict::MaxRun),
            Phase::Stopping(overdue) if overdue <= now => {
                self.phase = Phase::Stopping(now.after(OVERDUE));
                vec![Action::KillGuardian]
            }
            _ => Vec::new(),
        }
    }

    /// What is to be done about `event`.
    pub(super) fn next(&mut self, now: Moment, event: Event) -> Vec<Action> {
        match event {
            Event::Signal(signal) => self.signal(now, signal),
            Event::Lost(why) => self.condemn(now, Verdict::Lost(why)),
            Event::Revoked => self.condemn(now, Verdict::Revoked),
            Event::Renewed(deadline) if self.verdict.is_none() => vec![Action::Extend(Some(deadline))],
            Event::Renewed(_) | Event::Waited => Vec::new(),
            Event::Child(event) => self.child(now, event),
        }
    }

    /// A passed signal starts no stopping: the command decides. But who asks twice for the end of a
    /// command that is being stopped does not want to wait for it.
    fn signal(&mut self, now: Moment, signal: Signal) -> Vec<Action> {
        if matches!(signal, SIGINT | SIGTERM | SIGQUIT) {
            self.asked += 1;
            if self.asked > 1 && self.is_stopping() {
                self.phase = Phase::Stopping(now.after(OVERDUE));
                return vec![Action::Kill];
            }
        }
        vec![Action::Pass(signal)]
    }

    fn condemn(&mut self, now: Moment, verdict: Verdict) -> Vec<Action> {
        let stop = self.policy.stop_when_lost || !matches!(verdict, Verdict::Lost(_));
        let mut actions = Vec::new();
        if matches!(self.verdict, None | Some(Verdict::MaxRun)) && verdict != Verdict::MaxRun || self.verdict.is_none()
        {
            self.verdict = Some(verdict.clone());
            actions.push(Action::Announce(verdict));
        }
        if !stop {
            actions.push(Action::Extend(None));
        } else if !self.is_stopping() {
            self.phase = Phase::Stopping(now.after(self.policy.kill_after + OVERDUE));
            actions.push(Action::Stop(self.policy.kill_after));
        }
        actions
    }

    fn child(&mut self, now: Moment, event: ChildEvent) -> Vec<Action> {
        match event {
            ChildEvent::Started(_) => Vec::new(),
            ChildEvent::Failed(errno) => {
                self.failed = Some(errno);
                vec![Action::Finish]
            }
            ChildEvent::Ended(status) => {
                self.status = Some(status);
                if self.is_stopping() { Vec::new() } else { vec![Action::Finish] }
            }
            ChildEvent::Expired => {
                let mut actions = self.condemn(now, Verdict::Lost("its time is over".into()));
                // The guardian is at it already.
                actions.retain(|action| !matches!(action, Action::Stop(_)));
                actions
            }
            ChildEvent::Gone => vec![Action::Finish],
            ChildEvent::Orphaned => vec![Action::KillOrphans, Action::Finish],
        }
    }

    fn is_stopping(&self) -> bool {
        matches!(self.phase, Phase::Stopping(_))
    }
}
