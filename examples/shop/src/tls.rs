//! Which servers are believed over TLS.

use std::sync::Arc;

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject as _},
};
use thiserror::Error;

/// The authority is no certificate in PEM.
#[derive(Debug, Error)]
#[error("the authority for a server's certificate: {0}")]
pub struct AuthorityError(String);

/// Believes servers whose certificate one of these authorities signed for the host's name, and no others.
///
/// # Errors
/// When `authorities` are no certificates in PEM.
pub fn trust(authorities: &str) -> Result<ClientConfig, AuthorityError> {
    let unreadable = |error: &dyn std::fmt::Display| AuthorityError(error.to_string());
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(authorities.as_bytes()) {
        roots.add(certificate.map_err(|error| unreadable(&error))?).map_err(|error| unreadable(&error))?;
    }
    if roots.is_empty() {
        return Err(AuthorityError("there is no certificate in it".to_owned()));
    }
    with_roots(roots)
}

fn with_roots(roots: RootCertStore) -> Result<ClientConfig, AuthorityError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    Ok(config.map_err(|error| AuthorityError(error.to_string()))?.with_root_certificates(roots).with_no_client_auth())
}

/// Believes no server at all: for those that are asked without TLS.
///
/// # Errors
/// When the cryptography that is built in has no safe protocol version, which it has.
pub fn trust_nothing() -> Result<ClientConfig, AuthorityError> {
    with_roots(RootCertStore::empty())
}
