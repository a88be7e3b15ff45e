//! Connecting to a server: finding the address of its host, TCP, and sockets of this machine. Every step has an end in
//! time, whatever the other side does.

use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, TcpKeepalive, Type};

use crate::clock::Moment;
use crate::signal;

/// A peer that is silent for so long is asked for a sign of life, so often, and so many times: what lies
/// between (NAT) does not forget an idle connection, and a half-open one is noticed.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(30), Duration::from_secs(10), 3);

/// What to connect to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Endpoint {
    /// A host, without the brackets of an IPv6 address, and a port.
    Tcp(String, u16),
    /// A socket of this machine.
    #[cfg_attr(
        not(any(feature = "postgres", feature = "redis")),
        expect(dead_code, reason = "a server of NATS has none")
    )]
    Unix(PathBuf),
}

impl Endpoint {
    /// Connects to it.
    pub(super) fn connect(&self, until: Moment) -> io::Result<Socket> {
        match self {
            Self::Unix(path) => unix(path, until),
            Self::Tcp(host, port) => tcp(host, *port, until),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp(host, port) => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// Connects to a socket of this machine.
fn unix(path: &Path, until: Moment) -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    let address = SockAddr::unix(path)?;
    // A server that accepts nobody would make us wait.
    socket.set_write_timeout(Some(until.left().max(Duration::from_millis(1))))?;
    socket.connect(&address)?;
    Ok(socket)
}

/// Connects to the first address of the host that lets us.
fn tcp(host: &str, port: u16, until: Moment) -> io::Result<Socket> {
    let addresses = resolve(host, port, until)?;
    let mut last = io::Error::other("the host has no address");
    for (at, address) in addresses.iter().enumerate() {
        // One that is silent leaves time for the others.
        let share = until.left() / u32::try_from(addresses.len() - at).unwrap_or(u32::MAX);
        match connect(*address, share) {
            Ok(socket) => return Ok(socket),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn connect(address: SocketAddr, within: Duration) -> io::Result<Socket> {
    let (idle, interval, times) = KEEPALIVE;
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.connect_timeout(&address.into(), within.max(Duration::from_millis(1)))?;
    socket.set_tcp_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(idle).with_interval(interval).with_retries(times);
    socket.set_tcp_keepalive(&keepalive)?;
    Ok(socket)
}

/// The addresses of a host. The C library gives no limit to a look-up, so a thread does it, which a dead
/// name server may hold up for longer than we wait.
fn resolve(host: &str, port: u16, until: Moment) -> io::Result<Vec<SocketAddr>> {
    if let Ok(ip) = host.parse() {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    let (sender, found) = mpsc::channel();
    let host = host.to_owned();
    let look_up = move || {
        let found = (&*host, port).to_socket_addrs().map(Iterator::collect);
        let found = found.map_err(|_| io::Error::other(format!("cannot find the host '{host}'")));
        // Whoever asked may have given up.
        let _ = sender.send(found);
    };
    signal::unheard(|| thread::Builder::new().name("resolver".into()).spawn(look_up))?;
    found.recv_timeout(until.left()).map_err(|_| io::Error::other("the name server does not answer"))?
}
