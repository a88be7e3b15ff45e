//! A proxy between a dlock and its server, on an address of its own, that does to what passes what networks do.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use super::{ADMIN, Server};
use crate::support::address::{PORT, new_host};

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
    host: String,
    traffic: Arc<Traffic>,
}

struct Traffic {
    server: String,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Nobody is let in.
    refuses: bool,
    /// Connections stay; what comes over them is dropped.
    drops: bool,
    /// After so many commits this becomes of one.
    fate: Option<(usize, Fate)>,
    commits: usize,
    /// How often what was held up was let go.
    goes: usize,
    wires: Vec<TcpStream>,
}

impl Proxy {
    pub(crate) fn to(server: &Server) -> Self {
        let server = format!("{}:{PORT}", server.host);
        let traffic = Traffic { server, state: Mutex::default(), changed: Condvar::new() };
        let proxy = Self { host: new_host(), traffic: Arc::new(traffic) };
        proxy.listen();
        proxy
    }

    pub(crate) fn url(&self) -> String {
        format!("postgres://{ADMIN}@{}:{PORT}/postgres", self.host)
    }

    /// What becomes of a commit, after so many that pass.
    pub(crate) fn next(&self, after: usize, fate: Fate) {
        self.traffic.lock().fate = Some((after, fate));
    }

    /// Whether that has come true.
    pub(crate) fn is_spent(&self) -> bool {
        self.traffic.lock().fate.is_none()
    }

    /// How many commits passed, or would have.
    pub(crate) fn commits(&self) -> usize {
        self.traffic.lock().commits
    }

    /// Lets pass what was held up.
    pub(crate) fn let_go(&self) {
        self.traffic.lock().goes += 1;
        self.traffic.changed.notify_all();
    }

    /// Drops all that comes, in both directions.
    pub(crate) fn drop_all(&self) {
        self.traffic.lock().drops = true;
    }

    /// Ends all connections.
    pub(crate) fn cut(&self) {
        self.traffic.hang_up();
    }

    fn listen(&self) {
        let listener = TcpListener::bind((&*self.host, PORT)).expect("the address is nobody else's");
        let traffic = Arc::clone(&self.traffic);
        thread::spawn(move || {
            while let Ok((client, _)) = listener.accept() {
                if traffic.lock().refuses {
                    return;
                }
                traffic.connect(client);
            }
        });
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.traffic.lock().refuses = true;
        // Whoever listens wakes up, sees it, and stops to listen.
        while TcpStream::connect((&*self.host, PORT)).is_ok() {}
        self.let_go();
        self.cut();
    }
}

impl Traffic {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A test that failed while it held it wants its proxy to end all the same.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hang_up(&self) {
        for wire in self.lock().wires.drain(..) {
            // One that has ended already is as good.
            let _ = wire.shutdown(Shutdown::Both);
        }
    }

    /// Passes on what a client and the server say to each other. Who finds no server hears an end.
    fn connect(self: &Arc<Self>, client: TcpStream) {
        let Ok(server) = TcpStream::connect(&self.server) else { return };
        let copy = |wire: &TcpStream| wire.try_clone().expect("there are descriptors left");
        for wire in [&client, &server] {
            wire.set_nodelay(true).expect("it is TCP");
            self.lock().wires.push(copy(wire));
        }
        let is_mute = Arc::new(Mutex::new(false));
        let (requests, replies) = ((copy(&client), copy(&server)), (server, client));
        let (traffic, muted) = (Arc::clone(self), Arc::clone(&is_mute));
        thread::spawn(move || {
            pump(requests, |bytes| {
                // What belongs together is sent at once.
                if !bytes.windows(7).any(|words| words == b"COMMIT\0") {
                    return !traffic.lock().drops;
                }
                match traffic.judge() {
                    Some(Fate::Cut) => {
                        traffic.hang_up();
                        return false;
                    }
                    Some(Fate::Unanswered) => *muted.lock().expect("no thread panics with it") = true,
                    Some(Fate::HeldUp) => {
                        let state = traffic.lock();
                        let goes = state.goes;
                        drop(traffic.changed.wait_while(state, |state| state.goes == goes));
                    }
                    None => {}
                }
                !traffic.lock().drops
            });
        });
        let traffic = Arc::clone(self);
        thread::spawn(move || {
            pump(replies, |_| !traffic.lock().drops && !*is_mute.lock().expect("no thread panics with it"));
        });
    }

    fn judge(&self) -> Option<Fate> {
        let mut state = self.lock();
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

/// Passes bytes from one side to the other for as long as both are there, and `passes` says so. What does not pass is
/// dropped, and so is what follows.
fn pump((mut from, mut to): (TcpStream, TcpStream), passes: impl Fn(&[u8]) -> bool) {
    let mut is_mute = false;
    let mut chunk = vec![0; 64 << 10];
    while let Ok(length @ 1..) = from.read(&mut chunk) {
        is_mute |= !passes(&chunk[..length]);
        if !is_mute && to.write_all(&chunk[..length]).is_err() {
            break;
        }
    }
    for wire in [from, to] {
        let _ = wire.shutdown(Shutdown::Both);
    }
}
