//! `dlock status`: who holds what, since when, and who waits.

use serde_json::{Value, json};

use super::json::{SCHEMA, key_json};
use super::words;
use crate::cli;
use crate::config::{self, Settings};
use crate::exit::{Ending, Failure};
use crate::model::{Hold, Key, Record, Stamp};
use crate::output::{self, Column, Screen, Stream, Table};
use crate::store::{Intent, Scope, Trouble};

/// What is shown of each holder.
const COLUMNS: [Column; 8] = [
    Column::elastic("KEY"),
    Column::fixed("STATE"),
    Column::fixed("FOR"),
    Column::elastic("WHO"),
    Column::fixed("LEASE"),
    Column::fixed("FENCE"),
    Column::fixed("WAITING"),
    Column::elastic("NOTE"),
];

/// Shows keys; exits 0 if any of them is held, else 1.
pub(super) fn status(status: &cli::Status, settings: &Settings) -> Result<Ending, Failure> {
    let named: Vec<Key> = status.keys.iter().map(|key| config::key(key)).collect::<Result<_, _>>()?;
    let store = super::open(settings, Intent::Look)?;
    let keys = if named.is_empty() {
        super::ask(settings, || store.list(if status.all { Scope::All } else { Scope::Live }))?
    } else {
        named.clone()
    };
    let prefix = status.prefix.as_deref().unwrap_or_default();
    let mut records = Vec::new();
    for key in keys.into_iter().filter(|key| key.as_str().starts_with(prefix)) {
        let record = match super::ask(settings, || store.inspect(&key)) {
            Ok(record) => record.unwrap_or_else(|| Record::new(key)),
            // Nobody asked for this one, and it hides no other.
            Err(error) if named.is_empty() && matches!(error.trouble, Trouble::Unfit | Trouble::Untrusted) => {
                log::warn!("{error}");
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let shown = status.all || !named.is_empty() || !record.holders.is_empty() || !record.queue.is_empty();
        records.extend(shown.then_some(record));
    }
    let held = records.iter().any(|record| !record.holders.is_empty());
    if status.json {
        let keys: Vec<Value> = records.iter().map(|record| key_json(record, store.now())).collect();
        let report = json!({ "schema": SCHEMA, "store": store.identity(), "keys": keys });
        super::print(&format!("{}\n", output::clean_json(&format!("{report:#}"))))?;
    } else if records.is_empty() {
        log::info!("no key is held{}", words::place(settings, &*store));
    } else {
        super::print(&table(&records, store.now()).render(Screen::of(Stream::Stdout)))?;
    }
    Ok(if held { Ending::OK } else { Ending::Code(1) })
}

fn table(records: &[Record], now: Stamp) -> Table {
    let mut table = Table::new(&COLUMNS);
    for record in records {
        let key = record.key.to_string();
        let waiting = record.queue.len().to_string();
        if record.holders.is_empty() {
            let fence = record.fence.to_string();
            table.push([key, "free".into(), "-".into(), "-".into(), "-".into(), fence, waiting, "-".into()]);
            continue;
        }
        for hold in &record.holders {
            let age = words::span(now.since(hold.granted_at));
            let who = hold.info.to_string();
            let note = hold.info.note.clone().unwrap_or_else(|| "-".into());
            let (lease, fence) = (hold.lease.short(), hold.fence.to_string());
            table.push([key.clone(), state(hold), age, who, lease, fence, waiting.clone(), note]);
        }
    }
    table
}

fn state(hold: &Hold) -> String {
    match (hold.is_cooling(), hold.revoked) {
        (true, _) => "cooling".into(),
        (_, true) => "revoked".into(),
        _ => hold.mode.to_string(),
    }
}
