//! What a network does to those who hold a key and to those who wait for it: it is away, it loses what it
//! carries, brings it late, or brings half of it.

use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt as _;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::Signal::{SIGCONT, SIGKILL, SIGSTOP};
use socket2::{Domain, SockAddr, Socket, Type};

use super::{BOUNDED, await_beat, lease_end};
use crate::support::journal::Journal;
use crate::support::proxy::{Fate, Proxy};
use crate::support::redis::{PORT, REDIS, new_host, on_a_server, on_both};
use crate::support::{Running, Store, wait_for};

/// The same store behind a proxy.
fn behind(near: &Store) -> (Proxy, Store) {
    let proxy = Proxy::to(near.server());
    let far = Store::new().at(&proxy.url());
    (proxy, far)
}

#[test]
fn a_server_that_cannot_be_reached_is_told_in_time_and_no_command_is_started() {
    const PATIENCE: Duration = Duration::from_secs(1);
    let (nobody, silent, lossy) = (new_host(), new_host(), new_host());
    let _silent = TcpListener::bind((&*silent, PORT)).expect("the address is nobody else's");
    // A full queue of connections drops those that come, as a firewall does.
    let full = Socket::new(Domain::IPV4, Type::STREAM, None).expect("there are sockets");
    let at: std::net::SocketAddr = format!("{lossy}:{PORT}").parse().expect("an address");
    full.bind(&SockAddr::from(at)).and_then(|()| full.listen(0)).expect("the address is nobody else's");
    let _fill = std::net::TcpStream::connect(at).expect("there is room for one");

    let mut runs = Vec::new();
    for (host, cause) in [(nobody, "connection refused"), (silent, "did not answer"), (lossy, "")] {
        let store = Store::new().at(&format!("redis://{host}:{PORT}"));
        for options in [&[][..], &["-n"], &["-w", "0.2"], &["-w", "9"]] {
            let mut args = vec!["--store-timeout", "1", "run", "k"];
            args.extend(options);
            args.extend(["--", "echo", "started"]);
            runs.push((Instant::now(), Running::start(&mut store.dlock(&args)), host.clone(), cause));
        }
    }
    for (start, mut run, host, cause) in runs {
        assert_eq!(run.read_line(), None, "nothing was started");
        let took = start.elapsed();
        run.finish().says(69, &[&format!("redis at {host}:{PORT}"), cause]);
        assert!(took >= PATIENCE && took < PATIENCE * 2, "{took:?}");
    }
}

/// A run through a proxy that does this to one reply.
fn survive(near: &Store, operation: &str, fate: Fate) {
    let (proxy, far) = behind(near);
    let what = format!("{operation} {fate:?}");
    let key = what.replace(' ', "-");
    let script = "echo ready; echo $DLOCK_FENCE; cat >/dev/null; exit 7";
    proxy.next(operation, fate);
    // The command starts, and so nobody is locked out by a lock of his own.
    let mut run = far.holding(&key, &["-n", "--ttl", "2"], script);
    let fence: u64 = run.read_line().and_then(|line| line.parse().ok()).expect("the fence");
    let beats = proxy.seen("renew");
    wait_for("beats", || proxy.seen("renew") >= beats + 3);
    let done = run.finish();
    assert_eq!((done.status.code(), &*done.stderr), (Some(7), ""), "{what}: {done:#?}");
    assert!(proxy.is_spent(), "{what}");
    let record = near.server().record(&key);
    assert_eq!((&*record["fence"], &*record["grants"]), (&*(fence + 1).to_string(), "1"), "{what}");
    assert_eq!(near.status(&key)["held"], false, "{what}");
}

#[test]
fn a_reply_that_is_lost_late_or_torn_is_asked_for_again_and_changes_nothing() {
    on_both(|near| {
        thread::scope(|scope| {
            for operation in ["acquire", "renew", "release"] {
                for fate in [Fate::Swallowed, Fate::Torn, Fate::Late(Duration::from_millis(250))] {
                    scope.spawn(move || survive(near, operation, fate));
                }
            }
        });
    });
}

#[test]
fn a_grant_that_comes_when_its_lease_has_ended_starts_nothing() {
    on_both(|near| {
        let (proxy, far) = behind(near);
        let journal = Journal::new(near);
        // Long enough for another one to come, get the key at the end of the lease, and have it.
        proxy.next("acquire", Fate::Late(Duration::from_millis(1500)));
        let late = ["run", "-w", "40", "k", "--ttl", "0.5", "--", "sh", "-c", &journal.stay("late")];
        let mut late = Running::start(&mut far.dlock(&late));
        wait_for("the grant", || near.status("k")["held"] == true);
        let other =
            Running::start(&mut near.dlock(&["run", "-w", "40", "k", "--", "sh", "-c", &journal.stay("other")]));
        journal.await_entry("other");
        wait_for("the late one in the queue", || near.queue("k") == [late.pid().as_raw()]);
        other.finish().is(0, "", "");
        journal.await_entry("late");
        // What it has now is a lease that lives.
        await_beat(near);
        late.close_stdin();
        late.finish().is(0, "", "");
        assert_eq!(journal.entered(), ["other", "late"]);
        assert_eq!(journal.most_at_once(), 1, "{:?}", journal.lines());
    });
}

#[test]
fn a_beat_that_is_lost_costs_nothing() {
    on_a_server(REDIS, |near| {
        let (proxy, far) = behind(near);
        let hold = far.holding("k", &["--ttl", "3"], "echo ready; cat >/dev/null; exit 7");
        for is_cut in [false, true] {
            let beats = proxy.seen("renew");
            if is_cut {
                proxy.refuse();
                let end = lease_end(near);
                // Less than a third of the lease is left alone, and a beat with it.
                let left = || end.duration_since(SystemTime::now()).unwrap_or_default();
                wait_for("a beat that is due", || left() < Duration::from_millis(2200));
                proxy.admit();
            } else {
                proxy.drop_all();
                wait_for("a beat that is dropped", || proxy.seen("renew") > beats);
                proxy.heal();
            }
            await_beat(near);
        }
        hold.finish().is(7, "", "");
    });
}

#[test]
fn who_is_cut_off_for_longer_than_the_ttl_ends_its_tree_before_the_lease() {
    on_both(|near| {
        let (proxy, far) = behind(near);
        let tree = far.holding_tree(&["--ttl", "1.5"]);
        let next = near.waiting("k", &BOUNDED, "date +%s%6N");
        await_beat(near);
        proxy.drop_all();
        let beats = proxy.seen("renew");
        wait_for("a beat that is dropped", || proxy.seen("renew") > beats);
        let end = lease_end(near);
        let gone = far.await_end_of_tree();
        assert!(gone <= end, "the tree lived for {:?} too long", gone.duration_since(end));
        tree.is_gone();
        let started = next.finish().stdout;
        let started = Duration::from_micros(started.trim_end().parse().expect("a time"));
        assert!(SystemTime::UNIX_EPOCH + started >= end, "the key was not free before {end:?}: {started:?}");
        let done = tree.dlock.finish();
        assert_eq!(done.status.code(), Some(76), "{done:#?}");
        assert!(done.stderr.starts_with("dlock: lost 'k': no answer for "), "{done:#?}");
        assert!(!done.stderr.contains("within 1ms"), "a store is given a chance: {done:#?}");
    });
}

#[test]
fn a_command_is_asked_to_end_while_its_lease_lives() {
    on_a_server(REDIS, |near| {
        let (proxy, far) = behind(near);
        let script = "exec 2>&-; trap 'date +%s%6N; exit 3' TERM; echo ready; while :; do sleep 0.01; done";
        let mut hold = far.holding("k", &["--ttl", "2", "-k", "1", "--max-run", "40"], script);
        await_beat(near);
        proxy.drop_all();
        let asked: u64 = hold.read_line().and_then(|line| line.parse().ok()).expect("it was asked");
        let left = lease_end(near).duration_since(SystemTime::UNIX_EPOCH + Duration::from_micros(asked));
        assert!(left.as_ref().is_ok_and(|left| *left > Duration::from_millis(800)), "{left:?}");
        // The network is there again in time to give the key back: nobody needs to wait for the lease to end.
        proxy.heal();
        hold.finish().says(76, &["lost 'k'"]);
        assert_eq!(near.status("k")["held"], false);
    });
}

#[test]
fn a_waiter_whose_connection_ends_keeps_its_place() {
    on_both(|near| {
        let (proxy, far) = behind(near);
        let journal = Journal::new(near);
        // Once it is back before the key is offered to it, once it is away meanwhile.
        for is_away in [false, true] {
            let holder = near.hold("k");
            let first = far.waiting("k", &BOUNDED, &journal.visit("first", ":"));
            let second = near.waiting("k", &BOUNDED, &journal.visit("second", ":"));
            let sleeps = proxy.seen("blpop");
            if is_away {
                proxy.refuse();
                holder.finish().is(0, "", "");
                wait_for("an offer", || near.server().has_offered("k"));
                proxy.admit();
            } else {
                wait_for("the first to sleep", || proxy.seen("blpop") > 0);
                proxy.cut();
                wait_for("the first to sleep again", || proxy.seen("blpop") > sleeps);
                assert_eq!(near.queue("k"), [first.pid().as_raw(), second.pid().as_raw()]);
                holder.finish().is(0, "", "");
            }
            for waiter in [first, second] {
                waiter.finish().is(0, "", "");
            }
        }
        assert_eq!(journal.entered(), ["first", "second", "first", "second"]);
    });
}

#[test]
fn a_waiter_whose_wake_up_is_lost_looks_when_the_lease_would_have_ended() {
    on_a_server(REDIS, |near| {
        let (proxy, far) = behind(near);
        let holder = near.holding("k", &["--ttl", "2"], "echo ready; cat >/dev/null");
        let waiter = far.waiting("k", &BOUNDED, "echo mine");
        proxy.next("blpop", Fate::Swallowed);
        let released = Instant::now();
        holder.finish().is(0, "", "");
        waiter.finish().is(0, "mine\n", "");
        assert!(proxy.is_spent(), "a wake-up was lost");
        // Two seconds of a lease, one in which the server may be late, and one for the connections.
        assert!(released.elapsed() < Duration::from_secs(4), "{:?}", released.elapsed());
    });
}

#[test]
fn a_waiter_who_is_not_told_to_watch_notices_with_its_next_sign_of_life_that_all_ahead_are_dead() {
    on_a_server(REDIS, |near| {
        let (proxy, far) = behind(near);
        let holder = near.holding("k", &["--ttl", "1"], "echo ready; cat >/dev/null");
        let head = near.waiting("k", &BOUNDED, "");
        let waiter = far.waiting("k", &BOUNDED, "echo mine");
        let waiting = Instant::now();
        proxy.next("blpop", Fate::Swallowed);
        for dead in [head, holder] {
            dead.signal(SIGKILL);
            assert_eq!(dead.finish().status.signal(), Some(SIGKILL as i32));
        }
        waiter.finish().is(0, "mine\n", "");
        assert!(waiting.elapsed() < Duration::from_secs(18), "{:?}", waiting.elapsed());
    });
}

#[test]
fn a_waiter_that_was_frozen_while_its_grant_came_does_not_run_on_a_lease_that_has_ended() {
    on_a_server(REDIS, |near| {
        let (proxy, far) = behind(near);
        let journal = Journal::new(near);
        let holder = near.hold("k");
        let mut frozen = far.waiting("k", &["-w", "40", "--ttl", "1"], &journal.stay("frozen"));
        let pid = frozen.pid().as_raw();
        proxy.next("acquire", Fate::Late(Duration::from_millis(1500)));
        holder.finish().is(0, "", "");
        wait_for("the grant", || near.status("k")["holders"][0]["pid"] == pid);
        frozen.signal(SIGSTOP);
        let granted = Instant::now();
        let other =
            Running::start(&mut near.dlock(&["run", "-w", "40", "k", "--", "sh", "-c", &journal.stay("other")]));
        journal.await_entry("other");
        wait_for("twice the ttl", || granted.elapsed() > Duration::from_secs(2));
        frozen.signal(SIGCONT);
        wait_for("the frozen one to wait again", || near.queue("k") == [pid]);
        other.finish().is(0, "", "");
        journal.await_entry("frozen");
        frozen.close_stdin();
        frozen.finish().is(0, "", "");
        assert_eq!(journal.entered(), ["other", "frozen"]);
        assert_eq!(journal.most_at_once(), 1, "{:?}", journal.lines());
    });
}
