//! What all tests of a process share, for to start it for each test takes too long.

use std::sync::mpsc;
use std::thread;

/// Starts something in a thread that never ends: servers die with the thread that started them.
pub(crate) fn for_all<T: Send + 'static>(start: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, started) = mpsc::channel();
    let keep = move || {
        // Who asked waits for it.
        let _ = sender.send(start());
        loop {
            thread::park();
        }
    };
    thread::spawn(keep);
    started.recv().expect("it starts")
}
