//! Asking several servers at once.

use super::trouble::Failure;
use crate::store::parallel;

/// Does something with each of many, several at a time, and returns what comes of it in their order.
pub(super) fn at_once<T: Sync, R: Send>(all: &[T], work: impl Fn(&T) -> R + Sync) -> Result<Vec<R>, Failure> {
    parallel::at_once(all, work).map_err(Failure::Io)
}
