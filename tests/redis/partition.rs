//! Masters that are cut off from the others, and those that take their place without having got the last locks.

use std::time::{Duration, SystemTime};

use super::failover::DURABLE;
use crate::support::fake::Fake;
use crate::support::redis::{Cluster, PORT, REDIS, Sentinels, Server, Setup, on_each};
use crate::support::{Store, crowd, has, wait_for};

/// Whoever waits so bears that there is no master for a while.
const PATIENT: [&str; 4] = ["-w", "60", "--store-timeout", "30"];

/// How those log in whom a master does not forsake, and the user that all others are.
const LOGIN: &str = "tests:any@";
const NOBODY: &str = "default";

/// Ends what a master tells its replicas, for good. Nobody else takes notice.
fn orphan(master: &Server, replicas: &[&Server]) {
    for replica in replicas {
        replica.ask(&["CONFIG", "SET", "masteruser", "nobody"]);
        replica.ask(&["CONFIG", "SET", "masterauth", "wrong"]);
    }
    master.ask(&["CLIENT", "KILL", "TYPE", "replica"]);
    let connected = || master.try_ask::<String>(&["INFO", "replication"]).unwrap_or_default();
    wait_for("a master that nobody follows", || connected().contains("connected_slaves:0"));
}

/// Somebody takes `k` from a master that nobody follows, which dies then, and hears of it from the next one.
fn a_grant_that_no_replica_has(store: &Store, fail_over: impl FnOnce()) {
    let options = ["--ttl", "20", "--max-run", "40", "--store-timeout", "30"];
    let mut holder = store.holding("k", &options, "echo ready; echo $DLOCK_FENCE; cat >/dev/null");
    let fence: u64 = holder.read_line().and_then(|line| line.parse().ok()).expect("a fence");
    fail_over();
    assert_eq!(holder.read_line(), None, "the command is stopped without being asked");
    holder.finish().says(76, &["lost 'k'", "does not know this lease any more"]);
    // That was known before the lease ended, and the key is another one's already.
    let next = store.run(&["run", "k", "--store-timeout", "30", "--", "sh", "-c", "echo $DLOCK_FENCE"]);
    assert!(next.stdout.trim().parse::<u64>().is_ok_and(|next| next > fence), "{fence} {next:#?}");
}

mod a_replica_that_had_not_got_a_lock_ends_the_run_when_it_becomes_the_master {
    use super::{Cluster, DURABLE, Sentinels, Server, Setup, Store, a_grant_that_no_replica_has, on_each, orphan};

    #[test]
    fn sentinel() {
        on_each(|program| {
            let mut group = Sentinels::start(program, &Setup { server: &DURABLE, ..Setup::default() });
            let store = Store::new().at(&group.url());
            let replicas: Vec<&Server> = group.servers[1..].iter().collect();
            orphan(&group.servers[0], &replicas);
            a_grant_that_no_replica_has(&store, || {
                let old = group.kill_master();
                group.await_failover(old);
            });
        });
    }

    #[test]
    fn cluster() {
        on_each(|program| {
            let mut cluster = Cluster::start(program, &Setup { server: &DURABLE, ..Setup::default() });
            let store = Store::new().at(&cluster.url());
            let old = cluster.master_of("dlock:{k}:record");
            orphan(&cluster.nodes[old], &[&cluster.nodes[cluster.replica_of(old)]]);
            a_grant_that_no_replica_has(&store, || {
                cluster.nodes[old].kill();
                cluster.await_failover(old);
            });
        });
    }
}

/// When the lease of `k` ends, as a server has it that may be no more than read; nothing if it has not got it.
fn last_end(server: &Server) -> Option<SystemTime> {
    let record = server.record("k");
    let (_, hold) = record.iter().find(|(field, _)| field.starts_with("h:"))?;
    let (_, end) = hold.split_once("\"until\":\"").expect("it has an end");
    let micros = end.split('"').next().and_then(|end| end.parse().ok()).expect("a number");
    Some(SystemTime::UNIX_EPOCH + Duration::from_micros(micros))
}

/// Cuts a master off from its replicas and from sentinels. Those who log in still reach it.
fn forsake(master: &Server) {
    master.ask(&["ACL", "SETUSER", NOBODY, "off"]);
    master.ask(&["CLIENT", "KILL", "TYPE", "replica"]);
    master.ask(&["CLIENT", "KILL", "USER", NOBODY]);
}

#[test]
fn a_master_that_is_cut_off_with_its_clients_confirms_nothing_but_gives_out_what_need_not_be() {
    crowd::enter_last();
    on_each(|program| {
        let group = Sentinels::start(program, &Setup::default());
        let old = &group.servers[0];
        // What those sentinels say who are cut off with it.
        let answer = format!("*2\r\n${}\r\n{}\r\n$4\r\n{PORT}\r\n-ERR no more\r\n", old.host.len(), old.host);
        let sentinel = Fake::answering(answer.as_bytes()).url().replace("redis://", "");
        let near = Store::new().at(&group.url().replace("//", &format!("//{LOGIN}")));
        let far = Store::new().at(&format!("redis+sentinel://{LOGIN}{sentinel}/mymaster"));
        let confirmed = Store::new().at(&format!("{}?wait_replicas=1", far.url()));
        let tree = confirmed.holding_tree(&["--ttl", "6", "-k", "0.5"]);
        let next = near.waiting("k", &PATIENT, &format!("{}; echo in", confirmed.alone()));
        forsake(old);
        // What they have now is the last that was confirmed.
        let end = group.servers[1..].iter().filter_map(last_end).max().expect("a replica has it");
        let gone = confirmed.await_end_of_tree();
        assert!(gone < end, "the tree lived for {:?} too long", gone.duration_since(end));
        group.await_failover(0);
        // Whose lease counts once a replica has it is gone before the next one starts, and nobody else gets one.
        next.finish().is(0, "in\n", "");
        tree.is_gone();
        tree.dlock.finish().says(76, &["lost 'k'"]);
        let refused = confirmed.run(&["run", "--store-timeout", "1", "other", "--", "echo", "in"]);
        assert_eq!((refused.status.code(), &*refused.stdout), (Some(69), ""), "{refused:#?}");
        // Of the others two hold a key, and neither hears of it.
        let holder = far.holding("other", &[], "echo ready; cat >/dev/null; exit 7");
        near.run(&["run", "-n", "other", "--", "echo", "in"]).is(0, "in\n", "");
        holder.finish().is(7, "", "");
    });
}

/// Freezes all nodes but the one that has `k`; `reads` says whether that one may be read then.
fn leave_alone(reads: &str) {
    let setup = Setup { server: &["--cluster-allow-reads-when-down", reads], ..Setup::default() };
    let cluster = Cluster::start(REDIS, &setup);
    let at = cluster.master_of("dlock:{k}:record");
    let store = Store::new().at(&format!("redis+cluster://{}:{PORT}", cluster.nodes[at].host));
    let tree = store.holding_tree(&["--ttl", "5", "-k", "0.5"]);
    let others = || cluster.nodes.iter().enumerate().filter(|(number, _)| *number != at).map(|(_, node)| node);
    others().for_each(Server::freeze);
    // It takes a while to notice, and goes on as before until then.
    let gone = store.await_end_of_tree();
    let end = (reads == "yes").then(|| last_end(&cluster.nodes[at]).expect("it is held"));
    assert!(end.is_none_or(|end| gone < end), "{gone:?} {end:?}");
    tree.is_gone();
    tree.dlock.finish().says(76, &["lost 'k': no answer for "]);
    let refused = store.run(&["run", "--store-timeout", "1", "k", "--", "echo", "in"]);
    assert_eq!((refused.status.code(), &*refused.stdout), (Some(69), ""), "{refused:#?}");
    others().for_each(Server::thaw);
    store.run(&["run", "k", "--store-timeout", "30", "--", "echo", "in"]).is(0, "in\n", "");
}

#[test]
fn a_master_of_a_cluster_that_hears_of_no_other_gives_out_nothing_and_ends_what_runs() {
    if has(REDIS) {
        // With the one setting it refuses what we ask it for, with the other one what our script asks it for.
        std::thread::scope(|scope| ["no", "yes"].map(|reads| drop(scope.spawn(|| leave_alone(reads)))));
    }
}
