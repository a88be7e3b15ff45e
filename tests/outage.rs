//! A server that is away for longer than a lease, or from which a holder is cut off: the command is gone before the lease
//! ends. What other topics show of that for a store is not shown here again.

use std::time::{Duration, SystemTime};

use crate::support::Store;

/// A lease, and how much of it is left to a command that is asked to end.
const TTL: Duration = Duration::from_secs(3);
const SHORT: [&str; 4] = ["--ttl", "3", "-k", "0.5"];

/// Checks that a tree which holds `k` is gone before its lease ends once `happens` is done, and says why.
#[track_caller]
fn ends_in_time(mut store: Store, happens: impl FnOnce(&mut Store)) -> Store {
    let tree = store.holding_tree(&SHORT);
    happens(&mut store);
    let end = SystemTime::now() + TTL;
    let gone = store.await_end_of_tree();
    assert!(gone < end, "the tree lived for {:?} too long", gone.duration_since(end));
    tree.is_gone();
    tree.dlock.finish().says(76, &["lost 'k'"]);
    store
}

/// The same of a server that does not come back: nobody else gets in, either.
#[track_caller]
fn ends_for_all(store: Store, happens: impl FnOnce(&mut Store)) {
    let store = ends_in_time(store, happens);
    let done = store.run(&["run", "--store-timeout", "1", "k", "--", "echo", "in"]);
    assert_eq!((done.status.code(), &*done.stdout), (Some(69), ""), "{done:#?}");
}

/// Whoever waits so bears that a server is silent for a while.
#[cfg(any(feature = "nats", feature = "redis"))]
const PATIENT: [&str; 4] = ["-w", "60", "--store-timeout", "30"];

mod a_server_that_is_killed_ends_the_command_before_its_lease {
    use crate::support::Store;
    #[cfg(feature = "etcd")]
    use crate::support::etcd;
    #[cfg(any(feature = "etcd", feature = "nats", feature = "redis"))]
    use crate::support::has;
    #[cfg(feature = "nats")]
    use crate::support::nats;
    #[cfg(feature = "postgres")]
    use crate::support::postgres;
    #[cfg(feature = "redis")]
    use crate::support::redis::{Cluster, Nodes, REDIS, Sentinels, Server, Setup, VALKEY};

    use super::ends_for_all;

    #[cfg(feature = "redis")]
    fn alone(program: &'static str) {
        if has(program) {
            ends_for_all(Store::on(Server::start(program, &[])), |store| store.server_mut().kill());
        }
    }

    #[cfg(feature = "redis")]
    #[test]
    fn redis() {
        alone(REDIS);
    }

    #[cfg(feature = "redis")]
    #[test]
    fn valkey() {
        alone(VALKEY);
    }

    /// No other server takes the place of one in that time.
    #[cfg(feature = "redis")]
    const SLOW: Setup<'_> =
        Setup { server: &[], sentinel: &[], tls: false, down_after: std::time::Duration::from_secs(60) };

    #[cfg(feature = "redis")]
    #[test]
    fn sentinel() {
        if has(REDIS) {
            let mut group = Sentinels::start(REDIS, &SLOW);
            let store = Store::new().at(&group.url());
            ends_for_all(store, |_| {
                group.kill_master();
            });
        }
    }

    #[cfg(feature = "redis")]
    #[test]
    fn cluster() {
        if has(REDIS) {
            let mut cluster = Cluster::start(REDIS, &SLOW);
            let at = cluster.master_of("dlock:{k}:record");
            let store = Store::new().at(&cluster.url());
            ends_for_all(store, |_| cluster.nodes[at].kill());
        }
    }

    #[cfg(feature = "redis")]
    #[test]
    fn ring() {
        if has(REDIS) {
            let mut nodes = Nodes::start(REDIS, 3, &[]);
            let store = Store::new().at(&nodes.url("ring", &[0, 1, 2]));
            ends_for_all(store, |_| {
                let node = nodes.0.iter_mut().find(|node| !node.record("k").is_empty());
                node.expect("one has the key").kill();
            });
        }
    }

    #[cfg(feature = "postgres")]
    #[test]
    fn postgres() {
        if postgres::has_postgres() {
            let store = Store::on_own_postgres(postgres::Server::start(&[]));
            ends_for_all(store, |store| store.postgres_mut().kill());
        }
    }

    #[cfg(feature = "nats")]
    #[test]
    fn nats() {
        if has(nats::NATS) {
            let store = Store::on_own_nats(nats::Server::start(nats::NATS, ""));
            ends_for_all(store, |store| store.nats_mut()[0].kill());
        }
    }

    /// Two of three.
    #[cfg(feature = "nats")]
    #[test]
    fn most_of_nats() {
        if has(nats::NATS) {
            let store = Store::on_own_nats_cluster(nats::Cluster::start(nats::NATS));
            ends_for_all(store, |store| store.nats_mut()[..2].iter_mut().for_each(nats::Server::kill));
        }
    }

    #[cfg(feature = "etcd")]
    #[test]
    fn etcd() {
        if has(etcd::ETCD) {
            let store = Store::on_own_etcd(etcd::Server::start(etcd::ETCD, &[]));
            ends_for_all(store, |store| store.etcd_servers()[0].kill());
        }
    }

    /// Two of three.
    #[cfg(feature = "etcd")]
    #[test]
    fn most_of_etcd() {
        if has(etcd::ETCD) {
            let store = Store::on_own_etcd_cluster(etcd::Cluster::start(etcd::ETCD));
            ends_for_all(store, |store| store.etcd_servers()[..2].iter_mut().for_each(etcd::Server::kill));
        }
    }
}

#[cfg(any(feature = "nats", feature = "redis"))]
mod who_is_cut_off_is_stopped_before_the_next_one_starts {
    #[cfg(feature = "redis")]
    use crate::support::fake::Fake;
    #[cfg(feature = "nats")]
    use crate::support::nats;
    #[cfg(feature = "redis")]
    use crate::support::proxy::Proxy;
    #[cfg(feature = "redis")]
    use crate::support::redis::{Cluster, Nodes, PORT, REDIS, Sentinels, Server, Setup};
    #[cfg(feature = "redis")]
    use crate::support::wait_for;
    use crate::support::{Store, has};

    use super::{PATIENT, ends_in_time};

    /// By sentinels that name another address of the master.
    #[cfg(feature = "redis")]
    #[test]
    fn sentinel() {
        if !has(REDIS) {
            return;
        }
        let group = Sentinels::start(REDIS, &Setup::default());
        let proxy = Proxy::to(&group.servers[0]);
        let host = proxy.host();
        let answer = format!("*2\r\n${}\r\n{host}\r\n$4\r\n{PORT}\r\n-ERR no more\r\n", host.len());
        let sentinel = Fake::answering(answer.as_bytes()).url().replace("redis://", "");
        let near = Store::new().at(&group.url());
        let far = Store::new().at(&format!("redis+sentinel://{sentinel}/mymaster"));
        let mut next = None;
        ends_in_time(far, |far| {
            next = Some(near.waiting("k", &PATIENT, &format!("{}; echo in", far.alone())));
            proxy.drop_all();
        });
        next.expect("it waits").finish().is(0, "in\n", "");
    }

    /// Makes the nodes of a cluster known to clients by other addresses.
    #[cfg(feature = "redis")]
    fn announce(cluster: &Cluster, proxies: &[Proxy]) {
        for (node, proxy) in cluster.nodes.iter().zip(proxies) {
            node.ask(&["CONFIG", "SET", "cluster-announce-hostname", proxy.host()]);
            node.ask(&["CONFIG", "SET", "cluster-preferred-endpoint-type", "hostname"]);
        }
        let knows_all = |node: &Server| {
            let slots = format!("{:?}", node.ask(&["CLUSTER", "SLOTS"]));
            // As a client has them: the first word of a node.
            proxies.iter().all(|proxy| slots.contains(&format!("[bulk-string('\"{}\"'), int({PORT})", proxy.host())))
        };
        wait_for("nodes that know all addresses", || cluster.nodes.iter().all(knows_all));
    }

    /// From the node that has the key.
    #[cfg(feature = "redis")]
    #[test]
    fn cluster() {
        if !has(REDIS) {
            return;
        }
        let cluster = Cluster::start(REDIS, &Setup::default());
        let at = cluster.master_of("dlock:{k}:record");
        let proxies: Vec<Proxy> = cluster.nodes.iter().map(Proxy::to).collect();
        announce(&cluster, &proxies);
        let store = Store::new().at(&format!("redis+cluster://{}:{PORT}", proxies[(at + 1) % 3].host()));
        let store = ends_in_time(store, |_| proxies[at].drop_all());
        proxies[at].heal();
        store.run(&["run", "k", "--", "echo", "in"]).is(0, "in\n", "");
    }

    /// Three servers, and a store of this kind that knows them as three others.
    #[cfg(feature = "redis")]
    fn behind(kind: &str) -> (Nodes, Vec<Proxy>, Store) {
        let nodes = Nodes::start(REDIS, 3, &[]);
        let proxies: Vec<Proxy> = nodes.0.iter().map(Proxy::to).collect();
        let names: Vec<String> = proxies.iter().map(|proxy| format!("{}:{PORT}", proxy.host())).collect();
        let store = Store::new().at(&format!("redis+{kind}://{}", names.join(",")));
        (nodes, proxies, store)
    }

    #[cfg(feature = "redis")]
    #[test]
    fn ring() {
        if !has(REDIS) {
            return;
        }
        let (nodes, proxies, store) = behind("ring");
        let store = ends_in_time(store, |_| {
            let at = nodes.0.iter().position(|node| !node.record("k").is_empty());
            proxies[at.expect("one has the key")].drop_all();
        });
        proxies.iter().for_each(Proxy::heal);
        store.run(&["run", "k", "--", "echo", "in"]).is(0, "in\n", "");
    }

    /// From most nodes.
    #[cfg(feature = "redis")]
    #[test]
    fn quorum() {
        if !has(REDIS) {
            return;
        }
        let (_nodes, proxies, store) = behind("quorum");
        let store = ends_in_time(store, |_| proxies[1..].iter().for_each(Proxy::drop_all));
        proxies.iter().for_each(Proxy::heal);
        store.run(&["run", "k", "--", "echo", "in"]).is(0, "in\n", "");
    }

    #[cfg(feature = "nats")]
    #[test]
    fn nats() {
        if !has(nats::NATS) {
            return;
        }
        let near = Store::on_nats(nats::NATS);
        near.run(&["setup"]).is(0, "", "");
        let proxy = nats::proxy::Proxy::to(&nats::shared_server(nats::NATS).host);
        let far = Store::new().at_url(&proxy.url(near.url()));
        let mut next = None;
        ends_in_time(far, |far| {
            next = Some(near.waiting("k", &PATIENT, &format!("{}; echo in", far.alone())));
            proxy.drop_all();
        });
        next.expect("it waits").finish().is(0, "in\n", "");
    }
}
