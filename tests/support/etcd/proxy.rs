//! A proxy before an etcd server, on an address of its own, that does to what passes what networks do.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use nix::unistd::Pid;

use super::{PEERS, PORT, Server, new_host};
use crate::support::Running;
use crate::support::activity::local_addresses;
use crate::support::sockets::listens;

/// The proxy. It ends with the test.
pub(crate) struct Proxy {
    host: String,
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
    wires: Vec<TcpStream>,
}

/// What is known of one connection.
struct Known {
    fate: Option<Fate>,
    /// The port from which it was made.
    port: u16,
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
        let proxy = Self { host: new_host(), state: Arc::default() };
        let listener = TcpListener::bind((&*proxy.host, port)).expect("an address");
        let (server, state) = (server.to_owned(), Arc::clone(&proxy.state));
        thread::spawn(move || {
            while let Ok((client, from)) = listener.accept() {
                let Ok(server) = TcpStream::connect((&*server, port)) else { continue };
                lock(&state).meet(from.port());
                let known = Arc::new(Mutex::new(Known { fate: None, port: from.port() }));
                for wire in [&client, &server] {
                    wire.set_nodelay(true).expect("it is TCP");
                }
                pass(&client, &server, &state, &known, true);
                pass(&server, &client, &state, &known, false);
                lock(&state).wires.push(client);
            }
        });
        proxy
    }

    /// Its address.
    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// The URL of a store with this one in the place of its server.
    pub(crate) fn url(&self, of: &str) -> String {
        let query = of.split_once('?').map_or_else(String::new, |(_, query)| format!("?{query}"));
        format!("etcd://{}:{PORT}{query}", self.host)
    }

    /// Whether a dlock sleeps until it hears from the server.
    pub(crate) fn is_listened_to_by(&self, dlock: &Running) -> bool {
        listens(dlock.pid().as_raw(), std::slice::from_ref(&self.host))
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
        for wire in lock(&self.state).wires.drain(..) {
            let _ = wire.shutdown(Shutdown::Both);
        }
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
        state.strange = ports(lonely.pid()).collect();
    }
}

/// The ports of a process's connections. No two of them, and of those of others, are the same to one proxy.
fn ports(pid: Pid) -> impl Iterator<Item = u16> {
    let port = |(local, _): (String, String)| local.rsplit(':').next().and_then(|port| port.parse().ok());
    local_addresses(pid.as_raw()).into_iter().filter_map(port)
}

impl State {
    /// Looks who made a connection, if that matters.
    fn meet(&mut self, port: u16) {
        let strange = self.stranger.is_some_and(|pid| ports(pid).any(|of_it| of_it == port));
        if strange {
            self.strange.insert(port);
        } else {
            self.strange.remove(&port);
        }
    }
}

/// Passes on what comes, in a thread of its own.
fn pass(from: &TcpStream, to: &TcpStream, state: &Arc<Mutex<State>>, known: &Arc<Mutex<Known>>, asks: bool) {
    let (mut from, mut to) = (from.try_clone().expect("a socket"), to.try_clone().expect("a socket"));
    let (state, known) = (Arc::clone(state), Arc::clone(known));
    thread::spawn(move || {
        let mut bytes = vec![0; 1 << 20];
        while let Ok(read @ 1..) = from.read(&mut bytes) {
            let said = &bytes[..read];
            if asks {
                let mut state = lock(&state);
                let is_it = |words: &str| said.windows(words.len()).any(|part| part == words.as_bytes());
                if let Some((_, fate)) = state.fate.take_if(|(words, _)| is_it(words)) {
                    lock(&known).fate = Some(fate);
                }
            } else {
                let delay = lock(&state).delay;
                thread::sleep(delay);
                match lock(&known).fate {
                    Some(Fate::Cut) => break,
                    Some(Fate::Mute) => continue,
                    None => {}
                }
            }
            let is_dropped = {
                let (state, known) = (lock(&state), lock(&known));
                state.drops || state.strange.contains(&known.port)
            };
            if !is_dropped && to.write_all(said).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
        let _ = from.shutdown(Shutdown::Both);
    });
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
