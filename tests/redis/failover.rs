//! Masters that die, freeze or hand over their slots while many contend: contention goes on, the fences rise, nobody
//! writes with an old one, and whoever could not have its lease confirmed is gone in time.

use std::collections::HashMap;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::redis::{Cluster, REDIS, Sentinels, Setup, VALKEY};
use crate::support::{DLOCK, Done, Store, has, wait_for};

/// How many contend.
pub(super) const PROCESSES: usize = 8;

/// Longer than any failover here takes.
const PATIENCE: &str = "40";

/// What makes servers remember.
pub(super) const DURABLE: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "no"];

/// Does it for each kind of server that is installed, one after the other: those who contend need the machine.
fn on_each(test: impl Fn(&'static str)) {
    [REDIS, VALKEY].into_iter().filter(|program| has(program)).for_each(test);
}

/// Runs by those who contend, and what they wrote where only newer fences are let in.
pub(super) struct Contention<'a> {
    store: &'a Store,
    over: AtomicBool,
}

impl<'a> Contention<'a> {
    pub(super) fn new(store: &'a Store) -> Self {
        fs::write(store.path("counter"), "0\n").expect("a file");
        fs::write(store.path("written"), "").expect("a file");
        Self { store, over: AtomicBool::new(false) }
    }

    /// How often the counter was raised.
    fn count(&self) -> usize {
        self.fences().len()
    }

    /// The fences with which it was, in this order.
    fn fences(&self) -> Vec<u64> {
        let text = fs::read_to_string(self.store.path("written")).expect("a file");
        text.lines().map(|line| line.parse().expect("a fence")).collect()
    }

    /// Waits until it was raised so many times more.
    #[track_caller]
    pub(super) fn goes_on(&self, times: usize) {
        let before = self.count();
        wait_for("others to get the key", || self.count() >= before + times);
    }

    /// Contends for `k` as long as `meanwhile` goes on. What became of each run.
    pub(super) fn during(&self, meanwhile: impl FnOnce(&Self)) -> Vec<Done> {
        let dir = self.store.dir.path().display();
        let raise = r#"read n <counter; sleep 0.01; echo $((n + 1)) >counter; echo "$DLOCK_FENCE" >>written"#;
        let script =
            format!("{}; '{DLOCK}' guard -S 'file:{dir}/guards' counter -- sh -c '{raise}'", self.store.alone());
        let args = ["--store-timeout", PATIENCE, "run", "k", "--ttl", "3", "--", "sh", "-c", &script];
        thread::scope(|scope| {
            let contender = || {
                let mut runs = Vec::new();
                while !self.over.load(Ordering::Relaxed) {
                    runs.push(self.store.run(&args));
                }
                runs
            };
            let all: Vec<_> = (0..PROCESSES).map(|_| scope.spawn(contender)).collect();
            self.goes_on(2 * PROCESSES);
            // Whatever fails in there, the others must come to their end.
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| meanwhile(self)));
            self.over.store(true, Ordering::Relaxed);
            let runs = all.into_iter().flat_map(|thread| thread.join().expect("it only runs dlock")).collect();
            outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            runs
        })
    }

    /// Checks what came of it. Whether two may have been inside at once.
    #[track_caller]
    pub(super) fn went_well(&self, runs: &[Done], may_overlap: bool) {
        let mut codes: HashMap<Option<i32>, usize> = HashMap::new();
        for run in runs {
            let code = run.status.code();
            // Lost, or refused by the guard: both say 76.
            assert!([Some(0), Some(76)].contains(&code), "{run:#?}");
            assert!(may_overlap || !run.stdout.contains("overlap"), "{run:#?}");
            *codes.entry(code).or_default() += 1;
        }
        let fences = self.fences();
        assert!(fences.is_sorted_by(|earlier, later| earlier < later), "{fences:?}");
        let counter = fs::read_to_string(self.store.path("counter")).expect("a file");
        assert_eq!(counter.trim(), fences.len().to_string(), "each write was the only one: {codes:?}");
        assert!(fences.len() >= runs.len() / 2, "most of them wrote: {codes:?}, {} wrote", fences.len());
    }
}

/// Kills the master three times.
fn kill_masters(program: &'static str, replicas: &str) {
    let mut group = Sentinels::start(program, &Setup { server: &DURABLE, ..Setup::default() });
    let store = Store::new().at(&format!("{}?wait_replicas={replicas}", group.url()));
    let contention = Contention::new(&store);
    let runs = contention.during(|contention| {
        for _ in 0..3 {
            let old = group.kill_master();
            let since = Instant::now();
            group.await_failover(old);
            let failover = since.elapsed();
            let since = Instant::now();
            contention.goes_on(PROCESSES);
            // A master that lacks the last grants offers the key once more to each who had it, a second each, and may have
            // to wait for the end of a lease.
            let limit = if replicas == "0" { 3 + 2 * PROCESSES as u64 } else { 8 };
            assert!(since.elapsed() < Duration::from_secs(limit), "{:?} after {failover:?}", since.elapsed());
            group.servers[old].start_again();
            group.await_replica(old);
        }
    });
    contention.went_well(&runs, replicas == "0");
}

#[test]
fn contention_goes_on_while_one_master_after_the_other_is_killed() {
    on_each(|program| kill_masters(program, "0"));
}

#[test]
fn nobody_is_inside_beside_another_if_a_replica_has_each_grant_while_masters_are_killed() {
    on_each(|program| kill_masters(program, "1"));
}

#[test]
fn contention_goes_on_in_a_cluster_while_a_master_is_killed_and_its_slot_moves() {
    on_each(|program| {
        let mut cluster = Cluster::start(program, &Setup::default());
        let store = Store::new().at(&format!("{}?wait_replicas=1", cluster.url()));
        let slot = cluster.slot_of("dlock:{k}:record");
        let contention = Contention::new(&store);
        let runs = contention.during(|contention| {
            for _ in 0..3 {
                let from = cluster.owner_of(slot);
                let to = (from + 1) % 3;
                cluster.move_slot(slot, from, to);
                contention.goes_on(PROCESSES);
            }
            let old = cluster.owner_of(slot);
            cluster.nodes[old].kill();
            cluster.await_failover(old);
            // Without a replica nothing counts.
            cluster.nodes[old].start_again();
            contention.goes_on(PROCESSES);
            let from = cluster.owner_of(slot);
            let to = cluster.owner_of((slot + 5461) % 16384);
            cluster.move_slot(slot, from, to);
            contention.goes_on(PROCESSES);
        });
        contention.went_well(&runs, false);
    });
}
