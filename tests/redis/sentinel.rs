//! What is particular to a master that sentinels watch.

use std::thread;
use std::time::{Duration, Instant};

use super::failover::DURABLE;
use super::{await_beat, lease_end};
use crate::support::fake::Fake;
use crate::support::journal::Journal;
use crate::support::redis::{PORT, REDIS, Sentinels, Setup, on_each};
use crate::support::{Running, Store, has, wait_for};

fn store(group: &Sentinels, more: &str) -> Store {
    Store::new().at(&format!("{}{more}", group.url()))
}

/// Hands the master's role to a replica, as an administrator does. The number of the old one.
fn hand_over(group: &Sentinels) -> usize {
    let old = group.master_number();
    wait_for("a failover that is taken on", || {
        let asked = group.sentinels[1].try_ask::<redis::Value>(&["SENTINEL", "FAILOVER", "mymaster"]);
        asked.is_ok()
    });
    group.await_failover(old);
    old
}

#[test]
fn who_holds_and_who_waits_follow_the_master_in_their_order() {
    on_each(|program| {
        let mut group = Sentinels::start(program, &Setup { server: &DURABLE, ..Setup::default() });
        let store = store(&group, "?wait_replicas=1");
        let journal = Journal::new(&store);
        // One that is killed, one that is asked to step down, one that is frozen.
        for how in ["kill", "ask", "freeze"] {
            let options = ["--store-timeout", "40", "--ttl", "12"];
            let holder = store.holding("k", &options, "echo ready; cat >/dev/null");
            let waiters: Vec<_> = (0..3)
                .map(|number| store.waiting("k", &options, &journal.visit(&format!("{how}{number}"), ":")))
                .collect();
            await_beat(&store);
            let old = match how {
                "kill" => group.kill_master(),
                "freeze" => {
                    let old = group.master_number();
                    group.servers[old].freeze();
                    old
                }
                _ => hand_over(&group),
            };
            group.await_failover(old);
            await_beat(&store);
            let freed = Instant::now();
            holder.finish().is(0, "", "");
            for waiter in waiters {
                waiter.finish().is(0, "", "");
            }
            assert!(freed.elapsed() < Duration::from_secs(10), "{how}: {:?}", freed.elapsed());
            match how {
                "kill" => group.servers[old].start_again(),
                "freeze" => group.servers[old].thaw(),
                _ => {}
            }
            group.await_replica(old);
        }
        let order = ["kill0", "kill1", "kill2", "ask0", "ask1", "ask2", "freeze0", "freeze1", "freeze2"];
        assert_eq!(journal.entered(), order);
    });
}

#[test]
fn nobody_takes_notice_of_the_locks_of_an_old_master_that_comes_back() {
    on_each(|program| {
        let mut group = Sentinels::start(program, &Setup { server: &DURABLE, ..Setup::default() });
        let store = store(&group, "?wait_replicas=2");
        store.run(&["acquire", "k", "--ttl", "1h"]);
        let old = group.kill_master();
        group.await_failover(old);
        let near = store.at(&group.url());
        assert!(near.run(&["unlock", "k", "--yes"]).status.success());
        group.servers[old].start_again();
        let record = group.servers[old].record("k");
        assert!(record.keys().any(|field| field.starts_with("h:")), "it still has the lock: {record:?}");
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(2) {
            near.run(&["run", "-n", "k", "--", "true"]).is(0, "", "");
            assert_eq!(near.status("k")["held"], false);
        }
        group.await_replica(old);
        near.run(&["run", "-n", "k", "--", "true"]).is(0, "", "");
    });
}

#[test]
fn a_tree_whose_lease_no_replica_confirms_is_gone_before_the_last_one_that_was() {
    on_each(|program| {
        let group = Sentinels::start(program, &Setup { down_after: Duration::from_secs(60), ..Setup::default() });
        let store = store(&group, "?wait_replicas=1");
        let tree = store.holding_tree(&["--ttl", "3"]);
        await_beat(&store);
        let end = lease_end(&store);
        let replicas: Vec<_> = group.servers.iter().filter(|server| server.host != group.servers[0].host).collect();
        for replica in &replicas {
            replica.freeze();
        }
        let gone = store.await_end_of_tree();
        assert!(gone <= end, "the tree lived for {:?} too long", gone.duration_since(end));
        tree.is_gone();
        tree.dlock.finish().says(76, &["lost 'k'", "0 of 1 replica acknowledged"]);
        // Nobody starts, either, and what was granted was given back.
        let refused = store.run(&["--store-timeout", "1", "run", "other", "--", "echo", "started"]);
        refused.says(69, &["0 of 1 replica acknowledged"]);
        assert_eq!(refused.stdout, "");
        let given_back = |key: &str| {
            let status = store.status(key);
            assert_eq!((&status["held"], &status["queue"]), (&false.into(), &serde_json::json!([])), "{status}");
        };
        given_back("other");
        // Nor do several of them send each other around.
        let args = ["--store-timeout", "2", "run", "other", "--", "echo", "started"];
        let several: Vec<_> = (0..4).map(|_| Running::start(&mut store.dlock(&args))).collect();
        for run in several {
            run.finish().says(69, &["0 of 1 replica acknowledged"]);
        }
        given_back("other");
        // A try that nobody confirms changes no fence that others compare with while it goes on.
        let fence = store.run(&["fence", "other"]).stdout;
        let args = ["--store-timeout", "30", "run", "other", "--if-fence", fence.trim(), "--", "echo", "started"];
        let compared = Running::start(&mut store.dlock(&args));
        wait_for("a grant that nobody confirms", || store.status("other")["held"] == true);
        thread::sleep(Duration::from_secs(2));
        for replica in &replicas {
            replica.thaw();
        }
        compared.finish().is(0, "started\n", "");
        store.run(&["--store-timeout", "20", "run", "other", "--", "echo", "started"]).is(0, "started\n", "");
    });
}

#[test]
fn sentinels_that_are_away_silent_or_wrong_hold_nobody_up() {
    if !has(REDIS) {
        return;
    }
    let mut group = Sentinels::start(REDIS, &Setup::default());
    let sentinels: Vec<String> = group.sentinels.iter().map(|sentinel| format!("{}:{PORT}", sentinel.host)).collect();
    let takes = |store: &Store, at_most: u64| {
        let since = Instant::now();
        store.run(&["run", "k", "--", "echo", "in"]).is(0, "in\n", "");
        assert!(since.elapsed() < Duration::from_secs(at_most), "{:?}", since.elapsed());
    };
    let all = store(&group, "");
    takes(&all, 2);
    // One that says nothing, then two, and one that is not there.
    group.sentinels[0].freeze();
    takes(&all, 2);
    group.sentinels[1].freeze();
    takes(&all, 3);
    group.sentinels[2].freeze();
    let silent = all.run(&["--store-timeout", "1", "run", "k", "--", "true"]);
    silent.says(69, &["sentinel at ", "did not answer"]);
    group.sentinels.iter().for_each(crate::support::redis::Server::thaw);
    group.sentinels[0].kill();
    takes(&all, 2);
    let away = Store::new().at(&format!("redis+sentinel://{}/mymaster", sentinels[0]));
    let done = away.run(&["--store-timeout", "1", "run", "k", "--", "true"]);
    done.says(69, &[&format!("sentinel at {}: connection refused", sentinels[0])]);

    // One that still names a server that is no master any more.
    let old = hand_over(&group);
    group.await_replica(old);
    let host = &group.servers[old].host;
    let answer = format!("*2\r\n${}\r\n{host}\r\n$4\r\n{PORT}\r\n-ERR no more\r\n", host.len());
    let liar = Fake::answering(answer.as_bytes()).url().replace("redis://", "");
    let misled = Store::new().at(&format!("redis+sentinel://{liar},{}/mymaster", sentinels[1]));
    takes(&misled, 2);
    let lost = Store::new().at(&format!("redis+sentinel://{liar}/mymaster"));
    let done = lost.run(&["--store-timeout", "1", "run", "k", "--", "true"]);
    done.says(69, &[&format!("redis at {host}:{PORT}: it is no master, but a replica")]);
    let unknown = Store::new().at(&format!("redis+sentinel://{}/other", sentinels[1]));
    unknown.run(&["run", "k", "--", "true"]).says(78, &["its sentinels know no master 'other'"]);
    let sentinel = Store::new().at(&format!("redis://{}", sentinels[1]));
    sentinel.run(&["run", "k", "--", "true"]).says(77, &["if it is a sentinel, that is 'redis+sentinel://'"]);
}
