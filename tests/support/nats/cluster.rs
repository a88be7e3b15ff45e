//! Three NATS servers that keep copies of each other's streams.

use serde_json::json;

use super::super::address::PORT;
use super::routes::Routes;
use super::{Server, new_host, wait_for};

/// The servers. Killed at the end.
pub(crate) struct Cluster {
    servers: Vec<Server>,
}

/// Where servers of a cluster speak with each other.
pub(super) const ROUTES: u16 = PORT + 2;

impl Cluster {
    /// Starts three.
    pub(crate) fn start(program: &'static str) -> Self {
        let hosts = [program; 3].map(|_| new_host());
        Self::launch(program, &hosts, |_| (hosts.to_vec(), String::new()))
    }

    /// Starts three that speak with each other over these routes alone.
    pub(crate) fn start_apart(program: &'static str) -> (Self, Routes) {
        let hosts = [program; 3].map(|_| new_host());
        let routes = Routes::between(&hosts);
        // What they tell others of their own addresses leads nowhere.
        let nowhere = format!("advertise: \"{}:1\"", new_host());
        let cluster = Self::launch(program, &hosts, |server| (routes.of(server), nowhere.clone()));
        (cluster, routes)
    }

    /// Starts them at these addresses; `calls` says whom each one calls, and more of its settings.
    fn launch(program: &'static str, hosts: &[String; 3], calls: impl Fn(usize) -> (Vec<String>, String)) -> Self {
        let start = |number: usize| {
            let host = &hosts[number];
            let (routes, more) = calls(number);
            let routes: Vec<String> = routes.iter().map(|host| format!("\"nats://{host}:{ROUTES}\"")).collect();
            let routes = routes.join(", ");
            let cluster = format!("cluster {{ name: c, listen: \"{host}:{ROUTES}\", routes: [{routes}], {more} }}");
            Server::launch(program, host, &cluster)
        };
        let cluster = Self { servers: (0..3).map(start).collect() };
        // Once a leader of them all is there, streams can be made.
        let settings = json!({ "name": "probe", "subjects": ["probe"], "num_replicas": 3, "storage": "memory" });
        wait_for("three servers to make a stream", || {
            let server = &cluster.servers[0];
            let Ok(mut client) = super::Client::try_to(&server.host, "{}") else { return false };
            let made = client.request("$JS.API.STREAM.CREATE.probe", "", settings.to_string().as_bytes());
            matches!(made, Ok(super::Answer::Message(bytes)) if String::from_utf8_lossy(&bytes).contains("\"config\""))
        });
        cluster
    }

    pub(crate) fn hosts(&self) -> Vec<String> {
        self.servers.iter().map(|server| server.host.clone()).collect()
    }

    pub(crate) fn url(&self) -> String {
        let hosts: Vec<String> = self.hosts().iter().map(|host| format!("{host}:{PORT}")).collect();
        format!("nats://{}", hosts.join(","))
    }

    pub(crate) fn into_servers(self) -> Vec<Server> {
        self.servers
    }
}
