//! Servers that all tests of a process share. A test keeps to a bucket of its own there.

use std::sync::OnceLock;

use super::{Cluster, NATS, Server};
use crate::support::shared::for_all;

/// A server of this version.
pub(crate) fn shared_server(program: &'static str) -> &'static Server {
    static SERVERS: [OnceLock<Server>; 2] = [OnceLock::new(), OnceLock::new()];
    SERVERS[usize::from(program == NATS)].get_or_init(|| for_all(move || Server::start(program, "")))
}

/// Three of this version.
pub(crate) fn shared_cluster(program: &'static str) -> &'static Cluster {
    static CLUSTERS: [OnceLock<Cluster>; 2] = [OnceLock::new(), OnceLock::new()];
    CLUSTERS[usize::from(program == NATS)].get_or_init(|| for_all(move || Cluster::start(program)))
}
