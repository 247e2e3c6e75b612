//! TLS towards brokers: the chain and the host name are always verified.

use std::sync::Arc;

use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio_rustls::TlsConnector;

use super::{Settings, error::KafkaError};
use crate::api::Reason;

/// The connector for these settings; `None` where they ask for no TLS.
///
/// # Errors
/// The authority or the client certificate cannot be read.
pub(super) fn connector(settings: &Settings) -> Result<Option<TlsConnector>, KafkaError> {
    if !settings.tls {
        return Ok(None);
    }
    let failed = |why: String| KafkaError::new(Reason::TlsFailed, format!("{settings}: {why}"));
    let mut roots = RootCertStore::empty();
    match &settings.ca {
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        Some(pem) => {
            for certificate in CertificateDer::pem_slice_iter(pem).flatten() {
                roots
                    .add(certificate)
                    .map_err(|error| failed(format!("the certificate authority cannot be used: {error}")))?;
            }
            if roots.is_empty() {
                return Err(failed("the certificate authority is no PEM certificate".to_owned()));
            }
        }
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(error.to_string()))?
        .with_root_certificates(roots);
    let config = match &settings.client {
        None => builder.with_no_client_auth(),
        Some(client) => {
            let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&client.certificate).collect();
            let chain = chain.ok().filter(|chain| !chain.is_empty());
            let chain =
                chain.ok_or_else(|| failed("the client certificate (tls.crt) is no PEM certificate".to_owned()))?;
            let key = PrivateKeyDer::from_pem_slice(&client.key).map_err(|_| {
                failed("the client certificate's key (tls.key) is no PEM private key without a passphrase".to_owned())
            })?;
            builder.with_client_auth_cert(chain, key).map_err(|error| {
                failed(format!(
                    "the client certificate and its key (tls.crt, tls.key) cannot be used together: {error}"
                ))
            })?
        }
    };
    Ok(Some(TlsConnector::from(Arc::new(config))))
}
