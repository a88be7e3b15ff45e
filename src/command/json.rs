//! What programs see: names that stay as they are, times in RFC 3339, spans in milliseconds.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::model::{Event, EventKind, Hold, Info, Mode, Record, Stamp, Waiter};

/// The version of the JSON. Names in it stay as they are.
pub(super) const SCHEMA: u32 = 1;

pub(super) fn key_json(record: &Record, now: Stamp) -> Value {
    let holders: Vec<Value> = record.holders.iter().map(|hold| hold_json(hold, now)).collect();
    let queue: Vec<Value> = record.queue.iter().map(|waiter| waiter_json(waiter, now)).collect();
    json!({
        "key": record.key.as_str(),
        "held": !record.holders.is_empty(),
        "fence": record.fence.0,
        "holders": holders,
        "queue": queue,
    })
}

pub(super) fn hold_json(hold: &Hold, now: Stamp) -> Value {
    let mut object = json!({
        "lease": hold.lease.short(),
        "mode": mode(hold.mode),
        "fence": hold.fence.0,
        "depth": hold.levels.len(),
        "since": time(hold.granted_at),
        "held_ms": millis(now.since(hold.granted_at)),
        "waited_ms": millis(hold.granted_at.since(hold.asked_at)),
        "until": hold.ends_at().map(time),
        "hold_until": hold.hold_until.map(time),
        "cooling": hold.is_cooling(),
        "revoked": hold.revoked,
        "attended": hold.attended,
    });
    add(&mut object, &info(&hold.info));
    if let Mode::Slots(size) = hold.mode {
        add(&mut object, &json!({ "slots": size }));
    }
    object
}

pub(super) fn waiter_json(waiter: &Waiter, now: Stamp) -> Value {
    let mut object = json!({
        "lease": waiter.lease.short(),
        "mode": mode(waiter.mode),
        "since": time(waiter.asked_at),
        "waiting_ms": millis(now.since(waiter.asked_at)),
    });
    add(&mut object, &info(&waiter.info));
    object
}

/// One event. All of them have the same names.
pub(super) fn event_json(event: &Event) -> Value {
    let span = millis(Duration::from_micros(event.micros));
    let (waited, held) = match event.kind {
        EventKind::Granted => (Some(span), None),
        // What a newer version means by it is not known.
        EventKind::Other(_) => (None, None),
        _ => (None, Some(span)),
    };
    let ending = event.ending.clone().unwrap_or_default();
    let mut object = json!({
        "event": event.kind.name(),
        "at": time(event.at),
        "lease": event.lease,
        "fence": event.fence.0,
        "waited_ms": waited,
        "held_ms": held,
        "exit": ending.exit,
        "signal": ending.signal,
        "by": event.by.as_ref().map(info),
    });
    add(&mut object, &info(&event.info));
    object
}

pub(super) fn info(info: &Info) -> Value {
    json!({ "host": info.host, "pid": info.pid, "user": info.user, "program": info.program, "note": info.note })
}

pub(super) fn add(object: &mut Value, more: &Value) {
    if let (Some(object), Some(more)) = (object.as_object_mut(), more.as_object()) {
        object.extend(more.clone());
    }
}

pub(super) fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Exclusive => "exclusive",
        Mode::Shared => "shared",
        Mode::Slots(_) => "slots",
    }
}

/// RFC 3339, in UTC.
pub(super) fn time(stamp: Stamp) -> String {
    rfc3339(system_time(stamp))
}

/// The instant, if RFC 3339 can tell of it, else the last one that it can.
pub(super) fn system_time(stamp: Stamp) -> SystemTime {
    // The format ends with the year 9999.
    let latest = Duration::from_secs(253_402_300_799);
    UNIX_EPOCH + Duration::from_micros(stamp.micros()).min(latest)
}

pub(super) fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}

pub(super) fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
