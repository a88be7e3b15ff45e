//! Whether sentinels and clusters can be trusted with locks. Each finding is that of a group which was set up so; where
//! none can be had that is, what one says is changed on its way.

use std::thread;
use std::time::Duration;

use serde_json::Value;

use super::access::{EXAMINE, RULE};
use super::doctor::{SOUND, doctor, has_finding, is_left_alone, is_sound, moved, on_each};
use crate::doctor::{finds, read};
use crate::support::proxy::{Fate, Proxy};
use crate::support::redis::{Cluster, PORT, REDIS, Sentinels, Server, Setup, VALKEY};
use crate::support::{has, wait_for};

/// What the sentinels call the master.
const NAME: &str = "mymaster";

const SECRET: &str = "s3cr3t-W0rd";

/// With two seconds more for a failover it is less than the 25 s that a holder can do without an answer.
const SOON: &str = "20000";

/// And with this it is as much.
const TOO_LATE: &str = "23000";

/// What makes a server wait for a replica, and a cluster serve what it can.
const WAITS: [&str; 2] = ["--min-replicas-to-write", "1"];
const IN_PARTS: [&str; 2] = ["--cluster-require-full-coverage", "no"];

/// Does it for each kind of server that is installed, all at once.
fn on_groups(test: impl Fn(&'static str) + Sync) {
    thread::scope(|scope| {
        for program in [REDIS, VALKEY].into_iter().filter(|program| has(program)) {
            let test = &test;
            scope.spawn(move || test(program));
        }
    });
}

fn ask_all<'a>(servers: impl IntoIterator<Item = &'a Server>, words: &[&str]) {
    for server in servers {
        server.ask(words);
    }
}

/// Checks that something like that is among what is found.
#[track_caller]
fn finds_among(url: &str, severity: &str, words: &str) -> Value {
    let report = read(&doctor(url));
    assert!(has_finding(&report, severity, words), "{words:?} is missing: {report:#}");
    report
}

/// What is said of all, and of one by its name once it alone is so.
#[track_caller]
fn finds_of_all_and_of_one(url: &str, severity: &str, words: &str, all: &[&Server], set: impl Fn(&Server, bool)) {
    for server in all {
        set(server, true);
    }
    let report = finds(&doctor(url), severity, &[words]);
    assert!(report["findings"][0]["what"].as_str().is_some_and(|what| what.starts_with("its ")), "{report:#}");
    for server in &all[1..] {
        set(server, false);
    }
    finds(&doctor(url), severity, &[&format!(" at {}:{PORT}: its ", all[0].host), words]);
    set(all[0], false);
    is_sound(url);
}

/// Checks that something like that is advised.
#[track_caller]
fn has_remedy(report: &Value, words: &str) {
    let such = |finding: &Value| finding["do"].as_str().is_some_and(|remedy| remedy.contains(words));
    assert!(report["findings"].as_array().is_some_and(|all| all.iter().any(such)), "{words:?} is missing: {report:#}");
}

fn user(url: &str) -> String {
    url.replace("://", &format!("://app:{SECRET}@"))
}

/// Makes a user of these servers, who may do this.
fn allow<'a>(servers: impl IntoIterator<Item = &'a Server>, rule: &str) {
    let secret = format!(">{SECRET}");
    let rule: Vec<&str> = rule.split_whitespace().collect();
    ask_all(servers, &[&["ACL", "SETUSER", "app", "on", &secret], &rule[..]].concat());
}

#[test]
fn what_keeps_sentinels_from_replacing_a_master_in_time_is_found() {
    on_groups(|program| {
        let server = [&SOUND[..], &WAITS].concat();
        let setup = Setup { server: &server, down_after: Duration::from_secs(20), ..Setup::default() };
        let mut group = Sentinels::start(program, &setup);
        let url = group.url();
        let facts = &is_sound(&url)["facts"];
        assert_eq!(facts["master"], format!("{}:{PORT}", group.servers[0].host));
        assert_eq!((&facts["sentinels"], &facts["down_after"]), (&"3 of 3 answer, quorum 2".into(), &"20s".into()));

        let all: Vec<&Server> = group.sentinels.iter().collect();
        let set = |name: &'static str, value: &'static str, good: &'static str| {
            move |sentinel: &Server, is_bad: bool| {
                sentinel.ask(&["SENTINEL", "SET", NAME, name, if is_bad { value } else { good }]);
            }
        };
        let late = set("down-after-milliseconds", TOO_LATE, SOON);
        finds_of_all_and_of_one(&url, "warning", "down-after-milliseconds is 23s, and a holder", &all, late);
        finds_of_all_and_of_one(&url, "warning", "quorum is 1", &all, set("quorum", "1", "2"));
        finds_of_all_and_of_one(&url, "warning", "quorum is 4, and it knows of 3", &all, set("quorum", "4", "2"));

        let first = format!("{}:{PORT}", all[0].host);
        let alone = format!("redis+sentinel://{first}/{NAME}/0");
        finds(&doctor(&alone), "warning", &["the URL names one sentinel of 3"]);
        group.servers[0].ask(&["CONFIG", "SET", "min-replicas-to-write", "0"]);
        finds(&doctor(&url), "warning", &["2 replicas, and min-replicas-to-write is 0"]);
        is_sound(&format!("{url}?wait_replicas=1"));

        group.sentinels[2].kill();
        let url = format!("{url}?wait_replicas=1");
        let silent = format!("sentinel at {}:{PORT}: connection refused", group.sentinels[2].host);
        let report = finds(&doctor(&url), "warning", &[&silent]);
        assert_eq!(report["facts"]["sentinels"], "2 of 3 answer, quorum 2");

        let second = &group.sentinels[1];
        second.ask(&["SENTINEL", "REMOVE", NAME]);
        finds_among(&url, "warning", &format!("sentinel at {}:{PORT} knows no master '{NAME}'", second.host));
        // Of two that know of no failover, the one that is last by its name is believed.
        second.ask(&["SENTINEL", "MONITOR", NAME, "127.0.0.1", &PORT.to_string(), "2"]);
        let master = format!("{}:{PORT}", group.servers[0].host);
        finds_among(&url, "warning", &format!("name different masters: 127.0.0.1:{PORT}, {master}"));

        group.sentinels[1].kill();
        for replica in &mut group.servers[1..] {
            replica.kill();
        }
        wait_for("a master without replicas", || info(&group.servers[0]).contains("connected_slaves:0"));
        // It forgets whom it knew.
        group.sentinels[0].ask(&["SENTINEL", "RESET", NAME]);
        finds_among(&alone, "warning", "there is only 1 sentinel");
        finds_among(&alone, "warning", "its master has no replica");
    });
}

fn info(server: &Server) -> String {
    redis::cmd("INFO").arg("replication").query(&mut server.connection()).expect("it tells")
}

#[test]
fn replicas_of_a_master_that_would_be_no_good_in_its_place_are_found() {
    on_groups(|program| {
        let server = [&SOUND[..], &WAITS].concat();
        let setup = Setup { server: &server, down_after: Duration::from_secs(20), ..Setup::default() };
        let group = Sentinels::start(program, &setup);
        let url = group.url();
        let [master, near, far] = &group.servers[..] else { panic!("a master and two replicas") };

        near.ask(&["ACL", "SETUSER", "default", "resetpass", &format!(">{SECRET}")]);
        let words = format!("redis at {}:{PORT}: it ", near.host);
        finds(&doctor(&url), "warning", &[&words, "NOAUTH"]);
        near.ask(&["ACL", "SETUSER", "default", "nopass"]);
        is_sound(&url);

        // It comes back under the name of the proxy.
        let proxy = Proxy::to(far);
        let at = proxy.url().replace("redis://", "");
        let (host, _) = at.split_once(':').expect("a host and a port");
        far.ask(&["CONFIG", "SET", "replica-announce-ip", host]);
        master.ask(&["CLIENT", "KILL", "TYPE", "replica"]);
        wait_for("replicas by their new names", || {
            let info = info(master);
            info.contains(&format!("ip={host},")) && info.matches("state=online").count() == 2
        });
        is_sound(&url);
        let apart = |fate, words: &str| {
            proxy.next("time", Fate::Replaced(fate));
            let found = format!("the clock of the replica at {at} is {words} that of its master at {}", master.host);
            finds(&doctor(&url), "warning", &[&found]);
            assert!(proxy.is_spent());
        };
        apart(|time| moved(time, 5), "5s ahead of");
        apart(|time| moved(time, -60), "1m behind");
        proxy.refuse();
        finds(&doctor(&url), "note", &["1 replica cannot be asked from here", &at, "connection refused"]);
        proxy.admit();
        is_sound(&url);

        // Who may not know says what is missing.
        allow(&group.servers, &format!("{RULE} +role"));
        let app = user(&url);
        finds_among(&app, "warning", "'info'");
        finds_among(&app, "warning", "'config get'");
        allow(&group.servers, EXAMINE);
        is_sound(&app);
        allow(&group.sentinels, "-@all +sentinel|get-master-addr-by-name");
        let app = format!("{url}?sentinel_user=app&sentinel_password={SECRET}");
        for sentinel in &group.sentinels {
            let words =
                format!("sentinel at {}:{PORT} does not answer 'sentinel master' to us ('NOPERM", sentinel.host);
            let report = finds_among(&app, "warning", &words);
            has_remedy(&report, "'ACL SETUSER app +sentinel|get-master-addr-by-name +sentinel|master'");
        }
        allow(&group.sentinels, "+sentinel|master");
        is_sound(&app);
    });
}

#[test]
fn what_is_wrong_with_servers_of_a_cluster_is_found() {
    on_groups(|program| {
        let server = [&SOUND[..], &WAITS, &IN_PARTS].concat();
        let mut cluster = Cluster::start(program, &Setup { server: &server, ..Setup::default() });
        ask_all(&cluster.nodes, &["CONFIG", "SET", "cluster-node-timeout", SOON]);
        let url = cluster.url();
        let facts = &is_sound(&url)["facts"];
        assert_eq!(
            (&facts["nodes"], &facts["slots"]),
            (&"3 masters, 3 replicas".into(), &"16384 of 16384 served".into())
        );
        assert_eq!(facts["node_timeout"], "20s");

        let masters: Vec<&Server> = cluster.nodes[..3].iter().collect();
        let set = |name: &'static str, value: &'static str, good: &'static str| {
            move |node: &Server, is_bad: bool| {
                node.ask(&["CONFIG", "SET", name, if is_bad { value } else { good }]);
            }
        };
        let late = set("cluster-node-timeout", TOO_LATE, SOON);
        finds_of_all_and_of_one(&url, "warning", "cluster-node-timeout is 23s, and a holder", &masters, late);
        let whole = set("cluster-require-full-coverage", "yes", "no");
        finds_of_all_and_of_one(&url, "note", "cluster-require-full-coverage is 'yes'", &masters, whole);
        let evicts = set("maxmemory-policy", "allkeys-lru", "noeviction");
        finds_of_all_and_of_one(&url, "warning", "maxmemory-policy is 'allkeys-lru'", &masters, evicts);

        cluster.nodes[4].kill();
        let replica = format!("{}:{PORT}", cluster.nodes[4].host);
        finds(&doctor(&url), "note", &["1 replica cannot be asked from here", &replica]);
        let others = (0..6).filter(|number| *number != 4).map(|number| &cluster.nodes[number]);
        ask_all(others, &["CLUSTER", "FORGET", &format!("{:040x}", 4)]);
        let master = format!("the master at {}:{PORT} has no replica that is up", cluster.nodes[1].host);
        finds(&doctor(&url), "warning", &[&master]);

        // It is the first one in the URL, and has the first slot.
        cluster.nodes[0].kill();
        finds_among(&url, "warning", &format!("redis at {}:{PORT}: connection refused", cluster.nodes[0].host));
    });
}

/// Slots from one to another, as words.
fn slots(numbers: std::ops::Range<u16>) -> Vec<String> {
    numbers.map(|slot| slot.to_string()).collect()
}

#[test]
fn what_is_wrong_with_a_cluster_as_a_whole_is_found() {
    on_each(&[&["--cluster-enabled", "yes"], &IN_PARTS[..]].concat(), |node| {
        let change = |verb: &str, slots: &[String]| {
            let slots: Vec<&str> = slots.iter().map(String::as_str).collect();
            node.ask(&[&["CLUSTER", verb], &slots[..]].concat());
        };
        let url = node.url().replace("redis:", "redis+cluster:");
        let report = finds_among(&url, "warning", "16384 of its 16384 slots are served by nobody");
        assert_eq!(report["facts"]["nodes"], "0 masters, 0 replicas");
        is_left_alone(node, &["cluster", "cluster|slots", "cluster|info"]);
        change("ADDSLOTS", &slots(0..16384));
        let report = finds_among(&url, "warning", "it has 1 master");
        assert!(has_finding(&report, "warning", &format!("the master at {}:{PORT} has no replica", node.host)));
        assert!(!has_finding(&report, "warning", "served by nobody"), "{report:#}");
        change("DELSLOTS", &slots(5..7));
        let report = finds_among(&url, "warning", "2 of its 16384 slots are served by nobody");
        assert_eq!(report["facts"]["slots"], "16382 of 16384 served");
        change("ADDSLOTS", &slots(5..7));
        wait_for("a cluster that serves", || {
            let info: String = redis::cmd("CLUSTER").arg("INFO").query(&mut node.connection()).expect("it tells");
            info.contains("cluster_state:ok")
        });

        let proxy = Proxy::to(node);
        // Slots are asked for twice before.
        for _ in 0..2 {
            proxy.next("cluster", Fate::Late(Duration::ZERO));
        }
        proxy.next("cluster", Fate::Replaced(|info| info.replace("state:ok\r\n", "state:no\r\n")));
        finds_among(&proxy.url().replace("redis:", "redis+cluster:"), "warning", "says that its state is 'no'");
        assert!(proxy.is_spent());

        allow([&*node], RULE);
        let app = user(&url);
        // Without that nothing can be done, and so it is no finding.
        finds_among(&app, "error", "'NOPERM");
        allow([&*node], "+cluster|slots");
        let report = finds_among(&app, "warning", "'cluster info' to us ('NOPERM");
        assert!(has_finding(&report, "warning", "'config get'"), "{report:#}");
        let rule = format!("{EXAMINE} +cluster|info +cluster|slots");
        has_remedy(&report, &format!("ACL SETUSER app {rule}"));
        allow([&*node], &rule);
        let report = read(&doctor(&app));
        assert!(!has_finding(&report, "warning", "to us ("), "{report:#}");
    });
}
