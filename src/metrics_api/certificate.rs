//! The operator's own certificate authority and the serving certificate that it signs: issues, reads and checks them; they are stored elsewhere.

use jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use x509_parser::{
    extensions::GeneralName,
    prelude::{FromDer, X509Certificate},
};

const DAY: SignedDuration = SignedDuration::from_hours(24);
const CA_VALIDITY_DAYS: i32 = 3650;
const VALIDITY_DAYS: i32 = 365;
/// How far a certificate is backdated, so that a clock that is a little behind the operator's does not refuse it.
const BACKDATED: SignedDuration = SignedDuration::from_mins(5);

/// An authority and a serving certificate signed by it, in PEM.
#[derive(Clone)]
pub struct CertificateBundle {
    /// The authority's certificate, which the aggregator trusts, and after it the one that it replaced.
    pub ca_pem: String,
    /// The authority's private key.
    pub ca_key_pem: String,
    /// The serving certificate.
    pub cert_pem: String,
    /// The serving certificate's private key.
    pub key_pem: String,
    /// When the serving certificate becomes valid.
    pub not_before: Timestamp,
    /// When it expires.
    pub not_after: Timestamp,
    dns_names: Vec<String>,
    ca_not_after: Timestamp,
}

impl std::fmt::Debug for CertificateBundle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("CertificateBundle");
        shown.field("dns_names", &self.dns_names).field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

/// Why a certificate cannot be made or read.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The library could not make or load it.
    #[error("{0}")]
    Generate(#[from] rcgen::Error),
    /// What is stored is not a usable certificate.
    #[error("the serving certificate cannot be used: {0}")]
    Unusable(&'static str),
}

impl CertificateBundle {
    /// The certificate of the authority that signed this one, in PEM, without those that it replaced.
    pub fn authority(&self) -> &str {
        first_pem(&self.ca_pem)
    }

    /// Reads a bundle from where it was stored.
    ///
    /// # Errors
    /// When a part is not PEM, a key does not fit its certificate, or the authority did not sign the certificate.
    pub fn from_pem(
        ca_pem: String,
        ca_key_pem: String,
        cert_pem: String,
        key_pem: String,
    ) -> Result<Self, CertificateError> {
        let unusable = CertificateError::Unusable;
        let (ca_key, key) = (KeyPair::from_pem(&ca_key_pem)?, KeyPair::from_pem(&key_pem)?);
        let ca_der = CertificateDer::from_pem_slice(ca_pem.as_bytes()).map_err(|_| unusable("ca.crt is not PEM"))?;
        let der = CertificateDer::from_pem_slice(cert_pem.as_bytes()).map_err(|_| unusable("tls.crt is not PEM"))?;
        let (_, ca) = X509Certificate::from_der(&ca_der).map_err(|_| unusable("ca.crt is not a certificate"))?;
        let (_, certificate) = X509Certificate::from_der(&der).map_err(|_| unusable("tls.crt is not a certificate"))?;
        if ca.public_key().subject_public_key.data.as_ref() != ca_key.public_key_raw() {
            return Err(unusable("ca.key does not belong to ca.crt"));
        }
        if certificate.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            return Err(unusable("tls.key does not belong to tls.crt"));
        }
        if certificate.verify_signature(Some(ca.public_key())).is_err() {
            return Err(unusable("tls.crt is not signed by ca.crt"));
        }
        let names = certificate.subject_alternative_name().ok().flatten();
        let dns = |name: &GeneralName<'_>| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            _ => None,
        };
        let dns_names = names.map_or_else(Vec::new, |names| names.value.general_names.iter().filter_map(dns).collect());
        let time = |time: x509_parser::time::ASN1Time| {
            Timestamp::from_second(time.timestamp()).map_err(|_| unusable("a time stamp is out of range"))
        };
        Ok(Self {
            not_before: time(certificate.validity().not_before)?,
            not_after: time(certificate.validity().not_after)?,
            ca_not_after: time(ca.validity().not_after)?,
            dns_names,
            ca_pem,
            ca_key_pem,
            cert_pem,
            key_pem,
        })
    }
}

/// The names by which a Service is reached inside a cluster; the first is the one that the aggregator asks for.
fn dns_names(service: &str, namespace: &str) -> [String; 4] {
    [
        format!("{service}.{namespace}.svc"),
        service.to_owned(),
        format!("{service}.{namespace}"),
        format!("{service}.{namespace}.svc.cluster.local"),
    ]
}

/// A new authority, and a serving certificate for a Service.
///
/// # Errors
/// When the library fails.
pub fn issue(service: &str, namespace: &str, now: Timestamp) -> Result<CertificateBundle, CertificateError> {
    let mut authority = CertificateParams::new(Vec::new())?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    // The time distinguishes authorities with the same name.
    authority.distinguished_name.push(DnType::CommonName, format!("{service}-ca@{}", now.as_second()));
    set_validity(&mut authority, now, CA_VALIDITY_DAYS)?;
    let key = KeyPair::generate()?;
    let certificate = authority.self_signed(&key)?;
    sign(certificate.pem(), key.serialize_pem(), service, namespace, now)
}

fn first_pem(pem: &str) -> &str {
    const END: &str = "-----END CERTIFICATE-----";
    pem.find(END).map_or(pem, |end| &pem[..end + END.len()])
}

/// Another serving certificate by the same authority; by a new one, should the old authority expire first. The old one stays trusted beside it, for
/// as long as a replica may still serve with its certificate.
///
/// # Errors
/// As [`issue`].
pub fn renew(
    bundle: &CertificateBundle,
    service: &str,
    namespace: &str,
    now: Timestamp,
) -> Result<CertificateBundle, CertificateError> {
    if bundle.ca_not_after < later(now, VALIDITY_DAYS)? {
        let mut issued = issue(service, namespace, now)?;
        issued.ca_pem = format!("{}\n{}\n", issued.authority().trim_end(), bundle.authority());
        return Ok(issued);
    }
    sign(bundle.ca_pem.clone(), bundle.ca_key_pem.clone(), service, namespace, now)
}

/// True when the certificate is past two thirds of its lifetime, which leaves enough time for any number of retries, or is for other names.
pub fn needs_renewal(bundle: &CertificateBundle, service: &str, namespace: &str, now: Timestamp) -> bool {
    let lasts = bundle.not_after.duration_since(bundle.not_before);
    let due = bundle.not_before.checked_add(lasts / 3 * 2);
    let named = dns_names(service, namespace).iter().all(|name| bundle.dns_names.contains(name));
    !named || due.is_ok_and(|due| now >= due)
}

fn sign(
    ca_pem: String,
    ca_key_pem: String,
    service: &str,
    namespace: &str,
    now: Timestamp,
) -> Result<CertificateBundle, CertificateError> {
    let issuer = Issuer::from_ca_cert_pem(first_pem(&ca_pem), KeyPair::from_pem(&ca_key_pem)?)?;
    let names = dns_names(service, namespace);
    let mut serving = CertificateParams::new(names.to_vec())?;
    serving.distinguished_name.push(DnType::CommonName, names[0].clone());
    serving.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    serving.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    serving.use_authority_key_identifier_extension = true;
    set_validity(&mut serving, now, VALIDITY_DAYS)?;
    let key = KeyPair::generate()?;
    let certificate = serving.signed_by(&key, &issuer)?;
    CertificateBundle::from_pem(ca_pem, ca_key_pem, certificate.pem(), key.serialize_pem())
}

fn set_validity(params: &mut CertificateParams, now: Timestamp, days: i32) -> Result<(), CertificateError> {
    let start = now.checked_sub(BACKDATED).map_err(|_| OUT_OF_RANGE)?;
    params.not_before = std::time::SystemTime::from(start).into();
    params.not_after = std::time::SystemTime::from(later(now, days)?).into();
    Ok(())
}

const OUT_OF_RANGE: CertificateError = CertificateError::Unusable("the clock is out of range");

fn later(now: Timestamp, days: i32) -> Result<Timestamp, CertificateError> {
    now.checked_add(DAY * days).map_err(|_| OUT_OF_RANGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(day: i32) -> Timestamp {
        later(Timestamp::from_second(1_800_000_000).unwrap(), day).unwrap()
    }

    fn issued() -> CertificateBundle {
        issue("projectionist", "system", at(0)).unwrap()
    }

    fn stored(
        ca: &CertificateBundle,
        ca_key: &CertificateBundle,
        cert: &CertificateBundle,
        key: &CertificateBundle,
    ) -> Result<CertificateBundle, CertificateError> {
        CertificateBundle::from_pem(
            ca.ca_pem.clone(),
            ca_key.ca_key_pem.clone(),
            cert.cert_pem.clone(),
            key.key_pem.clone(),
        )
    }

    #[test]
    fn is_made_out_to_the_service_and_survives_storage() {
        let bundle = issued();
        let read = stored(&bundle, &bundle, &bundle, &bundle).unwrap();
        assert!(read.dns_names.contains(&"projectionist.system.svc".to_owned()));
        assert_eq!(read.not_after, at(365));
        assert!(!needs_renewal(&read, "projectionist", "system", at(0)));
    }

    #[test]
    fn is_renewed_after_two_thirds_of_its_time_under_the_same_authority() {
        let bundle = issued();
        assert!(!needs_renewal(&bundle, "projectionist", "system", at(243)));
        assert!(needs_renewal(&bundle, "projectionist", "system", at(244)));
        let renewed = renew(&bundle, "projectionist", "system", at(244)).unwrap();
        assert_eq!(renewed.ca_pem, bundle.ca_pem);
        assert_ne!(renewed.cert_pem, bundle.cert_pem);
        assert!(!needs_renewal(&renewed, "projectionist", "system", at(244)));
    }

    #[test]
    fn an_authority_at_its_end_is_replaced() {
        let bundle = issued();
        let renewed = renew(&bundle, "projectionist", "system", at(3_400)).unwrap();
        assert_ne!(renewed.authority(), bundle.authority());
        // Both are trusted until the next change, after storage as well, and only the newer one signs.
        let read = stored(&renewed, &renewed, &renewed, &renewed).unwrap();
        assert_eq!(read.ca_pem.matches("BEGIN CERTIFICATE").count(), 2);
        assert!(read.ca_pem.contains(bundle.authority()));
        let again = renew(&read, "projectionist", "system", at(3_700)).unwrap();
        assert_eq!(again.authority(), renewed.authority());
        let third = renew(&again, "projectionist", "system", at(6_900)).unwrap();
        assert_eq!(third.ca_pem.matches("BEGIN CERTIFICATE").count(), 2, "the first is forgotten by then");
    }

    #[test]
    fn another_name_asks_for_another_certificate() {
        assert!(needs_renewal(&issued(), "other", "system", at(0)));
    }

    #[test]
    fn mixed_up_parts_are_refused() {
        let (one, two) = (issued(), issued());
        assert!(stored(&one, &one, &one, &one).is_ok());
        assert!(stored(&one, &two, &one, &one).is_err());
        assert!(stored(&one, &one, &two, &two).is_err());
        assert!(stored(&one, &one, &one, &two).is_err());
    }

    #[test]
    fn keys_are_not_shown() {
        let shown = format!("{:?}", issued());
        assert!(!shown.contains("PRIVATE"), "{shown}");
    }
}
