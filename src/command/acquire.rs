//! `dlock acquire`: a lease for a script that cannot be wrapped. It outlives dlock, and goes by time on every
//! store: whoever got its id renews it and gives it back.

use std::sync::mpsc;
use std::time::SystemTime;

use nix::unistd::{Pid, getppid};
use serde_json::json;

use super::json::{SCHEMA, rfc3339};
use super::{asking, waiting};
use crate::cli;
use crate::config::{self, Held, Settings, Terms};
use crate::exit::{Code, Ending, Failure};
use crate::holder::{self, Acquired, Lease};
use crate::model::{Key, Refusal};
use crate::output;
use crate::signal;
use crate::store::Intent;
use crate::sys;

/// Takes a lease, and hands it over by its id.
pub(super) fn acquire(acquire: cli::Acquire, settings: &Settings) -> Result<Ending, Failure> {
    if !sys::has_stdout() {
        return Err(Failure::new(Code::Os, "stdout is closed or cannot be written to, and the lease id goes there"));
    }
    let (caller, program) = caller();
    let mut terms = Terms::read(config::key(&acquire.key)?, acquire.terms, program, settings)?;
    if let Some(pid) = caller {
        terms.info.pid = pid.as_raw().unsigned_abs();
    }
    let held = Held::read()?;
    let (sender, events) = mpsc::channel();
    let asked = signal::listen(&sender).map_err(|error| Failure::os("cannot listen to signals", &error))?;
    let store = super::open(settings, Intent::Lock)?;
    asking::check(&terms, &*store)?;
    if held.lease(store.identity(), &terms.key).is_some() {
        // To wait would be to wait for ourselves.
        return Ok(asking::refused(&terms, Refusal::TooDeep(0)).0);
    }
    let ask = asking::ask(&terms, &*store)?;
    let meanwhile = || waiting::show(settings, &terms.key, ask.lease);
    match holder::acquire(&store, &terms.key, &ask, terms.limits, (&sender, &events), &meanwhile)? {
        Acquired::Lease(lease) => {
            // Whoever asked for the end of this will not read the id.
            if let Some(signal) = asked.signal() {
                asking::give_back(&terms.key, lease, None, false);
                return Ok(Ending::Signal(signal as i32));
            }
            hand_over(&terms.key, lease, acquire.json)
        }
        Acquired::Busy(holders, waiting) => Ok(asking::busy(&terms, settings, &*store, &holders, waiting).0),
        Acquired::Refused(refusal) => Ok(asking::refused(&terms, refusal).0),
        Acquired::Signal(signal) => Ok(Ending::Signal(signal as i32)),
    }
}

/// Prints the id. From then on the lease is the caller's, whatever happens to us.
fn hand_over(key: &Key, lease: Lease, json: bool) -> Result<Ending, Failure> {
    let (id, fence) = (lease.id().secret(), lease.fence());
    let until = lease.deadline().map(|deadline| rfc3339(SystemTime::now() + deadline.moment().left()));
    let text = if json {
        let object = json!({ "schema": SCHEMA, "key": key.as_str(), "lease": id, "fence": fence, "until": until });
        output::clean_json(&object.to_string())
    } else {
        id
    };
    match output::write(&format!("{text}\n")) {
        Ok(()) => Ok(Ending::OK),
        Err(error) => {
            asking::give_back(key, lease, None, false);
            Err(Failure::os("nobody reads the lease id, so the lease was given back", &error))
        }
    }
}

/// The process that called us, which the lease is for, and the name of its program.
fn caller() -> (Option<Pid>, Option<String>) {
    // It has no number here if it is outside of our namespace.
    let caller = Some(getppid()).filter(|pid| pid.as_raw() > 0);
    let name = caller.and_then(|pid| std::fs::read_to_string(format!("/proc/{pid}/comm")).ok());
    (caller, name.map(|name| name.trim_end().to_owned()))
}
