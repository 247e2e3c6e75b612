//! TLS towards the server, as `sslmode` asks for it: which certificates libpq would accept, and the client certificate.

use std::sync::Arc;

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{WebPkiSupportedAlgorithms, ring, verify_tls13_signature_with_raw_key},
    pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime, pem::PemObject},
    server::ParsedCertificate,
};
use tokio_postgres_rustls::MakeRustlsConnect;
use webpki::RawPublicKeyEntity;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{ConnectError, ConnectionSettings, certificates, p521, settings::SslMode};
use crate::clients::tls::unusable;

/// How much of the server's certificate is verified.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Verify {
    /// Nothing: sslmode allow, prefer and require only encrypt.
    Nothing,
    /// The authority that signed it: verify-ca, and require where an authority is given.
    Chain,
    /// The authority that signed it, and that it is for the host: verify-full.
    ChainAndName,
}

/// The connector for these settings.
///
/// # Errors
/// The authority or the client certificate cannot be read.
pub(super) fn connector(settings: &ConnectionSettings) -> Result<MakeRustlsConnect, ConnectError> {
    let failed = |why: String| ConnectError::Tls { database: settings.to_string(), message: why };
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(error.to_string()))?;
    let verify = match settings.ssl_mode {
        SslMode::VerifyFull => Verify::ChainAndName,
        SslMode::VerifyCa => Verify::Chain,
        SslMode::Require if settings.ca.is_some() => Verify::Chain,
        _ => Verify::Nothing,
    };
    let (roots, trusted) =
        if verify == Verify::Nothing { (RootCertStore::empty(), Vec::new()) } else { roots(settings)? };
    let verifier = Verifier { verify, roots, trusted, algorithms: p521::algorithms() };
    let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier));
    let config = match &settings.client {
        None => builder.with_no_client_auth(),
        Some(client) => {
            let (chain, key) = client.read().map_err(&failed)?;
            builder.with_client_auth_cert(chain, key).map_err(|error| failed(unusable(&error)))?
        }
    };
    Ok(MakeRustlsConnect::new(config))
}

/// The authorities, and for those that were given their certificates themselves.
fn roots(settings: &ConnectionSettings) -> Result<(RootCertStore, Vec<CertificateDer<'static>>), ConnectError> {
    let mut roots = RootCertStore::empty();
    let Some(pem) = &settings.ca else {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        return Ok((roots, Vec::new()));
    };
    let unreadable = || ConnectError::Tls {
        database: settings.to_string(),
        message: "the certificate authority is no PEM certificate".to_owned(),
    };
    let mut trusted = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|_| unreadable())?;
        X509Certificate::from_der(&certificate).map_err(|_| unreadable())?;
        // One that cannot vouch for others may still be the server's own. The library would trust an authority that has expired.
        if certificates::is_valid_now(&certificate) {
            let _ = roots.add(certificate.clone());
        }
        trusted.push(certificate);
    }
    if trusted.is_empty() { Err(unreadable()) } else { Ok((roots, trusted)) }
}

/// Accepts the certificates that libpq accepts.
#[derive(Debug)]
struct Verifier {
    verify: Verify,
    roots: RootCertStore,
    trusted: Vec<CertificateDer<'static>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    fn chain(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let verified = ParsedCertificate::try_from(certificate).and_then(|parsed| {
            verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, self.algorithms.all)
        });
        let Err(error) = verified else { return Ok(()) };
        match certificates::vouched(certificate, &self.trusted, &self.algorithms) {
            Ok(true) => Ok(()),
            Ok(false) => Err(error),
            Err(why) => Err(Error::General(why)),
        }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if self.verify != Verify::Nothing {
            self.chain(certificate, intermediates, now)?;
        }
        if self.verify == Verify::ChainAndName {
            certificates::is_for(certificate, name).map_err(Error::General)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let key = public_key(certificate)?;
        let key = RawPublicKeyEntity::try_from(&key).map_err(|_| unreadable())?;
        let mut offered = self.algorithms.mapping.iter().filter(|(scheme, _)| *scheme == signed.scheme);
        let valid = offered.any(|(_, algorithms)| {
            algorithms.iter().any(|algorithm| key.verify_signature(*algorithm, message, signed.signature()).is_ok())
        });
        if valid {
            Ok(HandshakeSignatureValid::assertion())
        } else {
            Err(Error::InvalidCertificate(CertificateError::BadSignature))
        }
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature_with_raw_key(message, &public_key(certificate)?, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn unreadable() -> Error {
    Error::InvalidCertificate(CertificateError::BadEncoding)
}

/// The key of a certificate of any version.
fn public_key<'a>(certificate: &'a CertificateDer<'_>) -> Result<SubjectPublicKeyInfoDer<'a>, Error> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| unreadable())?;
    Ok(SubjectPublicKeyInfoDer::from(parsed.tbs_certificate.subject_pki.raw))
}
