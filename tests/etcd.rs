//! What is particular to etcd. What it shares with other stores stands with the topic.

mod access;
mod cost;
mod doctor;
mod history;
mod leases;
mod network;
mod oracle;
mod races;
mod refusals;
mod restore;
mod servers;
mod time;

use dlock::store::{EtcdAddress, EtcdRegister, Ledger};

use crate::support::race::WITHIN;

/// Whoever waits for so long was forgotten.
const BOUNDED: [&str; 2] = ["-w", "60"];

/// A store of a test's own process.
fn ledger(url: &str) -> Ledger<EtcdRegister> {
    let address = EtcdAddress::parse(url, "/".as_ref()).expect("a URL");
    Ledger::new(EtcdRegister::new(&address, WITHIN))
}
