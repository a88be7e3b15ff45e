//! Asking for a key and giving it back, whoever does: what `run`, `guard` and `acquire` have in common.

use std::time::Duration;

use super::words;
use crate::config::{Settings, Terms};
use crate::exit::{Code, Ending, Failure};
use crate::holder::{self, Lease};
use crate::model::{self, Ask, Hold, Patience, Refusal, Released};
use crate::store::Store;

/// Whether the store can do what is asked for.
pub(super) fn check(terms: &Terms, store: &dyn Store) -> Result<(), Failure> {
    if store.capabilities().allow(terms.mode) {
        return Ok(());
    }
    Err(Failure::new(Code::Config, format_args!("{} cannot hold a key as {}", store.describe(), terms.mode)))
}

/// How long a lease lives that is to live for this long, where the store makes none that are shorter.
pub(super) fn ttl(wanted: Duration, store: &dyn Store) -> Duration {
    at_least("lease", wanted, store)
}

fn at_least(what: &str, wanted: Duration, store: &dyn Store) -> Duration {
    let least = store.capabilities().least_ttl;
    if wanted < least {
        let [wanted, least] = [wanted, least].map(humantime::format_duration);
        log::info!("a {what} of {wanted} lives for {least}: {} makes none that is shorter", store.describe());
    }
    wanted.max(least)
}

/// The question to the store, for a new lease that nobody attends to.
pub(super) fn ask(terms: &Terms, store: &dyn Store) -> Result<Ask, Failure> {
    let lease = holder::new_lease_id().map_err(|error| Failure::os("cannot make a lease id", &error))?;
    let patience = match terms.limits.wait {
        Some(Duration::ZERO) => Patience::None,
        // Whoever compares wants to know at once.
        _ if terms.if_fence.is_some() => Patience::None,
        _ => Patience::SignOfLife(model::SIGN_OF_LIFE),
    };
    let min_hold = terms.min_hold;
    Ok(Ask {
        lease,
        level: lease,
        mode: terms.mode,
        ttl: Some(ttl(terms.ttl, store)),
        patience,
        if_fence: terms.if_fence,
        proposal: None,
        min_hold: if min_hold.is_zero() { min_hold } else { at_least("'--min-hold'", min_hold, store) },
        max_reentry: 0,
        attended: false,
        info: terms.info.clone(),
    })
}

/// Says who has the key. How to end, and what was said.
pub(super) fn busy(
    terms: &Terms,
    settings: &Settings,
    store: &dyn Store,
    holders: &[Hold],
    waiting: usize,
) -> (Ending, String) {
    let gave_up = match terms.limits.wait {
        Some(wait) if !wait.is_zero() && terms.if_fence.is_none() => format!("; gave up after {}", words::span(wait)),
        _ => String::new(),
    };
    let mut taken = words::taken(&terms.key, holders, waiting, store.now());
    if !holders.is_empty() && terms.mode.fits(holders.iter().map(|hold| hold.mode)) {
        taken.push_str(", and others wait for it before us");
    }
    let words = format!("{taken}{}{gave_up}", words::place(settings, store));
    log::warn!("{words}");
    (Ending::Code(terms.conflict), words)
}

/// Says why the key is not to be had. How to end, and what was said.
pub(super) fn refused(terms: &Terms, refusal: Refusal) -> (Ending, String) {
    let key = &terms.key;
    let words = match refusal {
        Refusal::Fence(fence) => {
            let expected = terms.if_fence.unwrap_or_default();
            format!("'{key}' has fence {fence} and not {expected}: somebody has held it since")
        }
        Refusal::Ahead(ahead) => {
            let ahead = words::span(Duration::from_secs(ahead.as_secs()));
            format!(
                "'{key}' cannot have the fence that the clock of this host gives: it is {ahead} ahead of the store's"
            )
        }
        Refusal::TooDeep(0) => format!("'{key}' is held by this very job, and may not be entered again"),
        Refusal::TooDeep(limit) => format!("'{key}' may be entered again at most {limit} deep"),
        Refusal::Narrower(mode) => {
            format!("'{key}' is held by this very job as {mode}, and cannot be entered as {}", terms.mode)
        }
        Refusal::Lost => {
            format!("'{key}' is not held any more by the run around this one; unset DLOCK_HELD to start afresh")
        }
    };
    // All but a fence are mistakes of the job, which will not go over; so they are told even to `-q`.
    let level = if matches!(refusal, Refusal::Fence(_)) { log::Level::Warn } else { log::Level::Error };
    log::log!(level, "{words}");
    (if refusal == Refusal::Lost { Code::Lost.into() } else { Ending::Code(terms.conflict) }, words)
}

/// Gives the lease back; whether it was still ours. If that fails, the user hears of it, unless something
/// worse `was_told`.
pub(super) fn give_back(key: &model::Key, lease: Lease, ending: Option<&model::Ending>, was_told: bool) -> bool {
    let ttl = lease.deadline().map(|_| lease.ttl());
    match lease.release(ending) {
        Ok(Released::NotYours) => false,
        Ok(_) => {
            log::info!("gave '{key}' back");
            true
        }
        Err(_) if was_told => true,
        Err(error) => {
            let by_itself =
                ttl.map_or_else(String::new, |ttl| format!("; it is free by itself in {}", words::span(ttl)));
            log::warn!("cannot give '{key}' back: {error}{by_itself}");
            true
        }
    }
}
