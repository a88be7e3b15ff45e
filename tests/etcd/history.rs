//! What happened to a key stands beside its record, and is no more than what is told of it.

use serde_json::json;

use crate::support::Store;
use crate::support::etcd::client::{ask, encoded};
use crate::support::etcd::on_both;
use crate::support::schema::assert_schema;

/// What a store tells of, in one line.
fn told(store: &Store) -> String {
    let history = assert_schema("history", &store.run(&["history", "--json", "k"]).stdout);
    let events = history["events"].as_array().expect("a list");
    let names: Vec<&str> = events.iter().filter_map(|event| event["event"].as_str()).collect();
    names.join(" ")
}

#[test]
fn what_is_too_old_to_be_told_is_not_kept() {
    on_both(|program| {
        let store = Store::on_etcd(program);
        for _ in 0..60 {
            store.run(&["run", "k", "--", "true"]).is(0, "", "");
        }
        assert_eq!(told(&store), ["granted released"; 16].join(" "));
        // Of each run there are two, and they go from time to time.
        let kept = store.etcd().events("k").len();
        assert!((64..=80).contains(&kept), "{kept}");
    });
}

#[test]
fn a_record_that_was_deleted_by_hand_begins_anew() {
    on_both(|program| {
        let store = Store::on_etcd(program);
        for _ in 0..3 {
            store.run(&["run", "k", "--", "true"]).is(0, "", "");
        }
        let record = json!({ "key": encoded(&store.etcd().record("k")) });
        ask(store.etcd().host(), "kv/deleterange", &record);
        assert_eq!(told(&store), "");
        store.run(&["run", "k", "--", "true"]).is(0, "", "");
        assert_eq!(told(&store), "granted released");
        assert_eq!(store.etcd().events("k").len(), 2);
    });
}
