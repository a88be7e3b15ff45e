//! Several who ask for a key at the same instant: one gets it. Servers before 2.9.21 had two winners where a key has several
//! copies (nats-server, issue 4320), and clients that took the place of a deleted value without comparing it had more
//! (nats.rs, issue 1301).

use super::ledger;
use crate::support::Store;
use crate::support::nats::{on_both, shared_cluster};
use crate::support::race::{race, rounds};

#[test]
fn of_eight_who_ask_at_once_one_gets_the_key() {
    on_both(|program| {
        let store = Store::on_nats_cluster(shared_cluster(program));
        store.run(&["setup"]).is(0, "", "");
        race(&|| Box::new(ledger(store.url())), rounds(150), &|| {});
    });
}

#[test]
fn of_eight_who_ask_for_a_deleted_key_one_gets_it_and_fences_still_rise() {
    on_both(|program| {
        let store = Store::on_nats_cluster(shared_cluster(program));
        store.run(&["setup"]).is(0, "", "");
        race(&|| Box::new(ledger(store.url())), rounds(60), &|| store.bucket().delete("key.k"));
    });
}
