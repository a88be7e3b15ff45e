//! A proxy between a dlock and its server, on an address of its own, that does to what passes what networks do.

use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crate::support::address::PORT;
use crate::support::relay::{Pair, Relay, Way, Wires, lock, pass};

/// The proxy. It ends with the test.
pub(crate) struct Proxy {
    relay: Relay,
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
}

impl Proxy {
    pub(crate) fn to(server: &str) -> Self {
        let state = Arc::default();
        let shared = Arc::clone(&state);
        let relay = Relay::before(server, PORT, Wires::default(), move |pair| carry(&pair, &shared));
        Self { relay, state }
    }

    /// The URL of a store with this one in the place of its server.
    pub(crate) fn url(&self, of: &str) -> String {
        let (_, rest) = of.split_once("://").expect("a URL");
        let query = rest.split_once('?').map_or_else(String::new, |(_, query)| format!("?{query}"));
        format!("nats://{}:{PORT}{query}", self.relay.host())
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
        self.relay.cut();
    }
}

/// Passes on what a client and the server say to each other.
fn carry(Pair { client, server }: &Pair, state: &Arc<Mutex<State>>) {
    let is_mute = Arc::new(Mutex::new(false));
    let (shared, muted) = (Arc::clone(state), Arc::clone(&is_mute));
    pass((client, server), move |said| {
        let mut state = lock(&shared);
        let is_it = |words: &mut &str| said.windows(words.len()).any(|part| part == words.as_bytes());
        if state.mute_after.take_if(is_it).is_some() {
            *lock(&muted) = true;
        }
        if state.drops { Way::Nowhere } else { Way::On }
    });
    let shared = Arc::clone(state);
    pass((server, client), move |said| {
        let (delay, words) = {
            let state = lock(&shared);
            (state.delay, state.words.clone())
        };
        thread::sleep(delay);
        for (this, that) in words {
            replace(said, this.as_bytes(), that.as_bytes());
        }
        if *lock(&is_mute) || lock(&shared).drops { Way::Nowhere } else { Way::On }
    });
}

fn replace(said: &mut [u8], this: &[u8], that: &[u8]) {
    for at in 0..(said.len() + 1).saturating_sub(this.len()) {
        if said[at..].starts_with(this) {
            said[at..at + this.len()].copy_from_slice(that);
        }
    }
}
