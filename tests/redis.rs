//! What is particular to Redis and Valkey servers. What they share with other stores stands with the topic.

pub(crate) mod access;
pub(crate) mod closed;
mod cluster;
mod cost;
mod doctor;
mod doctor_of_groups;
mod doctor_of_nodes;
mod failover;
mod freeze;
mod groups;
mod network;
mod oracle;
mod partition;
pub(crate) mod quorum;
mod quorum_loss;
mod refusals;
mod restart;
mod ring;
mod ring_lists;
mod sentinel;

use std::time::SystemTime;

use crate::support::{Store, wait_for};

/// Whoever waits for so long was forgotten.
const BOUNDED: [&str; 2] = ["-w", "40"];

/// When the lease of `k` ends, as the server has it.
#[track_caller]
fn lease_end(store: &Store) -> SystemTime {
    let status = store.status("k");
    let end = status["holders"][0]["until"].as_str().and_then(|until| humantime::parse_rfc3339(until).ok());
    end.unwrap_or_else(|| panic!("nobody holds it: {status}"))
}

/// Waits until the lease of `k` was extended.
#[track_caller]
fn await_beat(near: &Store) {
    let before = lease_end(near);
    wait_for("a beat", || lease_end(near) > before);
}
