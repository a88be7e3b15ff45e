//! The place of a store in etcd: what is under its prefix.

use percent_encoding::percent_decode_str;

use serde_json::{Value, json};

use super::client::{self, Entry, all_under, encoded, try_ask};
use super::cluster::leader;
use super::proxy::{Proxy, cut_off};
use super::{Cluster, PORT, Server, etcdctl, shared_server};
use crate::support::address::new_prefix;
use crate::support::sockets::listens;
use crate::support::{Done, Running, Store, wait_for};

/// Where a store is.
pub(crate) struct Place {
    program: &'static str,
    /// The servers, if they are the test's own.
    own: Vec<Server>,
    /// Where they are.
    hosts: Vec<String>,
    prefix: String,
}

impl Place {
    /// The first of its servers that answers.
    #[track_caller]
    pub(crate) fn host(&self) -> &str {
        let answers = |host: &&String| try_ask(host, "kv/range", &json!({ "key": "AA==" })).is_some();
        self.hosts.iter().find(answers).expect("one of them answers")
    }

    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// What all of a key is kept under whose name needs no encoding.
    fn folder(&self, key: &str) -> String {
        format!("{}/key/{key}/", self.prefix)
    }

    /// Where the record of such a key is.
    pub(crate) fn record(&self, key: &str) -> String {
        self.folder(key) + "record"
    }

    /// All keys that have a record.
    pub(crate) fn keys(&self) -> Vec<String> {
        let all = format!("{}/key/", self.prefix);
        let name = |entry: Entry| {
            let name = entry.path.strip_prefix(&all)?.strip_suffix("/record")?;
            Some(percent_decode_str(name).decode_utf8().expect("a key is text").into_owned())
        };
        all_under(self.host(), &all).into_iter().filter_map(name).collect()
    }

    /// What tells of what happened to a key.
    pub(crate) fn events(&self, key: &str) -> Vec<Entry> {
        all_under(self.host(), &self.folder(key).replace("/key/", "/event/"))
    }

    /// What there is besides records and what happened: what shows who lives.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let all = all_under(self.host(), &format!("{}/key/", self.prefix));
        all.into_iter().map(|entry| entry.path).filter(|path| !path.ends_with("/record")).collect()
    }

    /// What shows that the first holder of a key lives.
    pub(crate) fn life(&self, key: &str) -> Option<Entry> {
        let all = all_under(self.host(), &self.folder(key));
        let record = all.iter().find(|entry| entry.path.ends_with("/record"))?;
        let record: Value = serde_json::from_str(&record.value).expect("a record is JSON");
        let level = record["holders"][0]["levels"][0]["id"].as_str()?;
        all.iter().find(|entry| entry.path.ends_with(level)).cloned()
    }

    /// Waits until the first holder of a key shows anew that it lives.
    #[track_caller]
    pub(crate) fn await_beat(&self, key: &str) {
        let before = self.life(key).map(|life| life.revision);
        let is_new = || self.life(key).is_some_and(|life| Some(life.revision) > before);
        wait_for(&format!("a beat of {key}"), is_new);
    }

    /// Puts a text in the place of a record.
    #[track_caller]
    pub(crate) fn put(&self, key: &str, text: &str) {
        client::ask(self.host(), "kv/put", &json!({ "key": encoded(&self.record(key)), "value": encoded(text) }));
    }

    /// Cuts one of the test's own servers off from the others; see [`cut_off`].
    pub(crate) fn cut_off(&self, lonely: usize, proxies: &[Proxy]) {
        cut_off(&self.own[lonely], &self.own, proxies);
    }

    /// The address of the server that leads, as any of its servers has it.
    #[track_caller]
    pub(crate) fn leader(&self) -> String {
        let mut found = None;
        wait_for("a leader", || {
            found = self.hosts.iter().find_map(|host| leader(host));
            found.is_some()
        });
        found.expect("it was waited for")
    }

    /// Runs etcd's own client, and expects that all goes well.
    #[track_caller]
    pub(crate) fn etcdctl(&self, args: &[&str]) -> Done {
        let done = etcdctl(self.program, self.host(), args);
        assert!(done.status.success(), "etcdctl {args:?}: {done:#?}");
        done
    }

    /// Whether a dlock sleeps until it hears from a server.
    pub(crate) fn is_asleep(&self, dlock: &Running) -> bool {
        listens(dlock.pid().as_raw(), &self.hosts)
    }

    /// What deletes the record of a key, for a shell.
    pub(crate) fn loss(&self, key: &str) -> String {
        let client = self.program.replace("etcd", "etcdctl");
        let (host, record) = (&self.hosts[0], self.record(key));
        format!("ETCDCTL_API=3 {client} --endpoints http://{host}:{PORT} del '{record}' >/dev/null")
    }

    /// What status calls the store.
    pub(crate) fn identity(&self) -> String {
        let mut hosts: Vec<String> = self.hosts.iter().map(|host| format!("{host}:{PORT}")).collect();
        hosts.sort_unstable();
        format!("etcd://{}?prefix={}", hosts.join(","), self.prefix)
    }
}

impl Store {
    /// A store on the server of this version that all tests share.
    pub(crate) fn on_etcd(program: &'static str) -> Self {
        let server = shared_server(program);
        let prefix = new_prefix();
        let url = format!("{}?prefix={prefix}", server.url());
        Self {
            url,
            etcd: Some(Place { program, own: Vec::new(), hosts: vec![server.host.clone()], prefix }),
            ..Self::new()
        }
    }

    /// A store on a server of its own.
    pub(crate) fn on_own_etcd(server: Server) -> Self {
        let (program, url, hosts) = (server.program, server.url(), vec![server.host.clone()]);
        Self { url, etcd: Some(Place { program, hosts, own: vec![server], prefix: "dlock".into() }), ..Self::new() }
    }

    /// A store on the three servers of this version that all tests share.
    pub(crate) fn on_etcd_cluster(cluster: &Cluster) -> Self {
        let prefix = new_prefix();
        let url = format!("{}?prefix={prefix}", cluster.url());
        let place = Place { program: cluster.program(), own: Vec::new(), hosts: cluster.hosts(), prefix };
        Self { url, etcd: Some(place), ..Self::new() }
    }

    /// The same on three of its own.
    pub(crate) fn on_own_etcd_cluster(cluster: Cluster) -> Self {
        let (program, url, hosts) = (cluster.program(), cluster.url(), cluster.hosts());
        let place = Place { program, hosts, own: cluster.into_servers(), prefix: "dlock".into() };
        Self { url, etcd: Some(place), ..Self::new() }
    }

    /// Where it is in etcd.
    #[track_caller]
    pub(crate) fn etcd(&self) -> &Place {
        self.etcd.as_ref().expect("it is a store in etcd")
    }

    /// Its own server.
    #[track_caller]
    pub(crate) fn etcd_server(&self) -> &Server {
        self.etcd().own.first().expect("a server of its own")
    }

    #[track_caller]
    pub(crate) fn etcd_servers(&mut self) -> &mut [Server] {
        &mut self.etcd.as_mut().expect("it is a store in etcd").own
    }
}
