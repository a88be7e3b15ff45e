//! A proxy between a dlock and its server, on an address of its own, that does to what passes what networks do.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::super::address::{PORT, new_host};

/// The proxy. It ends with the test.
pub(crate) struct Proxy {
    host: String,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// How long what the server says is on its way.
    delay: Duration,
    /// What the server says, and what becomes of it: of the same length.
    words: Vec<(String, String)>,
    /// Nothing of what the server says to a write comes back from now on, on the connections that there are.
    mute_after: Option<&'static str>,
    /// Connections stay; what comes over them is dropped.
    drops: bool,
    wires: Vec<TcpStream>,
}

impl Proxy {
    pub(crate) fn to(server: &str) -> Self {
        let proxy = Self { host: new_host(), state: Arc::default() };
        let listener = TcpListener::bind((&*proxy.host, PORT)).expect("an address");
        let (server, state) = (server.to_owned(), Arc::clone(&proxy.state));
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect((&*server, PORT)) else { continue };
                let muted = Arc::new(Mutex::new(false));
                pass(&client, &server, &state, &muted, true);
                pass(&server, &client, &state, &muted, false);
                lock(&state).wires.push(client);
            }
        });
        proxy
    }

    /// The URL of a store with this one in the place of its server.
    pub(crate) fn url(&self, of: &str) -> String {
        let (_, rest) = of.split_once("://").expect("a URL");
        let query = rest.split_once('?').map_or_else(String::new, |(_, query)| format!("?{query}"));
        format!("nats://{}:{PORT}{query}", self.host)
    }

    /// What the server says takes so long.
    pub(crate) fn delay(&self, delay: Duration) {
        lock(&self.state).delay = delay;
    }

    /// Whatever the server says, in the place of `this` it is `that`.
    pub(crate) fn say(&self, this: &str, that: &str) {
        assert_eq!(this.len(), that.len(), "a message says how long it is");
        lock(&self.state).words.push((this.into(), that.into()));
    }

    /// Drops all that the server says on a connection, from the moment on at which a client says this.
    pub(crate) fn mute_after(&self, words: &'static str) {
        lock(&self.state).mute_after = Some(words);
    }

    /// Whether that has happened.
    pub(crate) fn has_muted(&self) -> bool {
        lock(&self.state).mute_after.is_none()
    }

    /// Drops all that comes, in both directions.
    pub(crate) fn drop_all(&self) {
        lock(&self.state).drops = true;
    }

    /// Ends all connections.
    pub(crate) fn cut(&self) {
        for wire in lock(&self.state).wires.drain(..) {
            let _ = wire.shutdown(Shutdown::Both);
        }
    }
}

/// Passes on what comes, in a thread of its own.
fn pass(from: &TcpStream, to: &TcpStream, state: &Arc<Mutex<State>>, muted: &Arc<Mutex<bool>>, asks: bool) {
    let (mut from, mut to) = (from.try_clone().expect("a socket"), to.try_clone().expect("a socket"));
    let (state, muted) = (Arc::clone(state), Arc::clone(muted));
    thread::spawn(move || {
        let mut bytes = vec![0; 1 << 20];
        while let Ok(read @ 1..) = from.read(&mut bytes) {
            let mut said = bytes[..read].to_vec();
            if asks {
                let mut state = lock(&state);
                let is_it = |words: &&str| said.windows(words.len()).any(|part| part == words.as_bytes());
                if state.mute_after.as_ref().is_some_and(is_it) {
                    state.mute_after = None;
                    *lock(&muted) = true;
                }
            } else {
                let (delay, words) = {
                    let state = lock(&state);
                    (state.delay, state.words.clone())
                };
                thread::sleep(delay);
                for (this, that) in words {
                    replace(&mut said, this.as_bytes(), that.as_bytes());
                }
                if *lock(&muted) {
                    continue;
                }
            }
            if lock(&state).drops {
                continue;
            }
            if to.write_all(&said).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
        let _ = from.shutdown(Shutdown::Both);
    });
}

fn replace(said: &mut [u8], this: &[u8], that: &[u8]) {
    for at in 0..(said.len() + 1).saturating_sub(this.len()) {
        if said[at..].starts_with(this) {
            said[at..at + this.len()].copy_from_slice(that);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
