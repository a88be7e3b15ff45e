//! What is particular to a ring.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::access::{RULE, works};
use crate::support::proxy::{Fate, Proxy};
use crate::support::redis::tls::{PORT as TLS_PORT, certify, with_tls};
use crate::support::redis::{Nodes, PORT, REDIS, Server, VALKEY, shared_nodes};
use crate::support::{Done, Running, Store, has, wait_for};

const SECRET: &str = "s3cr3t-W0rd";

/// A ring of these shared servers that no other test has, and what makes the same one of others.
fn ring(numbers: &[usize]) -> (Store, impl Fn(&[usize]) -> Store) {
    let store = Store::on_ring();
    let prefix = store.prefix().to_owned();
    let other = move |numbers: &[usize]| {
        Store::on_ring().at(&format!("{}?prefix={prefix}", shared_nodes().url("ring", numbers)))
    };
    (other(numbers), other)
}

/// The keys of this store that each of these servers has a record of.
fn records(store: &Store, servers: &[Server]) -> Vec<BTreeSet<String>> {
    let key = |name: &String| {
        let (prefix, rest) = name.split_once(":{")?;
        (prefix == store.prefix()).then(|| rest.strip_suffix("}:record")).flatten().map(str::to_owned)
    };
    servers.iter().map(|server| server.keys().iter().filter_map(key).collect()).collect()
}

/// A key for each server, that is held for long.
fn one_of_each(store: &Store, servers: &[Server]) -> Vec<String> {
    let mut number = 0;
    let mut found = vec![None; servers.len()];
    while found.contains(&None) {
        let key = format!("k{number}");
        assert!(store.run(&["acquire", &key, "--ttl", "5m"]).status.success());
        let at = records(store, servers).iter().position(|keys| keys.contains(&key)).expect("a server has it");
        if found[at].is_some() {
            store.run(&["unlock", &key, "--yes"]);
        }
        found[at].get_or_insert(key);
        number += 1;
    }
    found.into_iter().flatten().collect()
}

/// Holds keys for long, and returns their leases.
fn hold(store: &Store, keys: impl IntoIterator<Item = String>) -> BTreeMap<String, String> {
    let acquire = |key: String| {
        let done = store.run(&["acquire", &key, "--ttl", "5m"]);
        assert!(done.status.success(), "{done:#?}");
        (key, done.stdout.trim().to_owned())
    };
    keys.into_iter().map(acquire).collect()
}

fn try_run(store: &Store, key: &str) -> Done {
    store.run(&["run", "-n", "--store-timeout", "300ms", key, "--", "echo", "in"])
}

/// Whether a key is in a table.
fn shows(status: &Done, key: &str) -> bool {
    status.stdout.lines().any(|line| line.split_whitespace().next() == Some(key))
}

#[test]
fn each_key_is_on_one_of_five_servers_and_all_are_listed() {
    if !has(REDIS) {
        return;
    }
    let (store, _) = ring(&[0, 1, 2, 3, 4]);
    let keys: Vec<String> = (0..60).map(|number| format!("deploy/{number:02}")).collect();
    thread::scope(|scope| {
        for some in keys.chunks(30) {
            let store = &store;
            scope.spawn(move || hold(store, some.to_vec()));
        }
    });
    let records = records(&store, &shared_nodes().0);
    assert!(records.iter().all(|keys| !keys.is_empty()), "{records:?}");
    assert_eq!(records.iter().map(BTreeSet::len).sum::<usize>(), 60, "a key is on one of them");
    let status: serde_json::Value =
        serde_json::from_str(&store.run(&["status", "--json"]).stdout).expect("status prints JSON");
    let listed: Vec<&str> =
        status["keys"].as_array().expect("a list").iter().map(|key| key["key"].as_str().expect("a name")).collect();
    assert_eq!(listed, keys);
    let metrics = store.run(&["metrics", "--prefix", "deploy/4"]).stdout;
    assert_eq!(metrics.lines().filter(|line| line.starts_with("dlock_holders{")).count(), 10, "{metrics}");
    // In another order it is the same ring.
    let turned =
        Store::on_ring().at(&format!("{}?prefix={}", shared_nodes().url("ring", &[3, 1, 4, 0, 2]), store.prefix()));
    try_run(&turned, "deploy/07").says(75, &["'deploy/07' is held"]);
    assert_eq!(turned.identity(), status["store"].as_str().expect("a text"));
}

#[test]
fn a_node_that_is_dead_takes_only_its_own_keys_along() {
    if !has(REDIS) {
        return;
    }
    let mut nodes = Nodes::start(REDIS, 3, &["--appendonly", "yes"]);
    let store = Store::new().at(&nodes.url("ring", &[0, 1, 2]));
    let keys = one_of_each(&store, &nodes.0);
    nodes.0[1].kill();
    let dead = format!("node 2 ({}): connection refused", nodes.name(1));
    try_run(&store, &keys[1]).says(69, &[&dead, "gave up after 300ms"]);
    for key in [&keys[0], &keys[2]] {
        try_run(&store, key).says(75, &["is held"]);
        assert!(store.run(&["unlock", key, "--yes"]).status.success());
        store.run(&["run", "-n", key, "--", "echo", "in"]).is(0, "in\n", "");
    }
    let status = store.run(&["--store-timeout", "300ms", "status", "--all"]);
    status.says(69, &[&dead, "missing here"]);
    assert!(shows(&status, &keys[0]) && !shows(&status, &keys[1]), "{status:#?}");
    store.run(&["--store-timeout", "300ms", "setup"]).says(69, &[&dead]);
    // With what it had it is what it was.
    nodes.0[1].start_again();
    try_run(&store, &keys[1]).says(75, &["is held"]);
    // A node that has forgotten all is told again which list it belongs to, unless it is not known what others say.
    nodes.0[1].ask(&["FLUSHALL"]);
    nodes.0[2].kill();
    try_run(&store, &keys[1]).says(69, &[&format!("node 3 ({}): connection refused", nodes.name(2))]);
    nodes.0[2].start_again();
    try_run(&store, &keys[1]).is(0, "in\n", "");
    try_run(&store, &keys[2]).is(0, "in\n", "");
}

#[test]
fn of_two_lists_that_overlap_the_first_one_that_is_used_is_that_of_the_ring() {
    const PROCESSES: usize = 8;
    if !has(REDIS) {
        return;
    }
    for _ in 0..3 {
        let (one, other) = ring(&[0, 1, 2]);
        let stores = [one, other(&[1, 2, 3])];
        let script = format!("{}; echo $DLOCK_FENCE", stores[0].alone());
        let runs: Vec<(usize, Done)> = thread::scope(|scope| {
            let run = |number: usize| {
                let (store, script) = (&stores[number % 2], &script);
                scope.spawn(move || (number % 2, store.run(&["run", "k", "--", "sh", "-c", script])))
            };
            let all: Vec<_> = (0..PROCESSES).map(run).collect();
            all.into_iter().map(|thread| thread.join().expect("it only runs dlock")).collect()
        });
        let mut ran = BTreeSet::new();
        for (list, run) in &runs {
            match run.status.code() {
                Some(0) => assert!(ran.insert(*list) || !run.stdout.contains("overlap"), "{run:#?}"),
                Some(78) => run.says(78, &["its ring has other nodes, '", "'dlock setup'"]),
                _ => panic!("{run:#?}"),
            }
        }
        assert_eq!(ran.len(), 1, "keys were given out by two lists: {runs:#?}");
        // Whoever only looks is not told half of it.
        let wrong = &stores[usize::from(ran.contains(&0))];
        for args in [&["status"][..], &["status", "--watch"], &["metrics"], &["status", "k"], &["fence", "k"]] {
            let done = wrong.run(args);
            assert_eq!(done.status.code(), Some(78), "{args:?}: {done:#?}");
        }
    }
}

#[test]
fn keys_that_are_held_and_would_move_are_named_and_others_are_held_on() {
    if !has(REDIS) {
        return;
    }
    let (old, other) = ring(&[0, 1]);
    let new = other(&[0, 1, 2]);
    let leases = hold(&old, (0..40).map(|number| format!("k{number}")));
    let done = new.run(&["setup", "-w", "0"]);
    done.says(75, &["is as it was: 'k", " more are held"]);
    // It is open again.
    try_run(&old, "free").is(0, "in\n", "");
    try_run(&new, "free").says(78, &["its ring has other nodes"]);
    // Those that move are those that the new node has in the end.
    let first = done.stderr.split('\'').nth(1).expect("a key").to_owned();
    let mut fence = String::new();
    let installed = loop {
        let done = new.run(&["setup", "-w", "0"]);
        let Some(key) = done.stderr.split('\'').nth(1).map(str::to_owned) else { break done };
        old.run(&["release", &key, &leases[&key]]).is(0, "", "");
        if key == first {
            fence = old.run(&["fence", &first]).stdout;
        }
    };
    installed.is(0, "", "");
    // What was is known where it is now.
    new.run(&["fence", &first]).is(0, &fence, "");
    assert!(new.run(&["history", &first]).stdout.contains("released"));
    new.run(&["run", "--if-fence", "0", &first, "--", "true"]).says(75, &["fence"]);
    new.run(&["run", "--if-fence", fence.trim(), &first, "--", "echo", "in"]).is(0, "in\n", "");
    let moved = old.run(&["release", &first, &leases[&first]]);
    moved.says(78, &["its ring has other nodes"]);
    let held: BTreeSet<String> = {
        let status: serde_json::Value =
            serde_json::from_str(&new.run(&["status", "--json"]).stdout).expect("status prints JSON");
        status["keys"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|key| key["key"].as_str().expect("a name").into())
            .collect()
    };
    assert!((10..40).contains(&held.len()) && !held.contains(&first), "{held:?}");
    // Whoever has one of the others with the old list keeps it, and gives it back.
    for key in held.iter().take(3) {
        try_run(&new, key).says(75, &["is held"]);
        old.run(&["renew", key, &leases[key], "--ttl", "6m"]).is(0, "", "");
        old.run(&["release", key, &leases[key]]).is(0, "", "");
        try_run(&new, key).is(0, "in\n", "");
    }
    try_run(&new, &first).is(0, "in\n", "");
    // A key has its place, and what it was elsewhere is not shown twice.
    assert_eq!(new.run(&["status", "--all", "--json"]).stdout.matches(&format!("\"{first}\"")).count(), 1);
}

#[test]
fn a_list_is_installed_while_keys_are_used_and_never_by_two_at_once() {
    const KEYS: usize = 4;
    if !has(REDIS) {
        return;
    }
    let (old, other) = ring(&[0, 1]);
    let new = other(&[1, 2, 0, 3]);
    let url = old.path("url");
    fs::write(&url, old.url()).expect("a file");
    let script = |key: usize| {
        format!(
            "{}; read n <{key}.n; sleep 0.002; echo $((n + 1)) >{key}.n; echo $DLOCK_FENCE >>{key}.fences",
            old.alone().replace("alone", &format!("{key}.alone"))
        )
    };
    let (over, ran) = (AtomicBool::new(false), [AtomicUsize::new(0), AtomicUsize::new(0)]);
    for key in 0..KEYS {
        fs::write(old.path(&format!("{key}.n")), "0\n").expect("a file");
    }
    thread::scope(|scope| {
        for worker in 0..6 {
            let (over, ran, url, old, script) = (&over, &ran, &url, &old, &script);
            scope.spawn(move || {
                let mut number = worker;
                while !over.load(Ordering::Relaxed) {
                    number += 1;
                    let key = number % KEYS;
                    let mut run = old.dlock(&["run", &format!("k{key}"), "--store-file"]);
                    run.env_remove("DLOCK_STORE").arg(url).args(["--", "sh", "-c", &script(key)]);
                    let done = crate::support::finish(&mut run);
                    match done.status.code() {
                        // Which list it had when it began nobody knows.
                        Some(0) => assert!(!done.stdout.contains("overlap"), "{done:#?}"),
                        Some(78) => done.says(78, &["its ring has other nodes"]),
                        _ => panic!("{done:#?}"),
                    }
                    ran[usize::from(!done.status.success())].fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let more = |count: usize| {
            let before = ran[0].load(Ordering::Relaxed);
            wait_for("runs", || ran[0].load(Ordering::Relaxed) >= before + count);
        };
        more(20);
        new.run(&["setup"]).is(0, "", "");
        let refused = ran[1].load(Ordering::Relaxed);
        wait_for("those who have the old list", || ran[1].load(Ordering::Relaxed) > refused);
        fs::write(&url, new.url()).expect("a file");
        more(20);
        over.store(true, Ordering::Relaxed);
    });
    for key in 0..KEYS {
        let count = fs::read_to_string(old.path(&format!("{key}.n"))).expect("the counter");
        let fences = fs::read_to_string(old.path(&format!("{key}.fences"))).expect("it was held");
        let fences: Vec<u64> = fences.lines().map(|fence| fence.parse().expect("a number")).collect();
        assert_eq!(count.trim(), fences.len().to_string());
        assert!(fences.is_sorted_by(|earlier, later| earlier < later), "{fences:?}");
    }
}

/// A ring, and the same with another node in place of the one that has `k`.
fn where_k_moves() -> (Store, Store) {
    let (old, other) = ring(&[0, 1]);
    old.run(&["run", "k", "--", "true"]).is(0, "", "");
    let at = records(&old, &shared_nodes().0).iter().position(|keys| keys.contains("k")).expect("a server has it");
    (old, other(&[1 - at, 2]))
}

/// A `setup` that waits for somebody who holds a key, with all nodes closed.
fn waiting_setup(new: &Store, old: &Store) -> Running {
    let setup = Running::start(&mut new.dlock(&["setup", "-w", "1h"]));
    wait_for("all nodes to be closed", || try_run(old, "free").stderr.contains("it is being set up"));
    setup
}

#[test]
fn a_hold_that_ended_unseen_has_ended_where_the_key_is_then() {
    if !has(REDIS) {
        return;
    }
    let (old, new) = where_k_moves();
    let lease = old.run(&["acquire", "k", "--ttl", "500ms", "--json"]).stdout;
    let lease: serde_json::Value = serde_json::from_str(&lease).expect("it is JSON");
    wait_for("the lease to end", || old.run(&["status", "k"]).status.code() == Some(1));
    new.run(&["setup"]).is(0, "", "");
    let fence = lease["fence"].as_u64().expect("a number");
    new.run(&["fence", "k"]).is(0, &format!("{}\n", fence + 1), "");
    assert!(new.run(&["history", "k"]).stdout.contains("expired"));
}

#[test]
fn while_a_list_is_installed_holders_keep_their_keys_and_nobody_gets_one() {
    if !has(REDIS) {
        return;
    }
    let (old, new) = where_k_moves();
    let mut holder = old.holding("k", &["--ttl", "1"], "echo ready; cat >/dev/null");
    let setup = waiting_setup(&new, &old);
    for store in [&old, &new] {
        try_run(store, "free").says(69, &["it is being set up", "gave up after 300ms"]);
    }
    // Beats go on.
    super::await_beat(&old);
    // Whoever is asked to end opens again what was open.
    setup.signal(Signal::SIGINT);
    let ended = setup.finish();
    ended.died_of(Signal::SIGINT);
    assert!(ended.stderr.ends_with("is as it was: 'k' is held\n"), "{ended:#?}");
    try_run(&old, "free").is(0, "in\n", "");
    let setup = waiting_setup(&new, &old);
    let other_setup = new.run(&["setup", "--store-timeout", "300ms"]);
    other_setup.says(69, &["another 'dlock setup' is at it"]);
    let waiter = Running::start(&mut new.dlock(&["run", "k", "--", "echo", "in"]));
    holder.close_stdin();
    holder.finish().is(0, "", "");
    setup.finish().is(0, "", "");
    waiter.finish().is(0, "in\n", "");
    try_run(&old, "k").says(78, &["it was taken out of its ring, whose nodes are now '"]);
}

#[test]
fn a_setup_that_was_killed_is_taken_up_by_the_next_one() {
    if !has(REDIS) {
        return;
    }
    let (old, new) = where_k_moves();
    let holder = old.holding("k", &["--ttl", "1"], "echo ready; cat >/dev/null");
    let setup = waiting_setup(&new, &old);
    setup.signal(Signal::SIGKILL);
    setup.finish().died_of(Signal::SIGKILL);
    super::await_beat(&old);
    try_run(&old, "free").says(69, &["if no 'dlock setup' is at it any more, run that again"]);
    holder.finish().is(0, "", "");
    new.run(&["setup"]).is(0, "", "");
    try_run(&new, "k").is(0, "in\n", "");
}

#[test]
fn answers_of_a_setup_that_are_lost_change_nothing() {
    if !has(REDIS) {
        return;
    }
    let nodes = Nodes::start(REDIS, 2, &[]);
    let proxy = Proxy::to(&nodes.0[1]);
    let url = |proxy: &Proxy| format!("redis+ring://{},{}", nodes.name(0), proxy.url().trim_start_matches("redis://"));
    let store = Store::new().at(&url(&proxy));
    for step in ["look", "close", "keep", "open"] {
        nodes.0.iter().for_each(|server| drop(server.ask(&["FLUSHALL"])));
        proxy.next(step, Fate::Torn);
        store.run(&["setup"]).is(0, "", "");
        assert!(proxy.is_spent(), "{step}");
        for number in 0..4 {
            try_run(&store, &format!("k{number}")).is(0, "in\n", "");
        }
    }
    // A reply that is lost is asked for again, and gets the same answer, as with one server.
    proxy.next("acquire", Fate::Torn);
    for number in 0..20 {
        try_run(&store, &format!("k{number}")).is(0, "in\n", "");
    }
    assert!(proxy.is_spent());
}

#[test]
fn a_first_run_that_was_killed_while_it_set_up_the_ring_leaves_it_to_the_next_one() {
    if !has(REDIS) {
        return;
    }
    let nodes = Nodes::start(REDIS, 2, &[]);
    let proxy = Proxy::to(&nodes.0[1]);
    let store = Store::new().at(&format!("redis+ring://{},{}:{PORT}", nodes.name(0), proxy.host()));
    proxy.next("close", Fate::Swallowed);
    let first = Running::start(&mut store.dlock(&["run", "k", "--", "true"]));
    let is_closed = |server: &Server| server.try_ask::<bool>(&["HEXISTS", "dlock:ring", "for"]).unwrap_or(false);
    wait_for("two closed nodes", || nodes.0.iter().all(is_closed));
    first.signal(Signal::SIGKILL);
    first.finish().died_of(Signal::SIGKILL);
    store.run(&["run", "k", "--", "true"]).is(0, "", "");
    assert!(!nodes.0.iter().any(is_closed));
}

#[test]
fn each_node_may_have_its_own_password_and_the_rule_for_a_user_is_enough() {
    for program in [REDIS, VALKEY].into_iter().filter(|program| has(program)) {
        let nodes = Nodes::start(program, 3, &[]);
        let rule: Vec<&str> = RULE.split_whitespace().collect();
        let users = ["app", "app", "own"];
        let secrets = [SECRET, SECRET, "0ther"];
        for (server, (user, secret)) in nodes.0.iter().zip(users.iter().zip(secrets)) {
            server.ask(&[&["ACL", "SETUSER", user, "on", &format!(">{secret}")], &rule[..]].concat());
            server.ask(&["ACL", "SETUSER", "default", "off"]);
        }
        let [a, b, c] = [0, 1, 2].map(|number| nodes.name(number));
        let store = Store::new().at(&format!("redis+ring://app:{SECRET}@{a},{b},own:0ther@{c}"));
        store.run(&["setup"]).is(0, "", "");
        works(&store);
        let wrong = Store::new().at(&format!("redis+ring://app:{SECRET}@{a},{b},{c}"));
        let done = wrong.run(&["setup"]);
        done.says(77, &[&format!("node 3 ({c}): "), "WRONGPASS"]);
        assert!(!done.stderr.contains(SECRET), "{done:#?}");
    }
}

#[test]
fn tls_is_spoken_with_all_nodes() {
    if !has("openssl") {
        return;
    }
    let Some(program) = with_tls().into_iter().next() else { return };
    let nodes = Nodes::start(program, 2, &[]);
    let names: Vec<String> = nodes.0.iter().map(|server| format!("IP:{}", server.host)).collect();
    certify(nodes.0[0].path("").as_path(), &names.join(","));
    let file = |name: &str| nodes.0[0].path(name).display().to_string();
    for server in &nodes.0 {
        let files = [("tls-cert-file", "server.pem"), ("tls-key-file", "server.key"), ("tls-ca-cert-file", "ca.pem")];
        let mut set = vec!["CONFIG".to_owned(), "SET".to_owned(), "tls-auth-clients".into(), "no".into()];
        set.extend(files.iter().flat_map(|(option, name)| [(*option).to_owned(), file(name)]));
        server.ask(&set.iter().map(String::as_str).collect::<Vec<_>>());
        server.ask(&["CONFIG", "SET", "tls-port", &TLS_PORT.to_string()]);
    }
    let at_tls = nodes.url("ring", &[0, 1]).replace(&format!(":{PORT}"), &format!(":{TLS_PORT}"));
    let url = format!("{}?ca={}", at_tls.replace("redis+", "rediss+"), file("ca.pem"));
    works(&Store::new().at(&url));
    let distrusted = Store::new().at(&url.replace("ca.pem", "other.pem"));
    try_run(&distrusted, "k").says(77, &["node ", "nobody whom we trust"]);
}

#[test]
fn a_node_that_is_slow_holds_up_no_keys_but_its_own() {
    if !has(REDIS) {
        return;
    }
    let nodes = Nodes::start(REDIS, 3, &[]);
    let store = Store::new().at(&nodes.url("ring", &[0, 1, 2]));
    let keys = one_of_each(&store, &nodes.0);
    nodes.0[0].freeze();
    let begun = std::time::Instant::now();
    for key in &keys[1..] {
        try_run(&store, key).says(75, &["is held"]);
    }
    assert!(begun.elapsed() < Duration::from_millis(500), "{:?}", begun.elapsed());
    let dead = format!("node 1 ({}): it did not answer in time", nodes.name(0));
    let status = store.run(&["--store-timeout", "300ms", "status"]);
    status.says(69, &[&dead, "missing here"]);
    assert!(keys[1..].iter().all(|key| shows(&status, key)), "{status:#?}");
    nodes.0[0].thaw();
}
