//! What is particular to a cluster.

use std::time::Duration;

use super::await_beat;
use crate::support::redis::{Cluster, PORT, REDIS, Server, Setup, on_each, shared_cluster};
use crate::support::{Store, has, wait_for};

#[test]
fn a_slot_that_is_on_its_way_for_long_takes_no_lease_away() {
    on_each(|program| {
        let cluster = Cluster::start(program, &Setup::default());
        let store = Store::new().at(&cluster.url());
        let slot = cluster.slot_of("dlock:{k}:record");
        let from = cluster.owner_of(slot);
        let to = (from + 1) % 3;
        let holder = store.holding("k", &["--ttl", "1.5"], "echo ready; cat >/dev/null");
        let end = |node: usize| -> Option<u64> {
            let record = cluster.nodes[node].record("k");
            let (_, hold) = record.iter().find(|(field, _)| field.starts_with("h:"))?;
            hold.split_once("\"until\":\"")?.1.split('"').next()?.parse().ok()
        };
        let beats_at = |node: usize| {
            let before = end(node).expect("it is there");
            wait_for("beats for longer than a ttl", || end(node).is_some_and(|end| end > before + 3_000_000));
        };
        cluster.begin_move(slot, from, to);
        beats_at(from);
        cluster.migrate_keys(slot, from, to);
        // The test's own connection must say that it asks for a slot that is on its way.
        let before = lease_end_by_asking(&cluster, to);
        // Who looks is told of it, too.
        assert_eq!(store.status("k")["held"], true);
        assert!(store.run(&["fence", "k"]).status.success());
        wait_for("beats for longer than a ttl", || lease_end_by_asking(&cluster, to) > before + 3_000_000);
        cluster.end_move(slot, from, to);
        await_beat(&store);
        beats_at(to);
        holder.finish().is(0, "", "");
        store.run(&["run", "-n", "k", "--", "true"]).is(0, "", "");
    });
}

/// A key that a master has.
fn key_at(cluster: &Cluster, node: usize) -> String {
    let mut names = (0..).map(|number| format!("k{number}"));
    names.find(|name| cluster.master_of(&format!("dlock:{{{name}}}:record")) == node).expect("there is one")
}

/// When the lease of `k` ends, as a node has it to which the slot is on its way.
fn lease_end_by_asking(cluster: &Cluster, node: usize) -> u64 {
    let mut connection = cluster.nodes[node].connection();
    let (): () = redis::cmd("ASKING").query(&mut connection).expect("it is a node");
    let record: std::collections::HashMap<String, String> =
        redis::cmd("HGETALL").arg("dlock:{k}:record").query(&mut connection).expect("it is a hash");
    let (_, hold) = record.iter().find(|(field, _)| field.starts_with("h:")).expect("it is held");
    let (_, end) = hold.split_once("\"until\":\"").expect("it has an end");
    end.split('"').next().and_then(|end| end.parse().ok()).expect("a number")
}

#[test]
fn keys_of_all_slots_are_held_and_listed_and_braces_are_no_tags() {
    if !has(REDIS) {
        return;
    }
    let store = Store::on_cluster();
    let mut keys: Vec<String> = (0..500).map(|number| format!("key/{number}")).collect();
    keys.extend(["{a}b", "{", "}{", "a{b}c", "{}"].map(str::to_owned));
    let of_each = keys.len() / 4 + 1;
    std::thread::scope(|scope| {
        for some in keys.chunks(of_each) {
            let store = &store;
            scope.spawn(move || {
                for key in some {
                    assert!(store.run(&["acquire", key, "--ttl", "5m"]).status.success(), "{key}");
                }
            });
        }
    });
    let status = store.run(&["status", "--json"]);
    let status: serde_json::Value = serde_json::from_str(&status.stdout).expect("status prints JSON");
    let listed: Vec<&str> =
        status["keys"].as_array().expect("a list").iter().map(|key| key["key"].as_str().expect("a name")).collect();
    keys.sort();
    assert_eq!(listed, keys);
    let cluster = shared_cluster();
    let with_record = |node: &crate::support::redis::Server| {
        node.keys().iter().filter(|name| name.starts_with(store.prefix()) && name.ends_with(":record")).count()
    };
    for master in cluster.masters() {
        let count = with_record(master);
        assert!(count > 100, "{} has {count} of 505", master.host);
    }
}

#[test]
fn a_shard_that_is_down_takes_only_its_own_keys_along() {
    on_each(|program| {
        let setup = Setup { server: &["--cluster-require-full-coverage", "no"], ..Setup::default() };
        let mut cluster = Cluster::start(program, &setup);
        let store = Store::new().at(&cluster.url());
        let keys = [0, 1, 2].map(|node| key_at(&cluster, node));
        for key in &keys {
            store.run(&["acquire", key, "--ttl", "5m"]);
        }
        // The first one is a seed, too.
        let replica = cluster.replica_of(0);
        cluster.nodes[replica].kill();
        cluster.nodes[0].kill();
        let lost = store.run(&["--store-timeout", "1", "run", "-n", &keys[0], "--", "echo", "started"]);
        assert_eq!((lost.status.code(), &*lost.stdout), (Some(69), ""), "{lost:#?}");
        for key in &keys[1..] {
            store.run(&["run", "-n", key, "--", "true"]).says(75, &["is held"]);
            assert!(store.run(&["unlock", key, "--yes"]).status.success());
            store.run(&["run", "-n", key, "--", "echo", "in"]).is(0, "in\n", "");
            store.run(&["acquire", key, "--ttl", "5m"]);
        }
        let status = store.run(&["--store-timeout", "1", "status"]);
        status.says(69, &[&format!("redis at {}:{PORT}", cluster.nodes[0].host), "missing here"]);
        assert!(!status.stdout.contains(&keys[0]), "{status:#?}");
        assert!(keys[1..].iter().all(|key| status.stdout.contains(&**key)), "{status:#?}");
        let named = store.run(&["--store-timeout", "1", "status", &keys[0], &keys[1]]);
        named.says(69, &["missing here"]);
        assert!(named.stdout.contains(&*keys[1]), "{named:#?}");
    });
}

#[test]
fn any_node_will_do_as_a_seed_also_one_that_is_silent() {
    if !has(REDIS) {
        return;
    }
    let mut cluster = Cluster::start(REDIS, &Setup { down_after: Duration::from_secs(60), ..Setup::default() });
    for node in &cluster.nodes {
        let store = Store::new().at(&format!("redis+cluster://{}:{PORT}", node.host));
        store.run(&["run", "k", "--", "echo", "in"]).is(0, "in\n", "");
        assert_eq!(store.run(&["status", "--all"]).status.code(), Some(1));
    }
    // Replicas that are frozen and dead.
    cluster.nodes[3].freeze();
    cluster.nodes[4].kill();
    let hosts: Vec<String> = cluster.nodes[3..].iter().map(|node| format!("{}:{PORT}", node.host)).collect();
    let store = Store::new().at(&format!("redis+cluster://{}", hosts.join(",")));
    for _ in 0..6 {
        store.run(&["run", "k", "--", "echo", "in"]).is(0, "in\n", "");
    }
}

#[test]
fn servers_that_are_in_no_cluster_hand_out_nothing() {
    on_each(|program| {
        let (one, other) = (Server::start(program, &[]), Server::start(program, &[]));
        let both = Store::new().at(&format!("redis+cluster://{}:{PORT},{}:{PORT}", one.host, other.host));
        for _ in 0..4 {
            let done = both.run(&["run", "k", "--", "echo", "started"]);
            done.says(78, &["redis at ", "'redis://'"]);
            assert_eq!(done.stdout, "");
        }
        assert_eq!([one.keys(), other.keys()], [[""; 0], [""; 0]]);
    });
}

#[test]
fn a_run_and_a_waiter_outlive_all_the_nodes_that_the_url_names() {
    on_each(|program| {
        let mut cluster = Cluster::start(program, &Setup::default());
        let first = cluster.master_of("dlock:{k}:record");
        let store = Store::new().at(&format!("redis+cluster://{}:{PORT}", cluster.nodes[first].host));
        let options = ["--ttl", "12", "--store-timeout", "30"];
        let holder = store.holding("k", &options, "echo ready; cat >/dev/null");
        let waiter = store.waiting("k", &options, "echo in");
        await_beat(&store);
        cluster.nodes[first].kill();
        cluster.await_failover(first);
        let near = Store::new().at(&cluster.url());
        await_beat(&near);
        holder.finish().is(0, "", "");
        waiter.finish().is(0, "in\n", "");
    });
}

#[test]
fn a_silent_node_hides_none_of_the_keys_of_others() {
    if !has(REDIS) {
        return;
    }
    let cluster = Cluster::start(REDIS, &Setup { down_after: Duration::from_secs(60), ..Setup::default() });
    let store = Store::new().at(&cluster.url());
    let keys = [0, 1, 2].map(|node| key_at(&cluster, node));
    for key in &keys {
        store.run(&["acquire", key, "--ttl", "5m"]);
    }
    cluster.nodes[2].freeze();
    for args in [&["status"][..], &["status", &keys[0], &keys[1], &keys[2]]] {
        let done = store.run(&[&["--store-timeout", "2"], args].concat());
        done.says(69, &[&format!("redis at {}:{PORT}: it did not answer in time", cluster.nodes[2].host)]);
        assert!(done.stdout.contains(&*keys[0]) && done.stdout.contains(&*keys[1]), "{done:#?}");
    }
    cluster.nodes[2].thaw();
}
