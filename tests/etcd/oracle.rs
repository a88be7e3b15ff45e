//! What etcd keeps against the model.

use serde_json::json;

use super::ledger;
use crate::law::differential::agree;
use crate::support::etcd::client::{ask, encoded};
use crate::support::etcd::{ETCD, ETCD_3_4, shared_cluster};
use crate::support::{Store, has};

fn etcd_agrees_with_the_model(store: &Store, cases: u32) {
    let etcd = ledger(store.url());
    let (all, end) = (format!("{}/", store.etcd().prefix()), format!("{}0", store.etcd().prefix()));
    let all = json!({ "key": encoded(&all), "range_end": encoded(&end) });
    let forget = || drop(ask(store.etcd().host(), "kv/deleterange", &all));
    agree(&etcd, &|now| etcd.register().set_clock(Some(now)), &forget, cases);
}

#[test]
fn etcd_agrees_with_the_model_on_one_server() {
    if has(ETCD) {
        etcd_agrees_with_the_model(&Store::on_etcd(ETCD), 20);
    }
}

#[test]
fn etcd_agrees_with_the_model_on_three_old_servers() {
    if has(ETCD_3_4) {
        etcd_agrees_with_the_model(&Store::on_etcd_cluster(shared_cluster(ETCD_3_4)), 5);
    }
}
