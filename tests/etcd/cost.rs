//! What locks cost in etcd: how soon a key changes hands, and how much is asked while nothing changes.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::support::etcd::client::all_under;
use crate::support::etcd::proxy::Proxy;
use crate::support::etcd::{ETCD, Server};
use crate::support::journal::Journal;
use crate::support::{Running, Store, command, crowd, has, wait_for};
use crate::waiting::hand_over;

/// How many requests a server has got, but for what watches.
fn asked(host: &str) -> f64 {
    let mut stream = TcpStream::connect((host, 6390)).expect("it takes us in");
    write!(stream, "GET /metrics HTTP/1.0\r\nHost: {host}\r\n\r\n").expect("it listens");
    let mut told = String::new();
    stream.read_to_string(&mut told).expect("it tells");
    let started = told.lines().filter(|line| line.starts_with("grpc_server_started_total"));
    started.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

#[test]
fn nobody_asks_while_nothing_changes() {
    crowd::enter_last();
    if !has(ETCD) {
        return;
    }
    let store = Store::on_own_etcd(Server::start(ETCD, &[]));
    let holder = store.holding("k", &["--ttl", "60"], "echo ready; cat >/dev/null");
    let waiters: Vec<Running> = (0..4).map(|_| store.waiting("k", &[], ":")).collect();
    for waiter in &waiters {
        wait_for("it to sleep", || store.etcd().is_asleep(waiter));
    }
    store.await_listening(&holder);
    let host = store.etcd().host().to_owned();
    let before = asked(&host);
    // Long enough for whoever looks every now and then, and less than lies between two signs of life.
    std::thread::sleep(Duration::from_secs(4));
    assert!(asked(&host) <= before, "{} were asked", asked(&host) - before);
    holder.finish().is(0, "", "");
    for waiter in waiters {
        waiter.finish().is(0, "", "");
    }
}

#[test]
fn a_connection_that_ends_is_opened_again_and_costs_no_more_than_that() {
    if !has(ETCD) {
        return;
    }
    let near = Store::on_own_etcd(Server::start(ETCD, &[]));
    let host = near.etcd().host().to_owned();
    let proxy = Proxy::to(&host);
    let far = Store::new().at_url(&proxy.url(near.url()));
    let holder = far.holding("k", &["--ttl", "60"], "echo ready; cat >/dev/null");
    let waiter = far.waiting("k", &[], "echo in");
    wait_for("both to listen", || proxy.is_listened_to_by(&holder) && proxy.is_listened_to_by(&waiter));
    let before = asked(&host);
    proxy.cut();
    std::thread::sleep(Duration::from_secs(3));
    assert!(asked(&host) - before < 30.0, "{} were asked", asked(&host) - before);
    holder.finish().is(0, "", "");
    waiter.finish().is(0, "in\n", "");
}

#[test]
#[expect(clippy::print_stderr, reason = "the times are figures that people want to see")]
fn a_key_changes_hands_by_word_and_not_by_looking() {
    if !has(ETCD) {
        return;
    }
    let took = hand_over(&Store::on_etcd(ETCD), 20);
    eprintln!("from one of twenty to the next: {took:?}");
    assert!(took < Duration::from_millis(100), "{took:?}");
}

#[test]
fn a_key_that_changes_hands_asks_for_two_changes_two_leases_and_one_look() {
    crowd::enter_last();
    if !has(ETCD) {
        return;
    }
    let store = Store::on_own_etcd(Server::start(ETCD, &[]));
    let holder = store.hold("k");
    let waiters: Vec<Running> = (0..20).map(|_| store.waiting("k", &["-w", "60"], ":")).collect();
    for waiter in &waiters {
        wait_for("it to sleep", || store.etcd().is_asleep(waiter));
    }
    let host = store.etcd().host().to_owned();
    let before = asked(&host);
    holder.finish().is(0, "", "");
    for waiter in waiters {
        waiter.finish().is(0, "", "");
    }
    let each = (asked(&host) - before) / 20.0;
    // Those at the head of the queue listen to more, if their turn does not come at once.
    assert!(each < 6.5, "{each} were asked for each");
}

/// How long so many who wait for `etcdctl lock` take from one to the next.
fn hand_over_of_etcdctl(store: &Store, waiting: usize) -> Duration {
    let journal = Journal::new(store);
    let host = store.etcd().host().to_owned();
    let lock = |script: &str| {
        let mut lock = command("etcdctl-3.5");
        lock.args(["--endpoints", &format!("http://{host}:6390"), "lock", "other", "--", "sh", "-c", script]);
        lock.current_dir(store.dir.path());
        Running::start(&mut lock)
    };
    let in_line = |count| wait_for("it to stand in line", || all_under(&host, "other").len() == count);
    let holder = lock("until [ -e over ]; do sleep 0.01; done");
    in_line(1);
    let names: Vec<String> = (0..waiting).map(|number| number.to_string()).collect();
    let mut waiters = Vec::new();
    for name in &names {
        waiters.push(lock(&journal.visit(name, ":")));
        in_line(waiters.len() + 1);
    }
    let start = Instant::now();
    std::fs::write(store.path("over"), "").expect("a file");
    assert!(holder.finish().status.success());
    for waiter in waiters {
        assert!(waiter.finish().status.success());
    }
    let took = start.elapsed() / u32::try_from(waiting).expect("a few");
    std::fs::remove_file(store.path("over")).expect("it is there");
    took
}

/// Runs by hand: `cargo test --release hands -- --ignored --nocapture`.
#[test]
#[ignore = "it compares, which takes a machine that does nothing else"]
#[expect(clippy::print_stderr, reason = "the times are what it is for")]
fn a_key_changes_hands_as_soon_as_twice_what_etcdctl_lock_takes() {
    let mut ratios = Vec::new();
    for _ in 0..9 {
        let store = Store::on_etcd(ETCD);
        let (ours, theirs) = (hand_over(&store, 20), hand_over_of_etcdctl(&store, 20));
        eprintln!("from one of twenty to the next: dlock {ours:?}, etcdctl lock {theirs:?}");
        ratios.push(ours.as_secs_f64() / theirs.as_secs_f64());
    }
    ratios.sort_unstable_by(f64::total_cmp);
    eprintln!("the median of {ratios:.2?}");
    assert!(ratios[ratios.len() / 2] <= 2.0);
}
