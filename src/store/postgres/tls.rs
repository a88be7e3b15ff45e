//! TLS as `sslmode` wants it, and what of a server's certificate a login is bound to.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use sha2::{Digest as _, Sha256, Sha384, Sha512};

use super::address::{Mode, Security};
use crate::store::tls::{self, Tls};

impl Security {
    /// The settings for TLS that are this safe.
    ///
    /// # Errors
    /// Why they cannot be made.
    pub(super) fn read(&self) -> Result<ClientConfig, String> {
        let mut config = match self.mode {
            Mode::VerifyFull => tls::read(&self.trusted())?,
            mode => {
                let roots = if mode == Mode::VerifyCa { Some(tls::roots(&self.trusted())?) } else { None };
                let builder =
                    ClientConfig::builder_with_provider(tls::provider()).with_safe_default_protocol_versions();
                let builder = builder.map_err(|error| format!("tls: {error}"))?;
                let verifier = Arc::new(AnyName::of(roots)?);
                let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
                tls::with_identity(builder, &self.tls)?
            }
        };
        // A server of version 17 or later wants to know what is spoken inside, whoever asks it first.
        config.alpn_protocols = vec![b"postgresql".to_vec()];
        Ok(config)
    }

    /// Whom to trust: whoever is named, or is in the file where libpq looks, or is in the system's.
    fn trusted(&self) -> Tls {
        let usual = || {
            let home = std::env::var_os("HOME")?;
            Some(PathBuf::from(home).join(".postgresql/root.crt")).filter(|path| path.is_file())
        };
        Tls { ca: self.tls.ca.clone().or_else(usual), identity: self.tls.identity.clone() }
    }
}

/// Looks whether a certificate is by somebody whom we trust, if that matters, whatever its name; and whether the server
/// has its key.
#[derive(Debug)]
struct AnyName {
    trusted: Option<Arc<WebPkiServerVerifier>>,
    crypto: Arc<rustls::crypto::CryptoProvider>,
}

impl AnyName {
    fn of(roots: Option<RootCertStore>) -> Result<Self, String> {
        let verifier = |roots| WebPkiServerVerifier::builder_with_provider(Arc::new(roots), tls::provider()).build();
        let trusted = roots.map(verifier).transpose().map_err(|error| format!("tls: {error}"))?;
        Ok(Self { trusted, crypto: tls::provider() })
    }
}

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer,
        intermediates: &[CertificateDer],
        name: &ServerName,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(trusted) = &self.trusted else { return Ok(ServerCertVerified::assertion()) };
        match trusted.verify_server_cert(end_entity, intermediates, name, ocsp, now) {
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, signed, &self.crypto.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, signed, &self.crypto.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.crypto.signature_verification_algorithms.supported_schemes()
    }
}

/// The hash of a certificate that a login is bound to (RFC 5929, `tls-server-end-point`): by the hash that it was signed
/// with, at least SHA-256. Nothing if it was signed in another way.
pub(super) fn end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    // Certificate ::= SEQUENCE { tbsCertificate SEQUENCE, signatureAlgorithm SEQUENCE { algorithm OID, … }, … }
    let (_, rest) = element(content(certificate)?)?;
    let (oid, _) = element(content(rest)?)?;
    let hash = match oid {
        // RSA (RFC 8017) with MD5, SHA-1 or SHA-256, ECDSA (RFC 5758) with SHA-1 or SHA-256.
        [6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 4 | 5 | 11]
        | [6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 1]
        | [6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2] => Sha256::digest(certificate).to_vec(),
        [6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 12] | [6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 3] => {
            Sha384::digest(certificate).to_vec()
        }
        [6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 13] | [6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 4] => {
            Sha512::digest(certificate).to_vec()
        }
        _ => return None,
    };
    Some(hash)
}

/// The first element of DER, and what comes after it.
fn element(der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (start, length) = extent(der)?;
    der.split_at_checked(start.checked_add(length)?)
}

/// What is inside of the first element of DER.
fn content(der: &[u8]) -> Option<&[u8]> {
    let (start, length) = extent(der)?;
    der.get(start..start.checked_add(length)?)
}

/// Where the content of an element begins, and how long it is.
fn extent(der: &[u8]) -> Option<(usize, usize)> {
    let first = usize::from(*der.get(1)?);
    if first < 0x80 {
        return Some((2, first));
    }
    let bytes = first & 0x7f;
    let length = der.get(2..2 + bytes).filter(|_| bytes <= 4)?;
    Some((2 + bytes, length.iter().fold(0, |length, byte| length << 8 | usize::from(*byte))))
}
