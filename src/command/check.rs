//! `dlock check`: is my lease still good, and for how long?

use super::mine;
use crate::cli;
use crate::clock::{Deadline, Moment};
use crate::config::{self, Settings};
use crate::exit::{Ending, Failure};
use crate::store::Intent;

/// What is printed for a lease that does not go by time.
const WITHOUT_END: &str = "inf";

/// Prints for how many seconds the lease is still good, rounded down; 76 if it is not. One round trip.
pub(super) fn check(check: &cli::Mine, settings: &Settings) -> Result<Ending, Failure> {
    let (key, lease) = config::mine(check)?;
    let store = super::open(settings, Intent::Look)?;
    let mut asked = Moment::now();
    let record = super::ask(settings, || {
        asked = Moment::now();
        store.inspect(&key)
    })?;
    let record = record.as_ref();
    let hold = record.and_then(|record| record.hold(lease)).filter(|hold| !hold.is_cooling());
    let Some(hold) = hold else { return Ok(mine::not_yours(&key, lease)) };
    if hold.revoked {
        let by = record.and_then(|record| record.unlocked_by(lease));
        let by = by.map_or_else(|| "somebody".into(), ToString::to_string);
        log::warn!("'{key}' was unlocked by {by}, and is to be given back");
        return Ok(crate::exit::Code::Lost.into());
    }
    let left = if hold.levels.iter().any(|level| level.until.is_none()) {
        None
    } else {
        let until = hold.levels.iter().filter_map(|level| level.until).max().unwrap_or_default();
        // The store may have looked at its clock as soon as it was asked.
        let heard = Moment::now().since(asked);
        Some(Deadline::of_lease(Moment::now(), until.since(store.now().after(heard))).moment().left())
    };
    match left {
        Some(left) if left.is_zero() => Ok(mine::not_yours(&key, lease)),
        Some(left) => super::print(&format!("{}\n", left.as_secs())).map(|()| Ending::OK),
        None => super::print(&format!("{WITHOUT_END}\n")).map(|()| Ending::OK),
    }
}
