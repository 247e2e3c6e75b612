//! A serving certificate with its key, ready for handshakes, from any issuer.

use std::sync::Arc;

use jiff::Timestamp;
use rustls::{
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    sign::CertifiedKey,
};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::certificate::CertificateError;

/// A certificate, its chain and its key, which belong together.
#[derive(Clone)]
pub struct ServingCertificate {
    key: Arc<CertifiedKey>,
    /// When it expires.
    pub not_after: Timestamp,
}

impl std::fmt::Debug for ServingCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServingCertificate").field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

impl PartialEq for ServingCertificate {
    /// By what is shown in a handshake: a certificate names its key.
    fn eq(&self, other: &Self) -> bool {
        self.key.cert == other.key.cert
    }
}

impl ServingCertificate {
    /// From a chain in PEM, the serving certificate first, and its private key: PKCS #8, PKCS #1 or SEC 1.
    ///
    /// # Errors
    /// When a part is not PEM or the key does not belong to the certificate.
    pub fn from_pem(cert_pem: &str, key_pem: &str) -> Result<Self, CertificateError> {
        let unusable = CertificateError::Unusable;
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(cert_pem.as_bytes()).collect();
        let chain = chain.map_err(|_| unusable("tls.crt is not PEM"))?;
        let first = chain.first().ok_or(unusable("tls.crt holds no certificate"))?;
        let (_, parsed) = X509Certificate::from_der(first).map_err(|_| unusable("tls.crt is not a certificate"))?;
        let not_after = Timestamp::from_second(parsed.validity().not_after.timestamp());
        let not_after = not_after.map_err(|_| unusable("a time stamp is out of range"))?;
        let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|_| unusable("tls.key is not PEM"))?;
        let provider = rustls::crypto::ring::default_provider();
        let key = CertifiedKey::from_der(chain, key, &provider)
            .map_err(|_| unusable("tls.key cannot be used or does not belong to tls.crt"))?;
        Ok(Self { key: Arc::new(key), not_after })
    }

    /// Whether a client that asks for this host takes it.
    pub fn is_made_out_to(&self, host: &str) -> bool {
        let (Some(first), Ok(name)) = (self.key.cert.first(), ServerName::try_from(host)) else { return false };
        webpki::EndEntityCert::try_from(first)
            .is_ok_and(|certificate| certificate.verify_is_valid_for_subject_name(&name).is_ok())
    }

    /// For a handshake.
    pub(super) fn key(&self) -> Arc<CertifiedKey> {
        self.key.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics_api::certificate::issue;

    #[test]
    fn takes_a_chain_and_a_key_that_belong_together_and_nothing_else() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let (one, two) = (issue("metrics", "system", now).unwrap(), issue("metrics", "system", now).unwrap());
        let chain = format!("{}{}", one.cert_pem, one.ca_pem);
        let serving = ServingCertificate::from_pem(&chain, &one.key_pem).unwrap();
        assert_eq!(serving.not_after, one.not_after);
        assert!(serving.is_made_out_to("metrics.system.svc") && !serving.is_made_out_to("other.system.svc"));
        assert!(
            serving == serving.clone() && serving != ServingCertificate::from_pem(&two.cert_pem, &two.key_pem).unwrap()
        );
        for (cert, key) in [(&one.cert_pem, &two.key_pem), (&one.key_pem, &one.key_pem), (&one.cert_pem, &one.cert_pem)]
        {
            assert!(ServingCertificate::from_pem(cert, key).is_err());
        }
        assert!(ServingCertificate::from_pem("", &one.key_pem).is_err());
        assert!(!format!("{serving:?}").contains("key"), "{serving:?}");
    }
}
