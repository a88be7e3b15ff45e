//! Installing lists of nodes of a ring, interrupted at every step and by others: no key is ever given out by two lists
//! at once. The nodes are databases of one server, and have names that nobody connects to; what they do is done by that
//! server.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use dlock::model::{Answer, Ask, Ending, Info, Key, LeaseId, LevelId, Record, Released, Renewed, Stamp, Unlocked};
use dlock::store::{
    Address, Capabilities, Examination, Inspected, List, Listing, Node, Observer, Outcome, Past, RedisStore, Ring,
    Roll, Scope, SetUp, Step, Store, StoreError, Told, Trouble, Watch,
};

use crate::support::redis::{REDIS, Server};
use crate::support::{ask, has};

/// More than any of these operations takes.
const WITHIN: Duration = Duration::from_secs(20);

/// Nodes that may be listed.
const NAMES: [&str; 5] = ["a:1", "b:1", "c:1", "d:1", "e:1"];

/// How many keys there are.
const KEYS: u64 = 4;

/// How a process ends that is killed while a request is on its way: it was not done, or it was and nobody hears of it.
#[derive(Clone, Copy, Debug)]
enum End {
    Undone,
    Done,
}

/// Somebody who installs a list: how many steps he takes before he is dead, and how long he may rest between two.
struct Life {
    left: AtomicI64,
    end: End,
    rests: bool,
}

impl Life {
    fn of(steps: i64, end: End) -> Arc<Self> {
        Arc::new(Self { left: AtomicI64::new(steps), end, rests: false })
    }

    fn long() -> Arc<Self> {
        Self::of(i64::MAX, End::Done)
    }
}

/// By how many seconds the clock of each node is ahead.
const AHEAD: [i64; 5] = [0, -4, 3, -2, 5];

/// A node as somebody has it who may die. Nobody waits here for those who did.
struct Mortal {
    name: &'static str,
    ahead: i64,
    node: RedisStore,
    life: Arc<Life>,
}

impl Mortal {
    /// The node, with its clock as it is now.
    fn on_time(&self) -> &RedisStore {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later");
        let now = Stamp::default().after(now).moved(self.ahead * 1_000_000);
        self.node.set_clock(Some(now));
        &self.node
    }
}

impl Node for Mortal {
    fn name(&self) -> &str {
        self.name
    }

    fn step(&self, step: Step) -> Result<Told, StoreError> {
        let step = match step {
            Step::Close(by, list, _) => Step::Close(by, list, Duration::ZERO),
            step => step,
        };
        if self.life.rests {
            thread::sleep(Duration::from_micros(random(2_000)));
        }
        let left = self.life.left.fetch_sub(1, Ordering::SeqCst);
        let dead = || StoreError::new(Trouble::Unreachable, "whoever asks is dead");
        if left < 0 || left == 0 && matches!(self.life.end, End::Undone) {
            return Err(dead());
        }
        let mut told = self.node.step(step)?;
        if let Some(since) = told.roll.0.get_mut("since") {
            *since = "0".into();
        }
        if left == 0 { Err(dead()) } else { Ok(told) }
    }

    fn past(&self, keys: &[Key]) -> Result<Vec<Past>, StoreError> {
        self.node.past(keys)
    }

    fn adopt(&self, by: &str, past: &[Past]) -> Result<Outcome, StoreError> {
        self.node.adopt(by, past)
    }
}

impl Store for Mortal {
    fn identity(&self) -> &str {
        self.node.identity()
    }

    fn describe(&self) -> String {
        self.name.into()
    }

    fn capabilities(&self) -> Capabilities {
        self.node.capabilities()
    }

    fn acquire(&self, key: &Key, ask: &Ask, within: Duration) -> Result<Answer, StoreError> {
        self.on_time().acquire(key, ask, within)
    }

    fn renew(&self, key: &Key, level: LevelId, ttl: Duration, within: Duration) -> Result<Renewed, StoreError> {
        self.on_time().renew(key, level, ttl, within)
    }

    fn release(
        &self,
        key: &Key,
        level: LevelId,
        end: Option<Ending>,
        within: Duration,
    ) -> Result<Released, StoreError> {
        self.on_time().release(key, level, end, within)
    }

    fn revoke(&self, key: &Key, leases: &[LeaseId], force: bool, by: &Info) -> Result<Unlocked, StoreError> {
        self.on_time().revoke(key, leases, force, by)
    }

    fn inspect(&self, key: &Key) -> Result<Option<Record>, StoreError> {
        self.on_time().inspect(key)
    }

    fn inspect_all(&self, keys: &[Key]) -> Result<Vec<Inspected>, StoreError> {
        self.on_time().inspect_all(keys)
    }

    fn now(&self) -> Stamp {
        self.node.now()
    }

    fn ask_clock(&self) -> Result<Stamp, StoreError> {
        self.node.ask_clock()
    }

    fn examine(&self, silence: Duration) -> Result<Examination, StoreError> {
        self.node.examine(silence)
    }

    fn list(&self, scope: Scope) -> Result<Listing, StoreError> {
        self.node.list(scope)
    }

    fn observe(&self, key: Option<&Key>) -> Result<Box<dyn Observer>, StoreError> {
        self.node.observe(key)
    }

    fn await_change(&self, key: &Key, watch: &Watch, timeout: Option<Duration>) -> Result<(), StoreError> {
        self.node.await_change(key, watch, timeout)
    }

    fn sign_of_life(&self, level: LevelId) -> Result<Option<OwnedFd>, StoreError> {
        self.node.sign_of_life(level)
    }
}

/// A number below another one. What goes on at once is different each time anyway.
fn random(below: u64) -> u64 {
    static STATE: AtomicU64 = AtomicU64::new(0x9E37_79B9_7F4A_7C15);
    let mut x = STATE.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    (x ^ (x >> 31)) % below
}

/// The server, and the prefix of the nodes on it.
#[derive(Clone)]
struct Ground {
    url: String,
    prefix: String,
}

impl Ground {
    fn new(server: &Server) -> Self {
        static USED: AtomicUsize = AtomicUsize::new(0);
        let prefix = format!("r{}", USED.fetch_add(1, Ordering::Relaxed));
        Self { url: server.url(), prefix }
    }

    fn node(&self, name: &str, list: Option<&List>, life: &Arc<Life>) -> Mortal {
        let db = NAMES.iter().position(|known| *known == name).expect("it is one of them");
        let url = format!("{}/{db}?prefix={}", self.url, self.prefix);
        let address = Address::parse(&url, "/".as_ref()).expect("a URL");
        Mortal {
            name: NAMES[db],
            ahead: AHEAD[db],
            node: RedisStore::node(&address, list, WITHIN),
            life: Arc::clone(life),
        }
    }

    /// The ring of the nodes whose names begin with these letters.
    fn ring(&self, letters: &str, life: &Arc<Life>) -> Ring {
        let list = list(letters);
        let nodes = list.names().map(|name| Arc::new(self.node(name, Some(&list), life)) as Arc<dyn Node>).collect();
        let (ground, life) = (self.clone(), Arc::clone(life));
        let connect = move |name: &str, _| Ok(Arc::new(ground.node(name, None, &life)) as Arc<dyn Node>);
        Ring::new(letters.into(), letters.into(), nodes, Box::new(connect), WITHIN)
    }

    /// What each node knows.
    fn rolls(&self) -> BTreeMap<&'static str, Roll> {
        let look = |name: &&'static str| {
            let node = self.node(name, None, &Life::long());
            (*name, node.node.step(Step::Look).expect("the server is there").roll)
        };
        NAMES.iter().map(look).collect()
    }

    /// Checks that no node is open for a list whose nodes are not all open or closed for it.
    #[track_caller]
    fn is_sound(&self, when: &str) {
        let rolls = self.rolls();
        for (name, roll) in &rolls {
            let Some(stamp) = roll.open() else { continue };
            let list = roll.list().expect("it is open");
            for other in list.names() {
                let carries = rolls[other].list().is_some_and(|list| list.stamp() == stamp);
                assert!(carries || rolls[other].is_closed(), "{when}: {name} is open and {other} is not: {rolls:#?}");
            }
        }
    }
}

fn list(letters: &str) -> List {
    List::new(NAMES.into_iter().filter(|name| letters.contains(&name[..1])))
}

fn key(number: u64) -> Key {
    Key::parse(&format!("k{number}")).expect("a key")
}

fn ask(ttl: Duration) -> Ask {
    let lease = LeaseId::new([0; 16].map(|_: u8| u8::try_from(random(256)).expect("it is a byte")));
    ask::ask(lease, ttl)
}

/// The level of a key that a ring gives us; nothing, if it gives it to nobody now.
fn take(ring: &Ring, key: &Key) -> Option<(LevelId, u64)> {
    let ask = ask(WITHIN);
    match ring.acquire(key, &ask, WITHIN) {
        Ok(Answer::Granted(grant)) => Some((ask.level, grant.fence.0)),
        Ok(_) | Err(StoreError { trouble: Trouble::Unfit | Trouble::Unreachable, .. }) => None,
        Err(error) => panic!("{error}"),
    }
}

#[track_caller]
fn gives_all(ring: &Ring) {
    for number in 0..KEYS {
        let key = key(number);
        let (level, _) = take(ring, &key).unwrap_or_else(|| panic!("{key} of {ring:?}"));
        assert_eq!(ring.release(&key, level, None, WITHIN).expect("it is there"), Released::Freed);
    }
}

#[test]
fn whoever_dies_while_he_installs_a_list_leaves_none_open_beside_another_one() {
    if !has(REDIS) {
        return;
    }
    let server = Server::start(REDIS, &[]);
    let one = |steps: i64, end: End| {
        let ground = Ground::new(&server);
        let (old, new) = (ground.ring("abc", &Life::long()), ground.ring("ad", &Life::long()));
        assert_eq!(old.set_up(&|| true).expect("all answer"), SetUp::Ready);
        gives_all(&old);
        let when = format!("dead after {steps} steps, the last one {end:?}");
        let is_over = ground.ring("ad", &Life::of(steps, end)).set_up(&|| true).is_ok();
        ground.is_sound(&when);
        for number in 0..KEYS {
            let key = key(number);
            let taken = [&old, &new].map(|ring| take(ring, &key).map(|(level, _)| (ring, level)));
            assert!(!matches!(taken, [Some(_), Some(_)]), "{when}: {key} was given out twice");
            for (ring, level) in taken.into_iter().flatten() {
                assert_eq!(ring.release(&key, level, None, WITHIN).expect(&when), Released::Freed, "{when}");
            }
        }
        // Somebody else comes to an end, with that list, or with the one before, or with one that has little of either.
        let letters = ["ad", "abc", "ae"][usize::try_from(steps % 3).expect("it is small")];
        let last = ground.ring(letters, &Life::long());
        assert_eq!(last.set_up(&|| true).expect(&when), SetUp::Ready, "{when}");
        ground.is_sound(&when);
        gives_all(&last);
        for other in [&old, &new].into_iter().filter(|other| other.identity() != letters) {
            let error = other.acquire(&key(0), &ask(WITHIN), WITHIN).expect_err("its list is not installed");
            assert!(matches!(error.trouble, Trouble::Unfit | Trouble::Unreachable), "{when}: {error}");
        }
        is_over
    };
    for end in [End::Undone, End::Done] {
        let steps = (0..100).find(|steps| one(*steps, end)).expect("it comes to an end");
        assert!(steps > 15, "so few steps: {steps}");
    }
}

#[test]
fn no_key_is_given_out_by_two_lists_however_many_install_theirs_at_once() {
    // Each has a node of each other one: lists that have none in common are those of two rings.
    const LISTS: [&str; 6] = ["abc", "bcd", "cde", "ade", "be", "abcde"];
    if !has(REDIS) {
        return;
    }
    let server = Server::start(REDIS, &[]);
    let ground = Ground::new(&server);
    let over = AtomicBool::new(false);
    let held: [AtomicBool; 4] = Default::default();
    let fences: [AtomicU64; 4] = Default::default();
    let given = Mutex::new(BTreeMap::<&str, usize>::new());
    let (turn, installed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let letters = LISTS[turn.fetch_add(1, Ordering::Relaxed) % LISTS.len()];
                    let end = if random(2) == 0 { End::Undone } else { End::Done };
                    // Some come to their end, others do not.
                    let steps = if random(3) == 0 { i64::try_from(random(40)).expect("it is small") } else { i64::MAX };
                    let life =
                        Life { rests: random(2) == 0, ..Arc::into_inner(Life::of(steps, end)).expect("it is ours") };
                    let until = Instant::now() + Duration::from_millis(random(50));
                    let done = ground.ring(letters, &Arc::new(life)).set_up(&|| Instant::now() < until);
                    installed.fetch_add(usize::from(matches!(done, Ok(SetUp::Ready))), Ordering::Relaxed);
                    thread::sleep(Duration::from_millis(random(60)));
                }
            });
        }
        for letters in LISTS {
            let (over, held, fences, given, ground) = (&over, &held, &fences, &given, &ground);
            scope.spawn(move || {
                let ring = ground.ring(letters, &Life::long());
                while !over.load(Ordering::Relaxed) {
                    let number = random(KEYS);
                    let (key, number) = (key(number), usize::try_from(number).expect("it is small"));
                    let Some((level, fence)) = take(&ring, &key) else {
                        thread::sleep(Duration::from_millis(2));
                        continue;
                    };
                    assert!(!held[number].swap(true, Ordering::SeqCst), "{key} was given out twice");
                    let before = fences[number].swap(fence, Ordering::SeqCst);
                    assert!(before < fence, "{key}: {before} came before {fence}");
                    // Some are held for longer than it takes to install a list.
                    thread::sleep(Duration::from_millis(if random(4) == 0 { random(100) } else { random(3) }));
                    *given.lock().expect("nobody panics here").entry(letters).or_default() += 1;
                    held[number].store(false, Ordering::SeqCst);
                    // It may be that one of those who install lists is at it, which keeps nobody from giving back.
                    assert_eq!(ring.release(&key, level, None, WITHIN).expect("it is there"), Released::Freed);
                }
            });
        }
        let begun = Instant::now();
        let span = || begun.elapsed().as_secs();
        let enough = || {
            let given = given.lock().expect("nobody panics here");
            given.len() > 3 && given.values().sum::<usize>() > 60 && installed.load(Ordering::Relaxed) > 15
        };
        // A thread that panics is heard of when all have ended.
        while span() < 60 && (!enough() || span() < 2) {
            thread::sleep(Duration::from_millis(10));
        }
        over.store(true, Ordering::Relaxed);
    });
    ground.is_sound("at the end");
    let given = given.into_inner().expect("nobody panics here");
    assert!(given.len() > 2 && installed.load(Ordering::Relaxed) > 5, "nothing went on: {given:?}, {installed:?}");
}
