//! Server certificates that libpq accepts and the TLS library does not: of version 1, an authority's own, signed by itself and given as its own
//! authority, or with the host's name in the subject alone.
//!
//! The library verifies all others, and every chain of more than one step. Here a certificate is vouched for in one step: by being one of
//! those given, or by the signature of one of those given.

use std::net::IpAddr;

use rustls::{
    crypto::WebPkiSupportedAlgorithms,
    pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer},
};
use webpki::RawPublicKeyEntity;
use x509_parser::{
    certificate::X509Certificate,
    extensions::{GeneralName, ParsedExtension},
    prelude::{FromDer, X509Version},
};

/// True within the certificate's dates.
pub(super) fn is_valid_now(certificate: &CertificateDer<'_>) -> bool {
    X509Certificate::from_der(certificate).is_ok_and(|(_, parsed)| parsed.validity().is_valid())
}

/// Whether one of `trusted` is this certificate or has signed it.
///
/// # Errors
/// What is wrong with a certificate that would be vouched for.
pub(super) fn vouched(
    certificate: &CertificateDer<'_>,
    trusted: &[CertificateDer<'_>],
    algorithms: &WebPkiSupportedAlgorithms,
) -> Result<bool, String> {
    let Ok((_, leaf)) = X509Certificate::from_der(certificate) else { return Ok(false) };
    // One that another has signed is not vouched for by being given: as with OpenSSL, its authority is to be given.
    let itself = leaf.subject() == leaf.issuer() && trusted.iter().any(|one| one.as_ref() == certificate.as_ref());
    let signed = || {
        trusted.iter().any(|one| {
            X509Certificate::from_der(one)
                .is_ok_and(|(_, issuer)| may_sign(&issuer) && has_signed(&issuer, &leaf, algorithms))
        })
    };
    if !itself && !signed() {
        return Ok(false);
    }
    if !leaf.validity().is_valid() {
        return Err("the server's certificate has expired or is not valid yet".to_owned());
    }
    if leaf
        .extended_key_usage()
        .is_ok_and(|usage| usage.is_some_and(|usage| !usage.value.any && !usage.value.server_auth))
    {
        return Err("the server's certificate is not for servers (extended key usage)".to_owned());
    }
    let known = |extension: &ParsedExtension<'_>| {
        !matches!(extension, ParsedExtension::UnsupportedExtension { .. } | ParsedExtension::ParseError { .. })
    };
    if leaf.extensions().iter().any(|extension| extension.critical && !known(extension.parsed_extension())) {
        return Err("the server's certificate has a critical extension that is not known".to_owned());
    }
    Ok(true)
}

/// An authority: it says so, or is of a version that cannot say and signed by itself.
fn may_sign(issuer: &X509Certificate<'_>) -> bool {
    let says_so = issuer.basic_constraints().ok().flatten().map(|constraints| constraints.value.ca);
    let authority =
        says_so.unwrap_or_else(|| issuer.version() == X509Version::V1 && issuer.subject() == issuer.issuer());
    let usage = issuer.key_usage().ok().flatten();
    authority
        && usage.is_none_or(|usage| usage.value.key_cert_sign())
        && issuer.validity().is_valid()
        // To be weighed against the whole chain, which is the library's work.
        && issuer.name_constraints().is_ok_and(|constraints| constraints.is_none())
}

fn has_signed(
    issuer: &X509Certificate<'_>,
    leaf: &X509Certificate<'_>,
    algorithms: &WebPkiSupportedAlgorithms,
) -> bool {
    if issuer.subject().as_raw() != leaf.issuer().as_raw() || leaf.signature_algorithm != leaf.tbs_certificate.signature
    {
        return false;
    }
    let key = SubjectPublicKeyInfoDer::from(issuer.public_key().raw);
    let Ok(key) = RawPublicKeyEntity::try_from(&key) else { return false };
    let (message, signature) = (leaf.tbs_certificate.as_ref(), leaf.signature_value.as_ref());
    algorithms.all.iter().any(|algorithm| key.verify_signature(*algorithm, message, signature).is_ok())
}

/// Whether the certificate is for this host, by libpq's rules: names of the host's kind, and where there is none, the common name.
///
/// # Errors
/// The names that the certificate is for, as a text.
pub(super) fn is_for(certificate: &CertificateDer<'_>, host: &ServerName<'_>) -> Result<(), String> {
    let unreadable = || "the server's certificate cannot be read".to_owned();
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| unreadable())?;
    let names = parsed.subject_alternative_name().map_err(|_| unreadable())?;
    let names = names.map(|names| names.value.general_names.as_slice()).unwrap_or_default();
    let address = match host {
        ServerName::IpAddress(address) => Some(IpAddr::from(*address)),
        _ => None,
    };
    let host = host.to_str();
    let mut seen = Vec::new();
    let mut any_counts = false;
    for name in names {
        match name {
            GeneralName::DNSName(name) => {
                // libpq: a name of either kind stands in place of the common name for a host's name, and only an address for an address.
                any_counts |= address.is_none();
                seen.push((*name).to_owned());
                if matches(name, &host) {
                    return Ok(());
                }
            }
            GeneralName::IPAddress(bytes) => {
                let found = match *bytes {
                    [a, b, c, d] => Some(IpAddr::from([*a, *b, *c, *d])),
                    bytes => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
                };
                any_counts |= address.is_some();
                seen.extend(found.map(|found| found.to_string()));
                if found.is_some() && found == address {
                    return Ok(());
                }
            }
            _ => {}
        }
    }
    if !any_counts {
        let common = parsed.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
        if common.is_some_and(|common| matches(common, &host)) {
            return Ok(());
        }
        seen.extend(common.map(str::to_owned));
    }
    let seen: Vec<String> =
        seen.iter().take(5).map(|name| name.chars().filter(|c| !c.is_control()).take(100).collect()).collect();
    let whose = if seen.is_empty() { "names no host".to_owned() } else { format!("is for {}", seen.join(", ")) };
    Err(format!("the server's certificate {whose} and not for {host}"))
}

/// `*.example` stands for one label in front of the rest, in whatever case.
fn matches(pattern: &str, host: &str) -> bool {
    if pattern.eq_ignore_ascii_case(host) {
        return true;
    }
    let Some(rest) = pattern.strip_prefix('*').filter(|rest| rest.starts_with('.') && rest.len() > 1) else {
        return false;
    };
    host.find('.').is_some_and(|dot| dot > 0 && host[dot..].eq_ignore_ascii_case(rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_one_label() {
        for (pattern, host, expected) in [
            ("db.example", "DB.example", true),
            ("*.example", "db.example", true),
            ("*.example", "a.db.example", false),
            ("*.example", ".example", false),
            ("*", "db", false),
            ("*.", "db.", false),
            ("d*.example", "db.example", false),
        ] {
            assert_eq!(matches(pattern, host), expected, "{pattern} {host}");
        }
    }
}
