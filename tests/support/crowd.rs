//! How many tests run at once. Most of them wait most of the time, and a few keep every processor busy: so more are let in
//! as long as the machine has time for them.

use std::cell::RefCell;
use std::fs;
use std::num::NonZero;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// So many for two processors are let in whatever the machine does.
const FEW: usize = 5;

/// For so long is looked at what the machine does.
const GLANCE: Duration = Duration::from_millis(200);

/// After so many glances one is let in all the same: whoever is in may wait for it.
const GLANCES: usize = 50;

/// How many are in.
static INSIDE: Mutex<usize> = Mutex::new(0);

/// Where those stand who want in. Each sees what the one before it costs.
static DOOR: Mutex<()> = Mutex::new(());

thread_local! {
    /// Every test has a thread of its own, and leaves with it.
    static GUEST: RefCell<Option<Guest>> = const { RefCell::new(None) };
}

/// A test that is in.
struct Guest {
    /// Kept shut by one after which nobody is to come.
    _door: Option<MutexGuard<'static, ()>>,
}

/// Waits until there is time for the test of this thread.
pub(crate) fn enter() {
    // The threads of a test's own have no name, and came with it.
    if thread::current().name().is_none() || GUEST.with_borrow(Option::is_some) {
        return;
    }
    let _door = door();
    // Whether there was time or not.
    let _ = (0..GLANCES).any(|_| has_few() || idle_part() > 0.4);
    GUEST.set(Some(Guest::new(None)));
}

/// Waits until those who are in do little but wait, and keeps all others out until the test of this thread ends.
#[cfg(any(feature = "etcd", feature = "redis"))]
pub(crate) fn enter_last() {
    GUEST.set(None);
    let door = door();
    let _ = (0..GLANCES).any(|_| *inside() == 0 || idle_part() > 0.7);
    GUEST.set(Some(Guest::new(Some(door))));
}

impl Guest {
    fn new(door: Option<MutexGuard<'static, ()>>) -> Self {
        *inside() += 1;
        Self { _door: door }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        *inside() -= 1;
    }
}

fn inside() -> MutexGuard<'static, usize> {
    INSIDE.lock().expect("nobody fails while it counts")
}

/// Whoever fails while it is alone leaves all the same.
fn door() -> MutexGuard<'static, ()> {
    DOOR.lock().unwrap_or_else(PoisonError::into_inner)
}

fn has_few() -> bool {
    2 * *inside() < FEW * thread::available_parallelism().map_or(1, NonZero::get)
}

/// For which part of a glance the processors have nothing to do.
fn idle_part() -> f64 {
    let (idle, all) = times();
    thread::sleep(GLANCE);
    let (idle_then, all_then) = times();
    (idle_then - idle) / (all_then - all)
}

/// For how long the processors had nothing to do, and for how long they are there, in ticks.
fn times() -> (f64, f64) {
    let stat = fs::read_to_string("/proc/stat").expect("Linux tells");
    let line = stat.lines().next().expect("its first line is about all processors");
    let ticks: Vec<f64> = line.split_whitespace().skip(1).map(|ticks| ticks.parse().expect("a number")).collect();
    // Waiting for a disk is idle, too.
    (ticks[3] + ticks[4], ticks[..8].iter().sum())
}
