//! PgBouncer.

use std::fs;
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Stdio};

use nix::sys::signal::Signal;

use super::{ADMIN, Server, as_server, clean_up, give, new_dir};
use crate::support::address::{PORT, new_host};
use crate::support::wait_for;

/// A pooler before a server. It ends with the test.
pub(crate) struct Pooler {
    host: String,
    child: Child,
    janitor: Option<Child>,
}

impl Pooler {
    /// Starts one that gives a session to each `session`, `transaction` or `statement`.
    pub(crate) fn before(server: &Server, mode: &str) -> Self {
        let (dir, host) = (new_dir(), new_host());
        let path = dir.display();
        let settings = format!(
            "[databases]\n* = host={} port={PORT}\n[pgbouncer]\nlisten_addr = {host}\nlisten_port = {PORT}\n\
             unix_socket_dir =\nauth_type = trust\nauth_file = {path}/users\npool_mode = {mode}\n\
             max_client_conn = 1000\ndefault_pool_size = 20\npidfile = {path}/pooler.pid\n",
            server.host
        );
        for (name, text) in [("users", format!("\"{ADMIN}\" \"\"\n")), ("settings", settings)] {
            fs::write(dir.join(name), text).expect("it is ours");
            give(&dir.join(name));
        }
        let janitor = Some(clean_up(&dir));
        let mut pooler = as_server(&which("pgbouncer"), Signal::SIGQUIT);
        pooler.arg("-q").arg(dir.join("settings")).current_dir(&dir);
        pooler.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = pooler.spawn().expect("the pooler starts");
        wait_for("the pooler to listen", || TcpStream::connect((&*host, PORT)).is_ok());
        Self { host, child, janitor }
    }

    /// The URL of a store behind it.
    pub(crate) fn url(&self) -> String {
        format!("postgres://{ADMIN}@{}:{PORT}/postgres", self.host)
    }
}

fn which(program: &str) -> PathBuf {
    super::program(program).expect("it was there")
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(mut janitor) = self.janitor.take() {
            drop(janitor.stdin.take());
            let _ = janitor.wait();
        }
    }
}
