//! A cluster of three masters with a replica each.

use std::fs;
use std::path::PathBuf;

use redis::{FromRedisValue, Value, from_redis_value};

use super::group::{Ground, Setup};
use super::sentinel::is_master;
use super::{LOGIN, Server, new_dir};
use crate::support::wait_for;

/// The slots of each master at the start.
const SLOTS: [(u16, u16); 3] = [(0, 5460), (5461, 10922), (10923, 16383)];

/// How much higher the port is at which nodes speak with each other.
const BUS: u16 = 10000;

/// Three masters, and after these a replica of each. Killed at the end.
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Server>,
    ground: Ground,
}

/// A range of slots as a node knows it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Range {
    first: u16,
    last: u16,
    /// The numbers of the nodes that have it, the master first.
    nodes: Vec<usize>,
}

impl Cluster {
    /// Starts it, and waits until all of its nodes serve and know all the others. A master waits for two seconds
    /// before it serves, so that takes a bit longer.
    pub(crate) fn start(program: &'static str, setup: &Setup) -> Self {
        let ground = Ground::new(2 * SLOTS.len(), setup);
        let timeout = setup.down_after.as_millis().to_string();
        let mut group = Self { nodes: Vec::new(), ground };
        for number in 0..2 * SLOTS.len() {
            let dir = new_dir();
            fs::write(dir.path().join("nodes.conf"), group.config(number)).expect("a file");
            let host = group.ground.hosts[number].clone();
            let mut own = vec!["--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf"];
            own.extend(["--cluster-node-timeout", &timeout, "--cluster-announce-ip", &host]);
            if setup.tls {
                own.extend(["--tls-cluster", "yes"]);
            }
            let arguments = group.ground.arguments(number, &own, setup);
            group.nodes.push(Server::in_group(program, dir, &host, arguments));
        }
        wait_for("a cluster that serves", || group.nodes.iter().all(is_well));
        wait_for("a cluster whose nodes know all replicas", || {
            let views: Option<Vec<_>> = group.nodes.iter().map(|node| group.view(node)).collect();
            views.is_some_and(|views| {
                views.iter().all(|view| *view == views[0] && view.iter().all(|range| range.nodes.len() == 2))
            })
        });
        group
    }

    /// What a node would have written down had it been told of all others. So nobody has to meet anybody.
    fn config(&self, me: usize) -> String {
        let line = |number: usize| {
            let (host, port) = (&self.ground.hosts[number], self.ground.port());
            let myself = if number == me { "myself," } else { "" };
            let group = number % SLOTS.len();
            let (role, master, slots) = if number == group {
                ("master", "-".to_owned(), format!(" {}-{}", SLOTS[group].0, SLOTS[group].1))
            } else {
                ("slave", id(group), String::new())
            };
            let bus = port + BUS;
            let epoch = group + 1;
            format!("{} {host}:{port}@{bus} {myself}{role} {master} 0 0 {epoch} connected{slots}\n", id(number))
        };
        let nodes: String = (0..2 * SLOTS.len()).map(line).collect();
        format!("{nodes}vars currentEpoch {} lastVoteEpoch 0\n", SLOTS.len())
    }

    /// The URL of the store on it.
    pub(crate) fn url(&self) -> String {
        format!("{}+cluster://{}", self.ground.scheme(), self.ground.addresses(0..2))
    }

    /// A file that `tls::certify` made, of a cluster with TLS.
    pub(crate) fn certificate(&self, name: &str) -> PathBuf {
        self.ground.certificates.as_ref().expect("a cluster with TLS").path().join(name)
    }

    /// All nodes that have slots of their own now.
    pub(crate) fn masters(&self) -> Vec<&Server> {
        let mut numbers: Vec<usize> = self.agreed().iter().map(|range| range.nodes[0]).collect();
        numbers.sort_unstable();
        numbers.dedup();
        numbers.into_iter().map(|number| &self.nodes[number]).collect()
    }

    /// The slot of a server's key.
    pub(crate) fn slot_of(&self, name: &str) -> u16 {
        let node = self.awake().next().expect("a node is alive");
        node.try_ask(&["CLUSTER", "KEYSLOT", name]).expect("a slot")
    }

    /// The number of the node that has a slot now, and on which all nodes agree.
    pub(crate) fn owner_of(&self, slot: u16) -> usize {
        let ranges = self.agreed();
        let range = ranges.iter().find(|range| (range.first..=range.last).contains(&slot));
        range.expect("each slot has a master").nodes[0]
    }

    /// The number of the node that has a server's key now.
    pub(crate) fn master_of(&self, name: &str) -> usize {
        self.owner_of(self.slot_of(name))
    }

    /// The number of the replica of a master, which all nodes know as such.
    pub(crate) fn replica_of(&self, master: usize) -> usize {
        let mut found = None;
        wait_for("a replica", || {
            let node = self.awake().next().expect("a node is alive");
            let ranges = self.view(node).unwrap_or_default();
            found = ranges.iter().find(|range| range.nodes[0] == master).and_then(|range| range.nodes.get(1).copied());
            found.is_some()
        });
        found.expect("it was waited for")
    }

    /// Waits until all nodes that can answer serve and have no slots of that node.
    pub(crate) fn await_failover(&self, old: usize) {
        wait_for("a failover", || {
            let ranges = self.view_of_all().unwrap_or_default();
            let moved = |range: &Range| range.nodes[0] != old && is_master(&self.nodes[range.nodes[0]]);
            self.awake().all(is_well) && !ranges.is_empty() && ranges.iter().all(moved)
        });
    }

    /// Begins to move a slot: a key that its old master does not have is asked of the new one.
    pub(crate) fn begin_move(&self, slot: u16, from: usize, to: usize) {
        self.set_slot(to, slot, &["IMPORTING", &id(from)]);
        self.set_slot(from, slot, &["MIGRATING", &id(to)]);
    }

    /// Moves the keys of a slot, all at once.
    pub(crate) fn migrate_keys(&self, slot: u16, from: usize, to: usize) {
        let ask = ["CLUSTER", "GETKEYSINSLOT", &slot.to_string(), "100000"];
        let keys: Vec<String> = self.nodes[from].try_ask(&ask).expect("it has a list of keys");
        if keys.is_empty() {
            return;
        }
        let (host, port) = (&self.nodes[to].host, self.ground.port().to_string());
        let mut words = vec!["MIGRATE", host, &port, "", "0", "5000", "AUTH2", LOGIN[0], LOGIN[1], "KEYS"];
        words.extend(keys.iter().map(String::as_str));
        self.nodes[from].ask(&words);
    }

    /// Ends the move of a slot, and waits until all know of it.
    pub(crate) fn end_move(&self, slot: u16, from: usize, to: usize) {
        let masters = self.masters();
        let others = (0..self.nodes.len()).filter(|node| {
            ![from, to].contains(node) && masters.iter().any(|master| master.host == self.nodes[*node].host)
        });
        for node in [to, from].into_iter().chain(others) {
            self.set_slot(node, slot, &["NODE", &id(to)]);
        }
        wait_for("all to know of a move", || self.owner_of(slot) == to);
    }

    /// Moves a slot with its keys.
    pub(crate) fn move_slot(&self, slot: u16, from: usize, to: usize) {
        self.begin_move(slot, from, to);
        self.migrate_keys(slot, from, to);
        self.end_move(slot, from, to);
    }

    fn set_slot(&self, node: usize, slot: u16, words: &[&str]) {
        self.nodes[node].ask(&[&["CLUSTER", "SETSLOT", &slot.to_string()], words].concat());
    }

    fn awake(&self) -> impl Iterator<Item = &Server> {
        self.nodes.iter().filter(|node| node.is_awake())
    }

    /// Which master has which slots, once all nodes agree.
    fn agreed(&self) -> Vec<Range> {
        let mut found = None;
        wait_for("nodes that agree", || {
            found = self.view_of_all();
            found.is_some()
        });
        found.expect("it was waited for")
    }

    /// Which master has which slots, if all nodes that can answer agree on it.
    fn view_of_all(&self) -> Option<Vec<Range>> {
        let mut views = self.awake().map(|node| {
            let mut view = self.view(node)?;
            for range in &mut view {
                range.nodes.truncate(1);
            }
            Some(view)
        });
        let first = views.next()??;
        views.all(|view| view.as_ref() == Some(&first)).then_some(first)
    }

    /// What a node knows of the slots; nothing if it does not answer.
    fn view(&self, node: &Server) -> Option<Vec<Range>> {
        let ranges: Vec<Vec<Value>> = node.try_ask(&["CLUSTER", "SLOTS"]).ok()?;
        let mut view = ranges.into_iter().map(|range| self.range(range)).collect::<Option<Vec<_>>>()?;
        view.sort_unstable();
        Some(view)
    }

    /// A range is its first and its last slot, and nodes, each of which begins with its address.
    fn range(&self, words: Vec<Value>) -> Option<Range> {
        let mut words = words.into_iter();
        let first = from_redis_value(words.next()?).ok()?;
        let last = from_redis_value(words.next()?).ok()?;
        let number = |node: Value| {
            let host = Vec::<Value>::from_redis_value(node).ok()?.into_iter().next()?;
            let host: String = from_redis_value(host).ok()?;
            self.nodes.iter().position(|node| node.host == host)
        };
        Some(Range { first, last, nodes: words.map(number).collect::<Option<_>>()? })
    }
}

/// The id of a node.
fn id(number: usize) -> String {
    format!("{number:040x}")
}

/// Whether a node serves; a replica, whether it has its master's data.
fn is_well(node: &Server) -> bool {
    let state: String = node.try_ask(&["CLUSTER", "INFO"]).unwrap_or_default();
    let replication: String = node.try_ask(&["INFO", "replication"]).unwrap_or_default();
    let linked = replication.contains("role:master") || replication.contains("master_link_status:up");
    state.contains("cluster_state:ok") && linked
}
