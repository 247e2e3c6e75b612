//! Certificate authorities of a test's own, and what they sign.

#![allow(dead_code)] // Each test binary uses a part of it.

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

pub type Authority = CertifiedIssuer<'static, KeyPair>;

/// A new authority.
pub fn authority() -> Authority {
    let mut authority = CertificateParams::default();
    authority.distinguished_name.push(DnType::CommonName, "authority");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap()
}

/// A certificate and its key in PEM, for this name.
pub fn signed(by: &Authority, name: &str) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let mut certificate = CertificateParams::new(vec![name.to_owned()]).unwrap();
    certificate.distinguished_name.push(DnType::CommonName, name);
    let certificate = certificate.signed_by(&key, by).unwrap();
    (certificate.pem(), key.serialize_pem())
}

/// Files with a server's certificate for `localhost`, its key, and the authority.
pub struct Files {
    directory: tempfile::TempDir,
}

impl Files {
    pub fn signed(by: &Authority) -> Self {
        let files = Self { directory: tempfile::tempdir().unwrap() };
        files.renew(by);
        files
    }

    /// Others of this authority in their place.
    pub fn renew(&self, by: &Authority) {
        let (certificate, key) = signed(by, "localhost");
        for (name, text) in [("crt", certificate), ("key", key), ("ca", by.pem())] {
            std::fs::write(self.path(name), text).unwrap();
        }
    }

    /// The path of `crt`, `key` or `ca`.
    pub fn path(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }
}
