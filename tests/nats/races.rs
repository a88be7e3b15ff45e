//! Several who ask for a key at the same instant: one gets it. Servers before 2.9.21 had two winners where a key has several
//! copies (nats-server, issue 4320), and clients that took the place of a deleted value without comparing it had more
//! (nats.rs, issue 1301).

use std::thread;
use std::time::Duration;

use super::ledger;
use crate::support::nats::{Cluster, NATS, NATS_2_9, Place, on_both, shared_cluster};
use crate::support::race::{race, rounds};
use crate::support::{Store, has, wait_for};

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

/// Lets another server lead than this one.
#[track_caller]
fn take_the_lead_from(bucket: &Place, name: &str) {
    let ask = format!("$JS.API.STREAM.LEADER.STEPDOWN.{}", bucket.stream());
    wait_for("another leader", || {
        let leader = bucket.leader();
        if leader == name {
            // It may not be there any more, or not answer in time.
            let _ = bucket.client().request(&ask, "", b"");
        }
        let is_another = !leader.is_empty() && leader != name;
        if !is_another {
            // Whoever asks without a pause keeps them from choosing one.
            thread::sleep(Duration::from_millis(200));
        }
        is_another
    });
}

#[test]
fn of_eight_who_ask_at_once_one_gets_the_key_also_while_a_cluster_is_upgraded() {
    if !has(NATS) || !has(NATS_2_9) {
        return;
    }
    let mut store = Store::on_own_nats_cluster(Cluster::start(NATS_2_9));
    store.run(&["setup"]).is(0, "", "");
    store.bucket().await_copies();
    let holder = store.holding("long", &["--ttl", "30", "-k", "1"], "echo ready; cat >/dev/null; exit 7");
    let leader = store.bucket().leader();
    let last = store.nats_mut().iter().position(|server| server.name() == leader).expect("one leads");
    let race = |store: &Store| race(&|| Box::new(ledger(store.url())), rounds(100) / 4, &|| {});
    let upgrade = |store: &mut Store, number: usize| {
        let server = &mut store.nats_mut()[number % 3];
        server.kill();
        server.start_again_as(NATS);
        store.bucket().await_copies();
    };
    // Those who follow first: an old one leads, then a new one with an old one behind it.
    for number in [last + 1, last + 2] {
        upgrade(&mut store, number);
        race(&store);
    }
    take_the_lead_from(store.bucket(), &leader);
    race(&store);
    upgrade(&mut store, last);
    race(&store);
    holder.finish().is(7, "", "");
}
