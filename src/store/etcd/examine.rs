//! Whether etcd can be trusted with locks.

use std::time::Duration;

use super::EtcdRegister;
use super::address::Address;
use crate::store::{Examination, StoreError};

impl EtcdRegister {
    pub(super) fn look_into(&self, _: Duration) -> Result<Examination, StoreError> {
        Ok(Examination::default())
    }
}

/// What somebody would run by hand who lets a user take locks.
pub(super) fn script(address: &Address) -> String {
    let prefix = &address.prefix;
    format!(
        "# A role that may do all that dlock does, for 'etcdctl user grant-role USER dlock'.\n\
         etcdctl role add dlock\netcdctl role grant-permission dlock readwrite {prefix}/ --prefix=true\n"
    )
}
