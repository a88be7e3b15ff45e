//! TLS: whom to trust, and who we are. With `ring`, so that nothing but Rust and a C compiler builds it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustls::client::WantsClientCert;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, ConfigBuilder, RootCertStore};

use super::Trouble;
#[cfg(any(feature = "etcd", feature = "nats", feature = "postgres"))]
use super::wire::{Stream, Wire};

/// Files in PEM that TLS needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tls {
    /// The authorities to trust, in place of the system's.
    pub(super) ca: Option<PathBuf>,
    /// Our own certificate and its key.
    pub(super) identity: Option<(PathBuf, PathBuf)>,
}

impl Tls {
    /// The files that the parameters of these names are: for an authority, for a certificate of ours, and for its key.
    ///
    /// # Errors
    /// If one of the last two is missing.
    pub(super) fn of(names: [&str; 3], mut take: impl FnMut(&str) -> Option<String>) -> Result<Self, String> {
        let [ca, cert, key] = names.map(|name| take(name).map(PathBuf::from));
        match (cert, key) {
            (Some(cert), Some(key)) => Ok(Self { ca, identity: Some((cert, key)) }),
            (None, None) => Ok(Self { ca, identity: None }),
            _ => Err(format!("'{}' and '{}' need each other", names[1], names[2])),
        }
    }
}

/// The settings for TLS, read once.
#[derive(Debug, Default)]
pub(super) struct TlsConfig(OnceLock<Arc<ClientConfig>>);

impl TlsConfig {
    /// What begins TLS with whoever has a certificate for this host. The first one has the settings `read`.
    ///
    /// # Errors
    /// Why these cannot be used, or not with this host.
    pub(super) fn session(
        &self,
        host: &str,
        read: impl FnOnce() -> Result<ClientConfig, String>,
    ) -> Result<ClientConnection, String> {
        let config = if let Some(config) = self.0.get() {
            config
        } else {
            let config = Arc::new(read()?);
            self.0.get_or_init(|| config)
        };
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| format!("'{host}' is no name that a certificate can have"))?;
        ClientConnection::new(Arc::clone(config), name).map_err(|error| format!("tls: {error}"))
    }
}

/// The settings, from the files that `tls` names.
///
/// # Errors
/// Why these cannot be used.
pub(super) fn read(tls: &Tls) -> Result<ClientConfig, String> {
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| format!("tls: {error}"))?.with_root_certificates(roots(tls)?);
    with_identity(builder, tls)
}

/// The settings with our own certificate, if there is one.
pub(super) fn with_identity(
    builder: ConfigBuilder<ClientConfig, WantsClientCert>,
    tls: &Tls,
) -> Result<ClientConfig, String> {
    let Some((cert, key)) = &tls.identity else { return Ok(builder.with_no_client_auth()) };
    let chain = certificates(cert)?;
    let key_in = PrivateKeyDer::from_pem_file(key);
    let key_in = key_in.map_err(|error| format!("cannot read a key from '{}': {error}", key.display()))?;
    let config = builder.with_client_auth_cert(chain, key_in);
    config.map_err(|error| format!("'{}' and '{}' do not go together: {error}", cert.display(), key.display()))
}

/// What encrypts.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Whom we trust.
pub(super) fn roots(tls: &Tls) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    let Some(ca) = &tls.ca else {
        // Some of a system's many may be unreadable, as long as others are there.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        return if roots.is_empty() {
            Err("this system trusts nobody; say whom with '?ca=' or '?sslrootcert='".into())
        } else {
            Ok(roots)
        };
    };
    for certificate in certificates(ca)? {
        roots.add(certificate).map_err(|error| format!("'{}': {error}", ca.display()))?;
    }
    Ok(roots)
}

/// Speaks TLS with whoever is at the other end.
#[cfg(any(feature = "etcd", feature = "nats", feature = "postgres"))]
pub(super) fn secured(mut wire: Wire, mut session: ClientConnection) -> std::io::Result<Stream> {
    while session.is_handshaking() {
        if let Err(error) = session.complete_io(&mut wire) {
            return Err(last_words(&mut session, &mut wire).unwrap_or(error));
        }
    }
    Ok(Stream::tls(session, wire))
}

/// Why the other side hung up while we spoke, if it said so before that.
#[cfg(any(feature = "etcd", feature = "nats", feature = "postgres"))]
fn last_words(session: &mut ClientConnection, wire: &mut Wire) -> Option<std::io::Error> {
    session.read_tls(wire).ok()?;
    session.process_new_packets().err().map(std::io::Error::other)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let all = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match all {
        Ok(all) if all.is_empty() => Err(format!("there is no certificate in '{}'", path.display())),
        Ok(all) => Ok(all),
        Err(error) => Err(format!("cannot read certificates from '{}': {error}", path.display())),
    }
}

/// What went wrong with TLS, where that is why a stream failed.
pub(super) fn inside(error: &std::io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// What went wrong with TLS, with the names of the parameters for an authority and for a certificate of ours. Whose
/// certificate is not good will not have a better one in a second.
pub(super) fn words(error: &rustls::Error, ca: &str, own: &str) -> (Trouble, String) {
    use rustls::{AlertDescription, CertificateError, Error, OtherError};
    let words = match error {
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            format!("its certificate is by nobody whom we trust; name its authority with '{ca}'")
        }
        Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            "its certificate has expired".into()
        }
        Error::InvalidCertificate(CertificateError::Other(OtherError(why))) => match &*format!("{why:?}") {
            "CaUsedAsEndEntity" => "its certificate is one of an authority; it needs one with CA:FALSE".into(),
            "UnsupportedCertVersion" => "its certificate is of X.509 version 1; it needs one of version 3".into(),
            why => format!("its certificate is not good: {why}"),
        },
        Error::InvalidCertificate(error) => format!("its certificate is not good: {error}"),
        Error::AlertReceived(AlertDescription::CertificateRequired) => {
            format!("it wants to see a certificate of ours: '{own}'")
        }
        Error::AlertReceived(AlertDescription::BadCertificate) => {
            format!("it does not take our certificate, or wants to see one: '{own}'")
        }
        Error::AlertReceived(AlertDescription::UnknownCA) => "it does not know who issued our certificate".into(),
        Error::AlertReceived(alert) => format!("it refuses us: tls alert {alert:?}"),
        error => return (Trouble::Unreachable, format!("tls: {error}")),
    };
    (Trouble::Refused, words)
}
