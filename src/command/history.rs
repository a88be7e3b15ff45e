//! `dlock history`: who held a key, for how long, and how that ended.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::json::{SCHEMA, event_json, system_time};
use super::words;
use crate::cli;
use crate::config::{self, Settings};
use crate::exit::{Ending, Failure};
use crate::model::{self, Event, EventKind, Fence, Hold, Info, Record, Stamp};
use crate::output::{self, Column, Screen, Stream, Table};
use crate::store::Intent;

/// What is shown of each hold.
const COLUMNS: [Column; 9] = [
    Column::fixed("SINCE"),
    Column::fixed("HELD"),
    Column::elastic("HOW"),
    Column::elastic("WHO"),
    Column::fixed("WAITED"),
    Column::elastic("PROGRAM"),
    Column::elastic("NOTE"),
    Column::fixed("LEASE"),
    Column::fixed("FENCE"),
];

/// Shows what the store remembers of who held a key.
pub(super) fn history(history: &cli::History, settings: &Settings) -> Result<Ending, Failure> {
    let key = config::key(&history.key)?;
    let store = super::open(settings, Intent::Look)?;
    let record = super::ask(settings, || store.inspect(&key))?.unwrap_or_else(|| Record::new(key));
    if history.json {
        let events: Vec<Value> = record.events.iter().map(event_json).collect();
        let (key, fence) = (record.key.as_str(), record.fence);
        let report =
            json!({ "schema": SCHEMA, "store": store.identity(), "key": key, "fence": fence, "events": events });
        super::print(&format!("{}\n", output::clean_json(&format!("{report:#}"))))?;
        return Ok(Ending::OK);
    }
    let stories = stories(&record);
    if stories.is_empty() {
        words::nothing(&format!("nothing is known of '{}' in {}", record.key, store.describe()));
        return Ok(Ending::OK);
    }
    let mut table = Table::new(&COLUMNS);
    for ((fence, lease), story) in &stories {
        let Some(info) = story.info() else { continue };
        let since = story.since().map(|since| humantime::format_rfc3339_seconds(system_time(since)).to_string());
        let (waited, held) = (story.waited().map(words::span), story.held(store.now()).map(words::span));
        let (program, note) = (info.program.clone(), info.note.clone());
        let (lease, fence) = (Some(lease.clone()), Some(fence.to_string()));
        let cells = [since, held, Some(story.how()), Some(info.to_string()), waited, program, note, lease, fence];
        table.push(cells.map(|cell| cell.unwrap_or_else(|| "-".into())));
    }
    super::print(&table.render(Screen::of(Stream::Stdout)))?;
    Ok(Ending::OK)
}

/// What the record has of each hold, oldest first: a fence is higher than that of every grant before.
fn stories(record: &Record) -> BTreeMap<(Fence, String), Story<'_>> {
    let mut stories: BTreeMap<_, Story<'_>> = BTreeMap::new();
    for event in &record.events {
        stories.entry((event.fence, event.lease.clone())).or_default().events.push(event);
    }
    for hold in &record.holders {
        stories.entry((hold.fence, hold.lease.short())).or_default().hold = Some(hold);
    }
    stories
}

/// What is known of one hold: its beginning may be forgotten, or its end be still to come.
#[derive(Default)]
struct Story<'a> {
    events: Vec<&'a Event>,
    hold: Option<&'a Hold>,
}

impl<'a> Story<'a> {
    fn find(&self, kind: &EventKind) -> Option<&'a Event> {
        self.events.iter().copied().find(|event| event.kind == *kind)
    }

    fn info(&self) -> Option<&'a Info> {
        self.events.last().map(|event| &event.info).or(self.hold.map(|hold| &hold.info))
    }

    /// What ended it for its holder. The key may stay taken after that.
    fn end(&self) -> Option<&'a Event> {
        let ends = [EventKind::Released, EventKind::Expired, EventKind::Evicted, EventKind::Cooled];
        self.events.iter().copied().find(|event| ends.contains(&event.kind))
    }

    /// When the key was granted.
    fn since(&self) -> Option<Stamp> {
        let granted = self.find(&EventKind::Granted).map(|event| event.at);
        let told = self.events.iter().find(|event| !matches!(event.kind, EventKind::Granted | EventKind::Other(_)));
        let told = told.map(|event| Stamp::from_micros(event.at.micros().saturating_sub(event.micros)));
        granted.or(self.hold.map(|hold| hold.granted_at)).or(told)
    }

    fn waited(&self) -> Option<Duration> {
        let granted = self.find(&EventKind::Granted).map(|event| Duration::from_micros(event.micros));
        granted.or(self.hold.map(|hold| hold.granted_at.since(hold.asked_at)))
    }

    /// For how long its holder held it, when the store's clock shows `now`.
    fn held(&self, now: Stamp) -> Option<Duration> {
        match (self.end(), self.hold) {
            // Part of that time the key only stayed taken.
            (Some(Event { kind: EventKind::Cooled, .. }), _) => None,
            (Some(end), _) => Some(Duration::from_micros(end.micros)),
            (None, hold) => hold.filter(|hold| !hold.is_cooling()).map(|hold| now.since(hold.granted_at)),
        }
    }

    /// How it ended, or that it goes on.
    fn how(&self) -> String {
        let by = |event: &Event| event.by.as_ref().map_or_else(|| "somebody".into(), ToString::to_string);
        let told = self.find(&EventKind::Revoked).map(by);
        let cooling = self.hold.is_some_and(Hold::is_cooling);
        let Some(end) = self.end() else {
            return match (self.hold, told) {
                (Some(_), _) if cooling => "cooling".into(),
                (Some(_), Some(by)) => format!("being unlocked by {by}"),
                (Some(_), None) => "held".into(),
                (None, Some(by)) => format!("unlocked by {by}"),
                // Its end is known to a newer version only.
                (None, None) => self.events.last().map_or("ended", |event| event.kind.name()).into(),
            };
        };
        let how = match (&end.kind, &end.ending, told) {
            // A lease that nobody attends to goes so without '--force', too.
            (EventKind::Evicted, ..) => format!("unlocked at once by {}", by(end)),
            (_, _, Some(by)) => format!("unlocked by {by}"),
            (EventKind::Released, Some(model::Ending { exit: Some(code), .. }), _) => format!("exit {code}"),
            (EventKind::Released, Some(model::Ending { signal: Some(number), .. }), _) => format!("signal {number}"),
            (kind, ..) => kind.name().into(),
        };
        if cooling { format!("{how}, cooling") } else { how }
    }
}

#[cfg(test)]
mod tests {
    use super::stories;
    use crate::model::{Key, Record, Stamp};
    use serde_json::{Value, json};
    use std::time::Duration;

    /// A record with these events of one hold, granted 100 s after the epoch.
    fn record(events: &[(&str, u64)], holders: &Value) -> Record {
        let info = json!({ "host": "h", "pid": 1, "user": "u" });
        let event = |(kind, seconds): &(&str, u64)| {
            let by = (*kind == "revoked").then_some(&info);
            let (at, micros) = ((100 + seconds) * 1_000_000, seconds * 1_000_000);
            json!({ "at": at, "kind": kind, "lease": "00010203", "fence": 7, "info": info, "micros": micros, "by": by })
        };
        let events: Vec<Value> = events.iter().map(event).collect();
        let record = json!({
            "layout": 1, "key": "k", "fence": 8, "last_ticket": 1, "holders": holders, "queue": [], "events": events,
            "counters": { "grants": 1, "expiries": 0, "evictions": 0 },
        });
        let key = Key::parse("k").expect("a key");
        Record::decode(&key, record.to_string().as_bytes()).expect("a record")
    }

    /// How the only hold ended, for how long it held, and since when.
    fn told(events: &[(&str, u64)]) -> (String, Option<u64>, Option<u64>) {
        let record = record(events, &json!([]));
        let stories = stories(&record);
        let (_, story) = stories.first_key_value().expect("a story");
        assert_eq!(stories.len(), 1);
        let now = Stamp::default().after(Duration::from_secs(1000));
        let since = story.since().map(|since| since.micros() / 1_000_000);
        (story.how(), story.held(now).map(|held| held.as_secs()), since)
    }

    #[test]
    fn a_history_that_begins_in_the_middle_of_a_hold_is_told_as_far_as_it_is_known() {
        assert_eq!(told(&[("released", 5)]), ("released".into(), Some(5), Some(100)));
        assert_eq!(told(&[("cooled", 60)]), ("cooled".into(), None, Some(100)));
        assert_eq!(told(&[("revoked", 4), ("released", 5)]), ("unlocked by h pid 1 (u)".into(), Some(5), Some(100)));
        assert_eq!(told(&[("revoked", 4)]), ("unlocked by h pid 1 (u)".into(), None, Some(100)));
    }

    #[test]
    fn what_ended_it_first_counts() {
        assert_eq!(told(&[("expired", 5), ("cooled", 60)]).0, "expired");
        assert_eq!(told(&[("released", 5), ("evicted", 6)]), ("released".into(), Some(5), Some(100)));
        assert_eq!(told(&[("revoked", 4), ("expired", 5)]).0, "unlocked by h pid 1 (u)");
    }

    #[test]
    fn what_only_a_newer_version_knows_has_its_name_there_unless_something_else_is_known() {
        assert_eq!(told(&[("stolen", 5)]), ("stolen".into(), None, None));
        assert_eq!(told(&[("warned", 3), ("released", 5)]), ("released".into(), Some(5), Some(100)));
    }
}
