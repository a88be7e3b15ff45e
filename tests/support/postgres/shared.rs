//! A server, and a pooler before it, that all tests of a process share. A test keeps to tables of its own there.

use std::sync::OnceLock;

use super::{Pooler, Server};
use crate::support::shared::for_all;

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
