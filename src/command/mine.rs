//! A lease that somebody names as his own.

use crate::config::Settings;
use crate::exit::{Code, Ending, Failure};
use crate::model::{Key, LeaseId};
use crate::store::Store;

/// Whether the lease holds the key, and nobody but a script attends to it.
///
/// # Errors
/// 64 if it belongs to a `run`, which renews it and gives it back itself.
pub(super) fn is_script_held(
    settings: &Settings,
    store: &dyn Store,
    key: &Key,
    lease: LeaseId,
) -> Result<bool, Failure> {
    let record = super::ask(settings, || store.inspect(key))?;
    let Some(hold) = record.as_ref().and_then(|record| record.hold(lease)) else { return Ok(false) };
    if hold.attended {
        let words = format!("lease {} of '{key}' is that of a 'dlock run', which looks after it itself", lease.short());
        return Err(Failure::usage(words));
    }
    Ok(!hold.is_cooling())
}

/// Says that the key is not held by the lease.
pub(super) fn not_yours(key: &Key, lease: LeaseId) -> Ending {
    log::warn!("'{key}' is not held by lease {} any more", lease.short());
    Code::Lost.into()
}
