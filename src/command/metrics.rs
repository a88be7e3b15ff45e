//! `dlock metrics`: what is known of all keys, for a monitoring system. The text is `OpenMetrics`
//! (<https://prometheus.io/docs/specs/om/open_metrics_spec/>), and none of it is beyond the older format of Prometheus.

use std::fmt::Write as _;
use std::time::Duration;

use super::which::Which;
use crate::cli;
use crate::config::Settings;
use crate::exit::{Ending, Failure};
use crate::model::{self, Event, EventKind, Hold, Key, Record, Stamp};
use crate::store::Intent;

/// A metric that each key may have.
struct Family {
    name: &'static str,
    kind: Kind,
    help: &'static str,
    /// The value for a key when the store's clock shows that; none if there is none.
    value: fn(&Record, Stamp) -> Option<Value>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Gauge,
    /// A gauge in seconds, as its name ends.
    Seconds,
    Counter,
}

enum Value {
    Number(u64),
    /// Microseconds, told in seconds.
    Micros(u64),
}

const FAMILIES: [Family; 12] = [
    Family {
        name: "dlock_held",
        kind: Kind::Gauge,
        help: "Whether the key is taken: held, or kept from others for the rest of --min-hold.",
        value: |record, _| Some(number(usize::from(!record.holders.is_empty()))),
    },
    Family {
        name: "dlock_holders",
        kind: Kind::Gauge,
        help: "How many hold the key.",
        value: |record, _| Some(number(holding(record).count())),
    },
    Family {
        name: "dlock_waiting",
        kind: Kind::Gauge,
        help: "How many wait for the key.",
        value: |record, _| Some(number(record.queue.len())),
    },
    Family {
        name: "dlock_held_seconds",
        kind: Kind::Seconds,
        help: "For how long the one has held the key who has held it longest; 0 if nobody does.",
        value: |record, now| Some(longest(holding(record).map(|hold| hold.granted_at), now)),
    },
    Family {
        name: "dlock_oldest_wait_seconds",
        kind: Kind::Seconds,
        help: "For how long the one has waited who has waited longest; 0 if nobody waits.",
        value: |record, now| Some(longest(record.queue.iter().map(|waiter| waiter.asked_at), now)),
    },
    Family {
        name: "dlock_ttl_left_seconds",
        kind: Kind::Seconds,
        help: "In how long the first hold ends unless it is renewed; missing if none has an end.",
        value: |record, now| {
            let end = record.holders.iter().filter_map(Hold::ends_at).min();
            end.map(|end| span(end.since(now)))
        },
    },
    Family {
        name: "dlock_fence",
        kind: Kind::Gauge,
        help: "The fencing token of the key, which rises at each grant and at each end of a hold.",
        value: |record, _| Some(Value::Number(record.fence.0)),
    },
    Family {
        name: "dlock_last_grant_timestamp_seconds",
        kind: Kind::Seconds,
        help: "When the key was granted last, in Unix time; missing if that is forgotten.",
        value: |record, _| {
            let granted = record.events.iter().filter(|event| event.kind == EventKind::Granted).map(|event| event.at);
            granted.chain(record.holders.iter().map(|hold| hold.granted_at)).max().map(instant)
        },
    },
    Family {
        name: "dlock_last_success_timestamp_seconds",
        kind: Kind::Seconds,
        help: "When a command that held the key exited with 0 last, in Unix time; missing if that is forgotten.",
        value: |record, _| {
            let ended_well = |event: &&Event| matches!(event.ending, Some(model::Ending { exit: Some(0), .. }));
            record.events.iter().filter(ended_well).map(|event| event.at).max().map(instant)
        },
    },
    Family {
        name: "dlock_grants",
        kind: Kind::Counter,
        help: "How often the key was granted.",
        value: |record, _| Some(Value::Number(record.counters.grants)),
    },
    Family {
        name: "dlock_expiries",
        kind: Kind::Counter,
        help: "How often a holder died or did not renew its lease.",
        value: |record, _| Some(Value::Number(record.counters.expiries)),
    },
    Family {
        name: "dlock_evictions",
        kind: Kind::Counter,
        help: "How often the key was taken from its holder at once.",
        value: |record, _| Some(Value::Number(record.counters.evictions)),
    },
];

/// Prints them. All at once, so that a store that fails in the middle leaves no half of it.
pub(super) fn metrics(metrics: &cli::Metrics, settings: &Settings) -> Result<Ending, Failure> {
    let which = Which::Every { prefix: metrics.prefix.clone().unwrap_or_default(), free: true };
    let store = super::open(settings, Intent::Look)?;
    let records = super::ask(settings, || which.read(&*store)?.whole())?;
    super::print(&text(&records, store.now()))?;
    Ok(Ending::OK)
}

fn text(records: &[Record], now: Stamp) -> String {
    let mut text = String::new();
    for Family { name, kind, help, value } in &FAMILIES {
        let (kind_name, suffix) = match kind {
            Kind::Gauge | Kind::Seconds => ("gauge", ""),
            Kind::Counter => ("counter", "_total"),
        };
        let _ = writeln!(text, "# TYPE {name} {kind_name}");
        if *kind == Kind::Seconds {
            let _ = writeln!(text, "# UNIT {name} seconds");
        }
        let _ = writeln!(text, "# HELP {name} {help}");
        for record in records {
            let key = escaped(&record.key);
            let _ = match value(record, now) {
                Some(Value::Number(value)) => writeln!(text, "{name}{suffix}{{key=\"{key}\"}} {value}"),
                Some(Value::Micros(value)) => {
                    let (seconds, micros) = (value / 1_000_000, value % 1_000_000);
                    writeln!(text, "{name}{suffix}{{key=\"{key}\"}} {seconds}.{micros:06}")
                }
                None => Ok(()),
            };
        }
    }
    text + "# EOF\n"
}

/// A key as the value of a label. No key has a line break in it.
fn escaped(key: &Key) -> String {
    key.as_str().replace('\\', "\\\\").replace('"', "\\\"")
}

/// Those who hold the key, without those for whom it only stays taken.
fn holding(record: &Record) -> impl Iterator<Item = &Hold> {
    record.holders.iter().filter(|hold| !hold.is_cooling())
}

fn number(count: usize) -> Value {
    Value::Number(count as u64)
}

fn span(span: Duration) -> Value {
    Value::Micros(u64::try_from(span.as_micros()).unwrap_or(u64::MAX))
}

fn instant(stamp: Stamp) -> Value {
    Value::Micros(stamp.micros())
}

/// How long ago the earliest of these was.
fn longest(since: impl Iterator<Item = Stamp>, now: Stamp) -> Value {
    since.min().map_or(Value::Micros(0), |since| span(now.since(since)))
}
