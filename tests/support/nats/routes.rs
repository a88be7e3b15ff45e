//! What lies between the servers of a cluster: a wire for each of two and each direction in which one may call the other. A
//! server can be cut off from the others there, while its clients still reach it.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use super::super::address::new_host;
use super::cluster::ROUTES;

/// The wires of a cluster. They end with the test.
pub(crate) struct Routes(Vec<Wire>);

/// How one is cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// Connections stay, and nothing passes: whoever called waits.
    Silent,
    /// Connections end, and none is taken.
    Closed,
}

/// From one server to another, by their numbers.
struct Wire {
    ends: [usize; 2],
    host: String,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    cut: Option<Cut>,
    sockets: Vec<TcpStream>,
}

impl Routes {
    /// Between servers with these addresses.
    pub(super) fn between(hosts: &[String]) -> Self {
        let numbers = || 0..hosts.len();
        let pairs = numbers().flat_map(|from| numbers().filter(move |to| *to != from).map(move |to| [from, to]));
        Self(pairs.map(|ends| Wire::lay(ends, &hosts[ends[1]])).collect())
    }

    /// Whom the server of this number calls.
    pub(super) fn of(&self, server: usize) -> Vec<String> {
        self.0.iter().filter(|wire| wire.ends[0] == server).map(|wire| wire.host.clone()).collect()
    }

    /// Cuts the server of this number off from all others.
    pub(crate) fn cut_off(&self, server: usize, how: Cut) {
        self.0.iter().filter(|wire| wire.ends.contains(&server)).for_each(|wire| wire.become_cut(Some(how)));
    }

    /// Lets all speak with each other again, over new connections: of the old ones parts are lost.
    pub(crate) fn heal(&self) {
        self.0.iter().for_each(|wire| wire.become_cut(None));
    }
}

impl Wire {
    fn lay(ends: [usize; 2], to: &str) -> Self {
        let wire = Self { ends, host: new_host(), state: Arc::default() };
        let listener = TcpListener::bind((&*wire.host, ROUTES)).expect("an address");
        let (to, state) = (to.to_owned(), Arc::clone(&wire.state));
        thread::spawn(move || {
            for caller in listener.incoming().flatten() {
                if lock(&state).cut == Some(Cut::Closed) {
                    continue;
                }
                let Ok(server) = TcpStream::connect((&*to, ROUTES)) else { continue };
                pass(&caller, &server, &state);
                pass(&server, &caller, &state);
                lock(&state).sockets.extend([caller, server]);
            }
        });
        wire
    }

    fn become_cut(&self, cut: Option<Cut>) {
        let mut state = lock(&self.state);
        let was = std::mem::replace(&mut state.cut, cut);
        if was.is_some() || cut == Some(Cut::Closed) {
            for socket in state.sockets.drain(..) {
                let _ = socket.shutdown(Shutdown::Both);
            }
        }
    }
}

/// Passes on what comes, in a thread of its own.
fn pass(from: &TcpStream, to: &TcpStream, state: &Arc<Mutex<State>>) {
    let (mut from, mut to) = (from.try_clone().expect("a socket"), to.try_clone().expect("a socket"));
    let state = Arc::clone(state);
    to.set_nodelay(true).expect("it is TCP");
    thread::spawn(move || {
        let mut bytes = vec![0; 64 << 10];
        while let Ok(read @ 1..) = from.read(&mut bytes) {
            if lock(&state).cut.is_none() && to.write_all(&bytes[..read]).is_err() {
                break;
            }
        }
        for socket in [from, to] {
            let _ = socket.shutdown(Shutdown::Both);
        }
    });
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
