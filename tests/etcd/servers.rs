//! Members that are killed, frozen, cut off or started again: alone, and in a cluster while many work under its locks.

use std::time::{Duration, Instant, SystemTime};

use super::BOUNDED;
use crate::support::etcd::client::try_all_under;
use crate::support::etcd::proxy::Proxy;
use crate::support::etcd::{self, Cluster, ETCD, Server, on_both};
use crate::support::journal::Journal;
use crate::support::load::counts_exactly;
use crate::support::{Store, crowd, has, wait_for};

#[test]
fn a_restart_costs_nobody_the_key_or_his_place_and_fences_rise() {
    on_both(|program| {
        let mut store = Store::on_own_etcd(Server::start(program, &[]));
        let journal = Journal::new(&store);
        let mut holder = store.holding("k", &["--ttl", "9"], "echo ready; echo $DLOCK_FENCE; cat >/dev/null; exit 7");
        let fence: u64 = holder.read_line().and_then(|line| line.parse().ok()).expect("the fence");
        let waiters = ["a", "b", "c"].map(|name| store.waiting("k", &BOUNDED, &journal.visit(name, ":")));
        store.etcd().await_beat("k");
        let before = store.etcd().life("k").map(|life| life.revision);
        let killed = Instant::now();
        store.etcd_servers()[0].kill();
        // Beats are two seconds apart.
        wait_for("a beat that is missed", || killed.elapsed() > Duration::from_millis(2500));
        store.etcd_servers()[0].start_again();
        wait_for("a beat", || store.etcd().life("k").map(|life| life.revision) > before);
        holder.finish().is(7, "", "");
        for waiter in waiters {
            waiter.finish().is(0, "", "");
        }
        assert_eq!(journal.entered(), ["a", "b", "c"]);
        assert_eq!(journal.most_at_once(), 1, "{:?}", journal.lines());
        let fences = journal.fences();
        assert!(fence < fences[0] && fences.is_sorted_by(|one, next| one < next), "{fence} {fences:?}");
    });
}

#[test]
fn a_server_that_is_frozen_for_longer_than_a_lease_ends_the_command_before_it() {
    crowd::enter_last();
    on_both(|program| {
        let store = Store::on_own_etcd(Server::start(program, &[]));
        let tree = store.holding_tree(&["--ttl", "3", "-k", "0.5"]);
        let waiter = store.waiting("k", &["-w", "60", "--store-timeout", "30"], "echo in");
        let start = Instant::now();
        store.etcd_server().freeze();
        let end = SystemTime::now() + Duration::from_secs(3);
        assert!(store.await_end_of_tree() < end, "the tree ends before the lease");
        tree.dlock.finish().says(76, &["lost 'k'", "did not answer in time"]);
        // Nobody hangs at it.
        store.run(&["run", "--store-timeout", "1", "k", "--", "true"]).says(69, &["did not answer in time"]);
        assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
        store.etcd_server().thaw();
        waiter.finish().is(0, "in\n", "");
    });
}

/// The place of the member that leads, among the test's own.
fn leader(store: &mut Store) -> usize {
    let leader = store.etcd().leader();
    store.etcd_servers().iter().position(|server| server.host == leader).expect("one leads")
}

/// Waits until another member leads than this one, as the others have it.
fn await_successor(store: &mut Store, of: usize) {
    let servers = store.etcd_servers();
    let old = servers[of].host.clone();
    let others: Vec<String> = servers.iter().map(|server| server.host.clone()).filter(|host| *host != old).collect();
    wait_for("a successor", || others.iter().any(|host| etcd::leader(host).is_some_and(|new| new != old)));
}

#[test]
fn a_leader_that_is_killed_under_load_costs_nobody_his_lock_and_nothing_is_lost() {
    on_both(|program| {
        let store = Store::on_own_etcd_cluster(Cluster::start(program));
        counts_exactly(store, &|store| {
            let at = leader(store);
            store.etcd_servers()[at].kill();
        });
    });
}

#[test]
fn a_leader_that_is_frozen_and_wakes_grants_nothing_beside_its_successor() {
    on_both(|program| {
        let store = Store::on_own_etcd_cluster(Cluster::start(program));
        counts_exactly(store, &|store| {
            let at = leader(store);
            store.etcd_servers()[at].freeze();
            await_successor(store, at);
            store.etcd_servers()[at].thaw();
        });
    });
}

#[test]
fn a_leader_that_is_cut_off_from_the_others_grants_nothing_beside_its_successor() {
    crowd::enter_last();
    on_both(|program| {
        let (cluster, proxies) = Cluster::start_apart(program);
        counts_exactly(Store::on_own_etcd_cluster(cluster), &|store| {
            let at = leader(store);
            store.etcd().cut_off(at, &proxies);
            await_successor(store, at);
            proxies.iter().for_each(Proxy::heal);
        });
    });
}

/// Whoever waits so bears that no member leads for a while.
const PATIENT: [&str; 4] = ["-w", "60", "--store-timeout", "30"];

/// A store that asks this one of the members alone.
fn at(host: &str) -> Store {
    Store::new().at_url(&format!("etcd://{host}:6390"))
}

#[test]
fn who_holds_by_a_member_that_is_cut_off_is_stopped_before_the_next_one_starts() {
    crowd::enter_last();
    on_both(|program| {
        let (cluster, proxies) = Cluster::start_apart(program);
        let mut store = Store::on_own_etcd_cluster(cluster);
        let leader = leader(&mut store);
        // One leads, and knows for a while nothing of a successor; the other one follows.
        let lonely = if program == ETCD { leader } else { (leader + 1) % 3 };
        let [host, other] = [lonely, (leader + 2) % 3].map(|at| store.etcd_servers()[at].host.clone());
        let near = at(&host);
        let tree = near.holding_tree(&["--ttl", "4", "-k", "0.5"]);
        // It says if anything of the other one's is alive when it starts.
        let next = at(&other).waiting("k", &PATIENT, &format!("{}; echo in", near.alone()));
        store.etcd().cut_off(lonely, &proxies);
        tree.dlock.finish().says(76, &["lost 'k'"]);
        let done = next.finish();
        assert_eq!((done.status.code(), &*done.stdout), (Some(0), "in\n"), "{done:#?}");
        proxies.iter().for_each(Proxy::heal);
        let run = ["run", "--store-timeout", "1", "k", "--", "true"];
        wait_for("it to be one of them again", || near.run(&run).status.success());
    });
}

#[test]
fn who_can_ask_another_member_keeps_the_key_when_his_is_cut_off() {
    crowd::enter_last();
    if has(ETCD) {
        let (cluster, proxies) = Cluster::start_apart(ETCD);
        let mut store = Store::on_own_etcd_cluster(cluster);
        let leader = leader(&mut store);
        // In this order they are asked.
        let hosts = [0, 1, 2].map(|place| store.etcd_servers()[(leader + place) % 3].host.clone());
        let far =
            Store::new().at_url(&format!("etcd://{}", hosts.each_ref().map(|host| format!("{host}:6390")).join(",")));
        let holder = far.holding("k", &["--ttl", "15"], "echo ready; cat >/dev/null; exit 7");
        let waiter = far.waiting("k", &PATIENT, "echo in");
        store.etcd().await_beat("k");
        store.etcd().cut_off(leader, &proxies);
        await_successor(&mut store, leader);
        // Who has a new leader does not answer at once.
        let signs = || try_all_under(&hosts[1], "dlock/key/k/");
        let mut before = None;
        wait_for("a beat by another member", || {
            let now = signs();
            before = before.take().or_else(|| now.clone());
            now.is_some() && now != before
        });
        assert_eq!(at(&hosts[1]).queue("k"), [waiter.pid().as_raw()]);
        holder.finish().is(7, "", "");
        waiter.finish().is(0, "in\n", "");
        proxies.iter().for_each(Proxy::heal);
    }
}

#[test]
fn who_is_cut_off_from_his_server_is_stopped_before_the_next_one_starts() {
    if !has(ETCD) {
        return;
    }
    let near = Store::on_etcd(ETCD);
    let proxy = Proxy::to(near.etcd().host());
    let far = Store::new().at_url(&proxy.url(near.url()));
    let tree = far.holding_tree(&["--ttl", "3", "-k", "0.5"]);
    let next = near.waiting("k", &BOUNDED, &format!("{}; echo in", far.alone()));
    proxy.drop_all();
    let cut = SystemTime::now();
    let gone = far.await_end_of_tree().duration_since(cut).expect("it is later");
    assert!(gone < Duration::from_secs(3), "it counted on nobody for {gone:?}");
    next.finish().is(0, "in\n", "");
    tree.is_gone();
    tree.dlock.finish().says(76, &["lost 'k'", "did not answer"]);
}
