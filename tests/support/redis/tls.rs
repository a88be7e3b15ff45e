//! Certificates, and the servers that can use them.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::{REDIS, VALKEY, has};
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

/// Makes `server.pem` and `client.pem` with their keys in a directory. The authority in `ca.pem` vouches that they
/// belong to `names` and a client; the one in `other.pem` vouches for nobody.
pub(crate) fn certify(dir: &Path, names: &str) {
    let run = |words: &str| {
        let done = finish(Command::new("openssl").args(words.split(' ')).current_dir(dir));
        assert!(done.status.success(), "openssl {words}: {done:#?}");
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    for ca in ["ca", "other"] {
        run(&format!("req -x509 {key} -keyout {ca}.key -out {ca}.pem -subj /CN={ca} -days 2"));
    }
    for (who, names) in [("server", names), ("client", "DNS:client")] {
        fs::write(dir.join("names"), format!("subjectAltName={names}\n")).expect("a file");
        run(&format!("req {key} -keyout {who}.key -out {who}.csr -subj /CN={who}"));
        run(&format!(
            "x509 -req -in {who}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out {who}.pem -days 2 -extfile names"
        ));
    }
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
