//! How one is let in: TLS, and what shows who we are (NATS, "Client Protocol", CONNECT).

use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::{Map, Value, json};

use super::address::{Access, Address};
use super::connection::{Connection, Received};
use super::nkey::Seed;
use super::trouble::{Failure, Said};
use crate::clock::Moment;
use crate::store::socket::Endpoint;
use crate::store::tls::{self, TlsConfig};
use crate::store::wire::{Buffered, Stream, Wire};

/// Connects to a server, and logs in.
pub(super) fn connect(
    server: &Endpoint,
    address: &Address,
    config: &TlsConfig,
    until: Moment,
) -> Result<Connection, Failure> {
    let socket = Wire::over(server.connect(until)?, until);
    let mut stream = Stream::Plain(socket);
    if address.tls_first {
        stream = secured(stream, server, address, config).map_err(|failure| match failure {
            Failure::Tls(rustls::Error::InvalidMessage(_)) => {
                Failure::Settings("it does not begin with TLS, as '?tls_first=true' wants it".into())
            }
            failure => failure,
        })?;
    }
    let mut inbox = [0; 16];
    getrandom::fill(&mut inbox).map_err(|error| Failure::Settings(format!("no random numbers: {error}")))?;
    let inbox = format!("_INBOX.{:032x}", u128::from_le_bytes(inbox));
    let mut connection = Connection::over(server, stream, inbox);
    let greeting = connection.receive(until).map_err(|failure| {
        let is_nothing = failure.is_silence() || failure.is_stale();
        if is_nothing && address.secure && !address.tls_first { Failure::Said(Said::NoGreeting) } else { failure }
    });
    let info = match greeting? {
        Received::Info(info) => info,
        Received::Refusal(words) => return Err(Failure::Said(Said::Words(words))),
        _ => return Err(Failure::Garbage),
    };
    if !info.headers {
        return Err(Failure::Settings(format!("version {} is too old: it knows no headers", info.version)));
    }
    if !address.tls_first && (address.secure || info.tls_required) {
        if !info.tls_required && !info.tls_available {
            return Err(Failure::NoTls);
        }
        // What somebody on the way has put behind the greeting would be taken for what is said inside.
        if !connection.buffered.unused().is_empty() {
            return Err(Failure::Garbage);
        }
        let stream = secured(connection.buffered.stream, server, address, config)?;
        connection.buffered = Buffered::over(stream);
    }
    let words = Value::Object(introduction(address, info.nonce.as_deref())?).to_string();
    connection.begin(&words, until)?;
    Ok(connection)
}

fn secured(stream: Stream, server: &Endpoint, address: &Address, config: &TlsConfig) -> Result<Stream, Failure> {
    let (Stream::Plain(socket), Endpoint::Tcp(host, _)) = (stream, server) else { return Err(Failure::Garbage) };
    let session = config.session(host, || tls::read(&address.tls)).map_err(Failure::Settings)?;
    Ok(tls::secured(socket, session)?)
}

/// What we say of ourselves.
fn introduction(address: &Address, nonce: Option<&str>) -> Result<Map<String, Value>, Failure> {
    let mut words = json!({
        "verbose": false, "pedantic": false, "echo": true, "headers": true, "no_responders": true, "protocol": 1,
        "lang": "rust", "name": "dlock", "version": env!("CARGO_PKG_VERSION"), "tls_required": address.secure,
    });
    let mut say = |name: &str, value: &str| words[name] = value.into();
    match &address.access {
        Access::Anybody => {}
        Access::User { user, password } => {
            say("user", user);
            say("pass", password);
        }
        Access::Token(token) => say("auth_token", token),
        Access::Nkey(file) => {
            let seed = Seed::parse(&read(file)?).map_err(|why| bad(file, &why))?;
            say("nkey", &seed.public());
            say("sig", &signature(&seed, nonce)?);
        }
        Access::Creds(file) => {
            let text = read(file)?;
            let seed = block(&text, "USER NKEY SEED").ok_or_else(|| bad(file, "it has no seed"))?;
            let jwt = block(&text, "NATS USER JWT").ok_or_else(|| bad(file, "it has no JWT"))?;
            let seed = Seed::parse(seed).map_err(|why| bad(file, &why))?;
            say("jwt", jwt);
            say("sig", &signature(&seed, nonce)?);
        }
    }
    match words {
        Value::Object(words) => Ok(words),
        _ => Err(Failure::Garbage),
    }
}

fn read(file: &Path) -> Result<String, Failure> {
    // Whoever reads from a pipe waits for the one who writes, and this has an end in time.
    if std::fs::metadata(file).is_ok_and(|found| !found.is_file()) {
        return Err(bad(file, "it is no file"));
    }
    std::fs::read_to_string(file)
        .map_err(|error| Failure::Settings(format!("cannot read '{}': {}", file.display(), crate::sys::words(&error))))
}

fn bad(file: &Path, why: &str) -> Failure {
    Failure::Settings(format!("'{}' is no good login: {why}", file.display()))
}

/// What is between `-----BEGIN NAME-----` and the end of it.
fn block<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = text.lines().skip_while(|line| !line.contains(&format!("BEGIN {name}")));
    lines.nth(1).map(str::trim)
}

fn signature(seed: &Seed, nonce: Option<&str>) -> Result<String, Failure> {
    let nonce = nonce.ok_or_else(|| Failure::Login("it wants no signature, and our login is one".into()))?;
    Ok(BASE64_URL_SAFE_NO_PAD.encode(seed.sign(nonce.as_bytes())))
}
