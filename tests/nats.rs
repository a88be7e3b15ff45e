//! What is particular to NATS. What it shares with other stores stands with the topic.

mod access;
mod doctor;
mod network;
mod oracle;
mod races;
mod refusals;
mod servers;
mod time;

use std::time::{Duration, SystemTime};

use dlock::model::{Ask, Info, Key, LeaseId, Mode, Patience};
use dlock::store::{Ledger, NatsAddress, NatsRegister};

use crate::support::Store;

/// More than anything takes that a test asks for itself.
const WITHIN: Duration = Duration::from_secs(20);

/// Whoever waits for so long was forgotten.
const BOUNDED: [&str; 2] = ["-w", "60"];

/// A store of a test's own process.
fn ledger(url: &str) -> Ledger<NatsRegister> {
    let address = NatsAddress::parse(url, "/".as_ref()).expect("a URL");
    Ledger::new(NatsRegister::new(&address, true, WITHIN))
}

fn key() -> Key {
    Key::parse("k").expect("a key")
}

/// Somebody with this number who asks for the key, and does not wait.
fn ask(number: u128, ttl: Duration) -> Ask {
    let lease = LeaseId::new(number.to_le_bytes());
    Ask {
        lease,
        level: lease,
        mode: Mode::Exclusive,
        ttl: Some(ttl),
        patience: Patience::None,
        if_fence: None,
        proposal: None,
        min_hold: Duration::ZERO,
        max_reentry: 0,
        attended: true,
        info: Info::default(),
    }
}

/// When the lease of `k` ends, as the server has it; long ago while it does not answer.
fn lease_end(store: &Store) -> SystemTime {
    let done = store.run(&["status", "--json", "k"]);
    let status: serde_json::Value = serde_json::from_str(&done.stdout).unwrap_or_default();
    let end = status["keys"][0]["holders"][0]["until"].as_str().map(humantime::parse_rfc3339);
    end.and_then(Result::ok).unwrap_or(SystemTime::UNIX_EPOCH)
}
