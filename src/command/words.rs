//! Holders, waiters and spans of time in words.

use std::time::Duration;

use crate::config::{Origin, Settings};
use crate::model::{Hold, Info, Key, Stamp};
use crate::output::{Screen, Stream};
use crate::store::Store;

/// A span, as precise as people want it.
pub(super) fn span(span: Duration) -> String {
    let rounded = if span < Duration::from_secs(1) {
        Duration::from_millis(u64::try_from(span.as_millis()).unwrap_or(u64::MAX))
    } else {
        Duration::from_secs(span.as_secs())
    };
    humantime::format_duration(rounded).to_string()
}

/// Who has `key` when the store's clock shows `now`, as the beginning of a sentence.
pub(super) fn taken(key: &Key, holders: &[Hold], waiting: usize, now: Stamp) -> String {
    let Some(first) = holders.first() else {
        if waiting == 0 {
            return format!("'{key}' is taken");
        }
        return format!("'{key}' is waited for by {waiting} before us");
    };
    if first.is_cooling() {
        let left = first.hold_until.map_or(Duration::ZERO, |until| until.since(now));
        return format!("'{key}' stays taken for {} more, for {}", span(left), first.info);
    }
    let others = others(holders);
    let note = first.info.note.as_ref().map_or_else(String::new, |note| format!(" '{note}'"));
    let since = span(now.since(first.granted_at));
    format!("'{key}' is held by {}{note}{others} for {since}", first.info)
}

/// That we have waited so long for `key`, and how many are ahead of us.
pub(super) fn waiting(key: &Key, waited: Duration, ahead: Option<usize>) -> String {
    let waited = if waited < Duration::from_secs(1) { String::new() } else { format!(" {}", span(waited)) };
    match ahead {
        None => format!("waiting{waited} for '{key}'"),
        Some(0) => format!("waiting{waited} for '{key}', next in line"),
        Some(ahead) => format!("waiting{waited} for '{key}', {ahead} ahead"),
    }
}

/// Who holds a key when the store's clock shows `now`, in several ways, the longest first; none if nobody does.
pub(super) fn holding(holders: &[Hold], now: Stamp) -> Vec<String> {
    let Some(first) = holders.first() else { return Vec::new() };
    let Info { host, note, program, .. } = &first.info;
    if first.is_cooling() {
        let left = span(first.hold_until.map_or(Duration::ZERO, |until| until.since(now)));
        return vec![
            format!("stays taken for {left} more, for {}", first.info),
            format!("stays taken for {left} more"),
        ];
    }
    let (since, others) = (span(now.since(first.granted_at)), others(holders));
    let program = program.as_ref().map_or_else(String::new, |program| format!(" {program}"));
    let note = note.as_ref().map_or_else(String::new, |note| format!(" '{note}'"));
    let held = |who: String| format!("held for {since} by {who}{others}");
    vec![
        held(format!("{}{program}{note}", first.info)),
        held(format!("{}{program}", first.info)),
        held(first.info.to_string()),
        held(host.clone()),
        format!("held for {since}"),
    ]
}

fn others(holders: &[Hold]) -> String {
    match holders.len() {
        0 | 1 => String::new(),
        2 => " and one other".into(),
        more => format!(" and {} others", more - 1),
    }
}

/// That these keys are held, up to the verb.
pub(super) fn held(keys: &[Key]) -> String {
    const SHOWN: usize = 3;
    let shown: Vec<String> = keys.iter().take(SHOWN).map(|key| format!("'{key}'")).collect();
    let more = keys.len().saturating_sub(SHOWN);
    match (&shown[..], more) {
        ([key], _) => format!("{key} is"),
        (_, 0) => format!("{} are", shown.join(", ")),
        (_, more) => format!("{} and {more} more are", shown.join(", ")),
    }
}

/// Where that is, if nobody named the store: a default directory may not be the one that was meant.
pub(super) fn place(settings: &Settings, store: &dyn Store) -> String {
    if settings.store.from == Origin::Default { format!(" in {}", store.describe()) } else { String::new() }
}

/// Says that there is nothing to show: always to one who looks, and may look at another store than was meant; to a
/// program only with `-v`.
pub(super) fn nothing(words: &str) {
    let level = if Screen::of(Stream::Stdout).is_some() { log::Level::Warn } else { log::Level::Info };
    log::log!(level, "{words}");
}

#[cfg(test)]
mod tests {
    use super::span;
    use std::time::Duration;

    #[test]
    fn a_span_is_told_in_seconds_or_if_shorter_in_milliseconds() {
        assert_eq!(span(Duration::from_micros(1_999)), "1ms");
        assert_eq!(span(Duration::from_millis(192_999)), "3m 12s");
    }
}
