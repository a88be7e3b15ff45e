//! What the doctor says of etcd. Each finding is that of members which were made so.

use serde_json::json;

use crate::doctor::read;
use crate::support::etcd::client::{ask, put_often};
use crate::support::etcd::{Cluster, ETCD, Server, on_both, shared_cluster};
use crate::support::{Store, has, wait_for};

/// All that is found, as one text, and the facts.
fn doctor(store: &Store) -> (String, serde_json::Value) {
    let report = read(&store.run(&["--store-timeout", "5", "doctor", "--json"]));
    (report["findings"].to_string(), report["facts"].clone())
}

#[test]
fn its_version_and_its_members_are_told() {
    on_both(|program| {
        let (findings, facts) = doctor(&Store::on_etcd(program));
        let (version, fixed) = if program == ETCD { ("3.5.", "etcd 3.5.23") } else { ("3.4.", "etcd 3.4.38") };
        assert!(facts["version"].as_str().is_some_and(|told| told.starts_with(&format!("etcd {version}"))), "{facts}");
        assert_eq!((&facts["alarms"], &facts["members"]), (&"none".into(), &facts["leader"]));
        assert!(findings.contains("has faults with leases") && findings.contains(fixed), "{findings}");
        assert!(findings.contains("it has one member"), "{findings}");
        let three = Store::on_etcd_cluster(shared_cluster(program));
        let (findings, facts) = doctor(&three);
        assert_eq!(facts["members"].as_str().map(|members| members.split(", ").count()), Some(3), "{facts}");
        for word in ["member", "not answer", "names one host"] {
            assert!(!findings.contains(word), "{findings}");
        }
    });
}

#[test]
fn members_that_are_away_and_those_that_are_not_named_are_told() {
    if !has(ETCD) {
        return;
    }
    let mut store = Store::on_own_etcd_cluster(Cluster::start(ETCD));
    let leader = store.etcd().leader();
    let one = Store::new().at_url(&format!("etcd://{leader}:6390"));
    let (findings, _) = doctor(&one);
    assert!(findings.contains("the URL names one host, and it has 3 members"), "{findings}");
    let victim = store.etcd_servers().iter_mut().find(|server| server.host != leader).expect("two follow");
    victim.kill();
    let away = victim.host.clone();
    let (findings, _) = doctor(&store);
    assert!(findings.contains("1 of 3 do not answer") && findings.contains(&away), "{findings}");
}

#[test]
fn a_database_that_is_full_and_a_login_that_nobody_asks_for_are_told() {
    if !has(ETCD) {
        return;
    }
    let server = Server::start(ETCD, &["--quota-backend-bytes", "1000000"]);
    let filling = "x".repeat(100_000);
    wait_for("it to be full", || !server.etcdctl(&["put", "filling", &filling]).status.success());
    let store = Store::new().at_url(&server.url().replace("//", "//locks:t0p@"));
    let (findings, facts) = doctor(&store);
    assert_eq!(facts["alarms"], "NOSPACE");
    for words in ["its database is full (alarm NOSPACE)", "it knows no users, and the URL names one"] {
        assert!(findings.contains(words), "{findings}");
    }
    assert!(!findings.contains("t0p"), "{findings}");
}

#[test]
fn hosts_of_two_clusters_are_no_store() {
    if !has(ETCD) {
        return;
    }
    let [one, other] = [Server::start(ETCD, &[]), Server::start(ETCD, &[])];
    let both = format!("{},{}", one.url(), other.url().trim_start_matches("etcd://"));
    let store = Store::new().at_url(&both);
    let (findings, _) = doctor(&store);
    assert!(findings.contains("members of 2 different clusters"), "{findings}");
    // Whoever holds by one of them is not told by the other one that he may go on.
    let holder = store.holding("k", &["--ttl", "3"], "echo ready; exec sleep 60");
    drop(one);
    holder.finish().says(76, &["different clusters", "stopping the command"]);
}

#[test]
fn that_nothing_was_ever_compacted_is_told_once_there_is_much_of_it() {
    const WORDS: &str = "changes that there ever were";
    if !has(ETCD) {
        return;
    }
    let server = Server::start(ETCD, &["--unsafe-no-fsync"]);
    let store = Store::new().at_url(&server.url());
    assert!(!doctor(&store).0.contains(WORDS));
    put_often(&server.host, 10_000);
    let (findings, _) = doctor(&store);
    assert!(findings.contains(WORDS) && findings.contains("--auto-compaction-retention"), "{findings}");
    ask(&server.host, "kv/compaction", &json!({ "revision": 9_000 }));
    assert!(!doctor(&store).0.contains(WORDS));
}
