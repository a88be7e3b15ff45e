//! A lease that most of several independent servers agree to: nodes that die, forget, are slow or unreachable.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::access::RULE;
use super::closed::is_of_use;
use super::failover::{Contention, PROCESSES};
use crate::support::proxy::{Fate, Proxy};
use crate::support::redis::tls::with_tls;
use crate::support::redis::{Nodes, PORT, REDIS, Server, VALKEY, new_host, tls};
use crate::support::{DLOCK, Done, Store, child_of, crowd, has, is_alive, wait_for};

/// What a user of dlock must be allowed besides where its vote is one of several; as README has it.
pub(crate) const AS_A_VOTER: &str = "+info";

/// Long enough to be renewed in time on a machine that does other things, too.
const SHORT: [&str; 2] = ["--ttl", "2s"];

/// The URL of the quorum of all of them.
fn all_of(nodes: &Nodes) -> String {
    nodes.url("quorum", &(0..nodes.0.len()).collect::<Vec<_>>())
}

/// Does it with so many nodes, on a store of their own.
fn on_nodes(count: usize, test: impl FnOnce(&mut Nodes, &Store)) {
    if has(REDIS) {
        let mut nodes = Nodes::start(REDIS, count, &[]);
        let store = Store::new().at(&all_of(&nodes));
        test(&mut nodes, &store);
    }
}

/// Whether a server has a hold of `k`.
fn has_a_hold(server: &Server) -> bool {
    server.record("k").keys().any(|field| field.starts_with("h:"))
}

/// The URL of the quorum of servers and proxies at these hosts.
fn url(hosts: &[&str]) -> String {
    let hosts: Vec<String> = hosts.iter().map(|host| format!("{host}:{PORT}")).collect();
    format!("redis+quorum://{}", hosts.join(","))
}

/// Three servers, of which the last is behind a proxy.
fn with_a_proxy(test: impl FnOnce(&mut Nodes, &Proxy, &Store)) {
    on_nodes(3, |nodes, _| {
        let proxy = Proxy::to(&nodes.0[2]);
        let store = Store::new().at(&url(&[&nodes.0[0].host, &nodes.0[1].host, proxy.host()]));
        // What comes first founds the quorum, which waits for all.
        store.run(&["run", "other", "--ttl", "1s", "--", "true"]).is(0, "", "");
        test(nodes, &proxy, &store);
    });
}

#[test]
fn nothing_is_noticed_of_a_minority_that_dies() {
    for count in [3, 5] {
        on_nodes(count, |nodes, store| {
            let holder = store.holding("k", &SHORT, "echo ready; cat >/dev/null");
            let waiter = store.waiting("k", &[], "echo in");
            nodes.0[..count / 2].iter_mut().for_each(Server::kill);
            store.run(&["run", "other", "--", "echo", "in"]).is(0, "in\n", "");
            store.run(&["run", "-n", "k", "--", "true"]).says(75, &["'k' is held"]);
            assert_eq!(store.queue("k"), [waiter.pid().as_raw()]);
            thread::sleep(Duration::from_secs(3));
            assert_eq!(store.run(&["status", "k"]).status.code(), Some(0), "it is renewed");
            holder.finish().is(0, "", "");
            waiter.finish().is(0, "in\n", "");
            let holder = store.hold("k");
            let listens = |server: &Server| !server.sleepers().is_empty();
            wait_for("a holder that listens", || nodes.0[count / 2..].iter().all(listens));
            let start = Instant::now();
            store.run(&["unlock", "k", "--yes"]).is(0, "", "");
            assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
            holder.finish().says(76, &["'k'", "unlock"]);
        });
    }
}

#[test]
fn without_a_majority_nothing_starts_and_what_runs_is_gone_before_its_lease_ends() {
    for (silence, words) in
        [(Server::kill as fn(&mut Server), "connection refused"), (|server| server.freeze(), "did not answer")]
    {
        on_nodes(3, |nodes, store| {
            let script = "echo ready; sleep 100 & trap '' TERM; while :; do sleep 1; done";
            let holder = store.holding("k", &SHORT, script);
            let tree = child_of(holder.pid().as_raw());
            nodes.0[1..].iter_mut().for_each(silence);
            let start = Instant::now();
            let newcomer = ["--store-timeout", "700ms", "run", "k", "--", "true"];
            let names = [1, 2].map(|at| format!("node {} ({}:{PORT})", at + 1, nodes.0[at].host));
            store.run(&newcomer).says(69, &[&names[0], &names[1], words]);
            wait_for("the end of the tree", || !is_alive(tree));
            assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
            holder.finish().says(76, &["lost 'k'", &names[0], words]);
        });
    }
}

#[test]
fn nodes_that_are_started_again_with_nothing_in_them_let_nobody_in_beside_a_holder() {
    for (program, count) in [(REDIS, 3), (VALKEY, 5)].into_iter().filter(|(program, _)| has(program)) {
        let mut nodes = Nodes::start(program, count, &[]);
        let store = Store::new().at(&all_of(&nodes));
        let contention = Contention::new(&store);
        let runs = contention.during(|contention| {
            for at in 0..count {
                // As many as may be gone at once.
                let others: Vec<usize> = (0..count / 2).map(|next| (at + next) % count).collect();
                for at in &others {
                    nodes.0[*at].kill();
                }
                contention.goes_on(PROCESSES / 2);
                for at in &others {
                    nodes.0[*at].start_again();
                }
                contention.goes_on(PROCESSES);
            }
        });
        contention.went_well(&runs, false);
    }
}

#[test]
fn a_node_that_has_forgotten_all_does_not_vote_as_long_as_a_lease_may_live_that_it_gave() {
    with_a_proxy(|nodes, proxy, store| {
        // One that the third node never heard of.
        proxy.refuse();
        let lease = store.run(&["acquire", "k", "--ttl", "4s"]);
        let taken = Instant::now();
        assert!(lease.status.success(), "{lease:#?}");
        nodes.0[0].kill();
        nodes.0[0].start_again();
        nodes.0[1].kill();
        proxy.admit();
        let newcomer = ["--store-timeout", "300ms", "run", "-n", "k", "--ttl", "1s", "--", "true"];
        let name = format!("node 1 ({}:{PORT})", nodes.0[0].host);
        store.run(&newcomer).says(69, &[&name, "was started", "may have forgotten a lease"]);
        // As soon as that lease must have ended, the vote counts.
        store.run(&["run", "k", "--ttl", "4s", "--", "true"]).is(0, "", "");
        assert!(taken.elapsed() > Duration::from_secs(4), "{:?}", taken.elapsed());
    });
}

#[test]
fn one_who_forgot_a_lease_is_not_trusted_before_all_have_said_how_long_leases_live() {
    on_nodes(3, |nodes, _| {
        let (second, third) = (Proxy::to(&nodes.0[1]), Proxy::to(&nodes.0[2]));
        let store = Store::new().at(&url(&[&nodes.0[0].host, second.host(), third.host()]));
        store.run(&["run", "other", "--ttl", "1s", "--", "true"]).is(0, "", "");
        // One that the third node never heard of, and that lives longer than those of others.
        third.refuse();
        let lease = store.run(&["acquire", "k", "--ttl", "1m"]);
        assert!(lease.status.success(), "{lease:#?}");
        third.admit();
        nodes.0[0].kill();
        nodes.0[0].start_again();
        // The second one is slow to say so.
        let newcomer = ["run", "-n", "k", "--ttl", "1s", "--", "true"];
        store.run(&newcomer);
        thread::sleep(Duration::from_millis(1500));
        for _ in 0..5 {
            second.next("acquire", Fate::Late(Duration::from_millis(50)));
            store.run(&newcomer).says(75, &["'k' is held"]);
        }
    });
}

#[test]
fn what_a_node_was_sent_before_it_froze_is_taken_back_when_it_goes_on() {
    // Whoever leaves waits only so long until that is sent.
    crowd::enter_last();
    on_nodes(3, |nodes, store| {
        let holder = store.hold("k");
        let waiter = store.waiting("k", &[], "true");
        nodes.0[2].freeze();
        holder.finish().is(0, "", "");
        waiter.finish().is(0, "", "");
        nodes.0[2].thaw();
        wait_for("the end of all leases there, too", || !has_a_hold(&nodes.0[2]));
        // It has read all that it was sent.
        assert!(nodes.0[2].calls("evalsha") > 0 && !has_a_hold(&nodes.0[2]));
    });
}

#[test]
fn a_holder_outlives_all_nodes_one_after_the_other() {
    on_nodes(3, |nodes, store| {
        let inner = format!("'{DLOCK}' run --ttl 2s k -- sh -c 'echo ready; cat >/dev/null; echo \"$DLOCK_FENCE\"'");
        let holder = store.holding("k", &SHORT, &inner);
        let fence = store.status("k")["fence"].to_string();
        let lease = store.run(&["acquire", "script", "--ttl", "20s"]).stdout;
        let renew = || store.run(&["renew", "script", lease.trim(), "--ttl", "20s"]).is(0, "", "");
        for at in 0..3 {
            nodes.0[at].kill();
            nodes.0[at].start_again();
            assert!(!has_a_hold(&nodes.0[at]));
            let levels = || nodes.0[at].record("k").values().map(|value| value.matches("until").count()).sum::<usize>();
            wait_for("both levels to tell the node of their lease", || levels() == 2);
            renew();
        }
        renew();
        store.run(&["run", "-n", "k", "--", "true"]).says(75, &["'k' is held"]);
        holder.finish().is(0, &format!("{fence}\n"), "");
        for server in &nodes.0 {
            wait_for("its end on all nodes", || !has_a_hold(server));
        }
    });
}

#[test]
fn fences_rise_in_the_order_of_grants_even_if_nodes_lose_leases() {
    const RUNS: usize = 125;
    on_nodes(3, |nodes, store| {
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).expect("it is not 1970").as_nanos();
        let script = r#"date "+$DLOCK_FENCE %s%N""#;
        let over = AtomicBool::new(false);
        let grants: Vec<(u128, u64, u128)> = thread::scope(|scope| {
            let lose = || {
                let mut at = 0;
                while !over.load(Ordering::Relaxed) {
                    let server = &nodes.0[at % nodes.0.len()];
                    let holds: Vec<String> =
                        server.record("k").into_keys().filter(|field| field.starts_with("h:")).collect();
                    for hold in holds {
                        server.ask(&["HDEL", "dlock:{k}:record", &hold]);
                    }
                    at += 1;
                    thread::sleep(Duration::from_millis(10));
                }
            };
            let run = || {
                let grant = |_| loop {
                    let asked = now();
                    let done = store.run(&["run", "k", "--ttl", "3s", "--", "sh", "-c", script]);
                    // Whose lease was taken away hears of it at the end, or before it said anything.
                    assert!([Some(0), Some(76)].contains(&done.status.code()), "{done:#?}");
                    if let Some((fence, granted)) = done.stdout.trim().split_once(' ') {
                        break (asked, fence.parse().expect("a fence"), granted.parse().expect("a time"));
                    }
                    assert_eq!(done.status.code(), Some(76), "{done:#?}");
                };
                (0..RUNS).map(grant).collect::<Vec<_>>()
            };
            let thief = scope.spawn(lose);
            let runs: Vec<_> = (0..PROCESSES).map(|_| scope.spawn(run)).collect();
            let runs: Vec<_> = runs.into_iter().map(thread::ScopedJoinHandle::join).collect();
            over.store(true, Ordering::Relaxed);
            thief.join().expect("it only asks");
            runs.into_iter().flat_map(|run| run.expect("it only runs dlock")).collect()
        });
        let mut fences: Vec<u64> = grants.iter().map(|(_, fence, _)| *fence).collect();
        fences.sort_unstable();
        fences.dedup();
        assert_eq!(fences.len(), RUNS * PROCESSES, "no fence was given twice");
        for (_, earlier, granted) in &grants {
            for (asked, later, _) in &grants {
                assert!(granted >= asked || earlier < later, "{earlier} was granted before {later} was asked for");
            }
        }
    });
}

#[test]
fn another_list_of_nodes_gets_nothing_as_long_as_a_lease_of_the_first_one_may_live() {
    on_nodes(5, |nodes, all| {
        let some = |numbers: &[usize]| Store::new().at(&nodes.url("quorum", numbers));
        let others = [some(&[3, 1, 0]), some(&[1, 2, 4])];
        let first = some(&[2, 1, 0]);
        let holder = first.holding("k", &SHORT, "echo ready; cat >/dev/null");
        let refused = |store: &Store| {
            for key in ["k", "other"] {
                let done = store.run(&["run", key, "-n", "--", "echo", "in"]);
                done.says(78, &["it votes with another list of nodes"]);
            }
        };
        others.iter().chain([all]).for_each(refused);
        some(&[0, 1, 2]).run(&["run", "other", "--ttl", "1s", "--", "true"]).is(0, "", "");
        // It counts from the last renewal, too.
        std::thread::sleep(Duration::from_secs(3));
        others.iter().chain([all]).for_each(refused);
        holder.finish().is(0, "", "");
        let begun = Instant::now();
        wait_for("the turn of the longer list", || {
            all.run(&["run", "k", "--ttl", "1s", "--", "true"]).status.success()
        });
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
        refused(&first);
    });
}

#[test]
fn a_holder_hears_of_an_unlock_whichever_node_tells_it_first() {
    on_nodes(3, |nodes, store| {
        let holder = store.hold("k");
        let listens = |server: &Server| !server.sleepers().is_empty();
        wait_for("a holder that listens to all", || nodes.0.iter().all(listens));
        let of_lease = nodes.0[0].record("k").into_keys().find_map(|field| field.strip_prefix("h:").map(str::to_owned));
        let renewals = |server: &Server| server.calls("evalsha");
        let before: Vec<u64> = nodes.0.iter().map(renewals).collect();
        // Whom one node tells of it asks all, and the others do not know of it yet.
        nodes.0[0].ask(&["RPUSH", &format!("dlock:{{k}}:wake:{}", of_lease.expect("a lease")), "revoked"]);
        wait_for("it asks", || nodes.0.iter().zip(&before).all(|(server, before)| renewals(server) > *before));
        wait_for("it listens again", || nodes.0.iter().all(listens));
        nodes.0[0].freeze();
        let start = Instant::now();
        store.run(&["unlock", "k", "--yes"]).is(0, "", "");
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
        holder.finish().says(76, &["unlocked by"]);
    });
}

#[test]
fn a_node_whose_answer_is_lost_or_late_costs_no_time_and_keeps_nothing() {
    with_a_proxy(|nodes, proxy, store| {
        for fate in [Fate::Swallowed, Fate::Late(Duration::from_millis(1500))] {
            for verb in ["acquire", "release"] {
                proxy.next(verb, fate);
                let start = Instant::now();
                let holder = store.hold("k");
                // It may be asked last.
                wait_for("the lease there, too", || has_a_hold(&nodes.0[2]));
                holder.finish().is(0, "", "");
                assert!(start.elapsed() < Duration::from_millis(1500), "{verb} {fate:?}: {:?}", start.elapsed());
                wait_for("the end of the lease there, too", || !has_a_hold(&nodes.0[2]));
                wait_for("the proxy", || proxy.is_spent());
            }
        }
        assert_eq!(nodes.0[2].record("k")["grants"], "4", "it had a part in all of them");
    });
}

#[test]
fn a_run_asks_each_node_twice() {
    on_nodes(3, |nodes, store| {
        store.run(&["run", "k", "--", "true"]).is(0, "", "");
        let before: Vec<u64> = nodes.0.iter().map(|server| server.calls("evalsha")).collect();
        store.run(&["run", "k", "--", "true"]).is(0, "", "");
        for (server, before) in nodes.0.iter().zip(before) {
            assert_eq!(server.calls("evalsha"), before + 2);
        }
    });
}

#[test]
fn of_those_who_do_not_wait_one_gets_a_key_that_is_free() {
    on_nodes(3, |nodes, store| {
        for round in 0..20 {
            let over = store.path(&format!("over{round}"));
            let held = format!("until [ -e '{}' ]; do sleep 0.01; done", over.display());
            let given_up = AtomicUsize::new(0);
            let run = || {
                let done = store.run(&["run", "-n", "k", "--ttl", "5m", "--max-run", "2m", "--", "sh", "-c", &held]);
                given_up.fetch_add(1, Ordering::Relaxed);
                done
            };
            let runs: Vec<Done> = thread::scope(|scope| {
                let all: Vec<_> = (0..PROCESSES).map(|_| scope.spawn(run)).collect();
                wait_for("all but one to give up", || given_up.load(Ordering::Relaxed) >= PROCESSES - 1);
                fs::write(&over, "").expect("a file");
                all.into_iter().map(|thread| thread.join().expect("it only runs dlock")).collect()
            });
            let got = runs.iter().filter(|done| done.status.success()).count();
            assert_eq!(got, 1, "round {round}: {runs:#?}");
            assert!(runs.iter().all(|done| [Some(0), Some(75)].contains(&done.status.code())), "{runs:#?}");
            // Whoever had a part of the votes has given it back.
            wait_for("nobody to have anything", || !nodes.0.iter().any(has_a_hold));
        }
    });
}

#[test]
fn each_of_those_who_race_for_a_key_gets_it_and_the_count_is_exact() {
    const TIMES: usize = 15;
    on_nodes(5, |_, store| {
        fs::write(store.path("counter"), "0\n").expect("a file");
        let script = format!("{}; read n <counter; echo $((n + 1)) >counter", store.alone());
        thread::scope(|scope| {
            for _ in 0..PROCESSES {
                scope.spawn(|| {
                    for _ in 0..TIMES {
                        store.run(&["run", "k", "--", "sh", "-c", &script]).is(0, "", "");
                    }
                });
            }
        });
        let count = fs::read_to_string(store.path("counter")).expect("a file");
        assert_eq!(count.trim(), (PROCESSES * TIMES).to_string());
    });
}

#[test]
fn what_a_quorum_cannot_be_or_do_is_a_mistake_in_the_configuration() {
    let store = Store::new();
    for (hosts, why) in [
        ("a", "at least three nodes"),
        ("a,b", "at least three nodes"),
        ("a,b,c,d", "odd number of nodes"),
        ("a,b,a", "stands twice"),
        ("a,b,c?wait_replicas=1", "wait_replicas"),
    ] {
        let store = Store::new().at(&format!("redis+quorum://{hosts}"));
        store.run(&["run", "k", "--", "true"]).says(78, &["redis+quorum", why]);
    }
    let store = store.at("redis+quorum://a,b,c");
    for mode in [&["-s"][..], &["--slots", "2"]] {
        let args = [&["run", "k"], mode, &["--", "true"]].concat();
        store.run(&args).says(78, &["redis quorum at a:6379,b:6379,c:6379", "cannot hold a key as"]);
    }
}

#[test]
fn each_node_lets_us_in_with_a_login_of_its_own_over_tls() {
    if !has("openssl") {
        return;
    }
    for program in with_tls() {
        let hosts: Vec<String> = (0..3).map(|_| new_host()).collect();
        let dir = tempfile::tempdir().expect("a directory for the test");
        let names: Vec<String> = hosts.iter().map(|host| format!("IP:{host}")).collect();
        tls::certify(dir.path(), &names.join(","));
        let start = |(at, host): (usize, &String)| {
            let user = format!("--user default off --user app{at} on >secret{at} {RULE} {AS_A_VOTER}");
            let mut options: Vec<String> = user.split(' ').map(str::to_owned).collect();
            for line in tls::lines(dir.path()) {
                options.extend(format!("--{line}").split(' ').map(str::to_owned));
            }
            Server::start_at(program, host, &options.iter().map(String::as_str).collect::<Vec<_>>())
        };
        let _servers: Vec<Server> = hosts.iter().enumerate().map(start).collect();
        let login = |(at, host): (usize, &String)| format!("app{at}:secret{at}@{host}:{}", tls::PORT);
        let nodes: Vec<String> = hosts.iter().enumerate().map(login).collect();
        let ca = dir.path().join("ca.pem");
        is_of_use(&Store::new().at(&format!("rediss+quorum://{}?ca={}", nodes.join(","), ca.display())));
        let wrong = nodes.join(",").replace("secret1", "wrong").replace("secret2", "wrong");
        let store = Store::new().at(&format!("rediss+quorum://{wrong}?ca={}", ca.display()));
        store.run(&["run", "k", "--", "true"]).says(77, &["node 2", "node 3", "WRONGPASS"]);
        let first = Store::new().at(&format!("rediss://{}?ca={}", nodes[0], ca.display()));
        wait_for("the first one to have nothing of it", || first.run(&["status"]).status.code() == Some(1));
    }
}
