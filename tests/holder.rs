//! A lease's life on our side, on a store whose leases go by time: a register in memory, under the same
//! law as all others, that can be made not to answer.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::support::ask;
use dlock::clock::{Deadline, Moment};
use dlock::event::Event;
use dlock::holder::{self, Acquired, Lease, Limits};
use dlock::model::{Ask, Clock, Fence, Info, Key, LeaseId, LevelId, Patience, Record, Released, Role, Stamp, Ticket};
use dlock::store::{Capabilities, Examination, Ledger, Observer, Register, Scope, Store, StoreError, Trouble, Watch};
use nix::sys::signal::Signal;

/// Short, so that tests are; long enough for a machine that does other things, too.
const TTL: Duration = Duration::from_millis(1500);
const KILL_AFTER: Duration = Duration::from_millis(300);
const BEAT: Duration = Duration::from_millis(400);

#[derive(Clone, Default)]
struct Memory(Arc<Kept>);

#[derive(Default)]
struct Kept {
    records: Mutex<HashMap<Key, Record>>,
    changed: Condvar,
    silent: AtomicBool,
    /// Lets nobody in, so that nothing is carried out.
    shut: AtomicBool,
    /// Carries out the next change, but its reply is lost.
    loses_a_reply: AtomicBool,
}

struct Now;

impl Clock for Now {
    fn now(&self) -> Stamp {
        Stamp::default().after(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
    }

    fn attends(&self, _: Ticket, _: Role) -> bool {
        panic!("everything goes by time here")
    }
}

fn no_answer() -> StoreError {
    StoreError::new(Trouble::Unreachable, "no answer")
}

impl Register for Memory {
    fn identity(&self) -> &'static str {
        "memory"
    }

    fn describe(&self) -> String {
        "memory".into()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { shared: true, slots: true, fifo: true, beats: true, least_ttl: Duration::ZERO }
    }

    fn transact<T>(
        &self,
        key: &Key,
        _: Option<LevelId>,
        _: Option<Duration>,
        mut change: impl FnMut(&mut Record, &dyn Clock) -> T,
    ) -> Result<T, StoreError> {
        if self.0.silent.load(Ordering::SeqCst) {
            return Err(no_answer());
        }
        if self.0.shut.swap(false, Ordering::SeqCst) {
            return Err(StoreError::new(Trouble::Unreachable, "nobody is there").before_anything());
        }
        let mut records = self.0.records.lock().expect("no test panics inside");
        let answer = change(records.entry(key.clone()).or_insert_with(|| Record::new(key.clone())), &Now);
        self.0.changed.notify_all();
        if self.0.loses_a_reply.swap(false, Ordering::SeqCst) { Err(no_answer()) } else { Ok(answer) }
    }

    fn read(&self, key: &Key) -> Result<Option<Record>, StoreError> {
        Ok(self.0.records.lock().expect("no test panics inside").get(key).map(|record| record.clone().seen(&Now)))
    }

    fn keys(&self, _: Scope) -> Result<Vec<Key>, StoreError> {
        Ok(self.0.records.lock().expect("no test panics inside").keys().cloned().collect())
    }

    fn ask_clock(&self) -> Result<Stamp, StoreError> {
        Ok(Now.now())
    }

    fn examine(&self, _: Duration) -> Result<Examination, StoreError> {
        Ok(Examination::default())
    }

    fn observe(&self, _: Option<&Key>) -> Result<Box<dyn Observer>, StoreError> {
        Err(StoreError::new(Trouble::Unfit, "nobody looks at these tests from outside"))
    }

    fn await_change(&self, key: &Key, _: &Watch, timeout: Option<Duration>) -> Result<(), StoreError> {
        let records = self.0.records.lock().expect("no test panics inside");
        let before = records.get(key).cloned();
        // Leases end by time, too, and nobody says so: a store of the real kind sleeps until that instant.
        let timeout = timeout.unwrap_or(BEAT).min(BEAT);
        let same = |records: &mut HashMap<Key, Record>| records.get(key) == before.as_ref();
        drop(self.0.changed.wait_timeout_while(records, timeout, same).expect("no test panics inside"));
        Ok(())
    }

    fn sign_of_life(&self, _: LevelId) -> Result<Option<OwnedFd>, StoreError> {
        Ok(None)
    }
}

struct Bench {
    memory: Arc<Kept>,
    store: Arc<dyn Store>,
    key: Key,
    sender: Sender<Event>,
    events: Receiver<Event>,
}

impl Bench {
    fn new() -> Self {
        let register = Memory::default();
        let memory = Arc::clone(&register.0);
        let (sender, events) = mpsc::channel();
        let store = Arc::new(Ledger::new(register));
        Self { memory, store, key: Key::parse("k").expect("a key"), sender, events }
    }

    fn acquire(&self, wait: Option<Duration>) -> Result<Acquired, StoreError> {
        let id = holder::new_lease_id().expect("random bytes");
        let ask = Ask { patience: Patience::SignOfLife(Duration::from_secs(15)), ..ask::ask(id, TTL) };
        let limits = Limits { wait, store: Duration::from_secs(5) };
        holder::acquire(&self.store, &self.key, &ask, limits, (&self.sender, &self.events), &|| Box::new(()))
    }

    fn lease(&self) -> Lease {
        match self.acquire(None) {
            Ok(Acquired::Lease(lease)) => lease,
            _ => panic!("the key is free"),
        }
    }

    fn kept_lease(&self) -> Lease {
        let lease = self.lease();
        lease.keep(BEAT, KILL_AFTER, &self.sender).expect("a thread");
        lease
    }

    fn record(&self) -> Record {
        self.store.inspect(&self.key).expect("memory answers").expect("there is a record")
    }

    /// The next event that is no renewal, and the last deadline before it.
    fn news(&self) -> (Event, Option<Deadline>) {
        let mut last = None;
        loop {
            match self.events.recv_timeout(Duration::from_secs(20)).expect("something happens") {
                Event::Renewed(deadline) => last = Some(deadline),
                event => return (event, last),
            }
        }
    }

    fn await_renewal(&self) -> Deadline {
        match self.events.recv_timeout(Duration::from_secs(20)).expect("something happens") {
            Event::Renewed(deadline) => deadline,
            event => panic!("{event:?} came first"),
        }
    }
}

#[test]
fn a_kept_lease_outlives_its_ttl_and_is_given_back() {
    let bench = Bench::new();
    let lease = bench.kept_lease();
    let first = lease.deadline().expect("it goes by time");
    let mut deadline = first;
    while deadline.moment().since(first.moment()) < 2 * TTL {
        let next = bench.await_renewal();
        assert!(next > deadline && next.moment() < Moment::now().after(TTL));
        deadline = next;
    }
    assert!(bench.record().hold(lease.id()).is_some());
    assert_eq!(lease.release(None).expect("memory answers"), Released::Freed);
}

#[test]
fn a_store_that_is_silent_for_a_beat_or_two_costs_nothing() {
    let bench = Bench::new();
    let _lease = bench.kept_lease();
    bench.await_renewal();
    bench.memory.silent.store(true, Ordering::SeqCst);
    std::thread::sleep(BEAT);
    bench.memory.silent.store(false, Ordering::SeqCst);
    bench.await_renewal();
    bench.await_renewal();
}

#[test]
fn a_store_that_stays_silent_costs_the_lease_in_time_to_stop_the_command() {
    let bench = Bench::new();
    let _lease = bench.kept_lease();
    let deadline = bench.await_renewal();
    bench.memory.silent.store(true, Ordering::SeqCst);
    let (event, later) = bench.news();
    let now = Moment::now();
    let deadline = later.unwrap_or(deadline).moment();
    assert!(matches!(&event, Event::Lost(why) if why.contains("no answer")), "{event:?}");
    let stop_at = deadline.before(KILL_AFTER);
    assert!(now >= stop_at && now < deadline, "an error is only ever unknown, until there is just time to stop");
}

#[test]
fn a_definite_no_is_a_loss_at_once() {
    let bench = Bench::new();
    let lease = bench.kept_lease();
    bench.await_renewal();
    bench.store.revoke(&bench.key, &[lease.id()], true, &Info::default()).expect("memory answers");
    let start = Instant::now();
    let (event, _) = bench.news();
    assert!(matches!(event, Event::Lost(_)), "{event:?}");
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    assert_eq!(lease.release(None).expect("memory answers"), Released::NotYours);
}

#[test]
fn a_revocation_is_heard_within_a_second() {
    let bench = Bench::new();
    let lease = bench.kept_lease();
    bench.store.revoke(&bench.key, &[lease.id()], false, &Info::default()).expect("memory answers");
    let start = Instant::now();
    assert_eq!(bench.news().0, Event::Revoked(Some(Info::default().to_string())));
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
}

#[test]
fn a_lost_reply_does_not_lock_us_out_of_our_own_lock() {
    let bench = Bench::new();
    bench.memory.loses_a_reply.store(true, Ordering::SeqCst);
    let lease = bench.lease();
    // Whether it counts from the request that was granted or from a renewal since: it ends before the store's.
    let ours = lease.deadline().expect("it goes by time").moment().left();
    let theirs = bench.record().holders[0].levels[0].until.expect("it goes by time").since(Now.now());
    assert!(ours < theirs, "{ours:?} is not less than {theirs:?}");
    assert_eq!((lease.fence(), bench.record().counters.grants), (bench.record().fence, 1));
    assert_ne!(lease.fence(), Fence(0));
}

#[test]
fn a_lease_that_is_gone_is_not_called_given_back_because_a_try_came_to_nothing() {
    let bench = Bench::new();
    let lease = bench.lease();
    bench.store.revoke(&bench.key, &[lease.id()], true, &Info::default()).expect("memory answers");
    bench.memory.shut.store(true, Ordering::SeqCst);
    assert_eq!(lease.release(None).expect("memory answers"), Released::NotYours);
    // But a try that only lost its answer may have done it.
    let lease = bench.lease();
    bench.memory.loses_a_reply.store(true, Ordering::SeqCst);
    assert_eq!(lease.release(None).expect("memory answers"), Released::Freed);
}

#[test]
fn who_gives_up_leaves_nothing_in_the_queue() {
    let bench = Bench::new();
    let first: LeaseId = bench.lease().id();
    let limit = Some(Duration::from_millis(50));
    assert!(matches!(bench.acquire(limit), Ok(Acquired::Busy(holders, 0)) if holders[0].lease == first));
    assert_eq!(bench.record().queue, []);
    bench.sender.send(Event::Signal(Signal::SIGTERM)).expect("we listen");
    assert!(matches!(bench.acquire(None), Ok(Acquired::Signal(Signal::SIGTERM))));
    assert_eq!(bench.record().queue, []);
}

#[test]
fn a_store_that_stays_silent_holds_up_a_release_for_two_seconds_at_most() {
    let bench = Bench::new();
    let lease = bench.lease();
    bench.memory.silent.store(true, Ordering::SeqCst);
    let start = Instant::now();
    assert_eq!(lease.release(None).map_err(|error| error.trouble), Err(Trouble::Unreachable));
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
}
