//! Servers that all tests of a process share. A test keeps to a prefix of its own there.

use std::sync::OnceLock;

use super::{Cluster, ETCD, Server, etcdctl, wait_for};
use crate::support::shared::for_all;

/// A server of this version.
pub(crate) fn shared_server(program: &'static str) -> &'static Server {
    static SERVERS: [OnceLock<Server>; 2] = [OnceLock::new(), OnceLock::new()];
    SERVERS[usize::from(program == ETCD)].get_or_init(|| {
        for_all(move || {
            let server = Server::start(program, &[]);
            forget(program, &server.host);
            server
        })
    })
}

/// Three of this version.
pub(crate) fn shared_cluster(program: &'static str) -> &'static Cluster {
    static CLUSTERS: [OnceLock<Cluster>; 2] = [OnceLock::new(), OnceLock::new()];
    CLUSTERS[usize::from(program == ETCD)].get_or_init(|| {
        for_all(move || {
            let cluster = Cluster::start(program);
            forget(program, &cluster.hosts()[0]);
            cluster
        })
    })
}

/// Compacts what there was until now, as is done again and again where people use it: the doctor says so where it never was.
fn forget(program: &'static str, host: &str) {
    let done = |words: &[&str]| wait_for("it to be done", || etcdctl(program, host, words).status.success());
    for value in ["1", "2", "3"] {
        done(&["put", "x", value]);
    }
    done(&["compact", "2"]);
}
