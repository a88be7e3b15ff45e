//! What proxies are made of: an address of their own, and for each connection to it one to a server.

#[cfg(any(feature = "etcd", feature = "nats", feature = "postgres"))]
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use super::address::new_host;

/// The address, and who listens there. It ends with the test.
pub(crate) struct Relay {
    host: String,
    port: u16,
    server: String,
    wires: Wires,
    /// Nobody is let in.
    refuses: Arc<Mutex<bool>>,
    carry: Arc<dyn Fn(Pair) + Send + Sync>,
}

/// A connection to a proxy, and the one to the server that belongs to it.
pub(crate) struct Pair {
    pub(crate) client: TcpStream,
    pub(crate) server: TcpStream,
}

/// The connections to a proxy.
#[derive(Clone, Default)]
pub(crate) struct Wires(Arc<Mutex<Vec<TcpStream>>>);

/// What becomes of what somebody said.
#[cfg(any(feature = "etcd", feature = "nats", feature = "postgres"))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    On,
    /// It is lost.
    Nowhere,
    /// It is lost, and the connection ends.
    End,
}

impl Relay {
    /// One before this server, at the same port. What passes is for `carry` to pass on, in threads of its own.
    pub(crate) fn before(server: &str, port: u16, wires: Wires, carry: impl Fn(Pair) + Send + Sync + 'static) -> Self {
        let (server, carry) = (server.to_owned(), Arc::new(carry));
        let relay = Self { host: new_host(), port, server, wires, refuses: Arc::default(), carry };
        relay.admit();
        relay
    }

    /// Its address.
    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// Ends all connections.
    pub(crate) fn cut(&self) {
        self.wires.cut();
    }

    /// Ends all connections, and takes no new ones.
    pub(crate) fn refuse(&self) {
        *lock(&self.refuses) = true;
        // Whoever listens wakes up, sees it, and stops to listen.
        while TcpStream::connect((&*self.host, self.port)).is_ok() {}
        self.cut();
    }

    /// Takes connections, from now on or again.
    pub(crate) fn admit(&self) {
        *lock(&self.refuses) = false;
        let listener = TcpListener::bind((&*self.host, self.port)).expect("the address is nobody else's");
        let (server, wires) = ((self.server.clone(), self.port), self.wires.clone());
        let (refuses, carry) = (Arc::clone(&self.refuses), Arc::clone(&self.carry));
        thread::spawn(move || {
            while let Ok((client, _)) = listener.accept() {
                if *lock(&refuses) {
                    return;
                }
                // Who finds no server hears an end.
                let Ok(server) = TcpStream::connect((&*server.0, server.1)) else { continue };
                for wire in [&client, &server] {
                    wire.set_nodelay(true).expect("it is TCP");
                    lock(&wires.0).push(copy(wire));
                }
                carry(Pair { client, server });
            }
        });
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.refuse();
    }
}

impl Wires {
    /// Ends all of them.
    pub(crate) fn cut(&self) {
        for wire in lock(&self.0).drain(..) {
            // One that has ended already is as good.
            let _ = wire.shutdown(Shutdown::Both);
        }
    }
}

/// Passes on what comes from one side, in a thread of its own, for as long as both are there. `judge` may change it, and
/// says what becomes of it.
#[cfg(any(feature = "etcd", feature = "nats", feature = "postgres"))]
pub(crate) fn pass((from, to): (&TcpStream, &TcpStream), mut judge: impl FnMut(&mut [u8]) -> Way + Send + 'static) {
    let (mut from, mut to) = (copy(from), copy(to));
    thread::spawn(move || {
        let mut bytes = vec![0; 1 << 20];
        while let Ok(length @ 1..) = from.read(&mut bytes) {
            let said = &mut bytes[..length];
            let way = judge(said);
            if way == Way::End || way == Way::On && to.write_all(said).is_err() {
                break;
            }
        }
        end([from, to]);
    });
}

/// Ends a connection on both sides.
pub(crate) fn end(wires: [TcpStream; 2]) {
    for wire in wires {
        let _ = wire.shutdown(Shutdown::Both);
    }
}

pub(crate) fn copy(wire: &TcpStream) -> TcpStream {
    wire.try_clone().expect("there are descriptors left")
}

/// A test that failed while it had it wants its proxy to end all the same.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
