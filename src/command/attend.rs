//! A command under a key: what must stand ready before the key is asked for, asking for it, and, once it is
//! ours, the life of the command until the key is given back.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::Signal;

use super::report::{self, Course};
use super::{asking, waiting, words};
use crate::child::{Environment, Guardian, Outcome, Policy, Verdict};
use crate::config::{Held, RunPlan, Settings};
use crate::event::{Event, Status};
use crate::exit::{Code, Ending, Failure};
use crate::holder::{self, Acquired, Lease};
use crate::model::{self, Ask, Refusal};
use crate::signal::{self, Asked};
use crate::store::Store;
use crate::sys::Inherited;

/// So much before its end a lease that could not be renewed is given up at least, by who knows why: its guardian does not.
const FIRST: Duration = Duration::from_millis(100);

/// The guardian of a command to come, and the signals that are heard.
pub(super) struct Ready {
    guardian: Guardian,
    asked: Asked,
    sender: Sender<Event>,
    events: Receiver<Event>,
}

impl Ready {
    /// Makes them, while there is one thread only and no store is open. Nothing is returned in the guardian itself,
    /// once its work is done.
    pub(super) fn make(plan: &RunPlan) -> Result<Option<Self>, Failure> {
        let (sender, events) = mpsc::channel();
        let inherited = Inherited::note().map_err(|error| Failure::os("cannot read the signal mask", &error.into()))?;
        let key = &plan.terms.key;
        let last_words = || log::error!("'{key}': dlock was killed; the command and all that it started were stopped");
        // No signal is heard until the guardian blocks all, and until we can pass them on.
        let ready = signal::unheard(|| {
            let Some(guardian) = Guardian::fork(&plan.program, plan.policy, inherited, &last_words)? else {
                return Ok(None);
            };
            Ok(Some((guardian, signal::listen(&sender)?)))
        });
        let ready = ready.map_err(|error| Failure::os("cannot start the guardian", &error))?;
        Ok(ready.map(|(guardian, asked)| Self { guardian, asked, sender, events }))
    }

    /// Asks for the key and waits for it. The lease, or else how to end.
    pub(super) fn take(
        &self,
        plan: &RunPlan,
        settings: &Settings,
        held: &Held,
        store: &Arc<dyn Store>,
        course: &mut Course,
    ) -> Result<Result<Lease, Ending>, Failure> {
        asking::check(&plan.terms, &**store)?;
        let key = &plan.terms.key;
        let ask = Ask { max_reentry: plan.max_reentry, attended: true, ..asking::ask(&plan.terms, &**store)? };
        let ask = Ask { lease: held.lease(store.identity(), key).unwrap_or(ask.lease), ..ask };
        let channel = (&self.sender, &self.events);
        let meanwhile = || waiting::show(settings, key, ask.lease);
        Ok(match holder::acquire(store, key, &ask, plan.terms.limits, channel, &meanwhile)? {
            Acquired::Lease(lease) => {
                log::info!("got '{key}' with fence {}", lease.fence());
                course.granted(&lease);
                Ok(lease)
            }
            Acquired::Busy(holders, waiting) => {
                let (ending, words) = asking::busy(&plan.terms, settings, &**store, &holders, waiting);
                course.busy(&holders, store.now());
                course.ends(report::Outcome::Busy, words);
                Err(ending)
            }
            Acquired::Refused(refusal) => {
                let (ending, words) = asking::refused(&plan.terms, refusal);
                let lost = refusal == Refusal::Lost;
                course.ends(if lost { report::Outcome::Lost } else { report::Outcome::Busy }, words);
                Err(ending)
            }
            Acquired::Signal(signal) => {
                course.ends(report::Outcome::Signal, None);
                Err(Ending::Signal(signal as i32))
            }
        })
    }

    /// The key is ours: starts the command with `env` changed in its environment, looks after it, gives the key back.
    pub(super) fn attend(
        &self,
        plan: &RunPlan,
        lease: Lease,
        env: Environment,
        course: &mut Course,
    ) -> Result<Ending, Failure> {
        let key = &plan.terms.key;
        // A signal that came meanwhile means: do not start the command.
        if let Some(signal) = self.asked.signal() {
            asking::give_back(key, lease, None, false);
            course.ends(report::Outcome::Signal, None);
            return Ok(Ending::Signal(signal as i32));
        }
        let started = lease.sign_of_life().map_err(Failure::from).and_then(|sign| {
            // The start comes last: if anything fails, there is no command yet.
            // What is left of the lease beside the end of the command is for three beats.
            let kill_after = plan.policy.kill_after;
            let beat = lease.ttl().saturating_sub(kill_after) / 3;
            let kept = lease.keep(beat, kill_after.max(FIRST.min(lease.ttl() / 10)), &self.sender);
            let started = kept.and_then(|()| self.guardian.start(env, sign.as_ref(), lease.deadline(), &self.sender));
            started.map_err(|error| Failure::os("cannot start the command", &error))
        });
        if let Err(failure) = started {
            // Nothing of the command is left: without us, its guardian ends it.
            asking::give_back(key, lease, None, false);
            return Err(failure);
        }
        let outcome =
            self.guardian.supervise(lease.deadline(), &self.events, |verdict| announce(plan, verdict, course));
        course.command(outcome.status);
        // What never ran keeps nobody out.
        let ending = outcome.started.then(|| told(&outcome));
        let yours = asking::give_back(key, lease, ending.as_ref(), outcome.verdict.is_some());
        Ok(conclude(plan, &outcome, yours, course))
    }
}

/// How the command ended, for those who read of it later. What was cut off is no success, whatever it made of that.
fn told(outcome: &Outcome) -> model::Ending {
    let cut_off = outcome.verdict.as_ref().map(|verdict| verdict_code(verdict).number().into());
    let (exit, signal) = match outcome.status {
        Some(Status::Exited(code)) => (Some(code), None),
        Some(Status::Killed(number)) => (None, Some(number)),
        None => (None, None),
    };
    model::Ending { exit: cut_off.or(exit), signal, ..model::Ending::default() }
}

fn verdict_code(verdict: &Verdict) -> Code {
    match verdict {
        Verdict::Lost(_) | Verdict::Revoked(_) => Code::Lost,
        Verdict::MaxRun => Code::MaxRun,
    }
}

fn announce(plan: &RunPlan, verdict: &Verdict, course: &mut Course) {
    let key = &plan.terms.key;
    let Policy { stop_when_lost, max_run, .. } = plan.policy;
    let (outcome, words) = match verdict {
        Verdict::Lost(why) if stop_when_lost => {
            (report::Outcome::Lost, format!("lost '{key}': {why}; stopping the command"))
        }
        Verdict::Lost(why) => (report::Outcome::Lost, format!("lost '{key}': {why}; the command goes on without it")),
        Verdict::Revoked(by) => {
            let by = by.as_deref().unwrap_or("somebody");
            (report::Outcome::Revoked, format!("'{key}' was unlocked by {by}; stopping the command"))
        }
        Verdict::MaxRun => {
            let limit = words::span(max_run.unwrap_or_default());
            (report::Outcome::MaxRun, format!("'{key}': the command ran for {limit}; stopping it"))
        }
    };
    log::error!("{words}");
    course.ends(outcome, words);
}

fn conclude(plan: &RunPlan, outcome: &Outcome, yours: bool, course: &mut Course) -> Ending {
    let key = &plan.terms.key;
    let mut fail = |as_what, words: String| {
        log::error!("{words}");
        course.ends(as_what, words);
    };
    if outcome.orphaned {
        let words = format!("'{key}': the guardian was killed, and the command with it");
        match outcome.verdict {
            None => fail(report::Outcome::Error, words),
            Some(_) => log::error!("{words}"),
        }
    }
    match &outcome.verdict {
        Some(verdict @ (Verdict::Lost(_) | Verdict::Revoked(_))) => return verdict_code(verdict).into(),
        _ if !yours => {
            let words = format!("lost '{key}' while the command ran: it was not ours any more at the end");
            fail(report::Outcome::Lost, words);
            return Code::Lost.into();
        }
        Some(verdict) => return verdict_code(verdict).into(),
        None => {}
    }
    match (outcome.failed, outcome.status) {
        (Some(errno), _) => {
            let (code, words) = not_started(plan, Errno::from_raw(errno));
            fail(report::Outcome::Error, words);
            code.into()
        }
        (None, Some(Status::Exited(code))) => Ending::Code(u8::try_from(code & 0xff).unwrap_or(u8::MAX)),
        (None, Some(Status::Killed(number))) => Ending::Signal(number),
        (None, None) => Ending::Signal(Signal::SIGKILL as i32),
    }
}

fn not_started(plan: &RunPlan, errno: Errno) -> (Code, String) {
    let name = plan.program.name.to_string_lossy();
    let why = errno.desc().to_lowercase();
    match errno {
        Errno::ENOENT | Errno::ENOTDIR => (Code::NotFound, format!("cannot find the command '{name}': {why}")),
        Errno::EAGAIN | Errno::ENOMEM | Errno::EMFILE | Errno::ENFILE => {
            (Code::Os, format!("cannot start '{name}': {why}"))
        }
        _ => (Code::CannotExecute, format!("cannot execute '{name}': {why}")),
    }
}
