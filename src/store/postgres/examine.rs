//! Whether a server can be trusted with locks: what it says of its settings.

use std::time::Duration;

use super::PostgresRegister;
use super::trouble::Failure;
use crate::store::Examination;

impl PostgresRegister {
    pub(super) fn look_into(&self, _silence: Duration) -> Result<Examination, Failure> {
        Ok(Examination::default())
    }
}
