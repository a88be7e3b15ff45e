//! Certificates for servers and for clients.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::finish;

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
