//! TLS towards servers of any kind: what is trusted, and what is shown.

use std::sync::Arc;

use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

/// A certificate that shows the server who the client is, with those that lead to its authority, and its private key: both PEM. Never shown to people.
#[derive(Clone, Eq, Hash, PartialEq)]
pub struct ClientCertificate {
    /// The certificates, the client's own first.
    pub certificate: Vec<u8>,
    /// The key.
    pub key: Vec<u8>,
}

impl ClientCertificate {
    /// Reads both.
    ///
    /// # Errors
    /// Which of the two cannot be read.
    pub fn read(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), String> {
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&self.certificate).collect();
        let chain = chain.ok().filter(|chain| !chain.is_empty());
        let chain = chain.ok_or_else(|| "the client certificate (tls.crt) is no PEM certificate".to_owned())?;
        let key = PrivateKeyDer::from_pem_slice(&self.key).map_err(|_| {
            "the client certificate's key (tls.key) is no PEM private key without a passphrase".to_owned()
        })?;
        Ok((chain, key))
    }
}

/// A configuration that verifies the server's certificate and its host name against `authority` (PEM), or the public authorities where there is none.
///
/// # Errors
/// Why the authority or the client certificate cannot be used, without anything of the key.
pub fn verifying(authority: Option<&[u8]>, client: Option<&ClientCertificate>) -> Result<ClientConfig, String> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots(authority)?);
    match client {
        None => Ok(builder.with_no_client_auth()),
        Some(client) => {
            let (chain, key) = client.read()?;
            builder.with_client_auth_cert(chain, key).map_err(|error| unusable(&error))
        }
    }
}

fn roots(authority: Option<&[u8]>) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    let Some(pem) = authority else {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        return Ok(roots);
    };
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|_| no_authority())?;
        roots.add(certificate).map_err(|error| format!("the certificate authority cannot be used: {error}"))?;
    }
    if roots.is_empty() { Err(no_authority()) } else { Ok(roots) }
}

fn no_authority() -> String {
    "the certificate authority is no PEM certificate".to_owned()
}

/// Why a certificate and its key do not go together.
pub fn unusable(error: &rustls::Error) -> String {
    format!("the client certificate and its key (tls.crt, tls.key) cannot be used together: {error}")
}
