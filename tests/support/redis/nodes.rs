//! Servers that know nothing of each other.

use super::{PORT, Server, arguments, new_dir, new_host};

/// Several of them.
pub(crate) struct Nodes(pub(crate) Vec<Server>);

impl Nodes {
    /// Starts so many, all with these options.
    pub(crate) fn start(program: &'static str, count: usize, options: &[&str]) -> Self {
        let launch = |_| {
            let host = new_host();
            let arguments = arguments(&host, options);
            Server::launch(program, new_dir(), host, arguments)
        };
        let nodes: Vec<Server> = (0..count).map(launch).collect();
        nodes.iter().for_each(Server::await_ready);
        Self(nodes)
    }

    /// `HOST:PORT` of one.
    pub(crate) fn name(&self, number: usize) -> String {
        format!("{}:{PORT}", self.0[number].host)
    }

    /// The URL of a store of this kind that is made of these.
    pub(crate) fn url(&self, kind: &str, numbers: &[usize]) -> String {
        let names: Vec<String> = numbers.iter().map(|number| self.name(*number)).collect();
        format!("redis+{kind}://{}/0", names.join(","))
    }
}
