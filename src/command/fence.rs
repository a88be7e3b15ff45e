//! `dlock fence`.

use crate::cli;
use crate::config::{self, Settings};
use crate::exit::{Ending, Failure};
use crate::model::Fence;
use crate::store::Intent;

/// Prints the fence of a key.
pub(super) fn fence(fence: &cli::Fence, settings: &Settings) -> Result<Ending, Failure> {
    let key = config::key(&fence.key)?;
    let store = super::open(settings, Intent::Look)?;
    let record = super::ask(settings, || store.inspect(&key))?;
    let fence = record.map_or(Fence::default(), |record| record.fence);
    super::print(&format!("{fence}\n"))?;
    Ok(Ending::OK)
}
