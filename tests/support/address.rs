//! Addresses for servers and proxies: each has one of the many of the loopback network, so that tests do not fight for ports.

use std::sync::atomic::{AtomicUsize, Ordering};

/// The port of every server and proxy of the tests.
pub(crate) const PORT: u16 = 6390;

/// An address of the loopback network that nobody else uses.
pub(crate) fn new_host() -> String {
    static USED: AtomicUsize = AtomicUsize::new(1);
    let [.., high, low] = std::process::id().to_be_bytes();
    let number = USED.fetch_add(1, Ordering::Relaxed);
    assert!(number < 250 * 8, "a process of tests has two thousand addresses");
    format!("127.{}.{low}.{}", 8 * (high % 30) as usize + 8 + number / 250, number % 250 + 1)
}

/// The number of a prefix that no other test uses.
pub(crate) fn new_prefix() -> String {
    static USED: AtomicUsize = AtomicUsize::new(1);
    format!("t{}", USED.fetch_add(1, Ordering::Relaxed))
}
