//! What a server refuses, or a thing that is no such server says: one clear line, the right code, the command
//! not started, in bounded time and memory.

use std::fs;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use redis::Value;

use crate::support::fake::{Fake, hear};
use crate::support::redis::{REDIS, Server, VALKEY, on_both};
use crate::support::{Done, Running, Store, has, wait_for};

/// How long dlock tries again where it will be in vain. What is not tried again may take its time.
const PATIENCE: &str = "2";
const NO_HURRY: &str = "20";

/// No refusal takes longer, on a machine that has much else to do.
const BOUNDED: Duration = Duration::from_secs(20);

/// A record of 10,000 waiters has to fit. What is more is somebody who wishes us ill.
const MEMORY_KIB: u64 = 300 << 10;

/// Does `test` on a server of each kind with these options.
fn on_each(options: &[&str], test: impl Fn(&mut Store)) {
    for program in [REDIS, VALKEY] {
        if has(program) {
            test(&mut Store::on(Server::start(program, options)));
        }
    }
}

/// A `run` that must not come to its command: code and words, with and without waiting.
#[track_caller]
fn refused(store: &Store, code: i32, words: &[&str]) {
    let patience = if code == 69 { PATIENCE } else { NO_HURRY };
    for more in [&[][..], &["-n"]] {
        let run = [&["run", "k", "--store-timeout", patience], more, &["--", "echo", "in"]].concat();
        check(&store.run(&run), code, words);
    }
}

/// The same for what changes nothing.
#[track_caller]
fn refused_to_look(store: &Store, code: i32, words: &[&str]) {
    for verb in [&["status", "k"][..], &["fence", "k"], &["unlock", "k", "--yes"]] {
        check(&store.run(&[verb, &["--store-timeout", NO_HURRY]].concat()), code, words);
    }
}

#[track_caller]
fn check(done: &Done, code: i32, words: &[&str]) {
    done.says(code, words);
    assert_eq!(done.stdout, "", "the command was not started: {done:#?}");
    assert!(done.stderr.trim_end().chars().all(|c| !c.is_control()) && done.stderr.len() < 500, "{done:#?}");
}

/// Does `test` with each of these at once: most of it is waiting.
fn side_by_side<T: Send>(all: impl IntoIterator<Item = T>, test: impl Fn(T) + Sync) {
    thread::scope(|scope| {
        for one in all {
            scope.spawn(|| test(one));
        }
    });
}

fn with_user(store: &Store, name: &str, rule: &[&str]) -> String {
    store.server().ask(&[&["ACL", "SETUSER", name, "on", ">pw"], rule].concat());
    store.server().url().replace("//", &format!("//{name}:pw@"))
}

#[test]
fn a_wrong_password_or_none_where_one_is_needed_is_a_refusal() {
    on_both(|store| {
        store.server().ask(&["ACL", "SETUSER", "default", "resetpass", ">right"]);
        let at = |who: &str| Store::new().at(&store.server().url().replace("//", &format!("//{who}")));
        for (who, words) in [("", "wants a password"), (":wrong@", "WRONGPASS"), ("nobody:right@", "WRONGPASS")] {
            let begun = Instant::now();
            refused(&at(who), 77, &[words]);
            refused_to_look(&at(who), 77, &[words]);
            check(&at(who).run(&["status"]), 77, &[if who.is_empty() { "NOAUTH" } else { words }]);
            assert!(begun.elapsed() < BOUNDED, "it is not tried again");
        }
        at(":right@").run(&["run", "k", "--", "echo", "in"]).is(0, "in\n", "");
    });
}

#[test]
fn a_password_for_a_server_without_one_is_a_refusal() {
    on_both(|store| {
        let url = store.server().url().replace("//", "//:needless@");
        refused(&Store::new().at(&url), 77, &["without any password"]);
    });
}

#[test]
fn a_permission_that_is_missing_is_named() {
    on_both(|store| {
        for (name, rule, command) in [
            ("u1", &["+@all", "-evalsha", "~*"][..], "evalsha"),
            ("u2", &["+@all", "-hset", "~*"], "hset"),
            ("u3", &["+@all", "~other:*"], "key"),
        ] {
            let url = with_user(store, name, rule);
            refused(&Store::new().at(&url), 77, &[command]);
        }
        let url = with_user(store, "u4", &["+@all", "-select", "~*"]);
        refused(&Store::new().at(&format!("{url}/1")), 77, &["select"]);
        refused(&Store::new().at(&format!("{}/99", store.server().url())), 78, &["DB index is out of range"]);
    });
}

#[test]
fn one_who_waits_and_is_shut_out_says_so() {
    on_both(|store| {
        let url = with_user(store, "w", &["+@all", "~*"]);
        let _holder = store.hold("k");
        let shut_out = Store::new().at(&url);
        let waiter = shut_out.waiting("k", &[], "echo in");
        store.server().ask(&["ACL", "DELUSER", "w"]);
        check(&waiter.finish(), 77, &["WRONGPASS"]);
    });
}

#[test]
fn a_lease_that_is_not_renewed_is_lost_in_the_servers_words() {
    on_both(|store| {
        let url = with_user(store, "h", &["+@all", "~*"]);
        let mut holder = Store::new().at(&url).holding("k", &["--ttl", "1s"], "echo ready; cat >/dev/null");
        store.server().ask(&["ACL", "SETUSER", "h", "-evalsha"]);
        holder.child.wait().expect("it ends");
        let done = holder.finish();
        let first = done.stderr.lines().next().unwrap_or_default();
        assert!(done.status.code() == Some(76) && first.contains("lost 'k'") && first.contains("NOPERM"), "{done:#?}");
    });
}

#[test]
fn a_server_that_still_loads_is_waited_for() {
    on_each(&["--key-load-delay", "4000", "--loading-process-events-interval-bytes", "1024"], |store| {
        store.server().ask(&["EVAL", "for at = 1, 400 do redis.call('SET', at, string.rep('x', 100)) end", "0"]);
        store.server().ask(&["SAVE"]);
        store.server_mut().kill();
        store.server_mut().start_again();
        let done = store.run(&["run", "k", "-v", "--store-timeout", "60", "--", "echo", "in"]);
        assert!(done.status.success() && done.stdout == "in\n" && done.stderr.contains("LOADING"), "{done:#?}");
    });
}

#[test]
fn what_may_pass_is_tried_for_the_store_timeout() {
    let all = [
        "LOADING the dataset is in memory soon",
        "BUSY somebody's script runs",
        "MASTERDOWN link with MASTER is down",
        "TRYAGAIN during a resharding",
        "CLUSTERDOWN Hash slot not served",
        "NOREPLICAS Not enough good replicas to write",
        "UNHEARDOF trouble",
    ];
    side_by_side(all, |words| {
        let server = Fake::answering(format!("-{words}\r\n").as_bytes());
        let begun = Instant::now();
        refused(&Store::new().at(&server.url()), 69, &["redis at 127.0.0.1", words]);
        let took = begun.elapsed();
        assert!(took > Duration::from_millis(3400) && took < BOUNDED, "{words}: two tries of 2 s took {took:?}");
    });
}

#[test]
fn a_replica_is_never_asked_for_a_lock() {
    for program in [REDIS, VALKEY].into_iter().filter(|program| has(program)) {
        let master = Server::start(program, &["--repl-diskless-sync-delay", "0"]);
        let port = crate::support::redis::PORT.to_string();
        let replica = Store::on(Server::start(program, &["--replicaof", &master.host, &port]));
        wait_for("the replica to follow", || info(&replica, "replication").contains("master_link_status:up"));
        refused(&replica, 69, &["READONLY"]);
        assert_eq!(master.keys(), Vec::<String>::new());
    }
}

fn info(store: &Store, section: &str) -> String {
    redis::from_redis_value(store.server().ask(&["INFO", section])).expect("it is text")
}

#[test]
fn a_server_without_memory_or_disk_says_so_and_keeps_nothing() {
    on_each(&["--maxmemory", "100kb"], |store| {
        refused(store, 69, &["OOM"]);
        assert_eq!(store.server().keys(), Vec::<String>::new());
        store.server().ask(&["CONFIG", "SET", "maxmemory", "0"]);
        store.run(&["run", "k", "-n", "--", "echo", "in"]).is(0, "in\n", "");
    });
    on_each(&["--save", "3600 1000000"], |store| {
        // Once it answers it has read its file. None can be put where a folder with something in it is.
        store.server().ask(&["PING"]);
        fs::create_dir_all(store.server().path("dump.rdb/x")).expect("a folder");
        store.server().ask(&["BGSAVE"]);
        wait_for("a save that fails", || info(store, "persistence").contains("rdb_last_bgsave_status:err"));
        refused(store, 69, &["MISCONF"]);
        assert_eq!(store.server().keys(), Vec::<String>::new());
    });
}

#[test]
fn a_server_that_ran_full_keeps_the_locks_that_it_has() {
    on_both(|store| {
        let mut holder = store.holding("k", &["--ttl", "1s"], "echo ready; cat >/dev/null");
        let waiter = store.waiting("k", &[], "echo in");
        store.server().ask(&["CONFIG", "SET", "maxmemory", "100kb"]);
        let renewals = || store.server().calls("evalsha");
        let before = renewals();
        check(&store.run(&["run", "other", "-n", "--store-timeout", PATIENCE, "--", "echo", "in"]), 69, &["OOM"]);
        // A beat is a quarter of a second.
        wait_for("more renewals than a lease has", || renewals() > before + 12);
        holder.close_stdin();
        holder.finish().is(0, "", "");
        waiter.finish().is(0, "in\n", "");
    });
}

#[test]
fn a_server_that_is_full_is_tried_until_it_has_room() {
    on_each(&["--maxclients", "2"], |store| {
        let guests = [store.server().connection(), store.server().connection()];
        let done = store.run(&["run", "k", "--store-timeout", PATIENCE, "--", "echo", "in"]);
        // It closes without having read, so its words may be lost on their way.
        check(&done, 69, &["redis at"]);
        let mut args = store.dlock(&["run", "k", "-v", "--store-timeout", "60", "--", "echo", "in"]);
        let mut run = Running::start(&mut args);
        let mut heard = String::new();
        let stderr = run.child.stderr.take().expect("it is piped");
        let mut lines = std::io::BufRead::lines(std::io::BufReader::new(stderr));
        while !heard.contains("trying again") {
            heard = lines.next().expect("it says so").expect("it is text");
        }
        drop(guests);
        let done = run.finish();
        assert!(done.status.success() && done.stdout == "in\n", "{done:#?}");
    });
}

#[test]
fn a_server_that_is_no_node_of_a_cluster_is_bad_configuration() {
    on_both(|store| {
        let url = store.url().replace("redis:", "redis+cluster:");
        let words = "it is no node of a cluster; a single server is 'redis://'";
        store.run(&["status", "-S", &url]).says(78, &[words]);
        let done = store.run(&["doctor", "--json", "-S", &url]);
        assert_eq!(done.status.code(), Some(78), "{done:#?}");
        assert!(done.stdout.contains(words), "{done:#?}");
    });
}

#[test]
fn a_node_of_a_cluster_is_bad_configuration() {
    for program in [REDIS, VALKEY].into_iter().filter(|program| has(program)) {
        let cluster = ["--cluster-enabled", "yes", "--cluster-require-full-coverage", "no"];
        let (here, there) = (Server::start(program, &cluster), Server::start(program, &cluster));
        let store = Store::on(here);
        let list = || store.run(&["status", "--store-timeout", PATIENCE]);
        check(&list(), 69, &["CLUSTERDOWN"]);
        there.ask(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]);
        store.server().ask(&["CLUSTER", "MEET", &there.host, &crate::support::redis::PORT.to_string()]);
        let served =
            |store: &Store| matches!(store.server().ask(&["CLUSTER", "SLOTS"]), Value::Array(s) if !s.is_empty());
        wait_for("the other node's slots", || served(&store));
        wait_for("an answer that is MOVED", || list().status.code() != Some(69));
        check(&list(), 78, &["node of a cluster"]);
        refused(&store, 78, &["node of a cluster"]);
    }
}

#[test]
fn a_command_that_an_administrator_took_away_is_a_refusal() {
    for name in ["EVALSHA", "EVAL"] {
        on_each(&["--rename-command", name, ""], |store| {
            refused(store, 77, &["unknown command", name]);
        });
    }
}

#[test]
fn a_key_of_another_kind_is_not_touched_and_no_lease_is_left() {
    on_both(|store| {
        for name in ["dlock:{k}:record", "dlock:{k}:queue", "dlock:{k}:life", "dlock:{k}:events", "dlock:index"] {
            store.server().ask(&["FLUSHALL"]);
            store.server().ask(&["SET", name, "mine"]);
            refused(store, 78, &["not dlock's", "?prefix="]);
            assert_eq!(store.server().ask(&["GET", name]), Value::BulkString(b"mine".into()));
            store.server().ask(&["DEL", name]);
            store.run(&["run", "k", "-n", "--", "echo", "in"]).is(0, "in\n", "");
        }
    });
}

#[test]
fn a_record_of_a_newer_dlock_is_refused_and_left_untouched() {
    on_both(|store| {
        let server = store.server();
        server.ask(&["HSET", "dlock:{k}:record", "layout", "2", "fence", "7", "h:new", "?"]);
        server.ask(&["ZADD", "dlock:{k}:queue", "1", "new"]);
        let dump = || ["dlock:{k}:record", "dlock:{k}:queue"].map(|key| server.ask(&["DUMP", key]));
        let before = (dump(), server.keys());
        refused(store, 78, &["layout 2", "newer dlock"]);
        refused_to_look(store, 78, &["layout 2", "newer dlock"]);
        assert_eq!((dump(), server.keys()), before);
    });
}

#[test]
fn a_record_that_is_not_as_dlock_writes_it_is_bad_configuration() {
    on_both(|store| {
        for (field, value) in [("h:00", "no JSON"), ("h:00", "[1]"), ("fence", "x"), ("h:00", "{}"), ("layout", "y")] {
            store.server().ask(&["FLUSHALL"]);
            store.server().ask(&["HSET", "dlock:{k}:record", field, value]);
            refused(store, 78, &["redis at"]);
            refused_to_look(store, 78, &["redis at"]);
        }
    });
}

#[test]
fn what_is_no_redis_is_told_from_one() {
    let closing = Fake::new(drop);
    let silent = Fake::new(|mut stream| while hear(&mut stream) {});
    let hanging_up = Fake::new(|mut stream| while !hear(&mut stream) {});
    let all = [
        (&Fake::answering(b"HTTP/1.1 400 Bad Request\r\nServer: x\r\n\r\n"), "not the protocol of Redis"),
        (&Fake::answering(b"\x15\x03\x01\x00\x02\x02\x46"), "not the protocol of Redis"),
        (&Fake::answering(b"SSH-2.0-OpenSSH_9.2\r\n"), "not the protocol of Redis"),
        (&Fake::answering(b"\xff\xfe\x00"), "not the protocol of Redis"),
        (&Fake::answering(b"+\xff\r\n"), "not the protocol of Redis"),
        (&Fake::answering(b"*3\r\n:1\r\n"), "did not answer"),
        (&closing, "redis at"),
        (&hanging_up, "closed the connection"),
        (&silent, "did not answer"),
    ];
    side_by_side(all, |(server, words)| {
        let begun = Instant::now();
        refused(&Store::new().at(&server.url()), 69, &["redis at 127.0.0.1", words]);
        assert!(begun.elapsed() < BOUNDED, "{words}");
    });
}

#[test]
fn a_reply_that_no_script_of_ours_gives_is_bad_configuration() {
    for reply in ["+OK", ":7", "$-1", "*0", "*-1", "*1\r\n+granted", "*2\r\n+granted\r\n:-5", "%1\r\n+a\r\n+b", "_"] {
        let server = Fake::answering(format!("{reply}\r\n").as_bytes());
        refused(&Store::new().at(&server.url()), 78, &["redis at 127.0.0.1"]);
    }
}

#[test]
fn a_servers_words_reach_no_terminal_raw() {
    let words = "-ERR \x1b[31mred\x07\u{9b}2J \u{202e}end".to_owned() + &"x".repeat(10_000) + "\r\n";
    let server = Fake::answering(words.as_bytes());
    let store = Store::new().at(&server.url());
    refused(&store, 78, &["red", "end"]);
    let done = store.run(&["run", "k", "--", "true"]);
    assert!(!done.stderr.contains(['\u{1b}', '\u{9b}', '\u{202e}']), "{done:#?}");
}

/// Runs a dlock to its end; with the most memory that it had, in KiB.
fn peak(store: &Store) -> (Done, u64) {
    let mut dlock = store.dlock(&["run", "k", "-n", "--store-timeout", PATIENCE, "--", "echo", "in"]);
    let mut running = Running::start(dlock.stdin(Stdio::null()));
    let mut most = 0;
    while running.child.try_wait().expect("it can be waited for").is_none() {
        let status = fs::read_to_string(format!("/proc/{}/status", running.pid())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        most = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(most);
        thread::sleep(Duration::from_millis(1));
    }
    (running.finish(), most)
}

#[test]
fn a_reply_without_end_costs_little_memory_and_time() {
    let endless: [(&str, &[u8], &[u8]); 13] = [
        ("a text", b"$99999999999\r\n", b"xxxxxxxx"),
        ("a text as long as there can be", b"$9223372036854775807\r\n", b"xxxxxxxx"),
        ("a text of no length", b"$-9223372036854775808\r\n", b"$-1\r\n"),
        ("a line", b"+", b"xxxxxxxx"),
        ("an error", b"-ERR ", b"xxxxxxxx"),
        ("a number", b":", b"11111111"),
        ("an array", b"*99999999999\r\n", b":1\r\n"),
        ("an array of nothing", b"*99999999999\r\n", b"_\r\n"),
        ("an array of arrays", b"*9223372036854775807\r\n", b"*1\r\n_\r\n"),
        ("arrays in arrays", b"", b"*1\r\n"),
        ("arrays in arrays in arrays", b"", b"*9999\r\n"),
        ("a map", b"%4611686018427387903\r\n", b"_\r\n"),
        ("attributes", b"", b"|1\r\n+a\r\n+b\r\n"),
    ];
    side_by_side(endless, |(name, start, rest)| {
        let server = Fake::without_end(start, rest);
        let begun = Instant::now();
        let (done, most) = peak(&Store::new().at(&server.url()));
        let took = begun.elapsed();
        check(&done, if name == "a text of no length" { 78 } else { 69 }, &["redis at 127.0.0.1"]);
        assert!(most < MEMORY_KIB && took < BOUNDED, "{name}: {most} KiB, {took:?}");
    });
}
