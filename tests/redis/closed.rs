//! Groups of servers that speak TLS and let in nobody but users with the rule of the README.

use std::thread;

use super::access::{RULE, works};
use crate::support::redis::tls::with_tls;
use crate::support::redis::{Cluster, Sentinels, Setup};
use crate::support::{Store, has};

/// What a user of dlock must be allowed besides where sentinels watch the server, and in a cluster; as README has it.
pub(crate) const WITH_SENTINELS: &str = "+role +wait";
pub(crate) const IN_A_CLUSTER: &str = "+cluster|slots +asking +wait";

const SECRET: &str = "s3cr3t-W0rd";

/// The options of servers that know `app` with this rule and `peer`, as whom they speak with each other.
fn closed(rule: &str) -> Vec<String> {
    let user = format!("--user default off --user app on >{SECRET} {RULE} {rule}");
    let peer = "--user peer on >hush ~* &* +@all --masteruser peer --masterauth hush";
    format!("{user} {peer}").split(' ').map(str::to_owned).collect()
}

/// All verbs, and some who contend.
pub(super) fn is_of_use(store: &Store) {
    works(store);
    let id = store.run(&["acquire", "lease", "--ttl", "1m"]).stdout;
    let id = id.trim();
    store.run(&["renew", "lease", id, "--ttl", "2m"]).is(0, "", "");
    assert!(store.run(&["check", "lease", id]).status.success());
    store.run(&["release", "lease", id]).is(0, "", "");
    for verb in [&["history", "lease"][..], &["metrics"], &["status", "--all", "--json"]] {
        let done = store.run(verb);
        assert!(done.stderr.is_empty() && done.stdout.contains("lease"), "{done:#?}");
    }
    let script = format!("{}; read n <counter; echo $((n + 1)) >counter", store.alone());
    std::fs::write(store.path("counter"), "0\n").expect("a file");
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..5 {
                    store.run(&["run", "k", "--", "sh", "-c", &script]).is(0, "", "");
                }
            });
        }
    });
    assert_eq!(std::fs::read_to_string(store.path("counter")).expect("a file"), "20\n");
}

/// The URL with a login and parameters.
fn login(url: &str, parameters: &str) -> String {
    format!("{}?{parameters}", url.replace("://", &format!("://app:{SECRET}@")))
}

#[test]
fn a_user_with_the_rule_has_what_it_needs_over_tls_and_after_a_failover() {
    if !has("openssl") {
        return;
    }
    for program in with_tls() {
        let server = closed(WITH_SENTINELS);
        let server: Vec<&str> = server.iter().map(String::as_str).collect();
        let sentinel = [
            "sentinel auth-user mymaster peer",
            "sentinel auth-pass mymaster hush",
            "requirepass s3ntinel",
            "sentinel sentinel-pass s3ntinel",
        ];
        let setup = Setup { server: &server, sentinel: &sentinel, tls: true, ..Setup::default() };
        let mut group = Sentinels::start(program, &setup);
        let ca = group.certificate("ca.pem");
        let ca = format!("ca={}", ca.display());
        let url = group.url();
        let store = Store::new().at(&login(&url, &format!("{ca}&sentinel_password=s3ntinel&wait_replicas=1")));
        is_of_use(&store);
        let old = group.kill_master();
        group.await_failover(old);
        is_of_use(&store);
        // Who is not let in hears why, and of no password.
        for (parameters, code, words) in [
            (ca.clone(), 77, "sentinel at "),
            (format!("{ca}&sentinel_password=wr0ng"), 77, "sentinel at "),
            ("sentinel_password=s3ntinel".to_owned(), 77, "its certificate is by nobody whom we trust"),
            (format!("{ca}&sentinel_tls=no&sentinel_password=s3ntinel"), 69, "sentinel at "),
        ] {
            let done =
                Store::new().at(&login(&url, &parameters)).run(&["--store-timeout", "1", "run", "k", "--", "true"]);
            done.says(code, &[words]);
            let told = ["s3ntinel", "wr0ng", SECRET].iter().any(|secret| done.stderr.contains(secret));
            assert!(!told, "{done:#?}");
        }

        let server = closed(IN_A_CLUSTER);
        let server: Vec<&str> = server.iter().map(String::as_str).collect();
        let setup = Setup { server: &server, tls: true, ..Setup::default() };
        let mut cluster = Cluster::start(program, &setup);
        let ca = format!("ca={}&wait_replicas=1", cluster.certificate("ca.pem").display());
        let store = Store::new().at(&login(&cluster.url(), &ca));
        is_of_use(&store);
        let slot = cluster.slot_of("dlock:{k}:record");
        let from = cluster.owner_of(slot);
        cluster.move_slot(slot, from, (from + 1) % 3);
        is_of_use(&store);
        let old = (from + 1) % 3;
        cluster.nodes[old].kill();
        cluster.await_failover(old);
        cluster.nodes[old].start_again();
        is_of_use(&store);
    }
}

#[test]
fn each_word_of_the_rule_is_needed() {
    if !has(crate::support::redis::REDIS) {
        return;
    }
    let mut group = None;
    for word in WITH_SENTINELS.split(' ') {
        let group = group.get_or_insert_with(|| Sentinels::start(crate::support::redis::REDIS, &Setup::default()));
        let less = WITH_SENTINELS.split(' ').filter(|other| *other != word);
        let rule: Vec<&str> = RULE.split_whitespace().chain(less).collect();
        let user = ["ACL", "SETUSER", "less", "reset", "on", &format!(">{SECRET}")];
        group.master().ask(&[&user[..], &rule].concat());
        let url = group.url().replace("://", &format!("://less:{SECRET}@"));
        let store = Store::new().at(&format!("{url}?wait_replicas=1"));
        store.run(&["run", "k", "--", "true"]).says(77, &[&format!("'{}'", &word[1..])]);
    }
    let cluster = Cluster::start(crate::support::redis::REDIS, &Setup::default());
    let slot = cluster.slot_of("dlock:{k}:record");
    let from = cluster.owner_of(slot);
    let to = (from + 1) % 3;
    for word in IN_A_CLUSTER.split(' ') {
        let less = IN_A_CLUSTER.split(' ').filter(|other| *other != word);
        let rule: Vec<&str> = RULE.split_whitespace().chain(less).collect();
        let user = ["ACL", "SETUSER", "less", "reset", "on", &format!(">{SECRET}")];
        for node in &cluster.nodes {
            node.ask(&[&user[..], &rule].concat());
        }
        let url = cluster.url().replace("://", &format!("://less:{SECRET}@"));
        let store = Store::new().at(&format!("{url}?wait_replicas=1"));
        let refused = |args: &[&str]| {
            store.run(args).says(77, &[&format!("'{}'", &word[1..])]);
        };
        match word {
            "+asking" => {
                cluster.begin_move(slot, from, to);
                refused(&["fence", "k"]);
                cluster.end_move(slot, from, to);
            }
            "+cluster|slots" => refused(&["status"]),
            _ => refused(&["run", "k", "--", "true"]),
        }
    }
}
