//! The groups of servers on which other tests stand do what such groups do: they fail over, move slots and keep out
//! whom they should.

use std::path::PathBuf;
use std::thread;

use redis::Value;

use crate::support::redis::tls::{self, with_tls};
use crate::support::redis::{Cluster, REDIS, Sentinels, Server, Setup, VALKEY, shared_cluster, shared_sentinels};
use crate::support::{Store, command, finish, has};

/// What makes a server remember.
const DURABLE: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "always"];

/// What makes servers let in nobody but `app`, as whom replicas log in.
const CLOSED: [&str; 12] =
    ["--user", "default", "off", "--user", "app", "on", ">secret", "~*", "&*", "+@all", "--masteruser", "app"];

fn text(text: &str) -> Value {
    Value::BulkString(text.into())
}

/// Does it for each kind of server that is installed.
fn on_each(test: impl Fn(&'static str) + Sync) {
    thread::scope(|scope| {
        for program in [REDIS, VALKEY].into_iter().filter(|program| has(program)) {
            scope.spawn(|| test(program));
        }
    });
}

/// Kills the master, and takes it back with what it had on disk.
fn fail_over_and_back(group: &mut Sentinels) {
    group.master().ask(&["SET", "a", "1"]);
    group.master().ask(&["WAIT", "2", "0"]);
    let old = group.kill_master();
    group.await_failover(old);
    assert_ne!(group.master_number(), old);
    assert_eq!(group.master().ask(&["GET", "a"]), text("1"));
    group.servers[old].start_again();
    assert_eq!(group.servers[old].ask(&["GET", "a"]), text("1"));
    group.await_replica(old);
}

/// Moves the slot of `{k}`, kills its master, and takes that one back.
fn move_and_fail_over(cluster: &mut Cluster) {
    let slot = cluster.slot_of("{k}");
    let from = cluster.owner_of(slot);
    let to = (from + 1) % 3;
    cluster.nodes[from].ask(&["SET", "{k}:1", "1"]);
    cluster.nodes[from].ask(&["SET", "{k}:2", "2"]);
    cluster.move_slot(slot, from, to);
    assert_eq!(cluster.master_of("{k}:1"), to);
    let replica = cluster.replica_of(to);
    cluster.nodes[to].ask(&["WAIT", "1", "0"]);
    cluster.nodes[to].kill();
    cluster.await_failover(to);
    assert_eq!(cluster.master_of("{k}:1"), replica);
    assert_eq!(cluster.nodes[replica].ask(&["GET", "{k}:2"]), text("2"));
    cluster.nodes[to].start_again();
    assert_eq!(cluster.replica_of(replica), to);
}

#[test]
fn sentinels_name_another_master_and_make_the_old_one_a_replica() {
    on_each(|program| {
        let setup = Setup { server: &DURABLE, ..Setup::default() };
        fail_over_and_back(&mut Sentinels::start(program, &setup));
    });
}

#[test]
fn a_cluster_moves_slots_and_fails_over() {
    on_each(|program| move_and_fail_over(&mut Cluster::start(program, &Setup::default())));
}

/// Checks that a server lets nobody in without a password, and has a certificate for its address.
#[track_caller]
fn is_closed(server: &Server, ca: PathBuf) {
    let stranger = redis::Client::open(server.url()).expect("a URL").get_connection();
    let refused = stranger.and_then(|mut connection| redis::cmd("PING").query::<Value>(&mut connection));
    assert!(refused.is_err_and(|error| error.code() == Some("NOAUTH")), "{} lets all in", server.host);
    let address = format!("{}:{}", server.host, tls::PORT);
    let mut openssl = command("openssl");
    openssl.args(["s_client", "-verify_return_error", "-verify_ip", &server.host, "-connect", &address, "-CAfile"]);
    let done = finish(openssl.arg(ca));
    assert!(done.status.success(), "{done:#?}");
}

#[test]
fn groups_with_users_and_tls_do_the_same_and_let_nobody_else_in() {
    if !has("openssl") {
        return;
    }
    for program in with_tls() {
        let server = [&CLOSED[..], &["--masterauth", "secret"], &DURABLE].concat();
        let sentinel = [
            "sentinel auth-user mymaster app",
            "sentinel auth-pass mymaster secret",
            "requirepass hush",
            "sentinel sentinel-pass hush",
        ];
        let setup = Setup { server: &server, sentinel: &sentinel, tls: true, ..Setup::default() };
        let mut group = Sentinels::start(program, &setup);
        for server in group.servers.iter().chain(&group.sentinels) {
            is_closed(server, group.certificate("ca.pem"));
        }
        fail_over_and_back(&mut group);
        let mut cluster = Cluster::start(program, &setup);
        for node in &cluster.nodes {
            is_closed(node, cluster.certificate("ca.pem"));
        }
        move_and_fail_over(&mut cluster);
    }
}

#[test]
fn a_store_on_a_shared_group_sees_only_what_is_its_own() {
    if !has(REDIS) {
        return;
    }
    let see = |make: fn() -> Store, server: fn(&str) -> &'static Server| {
        let (one, other) = (make(), make());
        let name = |part: &str| format!("{}:{{k}}:{part}", one.prefix());
        for part in ["record", "rest"] {
            server(&name(part)).ask(&["SET", &name(part), "1"]);
        }
        assert!(one.keeps("k") && !one.is_untouched() && one.leftovers() == [name("rest")]);
        assert!(!other.keeps("k") && other.is_untouched() && other.leftovers() == [""; 0]);
    };
    see(Store::on_sentinels, |_| shared_sentinels().master());
    see(Store::on_cluster, |name| &shared_cluster().nodes[shared_cluster().master_of(name)]);
}
