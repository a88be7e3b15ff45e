//! Nodes of a quorum that are all started again at once, with what they had or without.

use std::time::{Duration, Instant};

use crate::support::redis::{Nodes, REDIS, Server};
use crate::support::{Store, has};

/// Starts a quorum whose nodes have these options.
fn quorum(options: &[&str]) -> (Nodes, Store) {
    let nodes = Nodes::start(REDIS, 3, options);
    let store = Store::new().at(&nodes.url("quorum", &[0, 1, 2]));
    (nodes, store)
}

fn restart_all(nodes: &mut Nodes) {
    nodes.0.iter_mut().for_each(Server::kill);
    nodes.0.iter_mut().for_each(Server::start_again);
}

#[test]
fn after_a_restart_of_all_nodes_with_their_data_nobody_gets_in_beside_a_lease() {
    const TTL: Duration = Duration::from_secs(4);
    if !has(REDIS) {
        return;
    }
    let (mut nodes, store) = quorum(&["--appendonly", "yes", "--appendfsync", "always"]);
    assert!(store.run(&["acquire", "k", "--ttl", "4s"]).status.success());
    let taken = Instant::now();
    restart_all(&mut nodes);
    let newcomer = |key: &str| store.run(&["run", "-n", "--store-timeout", "300ms", key, "--ttl", "1s", "--", "true"]);
    newcomer("k").says(75, &["'k' is held"]);
    newcomer("other").says(69, &["was started", "may have forgotten a lease"]);
    store.run(&["run", "k", "--ttl", "4s", "--", "echo", "in"]).is(0, "in\n", "");
    assert!(taken.elapsed() >= TTL, "{:?}", taken.elapsed());
}

#[test]
fn a_holder_hears_that_all_nodes_have_forgotten_its_lease() {
    if !has(REDIS) {
        return;
    }
    let (mut nodes, store) = quorum(&[]);
    let options = ["--ttl", "3", "--max-run", "40"];
    let mut holder = store.holding("k", &options, "echo ready; echo $DLOCK_FENCE; cat >/dev/null");
    let fence: u64 = holder.read_line().and_then(|line| line.parse().ok()).expect("a fence");
    restart_all(&mut nodes);
    assert_eq!(holder.read_line(), None, "the command is stopped without being asked");
    holder.finish().says(76, &["lost 'k'"]);
    let next = store.run(&["run", "k", "--ttl", "3", "--", "sh", "-c", "echo $DLOCK_FENCE"]);
    assert!(next.stdout.trim().parse::<u64>().is_ok_and(|next| next > fence), "{fence} {next:#?}");
}
