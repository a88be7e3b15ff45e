//! How a record is written and read. Two versions of dlock share a store, so neither may lose what the other
//! wrote.

use std::time::Duration;

use crate::support::ask;
use dlock::model::{
    Ask, Clock, Ending, EventKind, Fence, Info, Key, LAYOUT, LeaseId, Mode, Patience, Record, RecordError, Role, Stamp,
    Ticket,
};
use serde_json::{Value, json};

/// A clock that stands still, in a world where nobody dies.
struct Still;

impl Clock for Still {
    fn now(&self) -> Stamp {
        Stamp::from_micros(1_700_000_000_000_000)
    }

    fn attends(&self, _: Ticket, _: Role) -> bool {
        true
    }
}

fn key() -> Key {
    Key::parse("deploy/prod").expect("it is a key")
}

fn lease(number: u8) -> LeaseId {
    LeaseId::new([number; 16])
}

fn ask(number: u8) -> Ask {
    Ask {
        mode: Mode::Slots(2.try_into().expect("2 is above 0")),
        patience: Patience::SignOfLife(Duration::from_secs(15)),
        min_hold: Duration::from_secs(60),
        max_reentry: 16,
        info: Info { host: "web3".into(), pid: 4121, program: Some("rsync".into()), ..Info::default() },
        ..ask::ask(lease(number), Duration::from_secs(30))
    }
}

/// A record with all that a record can have: one that cools, one that holds, one that waits, and events.
fn full() -> Record {
    let mut record = Record::new(key());
    for number in 1..=3 {
        record.acquire(&Still, &ask(number));
    }
    record.release(&Still, lease(1), Some(Ending { exit: Some(3), signal: None, ..Ending::default() }));
    record
}

/// The places of all objects in `value`, as JSON pointers.
fn objects(value: &Value, at: &str) -> Vec<String> {
    let inner = |(name, value): (String, &Value)| objects(value, &format!("{at}/{name}"));
    match value {
        Value::Object(map) => {
            let inside = map.iter().map(|(name, value)| (name.clone(), value)).flat_map(inner);
            std::iter::once(at.to_owned()).chain(inside).collect()
        }
        Value::Array(all) => {
            all.iter().enumerate().map(|(at, value)| (at.to_string(), value)).flat_map(inner).collect()
        }
        _ => Vec::new(),
    }
}

fn written(record: &Record) -> Value {
    serde_json::from_slice(&record.encode()).expect("a record is JSON")
}

fn read(value: &Value) -> Result<Record, RecordError> {
    Record::decode(&key(), value.to_string().as_bytes())
}

#[test]
fn a_record_reads_back_as_it_was_written() {
    for record in [Record::new(key()), full()] {
        assert_eq!(Record::decode(&key(), &record.encode()), Ok(record));
    }
}

#[test]
fn what_a_newer_version_wrote_survives_a_change_by_this_one_wherever_it_stands() {
    let mut value = written(&full());
    // A mode is an object too, but a newer kind of mode is a newer layout.
    let mut places = objects(&value, "");
    places.retain(|place| !place.ends_with("/mode"));
    for place in &places {
        value.pointer_mut(place).expect("it was there")["newer"] = json!({ "at": place, "n": [1, 2.5, null] });
    }
    value["events"][0]["kind"] = json!("transferred");
    let mut record = read(&value).expect("unknown fields are no reason to refuse a record of our layout");

    record.renew(&Still, lease(2), Duration::from_secs(99));
    record.unlock(&Still, &[lease(2)], false, &Info::default());
    record.acquire(&Still, &ask(4));
    let changed = written(&record);

    assert_ne!(changed, value);
    for place in &places {
        let newer = json!({ "at": place, "n": [1, 2.5, null] });
        assert_eq!(changed.pointer(&format!("{place}/newer")), Some(&newer), "in '{place}'");
    }
    assert_eq!(changed["events"][0]["kind"], "transferred");
    for place in ["", "/counters", "/holders/0", "/holders/1/levels/0", "/queue/0", "/queue/0/info", "/events/2/ending"]
    {
        assert!(places.iter().any(|known| known == place), "the record should have tried '{place}'");
    }
}

#[test]
fn only_a_record_of_a_resource_has_a_fence_that_passed() {
    let mut record = full();
    assert_eq!(written(&record).get("passed"), None, "a record of a lock is as older versions know it");
    record.pass(lease(2), Fence(u64::MAX));
    assert_eq!(written(&record)["passed"], json!(u64::MAX));
    assert_eq!(Record::decode(&key(), &record.encode()), Ok(record));
}

#[test]
fn an_event_of_a_kind_that_we_do_not_know_keeps_its_name() {
    let mut value = written(&full());
    value["events"][0]["kind"] = json!("transferred");
    let record = read(&value).expect("a new kind of event is no new layout");
    assert_eq!(record.events[0].kind, EventKind::Other("transferred".into()));
    assert_eq!(record.events[1].kind, EventKind::Granted);
}

#[test]
fn a_newer_layout_is_refused_as_newer_whatever_else_it_says() {
    let mut value = written(&full());
    value["layout"] = json!(LAYOUT + 1);
    assert_eq!(read(&value), Err(RecordError::Newer(LAYOUT + 1)));
    for odd in [json!({ "layout": 7 }), json!({ "layout": 7, "key": 1, "holders": "none", "fence": [] })] {
        assert_eq!(read(&odd), Err(RecordError::Newer(7)), "{odd}");
    }
    value["key"] = json!("other");
    assert_eq!(read(&value), Err(RecordError::Newer(LAYOUT + 1)), "of another key");
}

#[test]
fn what_is_no_record_is_corrupt() {
    let whole = full().encode();
    let half = &whole[..whole.len() / 2];
    let twice = [whole.clone(), whole.clone()].concat();
    for bytes in [b"".as_slice(), b"\0\0\0\0", b"null", b"{}", b"{\"layout\":\"7\"}", half, &twice] {
        let read = Record::decode(&key(), bytes);
        assert!(matches!(read, Err(RecordError::Corrupt(_))), "{read:?} from {:?}", String::from_utf8_lossy(bytes));
    }
    for (place, odd) in [
        ("/fence", json!(-1)),
        // They could not rise any more.
        ("/fence", json!(u64::MAX)),
        ("/last_ticket", json!(u64::MAX)),
        ("/counters/grants", json!(u64::MAX)),
        ("/holders/0/lease", json!("07")),
        ("/queue/0/mode", json!({ "slots": 0 })),
    ] {
        let mut value = written(&full());
        *value.pointer_mut(place).expect("a full record has it") = odd;
        assert!(matches!(read(&value), Err(RecordError::Corrupt(_))), "{place}");
    }
}

#[test]
fn the_record_of_another_key_is_corrupt_and_named() {
    let other = Key::parse("deploy/test").expect("it is a key");
    let Err(RecordError::Corrupt(why)) = Record::decode(&other, &full().encode()) else {
        panic!("a record was taken for that of another key");
    };
    assert!(why.contains("'deploy/prod'"), "{why}");
}

#[test]
fn what_is_shown_of_a_record_tells_no_lease_id() {
    let record = full();
    let events = written(&record)["events"].to_string();
    for number in 1..=3 {
        assert!(!format!("{record:?}").contains(&lease(number).secret()));
        assert!(!events.contains(&lease(number).secret()));
    }
}

/// A clock in a world where everybody is dead.
struct Late(Stamp);

impl Clock for Late {
    fn now(&self) -> Stamp {
        self.0
    }

    fn attends(&self, _: Ticket, _: Role) -> bool {
        false
    }
}

#[test]
fn what_somebody_noticed_who_only_looked_is_not_told_again_once_it_is_written() {
    let mut record = Record::new(key());
    let at = |seconds| Late(Still.now().after(Duration::from_secs(seconds)));
    record.acquire(&Still, &Ask { ttl: None, min_hold: Duration::ZERO, ..ask(1) });
    let seen = record.clone().seen(&at(1));
    record.acquire(&at(2), &ask(2));
    assert_eq!([&seen, &record].map(|record| record.counters.expiries), [1, 1], "it was noticed twice");
    let told: Vec<_> = record.events_after(Some(&seen), Stamp::default()).map(|event| &event.kind).collect();
    assert_eq!(told, [&EventKind::Granted]);
}
