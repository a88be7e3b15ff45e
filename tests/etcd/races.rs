//! Several who ask for a key at the same instant: one gets it.

use serde_json::json;

use super::ledger;
use crate::support::Store;
use crate::support::etcd::client::{ask, encoded};
use crate::support::etcd::{on_both, shared_cluster};
use crate::support::race::{race, rounds};

#[test]
fn of_eight_who_ask_at_once_one_gets_the_key() {
    on_both(|program| {
        let store = Store::on_etcd_cluster(shared_cluster(program));
        race(&|| Box::new(ledger(store.url())), rounds(25), &|| {});
    });
}

#[test]
fn of_eight_who_ask_for_a_deleted_key_one_gets_it_and_fences_still_rise() {
    on_both(|program| {
        let store = Store::on_etcd_cluster(shared_cluster(program));
        let record = json!({ "key": encoded(&store.etcd().record("k")) });
        let delete = || drop(ask(store.etcd().host(), "kv/deleterange", &record));
        race(&|| Box::new(ledger(store.url())), rounds(15), &delete);
    });
}
