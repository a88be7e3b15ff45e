//! What is particular to NATS. What it shares with other stores stands with the topic.

mod access;
mod doctor;
mod network;
mod oracle;
mod partition;
mod races;
mod refusals;
mod servers;
mod time;

use std::time::SystemTime;

use dlock::store::{Ledger, NatsAddress, NatsRegister};

use crate::support::Store;
use crate::support::race::WITHIN;

/// Whoever waits for so long was forgotten.
const BOUNDED: [&str; 2] = ["-w", "60"];

/// A store of a test's own process.
fn ledger(url: &str) -> Ledger<NatsRegister> {
    let address = NatsAddress::parse(url, "/".as_ref()).expect("a URL");
    Ledger::new(NatsRegister::new(&address, true, WITHIN))
}

/// When the lease of `k` ends, as the server has it; long ago while it does not answer.
fn lease_end(store: &Store) -> SystemTime {
    let done = store.run(&["status", "--json", "k"]);
    let status: serde_json::Value = serde_json::from_str(&done.stdout).unwrap_or_default();
    let end = status["keys"][0]["holders"][0]["until"].as_str().map(humantime::parse_rfc3339);
    end.and_then(Result::ok).unwrap_or(SystemTime::UNIX_EPOCH)
}
