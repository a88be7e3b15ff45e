//! What dlock asks of a server: commands, connections, keys; and that strange keys cost no more.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use redis::{Commands as _, Connection, Value};

use crate::support::journal::Journal;
use crate::support::redis::{REDIS, Server, VALKEY, on_both};
use crate::support::{Running, Store, crowd, has, wait_for};

/// What clients other than the test's own say to a server: the names of the commands and what follows.
struct Monitor {
    stream: TcpStream,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Monitor {
    fn on(server: &Server) -> Self {
        let mut stream = TcpStream::connect((&*server.host, crate::support::redis::PORT)).expect("it listens");
        stream.write_all(b"MONITOR\r\n").expect("it listens");
        let mut reader = BufReader::new(stream.try_clone().expect("a descriptor"));
        let mut ok = String::new();
        reader.read_line(&mut ok).expect("it answers");
        assert_eq!(ok, "+OK\r\n");
        let lines = Arc::<Mutex<Vec<String>>>::default();
        let heard = Arc::clone(&lines);
        thread::spawn(move || {
            for line in reader.lines().map_while(Result::ok) {
                heard.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            }
        });
        Self { stream, lines }
    }

    /// Each command so far as its words, the first in small letters. Those in scripts are not among them.
    fn heard(&self, server: &Server) -> Vec<Vec<String>> {
        static MARKS: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        let mark = format!("mark{}", MARKS.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        server.ask(&["ECHO", &mark]);
        let mut lines = Vec::new();
        wait_for("the server to tell all", || {
            lines.clone_from(&self.lines.lock().unwrap_or_else(PoisonError::into_inner));
            lines.iter().any(|line| line.contains(&mark))
        });
        // `+TIME [DB CLIENT] "COMMAND" "WORD" …`
        let client =
            |line: &str| line.split(['[', ']']).nth(1).and_then(|from| from.split(' ').nth(1)).map(str::to_owned);
        let ours: BTreeSet<_> =
            lines.iter().filter(|line| line.contains("\"mark")).filter_map(|line| client(line)).collect();
        let others =
            lines.iter().filter(|line| client(line).is_some_and(|from| from != "lua" && !ours.contains(&from)));
        let words = |line: &String| {
            let (_, command) = line.split_once("] ").expect("a command");
            let mut words: Vec<String> = command.split(' ').map(|word| word.trim_matches('"').to_owned()).collect();
            words[0].make_ascii_lowercase();
            words
        };
        others.map(words).collect()
    }

    fn names(&self, server: &Server) -> Vec<String> {
        self.heard(server).into_iter().map(|mut words| words.swap_remove(0)).collect()
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}

fn info(connection: &mut Connection, section: &str) -> String {
    redis::cmd("INFO").arg(section).query(connection).expect("it tells")
}

#[test]
fn a_run_that_nobody_hinders_is_two_scripts_on_one_connection() {
    on_both(|store| {
        let server = store.server();
        store.run(&["run", "k", "--", "true"]).is(0, "", "");
        let monitor = Monitor::on(server);
        store.run(&["run", "k", "--", "true"]).is(0, "", "");
        assert_eq!(monitor.names(server), ["evalsha", "evalsha"]);
        drop(monitor);
        server.ask(&["ACL", "SETUSER", "bob", "on", ">pw", "~*", "+@all"]);
        let monitor = Monitor::on(server);
        let bob = Store::new().at(&format!("{}/2", server.url().replace("//", "//bob:pw@")));
        bob.run(&["run", "k", "--", "true"]).is(0, "", "");
        let heard = monitor.names(server);
        let heard: Vec<&str> = heard.iter().map(|name| &**name).filter(|name| *name != "auth").collect();
        assert_eq!(heard, ["select", "evalsha", "evalsha"]);
        let connections = |connection: &mut Connection| {
            let stats = info(connection, "stats");
            let count = stats.lines().find_map(|line| line.strip_prefix("total_connections_received:"));
            count.and_then(|count| count.trim().parse::<u64>().ok()).expect("a number")
        };
        let mut own = server.connection();
        let before = connections(&mut own);
        store.run(&["run", "k", "--", "sleep", "0.2"]).is(0, "", "");
        assert_eq!(connections(&mut own) - before, 1);
    });
}

#[test]
fn a_key_that_stays_taken_for_long_is_kept_for_longer() {
    on_both(|store| {
        store.run(&["run", "k", "--min-hold", "60d", "--", "true"]).is(0, "", "");
        let days = |name: &str| {
            let seconds: i64 = redis::from_redis_value(store.server().ask(&["TTL", name])).expect("a number");
            seconds / (24 * 60 * 60)
        };
        assert!((89..=90).contains(&days("dlock:{k}:record")), "{}", days("dlock:{k}:record"));
        store.run(&["status"]).status.success().then_some(()).expect("it is held");
    });
}

#[test]
fn a_holder_renews_and_listens_once_per_beat() {
    on_both(|store| {
        let server = store.server();
        let monitor = Monitor::on(server);
        // A beat is 1.2 s.
        let mut holder = store.holding("k", &["--ttl", "6s", "-k", "2.4s"], "echo ready; cat >/dev/null");
        let started = Instant::now();
        let mut heard = Vec::new();
        wait_for("some beats", || {
            thread::sleep(Duration::from_millis(200));
            heard = monitor.heard(server);
            heard.iter().filter(|words| words[0] == "blpop").count() >= 4
        });
        let beats = started.elapsed().as_secs_f64() / 1.2;
        let names: Vec<&str> = heard.iter().map(|words| &*words[0]).skip_while(|name| *name != "blpop").collect();
        for pair in names.windows(2) {
            assert_ne!(pair[0], pair[1], "{names:?}");
        }
        assert!(names.iter().all(|name| ["blpop", "evalsha"].contains(name)), "{names:?}");
        assert!(f64::from(u32::try_from(names.len()).expect("a few")) <= 2.0 * beats + 2.0, "{beats}: {names:?}");
        for listen in heard.iter().filter(|words| words[0] == "blpop") {
            let span: f64 = listen.last().and_then(|span| span.parse().ok()).expect("a span");
            assert!(span > 0.0 && span < 1.2, "{listen:?}");
        }
        holder.close_stdin();
        holder.finish().is(0, "", "");
    });
}

/// A process without pipes, killed with the test.
struct Quiet(Child);

impl Quiet {
    fn start(store: &Store, args: &[&str]) -> Self {
        let mut dlock = store.dlock(args);
        Self(dlock.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts"))
    }

    fn kill(mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts one that waits in line for `k`, and waits until it does. Asks the server for no script.
fn enqueue(store: &Store, own: &mut Connection, script: &str) -> Quiet {
    let waiting = |own: &mut Connection| own.zcard::<_, usize>("dlock:{k}:queue").expect("a number");
    let before = waiting(own);
    // Who waited for a good part of its ttl renews what it is granted before it counts on it: a script more.
    let waiter = Quiet::start(store, &["run", "--ttl", "10m", "k", "--", "sh", "-c", script]);
    wait_for("one more in the queue", || waiting(own) > before);
    waiter
}

/// So many wait in line; each gets the key once, in order, for two scripts and the one that gives it back.
fn wait_in_order(store: &Store, many: u32) {
    let server = store.server();
    let journal = Journal::new(store);
    let mut own = server.connection();
    let mut holder = store.holding("k", &["--ttl", "10m"], "echo ready; cat >/dev/null");
    let before = server.calls("evalsha");
    let names: Vec<String> = (0..many).map(|number| number.to_string()).collect();
    let waiters: Vec<Quiet> = names.iter().map(|name| enqueue(store, &mut own, &journal.visit(name, ":"))).collect();
    let started = Instant::now();
    holder.close_stdin();
    for mut waiter in waiters {
        assert!(waiter.0.wait().expect("it ends").success());
    }
    let took = started.elapsed();
    holder.finish().is(0, "", "");
    assert_eq!(journal.entered(), names, "each once, and in order");
    assert_eq!(journal.most_at_once(), 1);
    // The holder gave the key back, too.
    let scripts =
        f64::from(u32::try_from(server.calls("evalsha") - before - 1).expect("not so many")) / f64::from(many);
    assert!(scripts - 1.0 <= 2.1, "{many} waiters: {scripts} scripts each, in {took:?}");
}

#[test]
fn fifty_who_wait_cost_two_scripts_each_and_come_in_order() {
    on_both(|store| wait_in_order(store, 50));
}

#[test]
fn five_hundred_who_wait_cost_no_more() {
    if has(REDIS) {
        wait_in_order(&Store::on(Server::start(REDIS, &[])), 500);
    }
}

/// How many commands were done, apart from the test's own.
fn commands(own: &mut Connection) -> u64 {
    let stats = info(own, "commandstats");
    let others = stats.lines().filter(|line| line.starts_with("cmdstat_") && !line.contains("_info:"));
    let calls = |line: &str| line.split("calls=").nth(1)?.split(',').next()?.parse::<u64>().ok();
    others.filter_map(calls).sum()
}

#[test]
fn who_waits_says_next_to_nothing() {
    const WAITERS: u32 = 20;
    // Two signs of life, and a little.
    const SPAN: Duration = Duration::from_secs(33);
    if !has(REDIS) {
        return;
    }
    let store = Store::on(Server::start(REDIS, &[]));
    let mut own = store.server().connection();
    // It renews its lease every three minutes.
    let _holder = store.holding("k", &["--ttl", "10m"], "echo ready; cat >/dev/null");
    let waiters: Vec<_> = (0..WAITERS).map(|_| enqueue(&store, &mut own, "true")).collect();
    wait_for("all who listen", || info(&mut own, "clients").contains(&format!("blocked_clients:{}", WAITERS + 1)));
    let (before, started) = (commands(&mut own), Instant::now());
    thread::sleep(SPAN);
    let each = f64::from(u32::try_from(commands(&mut own) - before).expect("not so many")) / f64::from(WAITERS);
    let rate = each / started.elapsed().as_secs_f64();
    assert!(rate <= 0.2, "{rate} commands a second and waiter");
    assert!(rate > 0.05, "{rate}: they showed no life");
    assert_eq!(own.zcard::<_, u32>("dlock:{k}:queue").expect("a number"), WAITERS);
    drop(waiters);
}

#[test]
fn strange_keys_and_notes_come_back_as_they_were_given() {
    let long = "é{%}".repeat(40);
    let keys = [
        "a",
        "{a}",
        "a}",
        "{a",
        "}{",
        "{}",
        "%7B%7D",
        "%7Ba%7D",
        "%257B",
        "a b",
        "a  b",
        "a\u{a0}b",
        "a:record",
        "a\"b",
        "a'b",
        "a\\b",
        "a%b",
        "a%25b",
        "*",
        "[a]",
        "a?b",
        "\u{e9}",
        "e\u{301}",
        "𝕜 ключ 鍵",
        "$(x)",
        &long,
    ];
    on_both(|store| {
        let note = |key: &str| format!("{key}\r\n\t\"quoted\" 'too' {{%s}} \\ 100% \u{1b}[31m \u{202e}é𝕜");
        let script = "echo ready; cat >/dev/null";
        // All at once: what was the same to the server would wait.
        let holders: Vec<Running> =
            keys.iter().map(|key| store.holding(key, &["-n", "--note", &note(key)], script)).collect();
        for key in keys {
            let status = store.status(key);
            assert_eq!(status["key"], key);
            assert_eq!(status["holders"][0]["note"], note(key), "{key}");
        }
        let done = store.run(&["status", "--json"]);
        let all: serde_json::Value = serde_json::from_str(&done.stdout).expect("status prints JSON");
        let listed = all["keys"].as_array().expect("a list").iter().filter_map(|key| key["key"].as_str());
        assert_eq!(listed.collect::<BTreeSet<_>>(), BTreeSet::from(keys));
        let mut tags = BTreeSet::new();
        for name in store.server().keys().iter().filter(|name| *name != "dlock:index") {
            let tag = name.strip_prefix("dlock:{").and_then(|rest| rest.split_once("}:"));
            let (tag, part) = tag.unwrap_or_else(|| panic!("{name} has no tag"));
            assert!(!tag.contains(['{', '}']) && !part.contains(['{', '}', ':']), "{name} has one tag");
            tags.insert(tag.to_owned());
        }
        assert_eq!(tags.len(), keys.len());
        for mut holder in holders {
            holder.close_stdin();
            holder.finish().is(0, "", "");
        }
    });
}

/// The shortest of 20 runs and of 20 looks, first on one store, then on the other, in turns.
fn shortest(stores: [&Store; 2]) -> [[Duration; 2]; 2] {
    let verbs: [&[&str]; 2] = [&["run", "k", "--", "true"], &["status"]];
    verbs.map(|args| {
        let mut times = [Vec::new(), Vec::new()];
        for _ in 0..20 {
            for (store, times) in stores.iter().zip(&mut times) {
                let started = Instant::now();
                let done = store.run(args);
                times.push(started.elapsed());
                assert!(done.stderr.is_empty(), "{done:#?}");
            }
        }
        times.map(|times| times.into_iter().min().expect("there are some"))
    })
}

#[test]
fn a_million_keys_of_others_make_nothing_slower() {
    crowd::enter_last();
    for program in [REDIS, VALKEY].into_iter().filter(|program| has(program)) {
        let start = || Store::on(Server::start(program, &["--enable-debug-command", "yes"]));
        let (empty, full) = (start(), start());
        full.server().ask(&["DEBUG", "POPULATE", "1000000", "dlock-of-others", "8"]);
        assert!(matches!(full.server().ask(&["DBSIZE"]), Value::Int(1_000_000)));
        for [of_empty, of_full] in shortest([&empty, &full]) {
            assert!(of_full <= of_empty.mul_f64(1.5), "{of_full:?} rather than {of_empty:?}");
        }
    }
}

#[test]
fn all_held_keys_are_shown_and_no_others_are_asked_for() {
    on_both(|store| {
        let server = store.server();
        thread::scope(|scope| {
            for tens in 0..30 {
                scope.spawn(move || {
                    for number in 0..10 {
                        let key = format!("held/{tens}{number}");
                        assert!(store.run(&["acquire", "--ttl", "1h", &key]).status.success());
                    }
                });
            }
        });
        // Keys that were given back a while ago are of no interest.
        for number in 0..50 {
            server.ask(&["ZADD", "dlock:index", "1700000000000000", &format!("free/{number}")]);
        }
        server.ask(&["CONFIG", "RESETSTAT"]);
        let done = store.run(&["status"]);
        assert_eq!(done.stdout.lines().count(), 301);
        assert_eq!(["evalsha", "zrangebyscore", "time"].map(|command| server.calls(command)), [300, 1, 301]);
    });
}

#[test]
fn whoever_checks_a_lease_asks_once() {
    on_both(|store| {
        let server = store.server();
        let id = store.run(&["acquire", "k"]).stdout;
        server.ask(&["CONFIG", "RESETSTAT"]);
        assert!(store.run(&["check", "k", id.trim()]).status.success());
        assert_eq!(["evalsha", "eval"].map(|command| server.calls(command)), [1, 0]);
    });
}

/// Checks that a server keeps only what is kept of free keys, and each for a limited time.
#[track_caller]
fn is_tidy(server: &Server) {
    let mut own = server.connection();
    for name in server.keys() {
        let is_known = name == "dlock:index" || name.ends_with("}:record") || name.ends_with("}:events");
        assert!(is_known, "{name} is left: {:?}", server.keys());
        assert!(own.ttl::<_, i64>(&name).expect("a number") > 0, "{name} is for ever");
        if name.ends_with("}:record") {
            let fields: Vec<String> = own.hkeys(&name).expect("a hash");
            assert!(!fields.iter().any(|field| field.starts_with("h:") || field.starts_with("o:")), "{fields:?}");
        }
    }
}

#[test]
fn waiters_that_were_killed_leave_nothing_once_somebody_passed_them() {
    on_both(|store| {
        let mut own = store.server().connection();
        let mut holder = store.hold("k");
        let waiters = [(); 4].map(|()| enqueue(store, &mut own, "true"));
        let [first, mut second, third, mut last] = waiters;
        first.kill();
        third.kill();
        holder.close_stdin();
        holder.finish().is(0, "", "");
        assert!(second.0.wait().expect("it ends").success() && last.0.wait().expect("it ends").success());
        store.run(&["run", "k", "--", "true"]).is(0, "", "");
        is_tidy(store.server());
    });
}

/// One of many runs, of every sort.
fn visit(store: &Store, number: usize) {
    let key = ["a", "b", "c", "d"][number % 4];
    let run = |options: &[&str]| {
        let code = store.run(&[&["run", key], options, &["--", "true"]].concat()).status.code();
        assert!(matches!(code, Some(0 | 75)), "{options:?}: {code:?}");
    };
    match number % 25 {
        0 => {
            // A holder or a waiter, as it comes.
            let victim = Quiet::start(store, &["run", key, "--ttl", "500ms", "--", "sleep", "60"]);
            thread::sleep(Duration::from_millis(number as u64 % 80));
            victim.kill();
        }
        1 => run(&["--min-hold", "0.1"]),
        2..=7 => run(&["-n"]),
        8..=10 => run(&["-w", "0.02"]),
        11..=13 => run(&["-s"]),
        14..=16 => run(&["--slots", "2"]),
        17 => run(&["-n", "--if-fence", "1"]),
        _ => run(&[]),
    }
}

#[test]
fn nothing_is_left_of_hundreds_of_runs_but_what_is_kept_of_free_keys() {
    on_both(|store| {
        thread::scope(|scope| {
            for thread in 0..8 {
                scope.spawn(move || (0..64).for_each(|number| visit(store, thread * 64 + number)));
            }
        });
        for key in ["a", "b", "c", "d"] {
            store.run(&["run", key, "--", "true"]).is(0, "", "");
        }
        is_tidy(store.server());
    });
}
