//! What dlock asks of a server: statements, connections, room on its disk; and how soon a key changes hands.

use std::fs;
use std::thread;
use std::time::Duration;

use dlock::model::{Answer, Ask, Ending, Info, Key, LeaseId, Released, Renewed};
use dlock::store::{Ledger, PostgresAddress, PostgresRegister, Store as _};

use super::BOUNDED;
use crate::support::activity::Activity;
use crate::support::postgres::{Server, has_postgres};
use crate::support::{Running, Store, ask, wait_for};
use crate::waiting::hand_over;

const WITHIN: Duration = Duration::from_secs(20);

/// A server that writes down each statement.
fn talkative() -> Store {
    Store::on_own_postgres(Server::start(&["log_statement=all", "log_line_prefix=%a|", "log_connections=on"]))
}

/// The statements of dlock so far, by their first words.
fn said(store: &Store) -> Vec<String> {
    let log = fs::read_to_string(store.postgres().path("log")).expect("a log");
    let ours = log.lines().filter_map(|line| line.strip_prefix("dlock|LOG:  execute <unnamed>: "));
    ours.map(|line| line.split(' ').take(2).collect::<Vec<_>>().join(" ")).collect()
}

fn connections(store: &Store) -> usize {
    let log = fs::read_to_string(store.postgres().path("log")).expect("a log");
    log.matches("connection authorized").count() - log.matches("application_name=psql").count()
}

#[test]
fn a_run_that_nobody_hinders_is_two_transactions_on_one_connection() {
    if !has_postgres() {
        return;
    }
    let store = talkative();
    store.run(&["run", "k", "--", "true"]).is(0, "", "");
    let (before, connected) = (said(&store).len(), connections(&store));
    store.run(&["run", "k", "--", "sleep", "0.2"]).is(0, "", "");
    let transaction =
        ["BEGIN ISOLATION", "SELECT set_config('lock_timeout',", "SELECT record", "SELECT (floor(extract(epoch"];
    let written = ["UPDATE \"dlock\"", "SELECT count(pg_notify(channel,", "COMMIT"];
    let expected: Vec<&str> = [&transaction[..], &written].concat().repeat(2);
    assert_eq!(said(&store)[before..], expected);
    assert_eq!(connections(&store) - connected, 1);
}

#[test]
fn nothing_is_asked_while_nothing_changes() {
    if !has_postgres() {
        return;
    }
    let store = talkative();
    let holder = store.holding("k", &["--ttl", "60"], "echo ready; cat >/dev/null");
    let waiters: Vec<Running> = (0..4).map(|_| store.waiting("k", &BOUNDED, "true")).collect();
    store.await_listening(&holder);
    let mut before = said(&store);
    wait_for("all to sleep", || {
        thread::sleep(Duration::from_millis(300));
        let now = said(&store);
        std::mem::replace(&mut before, now) == before
    });
    let pids: Vec<i32> = waiters.iter().chain([&holder]).map(|one| one.pid().as_raw()).collect();
    let activity = || pids[..4].iter().map(|pid| Activity::of(*pid)).collect::<Vec<_>>();
    let asleep = activity();
    thread::sleep(Duration::from_secs(3));
    assert_eq!(said(&store), before);
    assert_eq!(activity(), asleep, "who waits sleeps");
    holder.finish().is(0, "", "");
    for waiter in waiters {
        waiter.finish().is(0, "", "");
    }
}

#[test]
fn signs_of_life_do_not_touch_the_record() {
    if !has_postgres() {
        return;
    }
    let store = Store::on_postgres();
    let holder = store.holding("k", &["--ttl", "10m"], "echo ready; cat >/dev/null");
    let waiter = store.waiting("k", &BOUNDED, "echo in");
    store.await_listening(&holder);
    let version = store.sql("SELECT xmin FROM TABLE");
    wait_for("a sign of life", || store.sql("SELECT count(*) FROM TABLE_life") == "1");
    assert_eq!(store.sql("SELECT xmin FROM TABLE"), version);
    // It counts: by the record alone it would be dead soon.
    let until = |store: &Store| store.status("k")["queue"][0]["until"].as_str().map(str::to_owned);
    let kept = store.sql("SELECT (record->'queue'->0->>'until')::bigint < (SELECT until FROM TABLE_life) FROM TABLE");
    assert_eq!(kept, "t", "{:?}", until(&store));
    let address = PostgresAddress::parse(store.url(), "/".as_ref()).expect("a URL");
    let table = Ledger::new(PostgresRegister::new(&address, true, WITHIN));
    let key = Key::parse("k").expect("a key");
    let seen = || table.inspect(&key).expect("it answers").expect("a record").queue[0].until;
    let good_until = seen();
    // What is none does not hide it.
    store.sql("INSERT INTO TABLE_life VALUES ('k', '00', -1)");
    assert_eq!(seen(), good_until);
    holder.finish().is(0, "", "");
    waiter.finish().is(0, "in\n", "");
    assert_eq!(store.sql("SELECT lease FROM TABLE_life"), "00");
}

/// Takes a key and gives it back, so often.
fn take_and_give(store: &Store, times: u32) {
    let address = PostgresAddress::parse(store.url(), "/".as_ref()).expect("a URL");
    let table = Ledger::new(PostgresRegister::new(&address, true, WITHIN));
    let key = Key::parse("k").expect("a key");
    for time in 0..times {
        let lease = LeaseId::new(u128::from(time + 1).to_le_bytes());
        let ask = Ask {
            info: Info {
                host: "a-host-with-a-name.example".into(),
                note: Some(format!("run {time}")),
                ..Info::default()
            },
            ..ask::ask(lease, WITHIN)
        };
        assert!(matches!(table.acquire(&key, &ask, WITHIN), Ok(Answer::Granted(_))));
        assert!(matches!(table.renew(&key, lease, WITHIN, WITHIN), Ok(Renewed::Until(_))));
        let ending = Some(Ending { exit: Some(0), ..Ending::default() });
        assert_eq!(table.release(&key, lease, ending, WITHIN).expect("it answers"), Released::Freed);
    }
}

/// `DLOCK_TEST_RUNS=10000` takes longer, and says no more.
#[test]
#[expect(clippy::print_stderr, reason = "the sizes are figures that people want to see")]
fn a_table_stays_as_small_as_it_was_however_often_keys_are_taken() {
    if !has_postgres() {
        return;
    }
    let times = std::env::var("DLOCK_TEST_RUNS").ok().and_then(|times| times.parse().ok()).unwrap_or(1000);
    // What others have open keeps old versions of rows.
    let store = Store::on_own_postgres(Server::start(&[]));
    let size = || store.sql("SELECT pg_total_relation_size('TABLE'), pg_relation_size('TABLE')");
    take_and_give(&store, 50);
    let early = size();
    take_and_give(&store, times);
    let late = size();
    let updates = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'TABLE'";
    let mut counts = Vec::new();
    wait_for("the server to count", || {
        counts = store.sql(updates).split('|').map(|count| count.parse::<u32>().expect("a number")).collect();
        counts[0] >= times * 3
    });
    eprintln!("after 50 and after {times} runs, all and rows alone: {early}, {late}; updates, heap-only: {counts:?}");
    let bytes: u64 = late.split('|').next().and_then(|bytes| bytes.parse().ok()).expect("a number");
    assert!(bytes <= 64 << 10, "{late}");
    assert!(counts[1] * 100 >= counts[0] * 95, "{counts:?}");
}

/// Who is not told looks after 100 ms at the earliest: on the average, that is longer than a hand-over may take.
#[test]
#[expect(clippy::print_stderr, reason = "the times are figures that people want to see")]
fn a_key_changes_hands_by_word_and_not_by_looking() {
    if !has_postgres() {
        return;
    }
    let store = Store::on_postgres();
    let took = hand_over(&store, 20);
    eprintln!("from one of twenty to the next: {took:?}");
    assert!(took < Duration::from_millis(100), "{took:?}");
}

/// Runs by hand: `cargo test --release hands -- --ignored --nocapture`.
#[cfg(feature = "redis")]
#[test]
#[ignore = "it compares, which takes a machine that does nothing else"]
#[expect(clippy::print_stderr, reason = "the times are what it is for")]
fn a_key_changes_hands_as_soon_as_three_times_what_redis_takes() {
    use crate::support::redis::{REDIS, Server};
    let median = |mut times: Vec<Duration>| {
        times.sort_unstable();
        times[times.len() / 2]
    };
    let redis = median((0..9).map(|_| hand_over(&Store::on(Server::start(REDIS, &[])), 20)).collect());
    let postgres = median((0..9).map(|_| hand_over(&Store::on_postgres(), 20)).collect());
    let pooler = median((0..3).map(|_| hand_over(&Store::on_pooler(), 20)).collect());
    eprintln!("from one of twenty to the next: redis {redis:?}, postgres {postgres:?}, behind a pooler {pooler:?}");
    assert!(postgres <= redis * 3);
}
