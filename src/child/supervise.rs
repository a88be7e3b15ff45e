//! What is done about what happens to a command: a pure `next(event) -> actions`.

use std::time::Duration;

use nix::sys::signal::Signal::{self, SIGINT, SIGQUIT, SIGTERM};

use crate::clock::{Deadline, Moment};
use crate::event::{ChildEvent, Event, NOT_IN_TIME, Status};

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

impl Policy {
    /// How long before the deadline of a lease the guardian kills what is left: what the kernel may take to end
    /// a tree, on a machine on its knees.
    pub(super) fn margin(&self) -> Duration {
        (self.kill_after / 4).clamp(Duration::from_millis(25), Duration::from_millis(250))
    }
}

/// What is worse than the command's own end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The lease was lost; why.
    Lost(String),
    /// We were asked to give the key back.
    Revoked(Option<String>),
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
    /// When a tree that is being stopped must be gone, whoever sees to that.
    gone_by: Option<Moment>,
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
        let (phase, gone_by) = (Phase::Running, None);
        Self { policy, phase, max_run_at, gone_by, asked: 0, verdict: None, status: None, failed: None }
    }

    /// The lease lasts until `deadline`.
    pub(super) fn extend(&mut self, deadline: Option<Deadline>) {
        // The guardian has twice the margin: if it does its work, there is nothing left for us.
        let deadline = deadline.filter(|_| self.policy.stop_when_lost);
        self.gone_by = deadline.map(|deadline| deadline.moment().before(self.policy.margin() / 2));
    }

    /// When [`State::tick`] is due.
    pub(super) fn due(&self) -> Option<Moment> {
        match self.phase {
            Phase::Running => self.max_run_at,
            Phase::Stopping(overdue) => Some(self.gone_by.map_or(overdue, |gone_by| gone_by.min(overdue))),
        }
    }

    /// What is to be done now that time has passed.
    pub(super) fn tick(&mut self, now: Moment) -> Vec<Action> {
        match self.phase {
            Phase::Running if self.max_run_at.is_some_and(|at| at <= now) => self.condemn(now, Verdict::MaxRun),
            Phase::Stopping(_) if self.due().is_some_and(|due| due <= now) => {
                self.phase = Phase::Stopping(now.after(OVERDUE));
                self.gone_by = None;
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
            Event::Revoked(by) => self.condemn(now, Verdict::Revoked(by)),
            Event::Renewed(deadline) if matches!(self.verdict, None | Some(Verdict::MaxRun)) => {
                self.extend(Some(deadline));
                vec![Action::Extend(Some(deadline))]
            }
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
            actions.push(self.stop(now));
        }
        actions
    }

    fn stop(&mut self, now: Moment) -> Action {
        self.phase = Phase::Stopping(now.after(self.policy.kill_after + OVERDUE));
        Action::Stop(self.policy.kill_after)
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
                match status {
                    _ if self.is_stopping() => Vec::new(),
                    Status::Exited(_) => vec![Action::Finish],
                    // Whoever was killed has not cleaned up: what it started must not go on beside the next holder.
                    Status::Killed(_) => vec![self.stop(now)],
                }
            }
            ChildEvent::Expired => {
                let mut actions = self.condemn(now, Verdict::Lost(NOT_IN_TIME.into()));
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

#[cfg(test)]
mod tests {
    use super::{Action, Policy, State, Verdict};
    use crate::clock::{Deadline, Moment};
    use crate::event::{ChildEvent, Event, Status};
    use nix::sys::signal::Signal::{SIGINT, SIGTERM, SIGWINCH};
    use std::time::Duration;

    const KILL_AFTER: Duration = Duration::from_secs(5);
    const START: Moment = Moment::since_boot(Duration::from_secs(1000));

    fn after(seconds: u64) -> Moment {
        START.after(Duration::from_secs(seconds))
    }

    fn state(stop_when_lost: bool, max_run: Option<u64>) -> State {
        let max_run = max_run.map(Duration::from_secs);
        State::new(Policy { stop_when_lost, kill_after: KILL_AFTER, max_run }, START)
    }

    fn lost() -> Event {
        Event::Lost("gone".into())
    }

    fn child(event: ChildEvent) -> Event {
        Event::Child(event)
    }

    #[test]
    fn a_passed_signal_starts_no_stopping_however_often_it_comes() {
        let mut state = state(true, None);
        for signal in [SIGTERM, SIGINT, SIGTERM, SIGWINCH] {
            assert_eq!(state.next(START, Event::Signal(signal)), [Action::Pass(signal)]);
        }
        assert_eq!(state.due(), None);
        assert_eq!(state.next(START, child(ChildEvent::Ended(Status::Exited(3)))), [Action::Finish]);
        assert_eq!((state.status, state.verdict), (Some(Status::Exited(3)), None));
    }

    #[test]
    fn what_a_killed_command_leaves_behind_is_stopped_before_the_run_is_over() {
        let mut state = state(true, None);
        assert_eq!(state.next(START, child(ChildEvent::Ended(Status::Killed(15)))), [Action::Stop(KILL_AFTER)]);
        assert_eq!(state.next(START, child(ChildEvent::Gone)), [Action::Finish]);
        assert_eq!((state.status, state.verdict), (Some(Status::Killed(15)), None));
    }

    #[test]
    fn a_lost_lease_stops_the_command_and_the_run_is_over_when_its_tree_is_gone() {
        let mut state = state(true, None);
        let verdict = Verdict::Lost("gone".into());
        assert_eq!(state.next(START, lost()), [Action::Announce(verdict.clone()), Action::Stop(KILL_AFTER)]);
        assert_eq!(state.next(START, lost()), [], "it is told once");
        assert_eq!(state.next(START, child(ChildEvent::Ended(Status::Exited(0)))), [], "its tree may live");
        assert_eq!(state.next(START, child(ChildEvent::Gone)), [Action::Finish]);
        assert_eq!((state.status, state.verdict), (Some(Status::Exited(0)), Some(verdict)));
    }

    #[test]
    fn a_lost_lease_that_is_to_be_passed_over_takes_away_the_deadline_and_a_revocation_still_stops() {
        let mut state = state(false, None);
        assert_eq!(state.next(START, lost()).last(), Some(&Action::Extend(None)));
        let late = Event::Renewed(Deadline::of_lease(START, KILL_AFTER));
        assert_eq!(state.next(START, late), [], "a beat that comes late does not bring the deadline back");
        assert_eq!(state.next(START, Event::Revoked(None)), [Action::Stop(KILL_AFTER)]);
    }

    #[test]
    fn the_time_limit_stops_the_command_and_a_lost_lease_is_the_worse_verdict() {
        let mut state = state(true, Some(10));
        assert_eq!(state.due(), Some(after(10)));
        assert_eq!(state.tick(after(9)), []);
        assert_eq!(state.tick(after(10)), [Action::Announce(Verdict::MaxRun), Action::Stop(KILL_AFTER)]);
        assert_eq!(state.next(after(11), Event::Revoked(None)), [Action::Announce(Verdict::Revoked(None))]);
        assert_eq!(state.verdict, Some(Verdict::Revoked(None)));
    }

    #[test]
    fn who_asks_twice_does_not_wait_for_a_command_that_is_being_stopped() {
        let mut state = state(true, None);
        assert_eq!(state.next(START, Event::Signal(SIGINT)), [Action::Pass(SIGINT)]);
        let _ = state.next(START, Event::Revoked(None));
        assert_eq!(state.next(START, Event::Signal(SIGWINCH)), [Action::Pass(SIGWINCH)]);
        assert_eq!(state.next(START, Event::Signal(SIGINT)), [Action::Kill]);
    }

    #[test]
    fn a_guardian_that_is_late_is_replaced_and_one_that_is_dead_at_once() {
        let mut state = state(true, None);
        let _ = state.next(START, Event::Revoked(None));
        assert_eq!(state.tick(after(5)), [], "the command's own time is not over before that");
        assert_eq!(state.tick(after(6)), [Action::KillGuardian]);
        let orphaned = state.next(after(6), child(ChildEvent::Orphaned));
        assert_eq!(orphaned, [Action::KillOrphans, Action::Finish]);
    }

    #[test]
    fn a_missed_deadline_is_a_lost_lease_and_the_guardian_needs_not_be_told() {
        let mut state = state(true, None);
        let actions = state.next(START, child(ChildEvent::Expired));
        assert!(matches!(actions[..], [Action::Announce(Verdict::Lost(_))]), "{actions:?}");
        let _ = state.next(START, child(ChildEvent::Ended(Status::Killed(9))));
        assert_eq!(state.next(START, child(ChildEvent::Gone)), [Action::Finish]);
    }
}
