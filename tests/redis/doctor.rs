//! Whether a server can be trusted with locks. Each finding is that of a server which was set up so; where none can be
//! had that is, what one says is changed on its way.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use super::access::{EXAMINE, RULE};
use crate::doctor::{finds, read};
use crate::support::proxy::{Fate, Proxy};
use crate::support::redis::{PORT, REDIS, REDIS_6, Server, VALKEY, new_host};
use crate::support::{Done, Running, Store, command, finish, has, skipped, wait_for};

/// A server that forgets no lock.
pub(super) const SOUND: [&str; 6] =
    ["--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "noeviction"];

const SECRET: &str = "s3cr3t-W0rd";

/// How often the doctor asks for the clock: once to connect, and then to measure.
const QUESTIONS: usize = 51;

pub(super) fn doctor(url: &str) -> Done {
    Store::new().run(&["doctor", "--json", "-S", url])
}

/// Starts a server of each kind that is installed with these options besides those that keep locks safe.
pub(super) fn on_each(options: &[&str], test: impl Fn(&mut Server) + Sync) {
    thread::scope(|scope| {
        for program in [REDIS, VALKEY, REDIS_6].into_iter().filter(|program| has(program)) {
            let test = &test;
            scope.spawn(move || test(&mut Server::start(program, &[&SOUND[..], options].concat())));
        }
    });
}

/// Checks that a server with these options has just this wrong with it.
#[track_caller]
fn a_server_with(options: &[&str], severity: &str, words: &[&str]) {
    on_each(options, |server| {
        finds(&doctor(&server.url()), severity, words);
    });
}

/// Checks that nothing is found. The report.
#[track_caller]
pub(super) fn is_sound(url: &str) -> Value {
    let report = read(&doctor(url));
    assert_eq!(report["findings"], Value::Array(Vec::new()), "{report:#}");
    report
}

/// Whether a report has such a finding.
pub(super) fn has_finding(report: &Value, severity: &str, words: &str) -> bool {
    let such =
        |one: &Value| one["severity"] == severity && one["what"].as_str().is_some_and(|what| what.contains(words));
    report["findings"].as_array().is_some_and(|findings| findings.iter().any(such))
}

/// What a server says of itself.
fn says(server: &Server, line: &str) -> bool {
    let info: String = redis::cmd("INFO").query(&mut server.connection()).expect("it tells");
    info.lines().any(|said| said.starts_with(line))
}

#[test]
fn a_server_that_forgets_nothing_and_lets_in_nobody_is_sound() {
    on_each(&["--requirepass", SECRET], |server| {
        let url = server.url().replace("//", &format!("//:{SECRET}@"));
        let done = doctor(&url);
        let report = read(&done);
        assert_eq!(report["findings"], Value::Array(Vec::new()), "{report:#}");
        assert!(!done.stdout.contains(SECRET), "{done:#?}");
        assert_eq!(report["facts"]["persistence"], "append-only file, appendfsync always");
        let done = Store::new().run(&["doctor", "-S", &url]);
        assert!(done.status.success() && done.stdout.ends_with("\n\nsound\n"), "{done:#?}");
        assert!(!done.stdout.contains(SECRET), "{done:#?}");
    });
}

/// Checks that a server was asked for nothing that changes it.
#[track_caller]
pub(super) fn is_left_alone(server: &Server, besides: &[&str]) {
    let stats: String = redis::cmd("INFO").arg("commandstats").query(&mut server.connection()).expect("it counts");
    let asked: BTreeSet<&str> =
        stats.lines().filter_map(|line| line.strip_prefix("cmdstat_")?.split_once(':')).map(|(name, _)| name).collect();
    // The client of the tests says hello.
    let harmless = ["time", "info", "config", "config|get", "client", "client|setinfo", "hello"];
    let harmless = harmless.iter().chain(besides).copied().collect();
    assert!(asked.is_subset(&harmless) && asked.contains("time"), "{asked:?}");
}

#[test]
fn it_asks_for_nothing_that_changes_a_server() {
    on_each(&[], |server| {
        read(&doctor(&server.url()));
        is_left_alone(server, &[]);
        assert_eq!(server.keys(), Vec::<String>::new());
    });
}

#[test]
fn a_server_that_cannot_be_reached_or_refuses_us_is_a_report_too() {
    let url = format!("redis://{}:{PORT}", new_host());
    let done = Store::new().run(&["doctor", "--json", "-S", &url, "--store-timeout", "200ms"]);
    assert_eq!(done.status.code(), Some(69));
    let report = finds(&done, "error", &["connection refused"]);
    assert!(report["reachable"] == false && report["latency_us"].is_null(), "{report:#}");
    assert_eq!(report["error"], report["findings"][0]["what"]);
    on_each(&["--requirepass", SECRET], |server| {
        let done = doctor(&server.url());
        assert_eq!(done.status.code(), Some(77));
        assert_eq!(finds(&done, "error", &["NOAUTH"])["reachable"], true);
    });
}

#[test]
fn keys_that_may_be_evicted_are_found() {
    on_each(&["--maxmemory-policy", "volatile-lru"], |server| {
        finds(
            &doctor(&server.url()),
            "warning",
            &["maxmemory-policy is 'volatile-lru'", "as soon as it is given a limit"],
        );
        server.ask(&["CONFIG", "SET", "maxmemory", "100mb"]);
        finds(&doctor(&server.url()), "warning", &["when it has more than 102400 KiB"]);
        server.ask(&["SET", "x", "y", "EX", "1000"]);
        server.ask(&["CONFIG", "SET", "maxmemory", "1"]);
        wait_for("a key to be evicted", || says(server, "evicted_keys:1"));
        finds(&doctor(&server.url()), "warning", &["and has dropped 1 so far"]);
    });
}

#[test]
fn a_server_that_is_full_is_found() {
    on_each(&[], |server| {
        server.ask(&["CONFIG", "SET", "maxmemory", "100mb"]);
        assert_eq!(read(&doctor(&server.url()))["findings"], serde_json::json!([]));
        server.ask(&["CONFIG", "SET", "maxmemory", "900kb"]);
        finds(&doctor(&server.url()), "warning", &["KiB in memory, and its maxmemory is 900 KiB"]);
    });
}

#[test]
fn a_server_that_forgets_locks_when_it_restarts_is_found() {
    on_each(&["--appendonly", "no"], |server| {
        finds(&doctor(&server.url()), "warning", &["keeps nothing on its disk"]);
        server.ask(&["CONFIG", "SET", "save", "60 1"]);
        finds(&doctor(&server.url()), "warning", &["no append-only file, at most snapshots"]);
    });
    a_server_with(&["--appendfsync", "no"], "warning", &["appendfsync is 'no'"]);
    a_server_with(&["--appendfsync", "everysec"], "note", &["appendfsync is 'everysec'"]);
}

#[test]
fn a_server_that_cannot_write_to_its_disk_is_found() {
    on_each(&["--appendfsync", "everysec"], |server| {
        // Once it answers it has made its files.
        server.ask(&["PING"]);
        let pid = server.pid().to_string();
        finish(command("prlimit").args(["--pid", &pid, "--fsize=1"])).is(0, "", "");
        // The second one may be refused for what became of the first one.
        for _ in 0..2 {
            let _ = redis::cmd("SET").arg("k").arg("v").exec(&mut server.connection());
        }
        wait_for("a failed write", || says(server, "aof_last_write_status:err"));
        let report = read(&doctor(&server.url()));
        assert!(has_finding(&report, "warning", "cannot write its append-only file"), "{report:#}");
    });
    on_each(&[], |server| {
        fs::create_dir(server.path("dump.rdb")).expect("the directory is ours");
        server.ask(&["BGSAVE"]);
        wait_for("a failed snapshot", || says(server, "rdb_last_bgsave_status:err"));
        finds(&doctor(&server.url()), "warning", &["its last snapshot failed"]);
    });
}

#[test]
fn a_master_that_does_not_wait_for_its_replicas_and_a_replica_are_found() {
    on_each(&[], |master| {
        let port = PORT.to_string();
        let replica = Server::start(master.program(), &[&SOUND[..], &["--replicaof", &master.host, &port]].concat());
        wait_for("a replica that is up to date", || says(&replica, "master_link_status:up"));
        wait_for("a replica of a master", || says(master, "connected_slaves:1"));
        finds(&doctor(&master.url()), "warning", &["a replica, and min-replicas-to-write is 0"]);
        finds(&doctor(&replica.url()), "warning", &[&format!("it is a replica of {}:{PORT}", master.host)]);
        master.ask(&["CONFIG", "SET", "min-replicas-to-write", "1"]);
        let report = read(&doctor(&master.url()));
        assert_eq!(report["findings"], Value::Array(Vec::new()), "{report:#}");
        assert_eq!(report["facts"]["replicas"], "1");
    });
}

#[test]
fn a_node_of_a_cluster_is_found() {
    a_server_with(&["--cluster-enabled", "yes"], "warning", &["a node of a cluster"]);
}

#[test]
fn a_server_that_is_still_loading_is_found() {
    // A millisecond for each key, and an ear for others after every kilobyte.
    let slow = ["--key-load-delay", "1000", "--loading-process-events-interval-bytes", "1024"];
    for program in [REDIS, VALKEY].into_iter().filter(|program| has(program)) {
        let mut server = Server::start(program, &slow);
        let script = "for i = 1, 20000 do redis.call('SET', 'k' .. i, 'v') end";
        server.ask(&["EVAL", script, "0"]);
        server.ask(&["SAVE"]);
        server.kill();
        server.start_again();
        let report = read(&doctor(&server.url()));
        assert!(has_finding(&report, "warning", "still loading"), "{report:#}");
    }
}

#[test]
fn a_server_that_tells_us_too_little_is_found_and_the_rule_for_that_is_enough() {
    on_each(&[], |server| {
        let rule: Vec<&str> = RULE.split_whitespace().collect();
        server.ask(&[&["ACL", "SETUSER", "app", "on", &format!(">{SECRET}")], &rule[..]].concat());
        let app = server.url().replace("//", &format!("//app:{SECRET}@"));
        let report = read(&doctor(&app));
        for command in ["'info'", "'config get'"] {
            assert!(has_finding(&report, "warning", command), "{report:#}");
        }
        let todo = report["findings"][0]["do"].as_str().expect("a text");
        assert!(todo.contains(&format!("ACL SETUSER app {EXAMINE}")), "{todo}");
        server.ask(&["ACL", "SETUSER", "app", "+info"]);
        finds(&doctor(&app), "warning", &["'config get' to us ('NOPERM"]);
        let more: Vec<&str> = EXAMINE.split_whitespace().collect();
        server.ask(&[&["ACL", "SETUSER", "app"], &more[..]].concat());
        assert_eq!(read(&doctor(&app))["findings"], Value::Array(Vec::new()));
    });
    // Some who rent servers out keep it from everybody.
    a_server_with(&["--rename-command", "CONFIG", ""], "warning", &["'config get' to us ('ERR unknown command"]);
}

/// An address of this machine that others could reach.
fn outside() -> Option<IpAddr> {
    // For UDP that is a look at the routes; nothing is sent.
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    let address = socket.connect("198.51.100.1:9").and_then(|()| socket.local_addr()).ok()?;
    (!address.ip().is_loopback()).then_some(address.ip())
}

#[test]
fn a_server_that_lets_in_everybody_who_can_reach_it_is_found() {
    let Some(ip) = outside() else {
        skipped("this machine has no address but those of its own");
        return;
    };
    for program in [REDIS, VALKEY].into_iter().filter(|program| has(program)) {
        let free = TcpListener::bind((ip, 0)).and_then(|listener| listener.local_addr()).expect("a free port");
        let dir = tempfile::tempdir().expect("a directory for the server");
        let mut server = command(program);
        server.args(["--bind", &ip.to_string(), "--port", &free.port().to_string(), "--save", "", "--logfile", "log"]);
        server.args(["--protected-mode", "no"]).args(SOUND).current_dir(dir.path());
        let _server = Running::start(&mut server);
        wait_for("the server to listen", || TcpStream::connect(free).is_ok());
        finds(&doctor(&format!("redis://{free}")), "warning", &["gets in without a password"]);
        let client = redis::Client::open(format!("redis://{free}")).expect("a URL");
        let mut connection = client.get_connection().expect("it takes us in");
        let user = |name: &str, rules: &[&str], connection: &mut redis::Connection| {
            redis::cmd("ACL").arg("SETUSER").arg(name).arg(rules).exec(connection).expect("a user");
        };
        // That we have a password does not keep the others out.
        let secret = format!(">{SECRET}");
        user("bob", &["on", &secret, "~*", "+@all"], &mut connection);
        let bob = format!("redis://bob:{SECRET}@{free}");
        finds(&doctor(&bob), "warning", &["gets in without a password"]);
        user("default", &["resetpass", &secret], &mut connection);
        for url in [bob, format!("redis://:{SECRET}@{free}")] {
            assert_eq!(read(&doctor(&url))["findings"], Value::Array(Vec::new()), "{url}");
        }
    }
}

/// Checks what is found where the replies to these operations are other ones.
#[track_caller]
fn with_replies(server: &Server, operation: &str, fates: &[Fate], severity: &str, words: &[&str]) -> Value {
    let proxy = Proxy::to(server);
    for fate in fates {
        proxy.next(operation, *fate);
    }
    let report = finds(&doctor(&proxy.url()), severity, words);
    assert!(proxy.is_spent());
    report
}

#[test]
fn a_server_that_is_too_old_or_newer_than_any_is_found() {
    fn old(info: &str) -> String {
        info.replace("redis_version:7.0.", "redis_version:5.0.").replace("redis_version:6.2.", "redis_version:6.0.")
    }
    fn new(info: &str) -> String {
        // As long as it was.
        info.replace("redis_version:7.0.", "redis_version:8.0.")
            .replace("redis_version:6.2.", "redis_version:8.2.")
            .replace("valkey_version:9.1.2", "valkey_version:10.12")
            .replace("valkey_version:9.0.", "valkey_version:10..")
    }
    on_each(&[], |server| {
        if server.program() != VALKEY {
            with_replies(server, "info", &[Fate::Replaced(old)], "warning", &["and dlock needs 6.2"]);
        }
        with_replies(server, "info", &[Fate::Replaced(new)], "note", &["was tested with"]);
    });
}

/// An answer to `TIME`, so many seconds later.
pub(super) fn moved(time: &str, by: i64) -> String {
    let mut lines: Vec<String> = time.split("\r\n").map(str::to_owned).collect();
    let seconds: i64 = lines[2].parse().expect("TIME begins with seconds");
    lines[2] = (seconds + by).to_string();
    lines.join("\r\n")
}

#[test]
fn a_clock_that_is_not_ours_is_found() {
    on_each(&[], |server| {
        let clock = |fate, severity: &str, words: &str| {
            with_replies(server, "time", &[Fate::Replaced(fate); QUESTIONS], severity, &["its clock is", words])
        };
        let report = clock(|time| moved(time, 5), "note", "ahead of ours");
        let offset = report["clock_offset_ms"].as_i64().expect("a number");
        assert!((4900..5100).contains(&offset), "{report:#}");
        let report = clock(|time| moved(time, -60), "warning", "behind ours");
        assert!(report["clock_offset_ms"].as_i64() < Some(-59_900), "{report:#}");
    });
}

#[test]
fn a_server_that_is_too_slow_for_a_beat_is_found() {
    // The first one is not measured.
    let fates = [Fate::Late(Duration::ZERO), Fate::Late(Duration::from_millis(500))];
    on_each(&[], |server| {
        let proxy = Proxy::to(server);
        let asked = |ttl: &str| {
            for fate in fates {
                proxy.next("time", fate);
            }
            let store = Store::new();
            fs::write(store.path("config.toml"), format!("ttl = '{ttl}'\n")).expect("a file");
            let args = ["doctor", "--json", "-S", &proxy.url()];
            finish(store.dlock(&args).env("DLOCK_CONFIG", store.path("config.toml")))
        };
        // A third of a beat is 2.8 s.
        assert_eq!(read(&asked("30s"))["findings"], Value::Array(Vec::new()));
        // And 222 ms.
        finds(&asked("3s"), "warning", &["some of its answers take ", "a try to renew a lease 222.2ms at most"]);
    });
}
