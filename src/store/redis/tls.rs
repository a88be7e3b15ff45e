//! TLS: whom to trust, and who we are. With `ring`, so that nothing but Rust and a C compiler builds it.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use super::address::Tls;
use super::trouble::Failure;

/// The settings for TLS, read once.
#[derive(Debug, Default)]
pub(super) struct TlsConfig(OnceLock<Arc<ClientConfig>>);

impl TlsConfig {
    /// The settings, from the files that `tls` names.
    ///
    /// # Errors
    /// [`Failure::Settings`] if these cannot be used.
    pub(super) fn get(&self, tls: &Tls) -> Result<Arc<ClientConfig>, Failure> {
        if let Some(config) = self.0.get() {
            return Ok(Arc::clone(config));
        }
        let config = Arc::new(read(tls).map_err(Failure::Settings)?);
        Ok(Arc::clone(self.0.get_or_init(|| config)))
    }
}

fn read(tls: &Tls) -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| format!("tls: {error}"))?.with_root_certificates(roots(tls)?);
    let Some((cert, key)) = &tls.identity else { return Ok(builder.with_no_client_auth()) };
    let chain = certificates(cert)?;
    let key_in = PrivateKeyDer::from_pem_file(key);
    let key_in = key_in.map_err(|error| format!("cannot read a key from '{}': {error}", key.display()))?;
    let config = builder.with_client_auth_cert(chain, key_in);
    config.map_err(|error| format!("'{}' and '{}' do not go together: {error}", cert.display(), key.display()))
}

fn roots(tls: &Tls) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    let Some(ca) = &tls.ca else {
        // Some of a system's many may be unreadable, as long as others are there.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        return if roots.is_empty() {
            Err("this system trusts nobody; say whom with '?ca='".into())
        } else {
            Ok(roots)
        };
    };
    for certificate in certificates(ca)? {
        roots.add(certificate).map_err(|error| format!("'{}': {error}", ca.display()))?;
    }
    Ok(roots)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let all = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match all {
        Ok(all) if all.is_empty() => Err(format!("there is no certificate in '{}'", path.display())),
        Ok(all) => Ok(all),
        Err(error) => Err(format!("cannot read certificates from '{}': {error}", path.display())),
    }
}
