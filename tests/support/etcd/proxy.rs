//! A proxy before an etcd server, on an address of its own, that does to what passes what networks do.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use nix::unistd::Pid;

use super::{PEERS, PORT, Server};
use crate::support::Running;
use crate::support::activity::local_addresses;
use crate::support::relay::{Pair, Relay, Way, Wires, lock, pass};
use crate::support::sockets::listens;

/// The proxy. It ends with the test.
pub(crate) struct Proxy {
    relay: Relay,
    state: Arc<Mutex<State>>,
}

/// What becomes of the connection on which a client says something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is heard, and nothing comes back any more.
    Mute,
    /// It is heard, and the connection ends before anything comes back.
    Cut,
}

#[derive(Default)]
struct State {
    /// How long what the server says is on its way.
    delay: Duration,
    /// What becomes of the next connection on which this is said.
    fate: Option<(&'static str, Fate)>,
    /// Connections stay; what comes over them is dropped.
    drops: bool,
    /// The same for those that this process makes.
    stranger: Option<Pid>,
    /// The ports from which it made them.
    strange: BTreeSet<u16>,
}

impl Proxy {
    /// One between clients and a server.
    pub(crate) fn to(server: &str) -> Self {
        Self::before(server, PORT)
    }

    /// One between a server and the others of its cluster.
    pub(super) fn to_peer(server: &str) -> Self {
        Self::before(server, PEERS)
    }

    fn before(server: &str, port: u16) -> Self {
        let state = Arc::default();
        let shared = Arc::clone(&state);
        let relay = Relay::before(server, port, Wires::default(), move |pair| carry(&pair, &shared));
        Self { relay, state }
    }

    /// Its address.
    pub(crate) fn host(&self) -> &str {
        self.relay.host()
    }

    /// The URL of a store with this one in the place of its server.
    pub(crate) fn url(&self, of: &str) -> String {
        let query = of.split_once('?').map_or_else(String::new, |(_, query)| format!("?{query}"));
        format!("etcd://{}:{PORT}{query}", self.host())
    }

    /// Whether a dlock sleeps until it hears from the server.
    pub(crate) fn is_listened_to_by(&self, dlock: &Running) -> bool {
        listens(dlock.pid().as_raw(), &[self.host().to_owned()])
    }

    /// What the server says takes so long.
    pub(crate) fn delay(&self, delay: Duration) {
        lock(&self.state).delay = delay;
    }

    /// What becomes of the next connection on which a client says this.
    pub(crate) fn after(&self, words: &'static str, fate: Fate) {
        lock(&self.state).fate = Some((words, fate));
    }

    /// Whether that has happened.
    pub(crate) fn is_spent(&self) -> bool {
        lock(&self.state).fate.is_none()
    }

    /// Drops all that comes, in both directions.
    pub(crate) fn drop_all(&self) {
        lock(&self.state).drops = true;
    }

    /// Lets pass again what comes from now on, over new connections: what was dropped of the old ones is missing there.
    pub(crate) fn heal(&self) {
        let mut state = lock(&self.state);
        state.drops = false;
        state.stranger = None;
        state.strange.clear();
        drop(state);
        self.cut();
    }

    /// Ends all connections.
    pub(crate) fn cut(&self) {
        self.relay.cut();
    }
}

/// Cuts a server off from the others of its cluster, in both directions: `proxies` has the one over which each of the
/// `servers` is reached by the others.
pub(super) fn cut_off(lonely: &Server, servers: &[Server], proxies: &[Proxy]) {
    for (server, proxy) in servers.iter().zip(proxies) {
        if server.host == lonely.host {
            proxy.drop_all();
            continue;
        }
        let mut state = lock(&proxy.state);
        state.stranger = Some(lonely.pid());
        state.strange = ports(lonely.pid(), proxy.host()).collect();
    }
}

/// The ports of a process's connections to this host. To others it, or somebody else, may have the same ones.
fn ports(pid: Pid, host: &str) -> impl Iterator<Item = u16> {
    let port = |(local, _): (String, String)| local.rsplit(':').next().and_then(|port| port.parse().ok());
    local_addresses(pid.as_raw()).into_iter().filter(move |(_, peer)| peer == host).filter_map(port)
}

impl State {
    /// What becomes of what is said over a connection that was made from this port.
    fn way(&self, port: u16) -> Way {
        if self.drops || self.strange.contains(&port) { Way::Nowhere } else { Way::On }
    }

    /// Looks who made a connection, if that matters.
    fn meet(&mut self, host: &str, port: u16) {
        let strange = self.stranger.is_some_and(|pid| ports(pid, host).any(|of_it| of_it == port));
        if strange {
            self.strange.insert(port);
        } else {
            self.strange.remove(&port);
        }
    }
}

/// Passes on what a client and the server say to each other.
fn carry(Pair { client, server }: &Pair, state: &Arc<Mutex<State>>) {
    // From which the connection was made.
    let port = client.peer_addr().map_or(0, |from| from.port());
    let host = client.local_addr().map_or_else(|_| String::new(), |at| at.ip().to_string());
    lock(state).meet(&host, port);
    let met = Arc::new(Mutex::new(None));
    let (shared, fate) = (Arc::clone(state), Arc::clone(&met));
    pass((client, server), move |said| {
        let mut state = lock(&shared);
        let is_it = |words: &str| said.windows(words.len()).any(|part| part == words.as_bytes());
        if let Some((_, next)) = state.fate.take_if(|(words, _)| is_it(words)) {
            *lock(&fate) = Some(next);
        }
        state.way(port)
    });
    let shared = Arc::clone(state);
    pass((server, client), move |_| {
        let delay = lock(&shared).delay;
        thread::sleep(delay);
        match *lock(&met) {
            Some(Fate::Cut) => Way::End,
            Some(Fate::Mute) => Way::Nowhere,
            None => lock(&shared).way(port),
        }
    });
}
