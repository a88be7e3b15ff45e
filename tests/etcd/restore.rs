//! A cluster that is restored from a snapshot, and does not know what came after it.

use crate::support::Store;
use crate::support::etcd::{Server, on_both};

#[test]
fn a_cluster_that_is_restored_from_a_snapshot_ends_the_run_and_fences_still_rise() {
    on_both(|program| {
        let mut store = Store::on_own_etcd(Server::start(program, &[]));
        store.run(&["run", "k", "--", "true"]).is(0, "", "");
        let snapshot = store.path("snapshot").display().to_string();
        store.etcd_server().must(&["snapshot", "save", &snapshot]);
        let mut holder =
            store.holding("k", &["--ttl", "9", "--max-run", "40"], "echo ready; echo $DLOCK_FENCE; cat >/dev/null");
        let fence: u64 = holder.read_line().and_then(|line| line.parse().ok()).expect("a fence");
        let server = &mut store.etcd_servers()[0];
        server.kill();
        server.restore(&snapshot);
        server.start_again();
        assert_eq!(holder.read_line(), None, "the command is stopped without being asked");
        holder.finish().says(76, &["lost 'k'", "does not know this lease any more"]);
        let next = store.run(&["run", "k", "--", "sh", "-c", "echo $DLOCK_FENCE"]);
        assert!(next.stdout.trim().parse::<u64>().is_ok_and(|next| next > fence), "{fence} {next:#?}");
    });
}
