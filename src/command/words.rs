//! Holders, waiters and spans of time in words.

use std::time::Duration;

use crate::config::Settings;
use crate::model::{Hold, Key, Stamp};
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
    let others = match holders.len() - 1 {
        0 => String::new(),
        1 => " and one other".into(),
        others => format!(" and {others} others"),
    };
    let note = first.info.note.as_ref().map_or_else(String::new, |note| format!(" '{note}'"));
    let since = span(now.since(first.granted_at));
    format!("'{key}' is held by {}{note}{others} for {since}", first.info)
}

/// Where that is, if nobody named the store: a default directory may not be the one that was meant.
pub(super) fn place(settings: &Settings, store: &dyn Store) -> String {
    if settings.is_default { format!(" in {}", store.describe()) } else { String::new() }
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
