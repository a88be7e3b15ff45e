//! Servers that are not what they should be: a thread of the test answers whoever connects.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

/// A server that a test plays. Its threads end with the test's process.
pub(crate) struct Fake {
    /// The port on 127.0.0.1.
    port: u16,
}

impl Fake {
    /// Does `serve` for everybody who connects, in a thread of its own.
    pub(crate) fn new(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let serve = Arc::new(serve);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let serve = Arc::clone(&serve);
                thread::spawn(move || serve(stream));
            }
        });
        Self { port }
    }

    /// Answers whatever is said to it with these bytes.
    pub(crate) fn answering(bytes: &[u8]) -> Self {
        let bytes = bytes.to_vec();
        Self::new(move |mut stream| while hear(&mut stream) && stream.write_all(&bytes).is_ok() {})
    }

    /// Answers with `start`, and then with `rest` again and again, until nobody listens any more.
    pub(crate) fn without_end(start: &[u8], rest: &[u8]) -> Self {
        let start = start.to_vec();
        let rest = rest.repeat((1 << 16) / rest.len() + 1);
        Self::new(move |mut stream| {
            let mut open = hear(&mut stream) && stream.write_all(&start).is_ok();
            while open {
                open = stream.write_all(&rest).is_ok();
            }
        })
    }

    /// Its address and port.
    #[cfg(feature = "etcd")]
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Its URL, had it been a Redis.
    #[cfg(feature = "redis")]
    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }
}

/// Whether the other side said something, rather than leave.
pub(crate) fn hear(stream: &mut TcpStream) -> bool {
    stream.read(&mut vec![0; 1 << 16]).is_ok_and(|read| read > 0)
}
