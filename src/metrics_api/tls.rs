//! TLS 1.3 with a certificate that may change at any time, and a client certificate that is welcome and not required.
//!
//! The handshake proves that the client holds its certificate's key; what the certificate is worth is judged for each request
//! (see [`super::authn`]), against the authorities of that moment. Probes have none.

use std::sync::Arc;

use rustls::{
    DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject},
    server::{
        ClientHello, ResolvesServerCert,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
    version::TLS13,
};
use tokio::sync::watch;

use super::certificate::CertificateBundle;

/// The certificate as it comes from where it is kept.
pub type CertificateWatch = watch::Receiver<Option<Arc<CertificateBundle>>>;

/// The server's side of TLS.
///
/// # Errors
/// When the provider lacks TLS 1.3.
pub(super) fn server_config(certificates: CertificateWatch) -> Result<ServerConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Arc::new(AnyClient { algorithms: provider.signature_verification_algorithms });
    let resolver = Arc::new(Newest { certificates, provider: provider.clone(), held: std::sync::Mutex::default() });
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(resolver);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

type Held = Option<(Arc<CertificateBundle>, Arc<CertifiedKey>)>;

/// Always answers with the newest certificate.
#[derive(Debug)]
struct Newest {
    certificates: CertificateWatch,
    provider: Arc<CryptoProvider>,
    held: std::sync::Mutex<Held>,
}

impl ResolvesServerCert for Newest {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let newest = self.certificates.borrow().clone()?;
        let mut held = self.held.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some((bundle, key)) = &*held
            && Arc::ptr_eq(bundle, &newest)
        {
            return Some(key.clone());
        }
        let key = match load(&newest, &self.provider) {
            Some(key) => key,
            // The one before may still be good, and refusing everybody surely is not.
            None => {
                tracing::error!("the newest serving certificate cannot be loaded");
                held.as_ref().map(|(_, key)| key.clone())?
            }
        };
        // Remembered also when it could not be loaded, so that it is tried and complained of once.
        *held = Some((newest, key.clone()));
        Some(key)
    }
}

fn load(bundle: &CertificateBundle, provider: &CryptoProvider) -> Option<Arc<CertifiedKey>> {
    let chain = CertificateDer::pem_slice_iter(bundle.cert_pem.as_bytes()).collect::<Result<Vec<_>, _>>().ok()?;
    let key = PrivateKeyDer::from_pem_slice(bundle.key_pem.as_bytes()).ok()?;
    CertifiedKey::from_der(chain, key, provider).ok().map(Arc::new)
}

/// Takes any client certificate whose key the client holds.
#[derive(Debug)]
struct AnyClient {
    algorithms: WebPkiSupportedAlgorithms,
}

impl ClientCertVerifier for AnyClient {
    fn offer_client_auth(&self) -> bool {
        true
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    /// No hints: authorities change, and clients that filter by hints would send nothing.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
