//! What a bucket keeps against the model.

use serde_json::json;

use super::ledger;
use crate::law::differential::agree;
use crate::support::nats::{NATS, NATS_2_9, shared_cluster};
use crate::support::{Store, has, wait_for};

fn a_bucket_agrees_with_the_model(store: &Store, cases: u32) {
    let bucket = ledger(store.url());
    store.run(&["setup"]).is(0, "", "");
    let purge = format!("STREAM.PURGE.{}", store.bucket().stream());
    let forget = || wait_for("nothing in it", || store.bucket().client().api(&purge, &json!({}))["success"] == true);
    agree(&bucket, &|now| bucket.register().set_clock(Some(now)), &forget, cases);
}

#[test]
fn a_bucket_agrees_with_the_model_on_one_server() {
    if has(NATS) {
        a_bucket_agrees_with_the_model(&Store::on_nats(NATS), 30);
    }
}

#[test]
fn a_bucket_agrees_with_the_model_on_three_old_servers() {
    if has(NATS_2_9) {
        a_bucket_agrees_with_the_model(&Store::on_nats_cluster(shared_cluster(NATS_2_9)), 5);
    }
}
