//! What a network does to those who hold a key and to those who wait for it: it loses what it carries, holds it up, or is
//! away.

use std::thread;
use std::time::{Duration, Instant};

use dlock::model::{Answer, Key, LeaseId};
use dlock::store::{Ledger, PostgresAddress, PostgresRegister, Store as _};

use super::{BOUNDED, fence_of, lease_end};
use crate::support::journal::Journal;
use crate::support::postgres::proxy::{Fate, Proxy};
use crate::support::postgres::{Server, has_postgres, shared_server};
use crate::support::{Running, Store, ask, wait_for};

/// A store, and the same behind a proxy.
fn behind() -> (Store, Proxy, Store) {
    let near = Store::on_postgres();
    let proxy = Proxy::to(shared_server());
    let far = Store::new().at_url(&format!("{}?prefix={}", proxy.url(), near.prefix_of_tables()));
    (near, proxy, far)
}

/// A run through a proxy that does this to one of its commits: of the grant, of a beat, or of the release.
fn survive(which: usize, fate: Fate) {
    let (near, proxy, far) = behind();
    let what = format!("commit {which}, {fate:?}");
    near.run(&["setup"]).is(0, "", "");
    let script = "echo ready; echo $DLOCK_FENCE; cat >/dev/null; exit 7";
    if which < 2 {
        proxy.next(which, fate);
    }
    // The command starts, and so nobody is locked out by a lock of his own.
    let mut run = far.holding("k", &["-n", "--ttl", "4"], script);
    let fence: u64 = run.read_line().and_then(|line| line.parse().ok()).expect("the fence");
    let commits = proxy.commits();
    wait_for("beats", || proxy.commits() >= commits + 3);
    if which == 2 {
        proxy.next(0, fate);
    }
    let done = run.finish();
    assert_eq!((done.status.code(), &*done.stderr), (Some(7), ""), "{what}: {done:#?}");
    assert!(proxy.is_spent() || which == 2, "{what}");
    assert_eq!(near.sql("SELECT record->'counters'->>'grants' FROM TABLE WHERE key = 'k'"), "1", "{what}");
    assert_eq!(fence_of(&near), fence + 1, "{what}");
    assert_eq!(near.status("k")["held"], false, "{what}");
}

#[test]
fn a_commit_that_is_lost_or_whose_answer_is_is_asked_for_again_and_changes_nothing() {
    if !has_postgres() {
        return;
    }
    thread::scope(|scope| {
        for which in 0..3 {
            for fate in [Fate::Unanswered, Fate::Cut, Fate::HeldUp] {
                scope.spawn(move || survive(which, fate));
            }
        }
    });
}

#[test]
fn one_who_is_held_up_in_mid_transaction_holds_up_nobody_for_longer_than_a_second() {
    if !has_postgres() {
        return;
    }
    let (near, proxy, far) = behind();
    near.run(&["run", "k", "--", "true"]).is(0, "", "");
    proxy.next(0, Fate::HeldUp);
    // It has the row of the key, and says no more.
    let late = Running::start(&mut far.dlock(&["run", "k", "--", "true"]));
    wait_for("a commit", || proxy.is_spent());
    let start = Instant::now();
    near.run(&["run", "k", "--", "true"]).is(0, "", "");
    assert!(start.elapsed() < Duration::from_millis(1300), "{:?}", start.elapsed());
    late.finish().is(0, "", "");
}

#[test]
fn what_the_server_granted_to_one_who_gave_up_meanwhile_is_taken_back() {
    if !has_postgres() {
        return;
    }
    let server = Server::start(&[]);
    let store = Store::on_own_postgres(server);
    store.run(&["run", "k", "--", "true"]).is(0, "", "");
    let proxy = Proxy::to(store.postgres());
    let address = PostgresAddress::parse(&proxy.url(), "/".as_ref()).expect("a URL");
    let far = Ledger::new(PostgresRegister::new(&address, true, Duration::from_secs(5)));
    let (key, lease) = (Key::parse("k").expect("a key"), LeaseId::new([7; 16]));
    let ask = ask::ask(lease, Duration::from_secs(1000));
    far.ask_clock().expect("it answers");
    // The server stops just before it hears of the commit, and hears of it, and of what was sent after it, later.
    proxy.next(0, Fate::HeldUp);
    thread::scope(|scope| {
        scope.spawn(|| {
            wait_for("a commit", || proxy.is_spent());
            store.postgres().freeze();
            proxy.let_go();
        });
        let within = Duration::from_millis(250);
        assert!(far.acquire(&key, &ask, within).is_err_and(|error| error.maybe_done));
        assert!(far.release(&key, lease, None, within).is_err());
        store.postgres().thaw();
    });
    wait_for("the grant to be taken back", || {
        let record = store.sql("SELECT record->'counters'->>'grants', json_array_length(record->'holders') FROM TABLE");
        record == "2|0"
    });
    assert!(matches!(far.acquire(&key, &ask, Duration::from_secs(5)), Ok(Answer::Granted(_))));
}

#[test]
fn a_network_that_is_away_for_longer_than_a_lease_ends_the_command_before_the_lease() {
    if !has_postgres() {
        return;
    }
    let (near, proxy, far) = behind();
    let tree = far.holding_tree(&["--ttl", "3", "-k", "0.5"]);
    let waiter = near.waiting("k", &BOUNDED, &format!("{}; echo in", far.alone()));
    proxy.drop_all();
    let end = lease_end(&near);
    let ended = far.await_end_of_tree();
    assert!(ended < lease_end(&near).max(end), "the tree ends before the lease");
    waiter.finish().is(0, "in\n", "");
    tree.dlock.finish().says(76, &["lost 'k'", "no answer", "postgres at", "stopping the command"]);
}

#[test]
fn connections_that_are_cut_again_and_again_cost_nobody_the_key_or_his_place() {
    if !has_postgres() {
        return;
    }
    let (near, proxy, far) = behind();
    let journal = Journal::new(&near);
    let mut holder = far.holding("k", &["--ttl", "6"], "echo ready; cat >/dev/null; exit 7");
    let waiters = ["a", "b", "c"].map(|name| far.waiting("k", &BOUNDED, &journal.visit(name, ":")));
    for _ in 0..3 {
        let (commits, end) = (proxy.commits(), lease_end(&near));
        proxy.cut();
        wait_for("all to come back", || proxy.commits() >= commits + 3 && lease_end(&near) > end);
    }
    holder.close_stdin();
    holder.finish().is(7, "", "");
    for waiter in waiters {
        waiter.finish().is(0, "", "");
    }
    assert_eq!(journal.entered(), ["a", "b", "c"]);
}
