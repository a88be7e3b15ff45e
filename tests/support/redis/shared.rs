//! Groups of servers that all tests of a process share, for to start one for each test takes too long. A test keeps
//! to a prefix of its own there, and kills nobody.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use super::{Cluster, Nodes, REDIS, Sentinels, Server, Setup};
use crate::support::shared::for_all;

/// A machine may be busy for some time, and nobody is to be dead for that.
const DOWN_AFTER: Duration = Duration::from_secs(60);

/// Sentinels and their servers.
pub(crate) fn shared_sentinels() -> &'static Sentinels {
    static GROUP: OnceLock<Sentinels> = OnceLock::new();
    GROUP.get_or_init(|| {
        for_all(|| {
            let group = Sentinels::start(REDIS, &Setup { down_after: DOWN_AFTER, ..Setup::default() });
            remove_at_the_end(group.servers.iter().chain(&group.sentinels));
            group
        })
    })
}

/// A cluster.
pub(crate) fn shared_cluster() -> &'static Cluster {
    static GROUP: OnceLock<Cluster> = OnceLock::new();
    GROUP.get_or_init(|| {
        for_all(|| {
            let group = Cluster::start(REDIS, &Setup::default());
            for node in &group.nodes {
                // From the start, the nodes would need a minute to hear of each other.
                node.ask(&["CONFIG", "SET", "cluster-node-timeout", &DOWN_AFTER.as_millis().to_string()]);
            }
            remove_at_the_end(&group.nodes);
            group
        })
    })
}

/// Five servers that know nothing of each other.
pub(crate) fn shared_nodes() -> &'static Nodes {
    static GROUP: OnceLock<Nodes> = OnceLock::new();
    GROUP.get_or_init(|| {
        for_all(|| {
            let nodes = Nodes::start(REDIS, 5, &[]);
            remove_at_the_end(&nodes.0);
            nodes
        })
    })
}

/// Removes the servers' directories when this process ends, however that comes: nothing is dropped then.
pub(super) fn remove_at_the_end<'a>(servers: impl IntoIterator<Item = &'a Server>) {
    let dirs: Vec<PathBuf> = servers.into_iter().map(|server| server.path("")).collect();
    // It reads to the end of a pipe whose other end is open as long as this process lives.
    let script = r#"trap "" INT QUIT HUP; read -r end; exec rm -rf -- "$@""#;
    let mut remover = Command::new("sh");
    remover.args(["-c", script, "sh"]).args(dirs);
    remover.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let child = remover.spawn().expect("a shell starts");
    std::mem::forget(child);
}
