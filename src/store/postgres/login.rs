//! How one is let in: TLS, the name of the database, and a password (PostgreSQL, "Message Flow").

use std::io::{Read as _, Write as _};

use bytes::BytesMut;
use fallible_iterator::FallibleIterator as _;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256};
use postgres_protocol::message::backend::{AuthenticationSaslBody, Message};
use postgres_protocol::message::frontend;

use super::address::{Address, Binding, Mode};
use super::connection::Connection;
use super::tls::end_point;
use super::trouble::{Failure, Refusal};
use crate::clock::Moment;
use crate::store::socket::Endpoint;
use crate::store::tls::{self, TlsConfig};
use crate::store::wire::{Stream, Wire};

/// Connects to a server, and logs in.
pub(super) fn connect(
    server: &Endpoint,
    address: &Address,
    config: &TlsConfig,
    until: Moment,
) -> Result<Connection, Failure> {
    let tls = match (server, address.security.mode) {
        // Nobody can listen on a socket of this machine.
        (Endpoint::Unix(_), _) | (_, Mode::Disable) => &[false][..],
        (_, Mode::Allow) => &[false, true],
        (_, Mode::Prefer) => &[true, false],
        (_, Mode::Require | Mode::VerifyCa | Mode::VerifyFull) => &[true],
    };
    let mut failed = None;
    for wanted in tls {
        match connect_with(server, address, config, *wanted, until) {
            Err(failure) if failure.is_about_tls() && failed.is_none() => failed = Some(failure),
            // If neither way will do, what was preferred says why; but one that was not tried to its end may do.
            Err(failure) if failure.is_refusal() => return Err(failed.unwrap_or(failure)),
            Err(failure) => return Err(failure),
            connected => return connected,
        }
    }
    Err(failed.unwrap_or(Failure::NoTls))
}

fn connect_with(
    server: &Endpoint,
    address: &Address,
    config: &TlsConfig,
    tls: bool,
    until: Moment,
) -> Result<Connection, Failure> {
    let socket = Wire::over(server.connect(until)?, until);
    let stream = match (tls, server) {
        (true, Endpoint::Tcp(host, _)) => secured(socket, host, address, config)?,
        _ => Stream::Plain(socket),
    };
    let mut connection = Connection::over(server, stream);
    log_in(&mut connection, address, until)?;
    Ok(connection)
}

/// Asks for TLS. A server that has none is good enough where it was only preferred.
fn secured(mut socket: Wire, host: &str, address: &Address, config: &TlsConfig) -> Result<Stream, Failure> {
    let mut request = BytesMut::new();
    frontend::ssl_request(&mut request);
    socket.write_all(&request)?;
    // One byte and no more: what comes behind it unasked is not from inside TLS.
    let mut answer = [0];
    socket.read_exact(&mut answer)?;
    match answer {
        [b'S'] => {}
        [b'N'] if address.security.mode == Mode::Prefer => return Ok(Stream::Plain(socket)),
        [b'N'] => return Err(Failure::NoTls),
        _ => return Err(Failure::Garbage),
    }
    let session = config.session(host, || address.security.read()).map_err(Failure::Settings)?;
    Ok(tls::secured(socket, session)?)
}

fn log_in(connection: &mut Connection, address: &Address, until: Moment) -> Result<(), Failure> {
    let access = &address.access;
    let mut parameters = vec![
        ("user", &*access.user),
        ("database", &*access.database),
        ("application_name", &*access.application),
        ("client_encoding", "UTF8"),
    ];
    parameters.extend(access.options.as_deref().map(|options| ("options", options)));
    let mut bytes = BytesMut::new();
    frontend::startup_message(parameters, &mut bytes).map_err(Failure::Io)?;
    connection.write(&bytes, until)?;
    let mut proved = false;
    loop {
        match connection.receive(until)? {
            Message::AuthenticationOk if !proved && address.security.binding == Binding::Require => {
                return Err(Failure::Login(
                    "it did not bind our login to its certificate, as 'channel_binding' demands".into(),
                ));
            }
            Message::AuthenticationOk => {}
            Message::AuthenticationCleartextPassword => {
                let password = password(connection, address)?;
                answer(connection, until, |bytes| frontend::password_message(password.as_bytes(), bytes))?;
            }
            Message::AuthenticationMd5Password(body) => {
                let password = password(connection, address)?;
                let hash = md5_hash(access.user.as_bytes(), password.as_bytes(), body.salt());
                answer(connection, until, |bytes| frontend::password_message(hash.as_bytes(), bytes))?;
            }
            Message::AuthenticationSasl(body) => proved = scram(connection, address, &body, until)?,
            Message::BackendKeyData(body) => connection.process = body.process_id(),
            Message::ReadyForQuery(_) => return Ok(()),
            Message::ErrorResponse(body) => return Err(Refusal::read(&body).into()),
            Message::AuthenticationKerberosV5
            | Message::AuthenticationGss
            | Message::AuthenticationSspi
            | Message::AuthenticationScmCredential => {
                return Err(Failure::Login("it wants a login that dlock cannot do: Kerberos, GSSAPI or SSPI".into()));
            }
            _ => return Err(Failure::Garbage),
        }
    }
}

fn password(connection: &Connection, address: &Address) -> Result<String, Failure> {
    let password = address.password(&connection.server);
    password.ok_or_else(|| {
        let user = &address.access.user;
        Failure::Login(format!("it wants a password for user '{user}': in the URL, PGPASSWORD or ~/.pgpass"))
    })
}

fn answer(
    connection: &mut Connection,
    until: Moment,
    message: impl FnOnce(&mut BytesMut) -> std::io::Result<()>,
) -> Result<(), Failure> {
    let mut bytes = BytesMut::new();
    message(&mut bytes).map_err(|_| Failure::Login("the password is none that can be sent".into()))?;
    connection.write(&bytes, until)
}

/// Shows that we know the password, and has the server show the same (RFC 5802, RFC 7677). Whether that was bound to the
/// certificate that we saw.
fn scram(
    connection: &mut Connection,
    address: &Address,
    body: &AuthenticationSaslBody,
    until: Moment,
) -> Result<bool, Failure> {
    let mechanisms: Vec<String> =
        body.mechanisms().map(|name| Ok(name.to_owned())).collect().map_err(|_| Failure::Garbage)?;
    let offers = |name: &str| mechanisms.iter().any(|offered| offered == name);
    let certificate = match &connection.stream {
        Stream::Tls(tls) => tls.conn.peer_certificates().and_then(|chain| chain.first()).and_then(|c| end_point(c)),
        Stream::Plain(_) => None,
    };
    let certificate = certificate.filter(|_| address.security.binding != Binding::Disable);
    let (name, binding) = match certificate {
        Some(hash) if offers(SCRAM_SHA_256_PLUS) => (SCRAM_SHA_256_PLUS, ChannelBinding::tls_server_end_point(hash)),
        // We could: whoever took the offer out of what the server said is found out.
        Some(_) => (SCRAM_SHA_256, ChannelBinding::unrequested()),
        None => (SCRAM_SHA_256, ChannelBinding::unsupported()),
    };
    if !offers(name) {
        return Err(Failure::Login(format!("it wants a login that dlock cannot do: {}", mechanisms.join(", "))));
    }
    let bound = name == SCRAM_SHA_256_PLUS;
    if !bound && address.security.binding == Binding::Require {
        return Err(Failure::Login("it cannot bind our login to its certificate, as 'channel_binding' demands".into()));
    }
    let password = password(connection, address)?;
    let mut exchange = ScramSha256::new(password.as_bytes(), binding);
    answer(connection, until, |bytes| frontend::sasl_initial_response(name, exchange.message(), bytes))?;
    let imposter = |_| Failure::Login("it does not know our password either, and so is somebody else".into());
    loop {
        match connection.receive(until)? {
            Message::AuthenticationSaslContinue(body) => {
                exchange.update(body.data()).map_err(imposter)?;
                answer(connection, until, |bytes| frontend::sasl_response(exchange.message(), bytes))?;
            }
            Message::AuthenticationSaslFinal(body) => {
                exchange.finish(body.data()).map_err(imposter)?;
                return Ok(bound);
            }
            Message::ErrorResponse(body) => return Err(Refusal::read(&body).into()),
            _ => return Err(Failure::Garbage),
        }
    }
}
