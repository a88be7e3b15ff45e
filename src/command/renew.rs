//! `dlock renew`: extends a lease of `acquire`.

use super::{asking, mine};
use crate::cli;
use crate::config::{self, Settings};
use crate::exit::{Ending, Failure};
use crate::holder;
use crate::model::Renewed;
use crate::store::Intent;

/// Makes the lease live for so long from now on.
pub(super) fn renew(renew: &cli::Renew, settings: &Settings) -> Result<Ending, Failure> {
    let (key, lease) = config::mine(&renew.mine)?;
    let ttl = settings.ttl(renew.ttl.as_deref())?.value;
    let store = super::open(settings, Intent::Look)?;
    let ttl = asking::ttl(ttl, &*store);
    if !mine::is_script_held(settings, &*store, &key, lease)? {
        return Ok(mine::not_yours(&key, lease));
    }
    let within = holder::REQUEST.min(settings.store_timeout.value);
    match super::ask(settings, || store.renew(&key, lease, ttl, within))? {
        Renewed::Until(_) => Ok(Ending::OK),
        Renewed::Revoked | Renewed::NotYours => Ok(mine::not_yours(&key, lease)),
    }
}
