//! `dlock release`: gives a lease of `acquire` back.

use super::mine;
use crate::cli;
use crate::config::{self, Settings};
use crate::exit::{Ending, Failure};
use crate::holder;
use crate::model::{self, Released};
use crate::store::Intent;

/// Gives the lease back. The key stays taken for as long as `--min-hold` said.
pub(super) fn release(release: &cli::Mine, settings: &Settings) -> Result<Ending, Failure> {
    let (key, lease) = config::mine(release)?;
    let store = super::open(settings, Intent::Look)?;
    if !mine::is_script_held(settings, &*store, &key, lease)? {
        return Ok(mine::not_yours(&key, lease));
    }
    let ending = model::Ending::default();
    match holder::release(&*store, &key, lease, Some(&ending), settings.store_timeout.value)? {
        Released::NotYours => Ok(mine::not_yours(&key, lease)),
        _ => Ok(Ending::OK),
    }
}
