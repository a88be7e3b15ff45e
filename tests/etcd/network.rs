//! Networks that lose answers and end connections, what is compacted meanwhile, and clients that go away in mid-question.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal::SIGKILL;
use serde_json::json;

use super::BOUNDED;
use crate::support::etcd::client::{ask, encoded};
use crate::support::etcd::proxy::{Fate, Proxy};
use crate::support::etcd::{ETCD, Server, on_both, shared_cluster};
use crate::support::{Running, Store, has, wait_for};

/// The words with which something is written.
const WRITE: &str = "POST /v3/kv/txn";

/// A store on a server of both, and the same behind a proxy.
fn behind(near: &Store) -> (Proxy, Store) {
    let proxy = Proxy::to(near.etcd().host());
    let far = Store::new().at_url(&proxy.url(near.url()));
    (proxy, far)
}

fn survives(program: &'static str, fate: Fate) {
    let near = Store::on_etcd(program);
    let (proxy, far) = behind(&near);
    // The answer to the grant.
    proxy.after(WRITE, fate);
    let mut holder = far.holding("k", &["--ttl", "3"], "echo ready; echo $DLOCK_FENCE; cat >/dev/null; exit 7");
    let fence = holder.read_line().expect("the fence");
    assert!(proxy.is_spent());
    assert_eq!(near.run(&["fence", "k"]).stdout.trim(), fence, "it was granted once");
    // The answer to a beat.
    proxy.after(WRITE, fate);
    wait_for("a beat without an answer", || proxy.is_spent());
    near.etcd().await_beat("k");
    near.etcd().await_beat("k");
    // The answer to its end.
    proxy.after(WRITE, fate);
    holder.finish().is(7, "", "");
    assert!(proxy.is_spent());
    let history = near.run(&["history", "k", "--json"]).stdout;
    for event in ["granted", "released"] {
        assert_eq!(history.matches(&format!("\"{event}\"")).count(), 1, "{history}");
    }
    assert_eq!(near.leftovers(), [""; 0]);
}

#[test]
fn an_answer_that_does_not_come_costs_neither_the_key_nor_a_second_grant() {
    on_both(|program| survives(program, Fate::Mute));
}

#[test]
fn an_answer_before_which_the_connection_ends_costs_neither_the_key_nor_a_second_grant() {
    on_both(|program| survives(program, Fate::Cut));
}

#[test]
fn answers_that_come_late_cost_nobody_the_key() {
    on_both(|program| {
        let near = Store::on_etcd(program);
        let (proxy, far) = behind(&near);
        proxy.delay(Duration::from_millis(100));
        let holder = far.holding("k", &["--ttl", "4"], "echo ready; cat >/dev/null; exit 7");
        let waiter = far.waiting("k", &BOUNDED, "echo in");
        near.etcd().await_beat("k");
        near.etcd().await_beat("k");
        holder.finish().is(7, "", "");
        waiter.finish().is(0, "in\n", "");
    });
}

#[test]
fn connections_that_are_cut_again_and_again_cost_nobody_the_key_or_his_place() {
    on_both(|program| {
        let near = Store::on_etcd(program);
        let (proxy, far) = behind(&near);
        let holder = far.holding("k", &["--ttl", "3"], "echo ready; cat >/dev/null; exit 7");
        let waiters = ["a", "b"].map(|name| far.waiting("k", &BOUNDED, &format!("echo {name}")));
        let queue = near.queue("k");
        for _ in 0..3 {
            proxy.cut();
            near.etcd().await_beat("k");
            assert_eq!(near.queue("k"), queue);
        }
        holder.finish().is(7, "", "");
        let [first, second] = waiters;
        first.finish().is(0, "a\n", "");
        second.finish().is(0, "b\n", "");
    });
}

/// Forgets all that was before now.
fn compact(store: &Store) {
    let host = store.etcd().host();
    let put = || ask(host, "kv/put", &json!({ "key": encoded("x"), "value": encoded("y") }));
    (0..20).for_each(|_| drop(put()));
    let last = put();
    let revision = last["header"]["revision"].as_str().expect("a number").to_owned();
    store.etcd().etcdctl(&["compact", &revision]);
}

#[test]
fn whoever_hears_again_after_what_he_missed_is_compacted_still_hears_of_his_turn_and_of_an_unlock() {
    on_both(|program| {
        let near = Store::on_own_etcd(Server::start(program, &[]));
        let (proxy, far) = behind(&near);
        let holder = far.holding("k", &["--ttl", "12"], "echo ready; sleep 60");
        let waiter = far.waiting("k", &BOUNDED, "echo in");
        wait_for("both to listen", || proxy.is_listened_to_by(&holder) && proxy.is_listened_to_by(&waiter));
        for _ in 0..2 {
            proxy.drop_all();
            compact(&near);
            proxy.heal();
            near.etcd().await_beat("k");
        }
        compact(&near);
        let start = Instant::now();
        near.run(&["unlock", "k", "--yes"]).is(0, "", "");
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
        holder.finish().says(76, &["'k' was unlocked by"]);
        waiter.finish().is(0, "in\n", "");
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    });
}

#[test]
fn one_who_waits_hears_of_a_change_at_once_whichever_member_makes_it() {
    if !has(ETCD) {
        return;
    }
    let hosts = shared_cluster(ETCD).hosts();
    let store = Store::on_etcd_cluster(shared_cluster(ETCD));
    let at = |host: &str| {
        let (_, query) = store.url().split_once('?').expect("it has a prefix");
        Store::new().at_url(&format!("etcd://{host}:6390?{query}"))
    };
    let holder = at(&hosts[0]).hold("k");
    let waiter = at(&hosts[1]).waiting("k", &BOUNDED, "date +%s%3N");
    wait_for("it to listen", || store.etcd().is_asleep(&waiter));
    holder.finish().is(0, "", "");
    let ended = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("it is later").as_millis();
    let began: u128 = waiter.finish().stdout.trim().parse().expect("a time");
    assert!(began < ended + 1000, "{}", began - ended);
}

/// Puts so much under a key that to read it takes a while.
fn crowd(store: &Store) {
    for many in 0..200 {
        let name = |one: u32| format!("{}/key/k/{:032x}", store.etcd().prefix(), many * 100 + one);
        let put = |one| json!({ "request_put": { "key": encoded(&name(one)), "value": "" } });
        let puts: Vec<_> = (0..100).map(put).collect();
        ask(store.etcd().host(), "kv/txn", &json!({ "success": puts }));
    }
}

/// Members of 3.5 before 3.5.5 and of 3.4 before 3.4.20 do not survive a transaction that only reads and whose client
/// goes away meanwhile (etcd, issue 14110).
#[test]
fn clients_that_go_away_in_mid_question_leave_the_server_alone() {
    const CLIENTS: u64 = 50;
    if !has(ETCD) {
        return;
    }
    let store = Store::on_own_etcd(Server::start(ETCD, &[]));
    let _holder = store.hold("k");
    crowd(&store);
    for number in 0..CLIENTS {
        let client = Running::start(&mut store.dlock(&["status", "k"]));
        // Some before they ask, some while the server reads, some while it answers.
        std::thread::sleep(Duration::from_millis(number));
        client.signal(SIGKILL);
        client.finish();
    }
    assert!(store.etcd_server().is_up(), "{}", store.etcd_server().log());
}
