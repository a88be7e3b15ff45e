//! `dlock unlock`: what it showed is what it frees, and nobody who came since.

use std::io::{self, IsTerminal};
use std::time::Duration;

use super::words;
use crate::cli;
use crate::clock::Moment;
use crate::config::{self, Settings};
use crate::exit::{Code, Ending, Failure};
use crate::model::{Hold, Key, LeaseId};
use crate::output::{self, Level};
use crate::store::{Intent, Store, Watch};

/// How long a holder may take to stop where its lease has no end: longer than any sensible kill-after.
const PATIENCE: Duration = Duration::from_secs(30);

/// What `unlock` exits with if the key was free.
const WAS_FREE: Ending = Ending::Code(1);

/// Frees a key.
pub(super) fn unlock(unlock: &cli::Unlock, settings: &Settings) -> Result<Ending, Failure> {
    let key = config::key(&unlock.key)?;
    let wanted = unlock.lease.as_deref().map(prefix).transpose()?;
    let wait = unlock.wait.as_ref().map(|text| config::span("--wait", text)).transpose()?;
    if !unlock.yes && !io::stdin().is_terminal() {
        return Err(Failure::usage("nobody is there to ask; say '--yes' to unlock without being asked"));
    }
    let store = super::open(settings, Intent::Look)?;
    let holders = super::ask(settings, || store.inspect(&key))?.map(|record| record.holders).unwrap_or_default();
    if holders.is_empty() {
        log::warn!("'{key}' is free{}", words::place(settings, &*store));
        return Ok(WAS_FREE);
    }
    let meant = |hold: &&Hold| wanted.as_ref().is_none_or(|wanted| hold.lease.secret().starts_with(wanted));
    let meant: Vec<&Hold> = holders.iter().filter(meant).collect();
    if meant.is_empty() {
        log::warn!("{}, by another lease", words::taken(&key, &holders, 0, store.now()));
        return Ok(Code::Busy.into());
    }
    if !unlock.yes {
        for hold in &meant {
            let taken = words::taken(&key, &[(*hold).clone()], 0, store.now());
            output::say(Level::Info, &format!("{taken}, lease {}", hold.lease.short()));
        }
        let attended = meant.iter().any(|hold| hold.attended && !hold.is_cooling());
        let asked = output::confirm(match (unlock.force, attended) {
            (true, _) => "take it away at once?",
            (_, true) => "stop and unlock it?",
            (_, false) => "take it away? nothing stops a script that holds it",
        });
        if !asked.map_err(|error| Failure::os("cannot ask", &error))? {
            return Ok(Code::Busy.into());
        }
    }
    let by_script = meant.iter().any(|hold| !hold.attended && !hold.is_cooling());
    let leases: Vec<LeaseId> = meant.iter().map(|hold| hold.lease).collect();
    let left = meant.iter().filter_map(|hold| hold.ends_at()).map(|end| end.since(store.now())).max();
    let wait = wait.or(left).unwrap_or(PATIENCE);
    let unlocked = super::ask(settings, || store.revoke(&key, &leases, unlock.force, &config::info(None, None)))?;
    if unlocked.told == 0 || await_end(settings, &*store, &key, &leases, wait)? {
        log::info!("'{key}' was unlocked");
        if by_script && unlock.yes {
            log::warn!("'{key}' was taken from a script, which nothing stops; it learns of it by 'dlock check'");
        }
        return Ok(Ending::OK);
    }
    let wait = words::span(wait);
    log::warn!("'{key}' was told to stop, but is not free after {wait}; '--force' frees it at once");
    Ok(Code::Busy.into())
}

/// Waits until none of the leases holds the key; whether that came in time.
fn await_end(
    settings: &Settings,
    store: &dyn Store,
    key: &Key,
    leases: &[LeaseId],
    wait: Duration,
) -> Result<bool, Failure> {
    let until = Moment::now().after(wait);
    let watch = Watch::Ends(leases.to_vec());
    loop {
        let record = super::ask(settings, || store.inspect(key))?;
        if !record.is_some_and(|record| leases.iter().any(|lease| record.hold(*lease).is_some())) {
            return Ok(true);
        }
        if until.left().is_zero() {
            return Ok(false);
        }
        super::ask(settings, || store.await_change(key, &watch, Some(until.left())))?;
    }
}

/// The beginning of a lease id, long enough to name it.
fn prefix(text: &str) -> Result<String, Failure> {
    let digits = (LeaseId::SHORT..=32).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if digits {
        Ok(text.to_ascii_lowercase())
    } else {
        Err(Failure::usage(format!(
            "'{text}' is no lease id; at least its first {} hex digits are needed",
            LeaseId::SHORT
        )))
    }
}
