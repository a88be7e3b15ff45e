//! Networks that lose answers and end connections, and a server that wakes up late.

use std::time::Duration;

use super::{BOUNDED, lease_end};
use crate::support::nats::proxy::Proxy;
use crate::support::nats::{NATS, Server, on_both, shared_server};
use crate::support::{Store, has, wait_for};

/// The words with which a record is written.
const WRITE: &str = "Nats-Expected-Last-Subject-Sequence";

#[test]
fn an_answer_that_is_lost_costs_neither_the_key_nor_a_second_grant() {
    on_both(|program| {
        let near = Store::on_nats(program);
        near.run(&["setup"]).is(0, "", "");
        let proxy = Proxy::to(&shared_server(program).host);
        let far = Store::new().at_url(&proxy.url(near.url()));
        // The answer to the grant.
        proxy.mute_after(WRITE);
        let mut holder = far.holding("k", &["--ttl", "3"], "echo ready; echo $DLOCK_FENCE; cat >/dev/null; exit 7");
        let fence = holder.read_line().expect("the fence");
        assert!(proxy.has_muted());
        assert_eq!(near.run(&["fence", "k"]).stdout.trim(), fence, "it was granted once");
        // The answer to a beat.
        let before = lease_end(&near);
        proxy.mute_after(WRITE);
        wait_for("a beat", || proxy.has_muted() && lease_end(&near) > before);
        let before = lease_end(&near);
        wait_for("the next beat", || lease_end(&near) > before);
        // The answer to its end.
        proxy.mute_after(WRITE);
        assert_eq!(holder.finish().status.code(), Some(7));
        assert!(proxy.has_muted());
        let history = near.run(&["history", "k", "--json"]).stdout;
        for event in ["granted", "released"] {
            assert_eq!(history.matches(&format!("\"{event}\"")).count(), 1, "{history}");
        }
    });
}

#[test]
fn a_server_that_lets_one_in_and_then_is_silent_leaves_time_for_the_others() {
    if !has(NATS) {
        return;
    }
    let near = Store::on_nats(NATS);
    near.run(&["setup"]).is(0, "", "");
    let server = shared_server(NATS);
    let proxy = Proxy::to(&server.host);
    let far = Store::new().at_url(&proxy.url(near.url()).replace('?', &format!(",{}:6390?", server.host)));
    for args in [&["fence", "k"][..], &["unlock", "k", "--yes"]] {
        proxy.mute_after("STREAM.INFO");
        let done = far.run(&[&["--store-timeout", "2"][..], args].concat());
        assert!(proxy.has_muted() && done.status.code() < Some(2), "{done:#?}");
    }
}

#[test]
fn connections_that_are_cut_again_and_again_cost_nobody_the_key_or_his_place() {
    if !has(NATS) {
        return;
    }
    let near = Store::on_nats(NATS);
    near.run(&["setup"]).is(0, "", "");
    let proxy = Proxy::to(&shared_server(NATS).host);
    let far = Store::new().at_url(&proxy.url(near.url()));
    let holder = far.holding("k", &["--ttl", "3"], "echo ready; cat >/dev/null; exit 7");
    let waiters = ["a", "b"].map(|name| far.waiting("k", &BOUNDED, &format!("echo {name}")));
    let queue = near.queue("k");
    for _ in 0..3 {
        let before = lease_end(&near);
        proxy.cut();
        wait_for("a beat", || lease_end(&near) > before);
        assert_eq!(near.queue("k"), queue);
    }
    holder.finish().is(7, "", "");
    let [first, second] = waiters;
    first.finish().is(0, "a\n", "");
    second.finish().is(0, "b\n", "");
}

#[test]
fn what_was_given_up_is_not_done_when_the_server_wakes() {
    if !has(NATS) {
        return;
    }
    let store = Store::on_own_nats(Server::start(NATS, ""));
    store.run(&["setup"]).is(0, "", "");
    store.nats().freeze();
    store.run(&["run", "--store-timeout", "0.3", "k", "--", "true"]).says(69, &["did not answer in time"]);
    store.nats().thaw();
    // What came before this was read before this.
    store.run(&["run", "other", "--", "true"]).is(0, "", "");
    store.run(&["fence", "k"]).is(0, "0\n", "");
}

#[test]
fn one_who_waits_hears_of_a_change_at_once_however_far_away_it_is_made() {
    if !has(NATS) {
        return;
    }
    let cluster = crate::support::nats::shared_cluster(NATS);
    let store = Store::on_nats_cluster(cluster);
    let hosts = cluster.hosts();
    let at = |host: &str| {
        let (_, query) = store.url().split_once('?').expect("it has a prefix");
        Store::new().at_url(&format!("nats://{host}:6390?{query}"))
    };
    let holder = at(&hosts[0]).hold("k");
    let waiter = at(&hosts[1]).waiting("k", &BOUNDED, "date +%s%3N");
    std::thread::sleep(Duration::from_millis(1500));
    holder.finish().is(0, "", "");
    let ended = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("it is later").as_millis();
    let began: u128 = waiter.finish().stdout.trim().parse().expect("a time");
    assert!(began < ended + 1000, "{}", began - ended);
}
