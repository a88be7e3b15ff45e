//! Three etcd servers that agree on what they keep.

use serde_json::json;

use super::client::try_ask;
use super::proxy::Proxy;
use super::{PEERS, PORT, Server, name, new_host, wait_for};

/// The servers. Killed at the end.
pub(crate) struct Cluster {
    servers: Vec<Server>,
}

impl Cluster {
    /// Starts three.
    pub(crate) fn start(program: &'static str) -> Self {
        let hosts = [(); 3].map(|()| new_host());
        Self::start_at(program, &hosts, &hosts)
    }

    /// Starts three that reach each other over proxies only: one for each, over which it is reached.
    pub(crate) fn start_apart(program: &'static str) -> (Self, [Proxy; 3]) {
        let hosts = [(); 3].map(|()| new_host());
        let proxies = hosts.each_ref().map(|host| Proxy::to_peer(host));
        let cluster = Self::start_at(program, &hosts, &proxies.each_ref().map(|proxy| proxy.host().to_owned()));
        (cluster, proxies)
    }

    fn start_at(program: &'static str, hosts: &[String; 3], reached_at: &[String; 3]) -> Self {
        let peers: Vec<String> = reached_at.iter().map(|host| format!("http://{host}:{PEERS}")).collect();
        let all: Vec<String> = hosts.iter().zip(&peers).map(|(host, peer)| format!("{}={peer}", name(host))).collect();
        let all = all.join(",");
        let start = |(host, peer): (&String, &String)| {
            let settings = ["--initial-advertise-peer-urls", peer, "--initial-cluster", &all];
            Server::launch(program, host, &settings)
        };
        let cluster = Self { servers: hosts.iter().zip(&peers).map(start).collect() };
        wait_for("three servers with a leader", || cluster.servers.iter().all(|server| leader(&server.host).is_some()));
        cluster
    }

    pub(crate) fn program(&self) -> &'static str {
        self.servers[0].program
    }

    pub(crate) fn hosts(&self) -> Vec<String> {
        self.servers.iter().map(|server| server.host.clone()).collect()
    }

    pub(crate) fn url(&self) -> String {
        let hosts: Vec<String> = self.hosts().iter().map(|host| format!("{host}:{PORT}")).collect();
        format!("etcd://{}", hosts.join(","))
    }

    pub(crate) fn into_servers(self) -> Vec<Server> {
        self.servers
    }
}

/// The address of the server that leads, as this one has it; nothing while it knows of none.
pub(crate) fn leader(host: &str) -> Option<String> {
    let status = try_ask(host, "maintenance/status", &json!({}))?;
    let leader = status["leader"].as_str().filter(|leader| *leader != "0")?;
    let members = try_ask(host, "cluster/member/list", &json!({}))?;
    let member = members["members"].as_array()?.iter().find(|member| member["ID"] == leader)?;
    Some(member["name"].as_str()?.strip_prefix("e-")?.to_owned())
}
