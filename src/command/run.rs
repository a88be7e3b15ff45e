//! `dlock run`: the life of a run, from the arguments to the exit code.

use std::sync::mpsc::{self, Receiver, Sender};

use nix::errno::Errno;
use nix::sys::signal::Signal;

use super::{asking, waiting, words};
use crate::child::{Environment, Guardian, Outcome, Policy, Verdict};
use crate::cli;
use crate::config::{Held, RunPlan, Settings};
use crate::event::{Event, Status};
use crate::exit::{Code, Ending, Failure};
use crate::holder::{self, Acquired, Lease};
use crate::model::{self, Ask, Released};
use crate::signal;
use crate::store::{Intent, Store};
use crate::sys::Inherited;

/// Holds a key while a command runs.
pub(super) fn run(run: cli::Run, global: &cli::Global) -> Result<Ending, Failure> {
    let settings = Settings::read(global)?;
    let plan = RunPlan::read(run, &settings)?;
    let held = Held::read()?;

    let (sender, events) = mpsc::channel();
    let inherited = Inherited::note().map_err(|error| Failure::os("cannot read the signal mask", &error.into()))?;
    // The guardian comes first, while there is one thread only. No signal is heard until it blocks all, and
    // until we can pass them on.
    let ready = signal::unheard(|| {
        let Some(guardian) = Guardian::fork(&plan.program, plan.policy, inherited)? else { return Ok(None) };
        Ok(Some((guardian, signal::listen(&sender)?)))
    });
    let ready = ready.map_err(|error| Failure::os("cannot start the guardian", &error))?;
    let Some((guardian, asked)) = ready else { return Ok(Ending::OK) };
    let store = super::open(&settings, Intent::Lock)?;
    asking::check(&plan.terms, &*store)?;
    let ask = Ask { max_reentry: plan.max_reentry, attended: true, ..asking::ask(&plan.terms)? };
    let ask = Ask { lease: held.lease(store.identity(), &plan.terms.key).unwrap_or(ask.lease), ..ask };
    let meanwhile = || waiting::show(&settings, &plan.terms.key, ask.lease);
    let acquired = holder::acquire(&store, &plan.terms.key, &ask, plan.terms.limits, (&sender, &events), &meanwhile)?;
    match acquired {
        Acquired::Lease(lease) => {
            // A signal that came meanwhile means: do not start the command.
            if let Some(signal) = asked.signal() {
                give_back(&plan.terms.key, lease, None, false);
                return Ok(Ending::Signal(signal as i32));
            }
            attend(&plan, &settings, held, &guardian, lease, &*store, (&sender, &events))
        }
        Acquired::Busy(holders, waiting) => Ok(asking::busy(&plan.terms, &settings, &*store, &holders, waiting)),
        Acquired::Refused(refusal) => Ok(asking::refused(&plan.terms, refusal)),
        Acquired::Signal(signal) => Ok(Ending::Signal(signal as i32)),
    }
}

/// The key is ours: starts the command, looks after it, gives the key back.
fn attend(
    plan: &RunPlan,
    settings: &Settings,
    held: Held,
    guardian: &Guardian,
    lease: Lease,
    store: &dyn Store,
    (sender, events): (&Sender<Event>, &Receiver<Event>),
) -> Result<Ending, Failure> {
    let key = &plan.terms.key;
    let mut env: Environment = vec![
        ("DLOCK_KEY".into(), Some(key.as_str().into())),
        ("DLOCK_LEASE".into(), Some(lease.id().secret().into())),
        ("DLOCK_FENCE".into(), Some(lease.fence().to_string().into())),
        (Held::VARIABLE.into(), Some(held.with(store.identity(), key, lease.id()).into())),
    ];
    env.extend(settings.handed_on.iter().map(|(name, value)| ((*name).into(), value.clone())));
    let started = lease.sign_of_life().map_err(Failure::from).and_then(|sign| {
        // The start comes last: if anything fails, there is no command yet.
        let kept = lease.keep(plan.beat, plan.policy.kill_after, sender);
        let started = kept.and_then(|()| guardian.start(env, sign.as_ref(), lease.deadline(), sender));
        started.map_err(|error| Failure::os("cannot start the command", &error))
    });
    if let Err(failure) = started {
        // Nothing of the command is left: without us, its guardian ends it.
        give_back(key, lease, None, false);
        return Err(failure);
    }
    let outcome = guardian.supervise(lease.deadline(), events, |verdict| announce(plan, verdict));
    let ending = match outcome.status {
        // What never ran keeps nobody out.
        _ if !outcome.started => None,
        Some(Status::Exited(code)) => Some(model::Ending { exit: Some(code), ..model::Ending::default() }),
        Some(Status::Killed(number)) => Some(model::Ending { signal: Some(number), ..model::Ending::default() }),
        None => Some(model::Ending::default()),
    };
    let yours = give_back(key, lease, ending.as_ref(), outcome.verdict.is_some());
    Ok(conclude(plan, &outcome, yours))
}

/// Gives the lease back; whether it was still ours. If that fails, the user hears of it, unless something
/// worse `was_told`.
fn give_back(key: &model::Key, lease: Lease, ending: Option<&model::Ending>, was_told: bool) -> bool {
    let ttl = lease.deadline().map(|_| lease.ttl());
    match lease.release(ending) {
        Ok(released) => released != Released::NotYours,
        Err(_) if was_told => true,
        Err(error) => {
            let by_itself =
                ttl.map_or_else(String::new, |ttl| format!("; it is free by itself in {}", words::span(ttl)));
            log::warn!("cannot give '{key}' back: {error}{by_itself}");
            true
        }
    }
}

fn announce(plan: &RunPlan, verdict: &Verdict) {
    let key = &plan.terms.key;
    let Policy { stop_when_lost, max_run, .. } = plan.policy;
    match verdict {
        Verdict::Lost(why) if stop_when_lost => log::error!("lost '{key}': {why}; stopping the command"),
        Verdict::Lost(why) => log::error!("lost '{key}': {why}; the command goes on without it"),
        Verdict::Revoked(by) => {
            let by = by.as_deref().unwrap_or("somebody");
            log::error!("'{key}' was unlocked by {by}; stopping the command");
        }
        Verdict::MaxRun => {
            let limit = words::span(max_run.unwrap_or_default());
            log::error!("'{key}': the command ran for {limit}; stopping it");
        }
    }
}

fn conclude(plan: &RunPlan, outcome: &Outcome, yours: bool) -> Ending {
    if outcome.orphaned {
        log::error!("'{}': the guardian was killed, and the command with it", plan.terms.key);
    }
    match &outcome.verdict {
        Some(Verdict::Lost(_) | Verdict::Revoked(_)) => return Code::Lost.into(),
        _ if !yours => {
            log::error!("lost '{}' while the command ran: it was not ours any more at the end", plan.terms.key);
            return Code::Lost.into();
        }
        Some(Verdict::MaxRun) => return Code::MaxRun.into(),
        None => {}
    }
    match (outcome.failed, outcome.status) {
        (Some(errno), _) => not_started(plan, Errno::from_raw(errno)).into(),
        (None, Some(Status::Exited(code))) => Ending::Code(u8::try_from(code & 0xff).unwrap_or(u8::MAX)),
        (None, Some(Status::Killed(number))) => Ending::Signal(number),
        (None, None) => Ending::Signal(Signal::SIGKILL as i32),
    }
}

fn not_started(plan: &RunPlan, errno: Errno) -> Code {
    let name = plan.program.name.to_string_lossy();
    let why = errno.desc().to_lowercase();
    match errno {
        Errno::ENOENT | Errno::ENOTDIR => {
            log::error!("cannot find the command '{name}': {why}");
            Code::NotFound
        }
        Errno::EAGAIN | Errno::ENOMEM | Errno::EMFILE | Errno::ENFILE => {
            log::error!("cannot start '{name}': {why}");
            Code::Os
        }
        _ => {
            log::error!("cannot execute '{name}': {why}");
            Code::CannotExecute
        }
    }
}
