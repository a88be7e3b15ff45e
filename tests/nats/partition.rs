//! A network that falls apart between the servers of a cluster, while those who work under locks still reach all of them: one
//! server is cut off from the two others, and says what it still believes to whoever asks it.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use dlock::model::SIGN_OF_LIFE;

use super::lease_end;
use crate::support::journal::Journal;
use crate::support::nats::routes::{Cut, Routes};
use crate::support::nats::{Cluster, NATS, Server, on_both};
use crate::support::{Done, Store, finish, wait_for};

/// How many count under a lock: half of them ask the server first that is cut off.
const COUNTERS: usize = 4;

/// A lease that is over before another server leads.
const SHORT: [&str; 6] = ["--ttl", "3", "-k", "0.5", "--store-timeout", "50"];

/// One that is not.
const LONG: [&str; 6] = ["--ttl", "24", "-k", "1", "--store-timeout", "50"];

/// Whoever waits so bears that nobody leads for a while.
const PATIENT: [&str; 4] = ["-w", "300", "--store-timeout", "50"];

/// Three servers of which one will be cut off.
struct Parts {
    routes: Routes,
    store: Store,
    names: Vec<String>,
    /// The number of the one that will be cut off.
    victim: usize,
    /// Stores of those who ask that one first, and of those who ask it last.
    near: Store,
    far: Store,
}

impl Parts {
    /// The one that leads will be cut off, or one that follows.
    fn new(program: &'static str, leads: bool) -> Self {
        let (cluster, routes) = Cluster::start_apart(program);
        let hosts = cluster.hosts();
        let mut store = Store::on_own_nats_cluster(cluster);
        store.run(&["setup"]).is(0, "", "");
        let names: Vec<String> = store.nats_mut().iter().map(Server::name).collect();
        let leader = store.bucket().leader();
        let victim = names.iter().position(|name| (*name == leader) == leads).expect("one leads and two follow");
        let at = |order: [usize; 3]| {
            let hosts = order.map(|number| format!("{}:6390", hosts[(victim + number) % 3]));
            Store::new().at_url(&format!("nats://{}?replicas=3", hosts.join(",")))
        };
        Self { routes, names, victim, near: at([0, 1, 2]), far: at([1, 2, 0]), store }
    }

    /// Who leads, as the one that is cut off has it, and as the others have it.
    fn leaders(&self) -> [String; 2] {
        let (own, others): (Vec<_>, Vec<_>) =
            self.names.iter().cloned().partition(|name| *name == self.names[self.victim]);
        [own, others].map(|names| self.store.bucket().leader_seen_from(&names))
    }

    /// Lets all speak with each other again, and waits until they agree.
    #[track_caller]
    fn heal(&self) {
        self.routes.heal();
        wait_gently_for("them to be of one mind", || {
            let [own, others] = self.leaders();
            !own.is_empty() && own == others
        });
    }
}

/// Waits for what takes seconds, and looks so seldom that nobody has less to work with.
#[track_caller]
fn wait_gently_for(what: &str, mut condition: impl FnMut() -> bool) {
    wait_for(what, || {
        thread::sleep(Duration::from_millis(100));
        condition()
    });
}

/// A counter, and what those wrote who counted.
struct Count {
    journal: Journal,
    alone: String,
    counter: String,
    file: String,
}

impl Count {
    fn new(store: &Store) -> Self {
        let [counter, file] = ["counter", "journal"].map(|name| store.path(name).display().to_string());
        fs::write(&counter, "0\n").expect("a file");
        Self { journal: Journal::new(store), alone: store.alone(), counter, file }
    }

    /// A script that counts, and does `body` meanwhile. Whoever is asked to stop before it has counted does not count.
    fn one(&self, name: &str, body: &str) -> String {
        let Self { alone, counter, file, .. } = self;
        format!(
            "{alone}; echo \"enter {name} $DLOCK_FENCE\" >>'{file}'
             trap \"echo 'leave {name} stopped' >>'{file}'; exit 1\" TERM
             read n <'{counter}'; {body}; trap '' TERM
             echo $((n + 1)) >'{counter}'; echo 'leave {name} counted' >>'{file}'"
        )
    }

    fn entered(&self) -> usize {
        self.journal.entered().len()
    }

    /// Waits until so many more have come.
    #[track_caller]
    fn await_more(&self, many: usize) {
        let before = self.entered();
        wait_gently_for("them to work", || self.entered() > before + many);
    }

    /// Nobody was beside another, nothing is lost, and fences rise.
    #[track_caller]
    fn is_exact(&self) {
        let lines = self.journal.lines();
        let counted = lines.iter().filter(|line| line[2] == "counted").count();
        assert_eq!(fs::read_to_string(&self.counter).expect("the counter"), format!("{counted}\n"), "{lines:?}");
        assert_eq!(self.journal.most_at_once(), 1, "{lines:?}");
        let entries = lines.iter().filter(|line| line[0] == "enter");
        let fences: Vec<u64> = entries.map(|line| line[2].parse().expect("a fence")).collect();
        assert!(fences.is_sorted_by(|one, next| one < next), "{fences:?}");
    }
}

/// Counts again and again while `trouble` is done. Whoever does so ends well, or has lost its lease and says so.
#[track_caller]
fn while_they_count(parts: &Parts, count: &Count, trouble: impl FnOnce()) {
    let over = AtomicBool::new(false);
    let work = |number: usize| {
        let store = if number.is_multiple_of(2) { &parts.near } else { &parts.far };
        let mut done = 0;
        while !over.load(Ordering::Relaxed) {
            let script = count.one(&format!("{number}.{done}"), "sleep 0.2");
            let args = [&["run", "k"][..], &SHORT, &["--", "sh", "-c", &script]].concat();
            ended_well(&finish(&mut store.dlock(&args)));
            done += 1;
        }
    };
    thread::scope(|scope| {
        let work = &work;
        let workers: Vec<_> = (0..COUNTERS).map(|number| scope.spawn(move || work(number))).collect();
        let watched = std::panic::AssertUnwindSafe(|| {
            count.await_more(8);
            trouble();
            count.await_more(8);
        });
        let went = std::panic::catch_unwind(watched);
        over.store(true, Ordering::Relaxed);
        for worker in workers {
            worker.join().expect("a counter");
        }
        went.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

#[track_caller]
fn ended_well(run: &Done) {
    let is_lost = run.status.code() == Some(76) && run.stderr.contains("lost 'k'");
    assert!((run.status.success() || is_lost) && run.stdout.is_empty(), "{run:#?}");
}

/// Cuts off the one that leads: who holds with a short lease stops in time, and with a long one finds its successor.
fn cut_off_a_leader(program: &'static str, how: Cut) {
    let parts = Parts::new(program, true);
    let count = Count::new(&parts.store);
    let patient = parts.near.holding("long", &LONG, "echo ready; cat >/dev/null; exit 7");
    while_they_count(&parts, &count, || {
        let script = count.one("holder", "echo ready; sleep 60");
        let holder = parts.near.holding("k", &SHORT, &script);
        parts.routes.cut_off(parts.victim, how);
        let lost = holder.finish();
        ended_well(&lost);
        assert_eq!(lost.status.code(), Some(76), "no other one can lead so soon: {lost:#?}");
        let name = &*parts.names[parts.victim];
        wait_gently_for("a successor", || !["", name].contains(&&*parts.leaders()[1]));
        // It may still think that it leads, and knows nothing of these leases.
        let other = parts.far.hold("other");
        let done = parts.near.run(&["run", "other", "-n", "--", "echo", "beside it"]);
        assert_eq!((done.status.code(), &*done.stdout), (Some(75), ""), "{done:#?}");
        other.finish().is(0, "", "");
        let lease = parts.far.run(&["acquire", "script", "--ttl", "50"]).stdout;
        for verb in ["check", "renew", "release"] {
            let done = parts.near.run(&[verb, "script", lease.trim()]);
            assert_eq!(done.status.code(), Some(0), "{verb}: {done:#?}");
        }
        count.await_more(8);
        wait_gently_for("the one that is cut off to notice", || parts.leaders()[0].is_empty());
        count.await_more(8);
        parts.heal();
    });
    count.is_exact();
    patient.finish().is(7, "", "");
}

/// Cuts off one that follows, over which somebody holds the key: he goes on over another one, and so does one who waits for
/// another key, and keeps his place.
fn cut_off_a_follower(program: &'static str, how: Cut) {
    let parts = Parts::new(program, false);
    let count = Count::new(&parts.store);
    let ahead = parts.far.holding("line", &["--ttl", "60", "--store-timeout", "50"], "echo ready; cat >/dev/null");
    let waiters = [&parts.near, &parts.far].map(|store| store.waiting("line", &PATIENT, "true"));
    let queue = parts.far.queue("line");
    while_they_count(&parts, &count, || {
        let script = count.one("holder", "echo ready; cat >/dev/null");
        let holder = parts.near.holding("k", &SHORT, &script);
        parts.routes.cut_off(parts.victim, how);
        let cut = Instant::now();
        for _ in 0..3 {
            let before = lease_end(&parts.far);
            wait_gently_for("a beat", || lease_end(&parts.far) > before);
        }
        holder.finish().is(0, "", "");
        count.await_more(8);
        wait_gently_for("the one that is cut off to notice", || parts.leaders()[0].is_empty());
        let holder = parts.near.holding("k", &SHORT, &count.one("late", "echo ready; cat >/dev/null"));
        wait_gently_for("each sign of life from before to be over", || cut.elapsed() > SIGN_OF_LIFE);
        assert_eq!(parts.far.queue("line"), queue);
        let before = lease_end(&parts.far);
        wait_gently_for("a beat", || lease_end(&parts.far) > before);
        holder.finish().is(0, "", "");
        parts.heal();
    });
    count.is_exact();
    ahead.finish().is(0, "", "");
    for waiter in waiters {
        waiter.finish().is(0, "", "");
    }
}

/// Cuts off a server of each version: one silently, and the other one aloud; with `DLOCK_TEST_ROUNDS` set each in both ways.
fn on_both_and_both_ways(test: fn(&'static str, Cut), new: Cut) {
    let old = if new == Cut::Silent { Cut::Closed } else { Cut::Silent };
    let is_long = std::env::var_os("DLOCK_TEST_ROUNDS").is_some();
    on_both(|program| {
        let (one, other) = if program == NATS { (new, old) } else { (old, new) };
        test(program, one);
        if is_long {
            test(program, other);
        }
    });
}

#[test]
fn a_leader_that_is_cut_off_from_the_others_grants_nothing_beside_its_successor() {
    on_both_and_both_ways(cut_off_a_leader, Cut::Silent);
}

#[test]
fn who_holds_over_a_server_that_is_cut_off_from_the_others_goes_on_over_another_one() {
    on_both_and_both_ways(cut_off_a_follower, Cut::Closed);
}
