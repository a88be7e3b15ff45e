//! Whether a ring or a quorum can be trusted with locks: what is said of each node, and what of all together.

use serde_json::Value;

use super::doctor::{SOUND, doctor, has_finding, is_left_alone, is_sound, moved};
use crate::doctor::{finds, read};
use crate::support::proxy::{Fate, Proxy};
use crate::support::redis::{Nodes, PORT, REDIS, Server};
use crate::support::{Store, has};

/// Checks that this is found of a node, by its name.
#[track_caller]
fn finds_of(url: &str, severity: &str, nodes: &Nodes, number: usize, words: &str) -> Value {
    finds(&doctor(url), severity, &[&format!("node {} ({}): ", number + 1, nodes.name(number)), words])
}

#[test]
fn what_is_wrong_with_a_node_is_said_of_that_one() {
    if !has(REDIS) {
        return;
    }
    let mut nodes = Nodes::start(REDIS, 3, &SOUND);
    let url = nodes.url("ring", &[0, 1, 2]);
    let unused = read(&doctor(&url));
    assert!(has_finding(&unused, "note", "it does not belong to the ring yet"), "{unused:#}");
    for server in &nodes.0 {
        is_left_alone(server, &["eval", "hgetall"]);
    }
    Store::new().at(&url).run(&["setup"]).is(0, "", "");
    let report = is_sound(&url);
    assert_eq!(report["facts"]["servers"], "3 of 3 answer");
    nodes.0[2].ask(&["CONFIG", "SET", "appendonly", "no"]);
    finds_of(&url, "warning", &nodes, 2, "it keeps nothing on its disk");
    nodes.0[2].ask(&["CONFIG", "SET", "appendonly", "yes"]);
    nodes.0[1].ask(&["REPLICAOF", &nodes.0[0].host, &PORT.to_string()]);
    let report = read(&doctor(&url));
    let of_node = format!("node 2 ({}): it is a replica of {}", nodes.name(1), nodes.name(0));
    assert!(has_finding(&report, "warning", &of_node), "{report:#}");
    nodes.0[1].ask(&["REPLICAOF", "NO", "ONE"]);
    let other = nodes.url("ring", &[1, 2]);
    let report = read(&doctor(&other));
    assert!(has_finding(&report, "warning", "its ring has other nodes"), "{report:#}");
    nodes.0[0].kill();
    let done = doctor(&url);
    assert_eq!(done.status.code(), Some(1), "{done:#?}");
    let report = read(&done);
    assert!(has_finding(&report, "warning", &format!("node 1 ({}): connection refused", nodes.name(0))), "{report:#}");
    assert_eq!(report["facts"]["servers"], "2 of 3 answer");
    nodes.0[1].kill();
    nodes.0[2].kill();
    let done = Store::new().run(&["doctor", "--json", "-S", &url, "--store-timeout", "200ms"]);
    assert_eq!(done.status.code(), Some(69), "{done:#?}");
    finds(&done, "error", &["connection refused"]);
}

#[test]
fn servers_that_are_one_and_clocks_that_are_apart_are_found() {
    if !has(REDIS) {
        return;
    }
    let nodes = Nodes::start(REDIS, 2, &SOUND);
    let proxy = Proxy::to(&nodes.0[1]);
    let at_proxy = proxy.url().trim_start_matches("redis://").to_owned();
    let url = format!("redis+ring://{},{at_proxy}", nodes.name(0));
    Store::new().at(&url).run(&["setup"]).is(0, "", "");
    is_sound(&url);
    // Once to connect, and once to measure.
    for fate in [|time: &str| moved(time, 5), |time: &str| moved(time, -60)] {
        proxy.next("time", Fate::Replaced(fate));
        proxy.next("time", Fate::Replaced(fate));
        let report = read(&doctor(&url));
        let (early, late) = if has_finding(&report, "warning", "is 5s ahead of") { (2, 1) } else { (1, 2) };
        let at = [nodes.name(0), at_proxy.clone()];
        let named = |number: usize| format!("node {number} ({})", at[number - 1]);
        let words = ["5s", "1m"][late - 1];
        let words = format!("the clock of {} is {words} ahead of that of {}", named(early), named(late));
        assert!(has_finding(&report, "warning", &words), "{words}: {report:#}");
        assert!(proxy.is_spent());
    }
    let twice = format!("redis+ring://{},{at_proxy}", nodes.name(1));
    let words = format!("node 1 ({}) and node 2 ({at_proxy}) are the same server", nodes.name(1));
    let report = read(&doctor(&twice));
    assert!(has_finding(&report, "warning", &words), "{report:#}");
}

#[test]
fn what_is_wrong_with_nodes_of_a_quorum_is_found() {
    if !has(REDIS) {
        return;
    }
    let mut nodes = Nodes::start(REDIS, 3, &SOUND);
    let url = nodes.url("quorum", &[0, 1, 2]);
    let report = is_sound(&url);
    assert_eq!(report["facts"]["servers"], "3 of 3 answer");
    for server in &nodes.0 {
        assert!(server.keys().is_empty(), "it changes nothing");
    }
    // One that forgets does not vote then; that keys are free is not so here.
    nodes.0[2].ask(&["CONFIG", "SET", "appendonly", "no"]);
    let report = finds_of(&url, "warning", &nodes, 2, "it keeps nothing on its disk");
    let why = report["findings"][0]["why"].as_str().expect("a text");
    assert!(why.contains("its vote does not count"), "{why}");
    nodes.0[2].ask(&["CONFIG", "SET", "appendonly", "yes"]);
    let proxy = Proxy::to(&nodes.0[1]);
    let other = Server::start(REDIS, &[&SOUND[..], &["--cluster-enabled", "yes"]].concat());
    let at =
        |second: usize, last: &str| format!("redis+quorum://{},{},{last}:{PORT}", nodes.name(0), nodes.name(second));
    let report = read(&doctor(&at(1, proxy.host())));
    let words = format!("node 2 ({}) and node 3 ({}:{PORT}) are the same server", nodes.name(1), proxy.host());
    assert!(has_finding(&report, "warning", &words), "{report:#}");
    // Whenever it is asked, from now on.
    for _ in 0..100 {
        proxy.next("time", Fate::Replaced(|time| moved(time, 60)));
    }
    let report = read(&doctor(&at(2, proxy.host())));
    let words = format!("the clock of node 3 ({}:{PORT}) is 1m ahead of that of node", proxy.host());
    assert!(has_finding(&report, "warning", &words), "{report:#}");
    let report = read(&doctor(&at(1, &other.host)));
    assert!(has_finding(&report, "warning", "it is a node of a cluster"), "{report:#}");
    nodes.0[1].ask(&["REPLICAOF", &nodes.0[0].host, &PORT.to_string()]);
    let report = read(&doctor(&url));
    let of_node = format!("node 2 ({}): it is a replica of {}", nodes.name(1), nodes.name(0));
    assert!(has_finding(&report, "warning", &of_node), "{report:#}");
    nodes.0[1].ask(&["REPLICAOF", "NO", "ONE"]);
    nodes.0[0].kill();
    let done = doctor(&url);
    assert_eq!(done.status.code(), Some(1), "{done:#?}");
    let report = read(&done);
    assert!(has_finding(&report, "warning", &format!("node 1 ({}): connection refused", nodes.name(0))), "{report:#}");
}
