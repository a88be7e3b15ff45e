//! A proxy between a dlock and its server, on an address of its own, that does to what passes what networks do.

use std::sync::{Arc, Condvar, Mutex};

use super::{ADMIN, Server};
use crate::support::address::PORT;
use crate::support::relay::{Pair, Relay, Way, Wires, lock, pass};

/// What becomes of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// The server hears it, and nothing that it says from then on comes back.
    Unanswered,
    /// It is held up, with all that follows on its connection, until [`Proxy::let_go`].
    HeldUp,
    /// The connection ends before the server hears it.
    Cut,
}

/// The proxy. It ends with the test.
pub(crate) struct Proxy {
    relay: Relay,
    traffic: Arc<Traffic>,
}

#[derive(Default)]
struct Traffic {
    state: Mutex<State>,
    changed: Condvar,
    wires: Wires,
}

#[derive(Default)]
struct State {
    /// Connections stay; what comes over them is dropped.
    drops: bool,
    /// After so many commits this becomes of one.
    fate: Option<(usize, Fate)>,
    commits: usize,
    /// How often what was held up was let go.
    goes: usize,
}

impl Proxy {
    pub(crate) fn to(server: &Server) -> Self {
        let traffic: Arc<Traffic> = Arc::default();
        let shared = Arc::clone(&traffic);
        let relay = Relay::before(&server.host, PORT, traffic.wires.clone(), move |pair| shared.carry(&pair));
        Self { relay, traffic }
    }

    pub(crate) fn url(&self) -> String {
        format!("postgres://{ADMIN}@{}:{PORT}/postgres", self.relay.host())
    }

    /// What becomes of a commit, after so many that pass.
    pub(crate) fn next(&self, after: usize, fate: Fate) {
        lock(&self.traffic.state).fate = Some((after, fate));
    }

    /// Whether that has come true.
    pub(crate) fn is_spent(&self) -> bool {
        lock(&self.traffic.state).fate.is_none()
    }

    /// How many commits passed, or would have.
    pub(crate) fn commits(&self) -> usize {
        lock(&self.traffic.state).commits
    }

    /// Lets pass what was held up.
    pub(crate) fn let_go(&self) {
        lock(&self.traffic.state).goes += 1;
        self.traffic.changed.notify_all();
    }

    /// Drops all that comes, in both directions.
    pub(crate) fn drop_all(&self) {
        lock(&self.traffic.state).drops = true;
    }

    /// Ends all connections.
    pub(crate) fn cut(&self) {
        self.relay.cut();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.relay.refuse();
        self.let_go();
    }
}

impl Traffic {
    /// Passes on what a client and the server say to each other. Once something is lost, so is what follows.
    fn carry(self: &Arc<Self>, Pair { client, server }: &Pair) {
        let muted = Arc::new(Mutex::new(false));
        let (traffic, is_mute) = (Arc::clone(self), Arc::clone(&muted));
        let mut is_lost = false;
        pass((client, server), move |bytes| {
            // What belongs together is sent at once.
            if bytes.windows(7).any(|words| words == b"COMMIT\0") {
                match traffic.judge() {
                    Some(Fate::Cut) => {
                        traffic.wires.cut();
                        is_lost = true;
                    }
                    Some(Fate::Unanswered) => *lock(&muted) = true,
                    Some(Fate::HeldUp) => {
                        let state = lock(&traffic.state);
                        let goes = state.goes;
                        drop(traffic.changed.wait_while(state, |state| state.goes == goes));
                    }
                    None => {}
                }
            }
            is_lost |= lock(&traffic.state).drops;
            if is_lost { Way::Nowhere } else { Way::On }
        });
        let traffic = Arc::clone(self);
        let mut is_lost = false;
        pass((server, client), move |_| {
            is_lost |= lock(&traffic.state).drops || *lock(&is_mute);
            if is_lost { Way::Nowhere } else { Way::On }
        });
    }

    fn judge(&self) -> Option<Fate> {
        let mut state = lock(&self.state);
        state.commits += 1;
        match state.fate {
            Some((0, fate)) => {
                state.fate = None;
                Some(fate)
            }
            Some((after, fate)) => {
                state.fate = Some((after - 1, fate));
                None
            }
            None => None,
        }
    }
}
