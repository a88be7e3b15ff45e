//! What is particular to PostgreSQL. What it shares with other stores stands with the topic.

mod access;
mod collisions;
mod cost;
mod network;
mod oracle;
mod refusals;
mod servers;

use std::time::SystemTime;

use crate::support::Store;

/// Whoever waits for so long was forgotten.
const BOUNDED: [&str; 2] = ["-w", "40"];

/// When the lease of `k` ends, as the server has it; long ago while it does not answer.
fn lease_end(store: &Store) -> SystemTime {
    let done = store.run(&["status", "--json", "k"]);
    let status: serde_json::Value = serde_json::from_str(&done.stdout).unwrap_or_default();
    let end = status["keys"][0]["holders"][0]["until"].as_str().map(humantime::parse_rfc3339);
    end.and_then(Result::ok).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// The fence of `k`.
#[track_caller]
fn fence_of(store: &Store) -> u64 {
    let done = store.run(&["fence", "k"]);
    done.stdout.trim().parse().unwrap_or_else(|_| panic!("{done:#?}"))
}

/// Runs, waits in line, unlocks and looks.
#[track_caller]
fn works(store: &Store) {
    let mut holder = store.hold("k");
    let waiter = store.waiting("k", &["--note", "next"], "echo in");
    store.run(&["run", "k", "-n", "--", "true"]).says(75, &["'k' is held"]);
    assert_eq!(store.run(&["status"]).status.code(), Some(0));
    store.run(&["unlock", "k", "--yes", "--force"]).is(0, "", "");
    waiter.finish().is(0, "in\n", "");
    holder.close_stdin();
    holder.finish();
}
