//! What the doctor says of NATS. Each finding is that of a server which was made so.

use crate::doctor::{finds, read};
use crate::support::nats::{Cluster, NATS, NATS_2_9, Server, shared_cluster};
use crate::support::{Done, Store, has, wait_for};

fn doctor(store: &Store, query: &str) -> Done {
    let url = format!("{}{query}", store.url());
    store.run(&["-S", &url, "setup"]).is(0, "", "");
    store.run(&["-S", &url, "doctor", "--json"])
}

#[test]
fn one_server_is_sound_if_it_writes_to_its_disk_at_once() {
    if !has(NATS) {
        return;
    }
    let always = |dir: &str, interval: &str| format!("jetstream {{ store_dir: \"{dir}\", sync_interval: {interval} }}");
    let store = Store::new();
    let dir = store.path("js").display().to_string();
    let sound = Store::on_own_nats(Server::start(NATS, &always(&dir, "always")));
    let done = doctor(&sound, "");
    assert_eq!(read(&done)["facts"]["sync_interval"], "always");
    assert!(sound.run(&["doctor"]).stdout.ends_with("\nsound\n"));
    let dir = store.path("js2").display().to_string();
    let late = Store::on_own_nats(Server::start(NATS, &always(&dir, "30s")));
    finds(&doctor(&late, ""), "warning", &["forced to the disk every 30s only"]);
    let memory = Store::on_nats(NATS);
    let findings = read(&doctor(&memory, "&storage=memory"))["findings"].to_string();
    assert!(findings.contains("its bucket is in memory"), "{findings}");
}

#[test]
fn copies_are_counted_and_those_that_are_away_are_named() {
    if !has(NATS) || !has(NATS_2_9) {
        return;
    }
    let single = Store::on_nats_cluster(shared_cluster(NATS));
    let url = single.url().replace("&replicas=3", "");
    single.run(&["-S", &url, "setup"]).is(0, "", "");
    let findings = read(&single.run(&["-S", &url, "doctor", "--json"]))["findings"].to_string();
    assert!(findings.contains("there is one copy in a cluster of several servers"), "{findings}");
    let old = Store::on_nats_cluster(shared_cluster(NATS_2_9));
    let findings = read(&doctor(&old, ""))["findings"].to_string();
    assert!(findings.contains("several replicas on servers before 2.10"), "{findings}");
    let mut store = Store::on_own_nats_cluster(Cluster::start(NATS));
    let report = read(&doctor(&store, ""));
    assert_eq!(
        (&report["facts"]["copies"], &report["facts"]["cluster"]),
        (&"3 of 3 are up to date".into(), &"c".into())
    );
    let leader = store.bucket().leader();
    let victim = store.nats_mut().iter_mut().find(|server| server.name() != leader).expect("two follow");
    victim.kill();
    let name = victim.name();
    wait_for("the doctor to see that it is away", || {
        let findings = read(&store.run(&["doctor", "--json"]))["findings"].to_string();
        findings.contains("1 of its 3 copies are away or behind") && findings.contains(&name)
    });
}
