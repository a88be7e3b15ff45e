//! Certificates, and the servers that can use them.

use std::path::Path;

use super::{REDIS, VALKEY, has};
pub(crate) use crate::support::certificates::certify;
use crate::support::{command, finish, skipped};

/// The port at which servers speak TLS.
pub(crate) const PORT: u16 = 6391;

/// The servers that speak TLS; one that was built without is skipped by name.
pub(crate) fn with_tls() -> Vec<&'static str> {
    let speaks = |program: &&'static str| {
        let done = finish(command(program).args(["--port", "0", "--tls-port", "1"]));
        done.stdout.contains("No tls-cert-file configured") || skipped_alone(program)
    };
    let found: Vec<_> = [REDIS, VALKEY].into_iter().filter(|program| has(program)).filter(speaks).collect();
    if found.is_empty() {
        skipped("no server here speaks TLS");
    }
    found
}

/// It is enough if another server can do it.
#[expect(clippy::print_stderr, reason = "whoever runs the tests wants to know")]
fn skipped_alone(program: &str) -> bool {
    eprintln!("skipped: this {program} was built without TLS");
    false
}

/// The lines of a config file with which a server speaks TLS with others and with its own kind, with what `certify`
/// made for all addresses of the group.
pub(crate) fn lines(dir: &Path) -> Vec<String> {
    let file = |option: &str, name: &str| format!("tls-{option}-file {}", dir.join(name).display());
    vec![
        format!("tls-port {PORT}"),
        file("cert", "server.pem"),
        file("key", "server.key"),
        file("ca-cert", "ca.pem"),
        "tls-auth-clients no".into(),
        "tls-replication yes".into(),
    ]
}
