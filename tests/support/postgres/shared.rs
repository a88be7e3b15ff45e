//! A server, and a pooler before it, that all tests of a process share. A test keeps to tables of its own there.

use std::sync::{OnceLock, mpsc};
use std::thread;

use super::{Pooler, Server};

/// A server.
pub(crate) fn shared_server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| for_all(|| Server::start(&[])))
}

/// A pooler that gives each transaction to another session.
pub(crate) fn shared_pooler() -> &'static Pooler {
    static POOLER: OnceLock<Pooler> = OnceLock::new();
    POOLER.get_or_init(|| for_all(|| Pooler::before(shared_server(), "transaction")))
}

/// Starts something in a thread that never ends: servers die with the thread that started them.
fn for_all<T: Send + 'static>(start: impl FnOnce() -> T + Send + 'static) -> T {
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
