//! Three NATS servers that keep copies of each other's streams.

use serde_json::json;

use super::super::address::PORT;
use super::{Server, new_host, wait_for};

/// The servers. Killed at the end.
pub(crate) struct Cluster {
    servers: Vec<Server>,
}

/// Where servers of a cluster speak with each other.
const ROUTES: u16 = PORT + 2;

impl Cluster {
    /// Starts three.
    pub(crate) fn start(program: &'static str) -> Self {
        Self::start_mixed([program; 3])
    }

    /// The same, each of a version of its own.
    pub(crate) fn start_mixed(programs: [&'static str; 3]) -> Self {
        let hosts: Vec<String> = programs.iter().map(|_| new_host()).collect();
        let routes: Vec<String> = hosts.iter().map(|host| format!("\"nats://{host}:{ROUTES}\"")).collect();
        let routes = routes.join(", ");
        let start = |(program, host): (&&'static str, &String)| {
            let cluster = format!("cluster {{ name: c, listen: \"{host}:{ROUTES}\", routes: [{routes}] }}");
            Server::launch(program, host, &cluster)
        };
        let cluster = Self { servers: programs.iter().zip(&hosts).map(start).collect() };
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
