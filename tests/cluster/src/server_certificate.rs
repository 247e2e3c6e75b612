//! The certificate that a server of a test shows, with an authority of its own.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

/// A certificate for some names, all as PEM.
#[derive(Clone, Debug)]
pub struct ServerCertificate {
    /// The authority that signed it.
    pub authority: String,
    /// The certificate.
    pub certificate: String,
    /// Its key (PKCS #8).
    pub key: String,
}

impl ServerCertificate {
    /// A new one for these host names and addresses, of a new authority.
    ///
    /// # Errors
    /// When a host is neither a name nor an address.
    pub fn for_hosts(hosts: &[&str]) -> Result<Self> {
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
        let key = KeyPair::generate()?;
        let names: Vec<String> = hosts.iter().map(ToString::to_string).collect();
        let certificate = CertificateParams::new(names)?.signed_by(&key, &authority)?;
        Ok(Self { authority: authority.pem(), certificate: certificate.pem(), key: key.serialize_pem() })
    }

    /// Writes certificate and key into a directory, for servers that are told files.
    ///
    /// # Errors
    /// When they cannot be written.
    pub(crate) fn write(&self, directory: &Path) -> Result<(PathBuf, PathBuf)> {
        let write = |name: &str, text: &str| {
            let path = directory.join(name);
            fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
            anyhow::Ok(path)
        };
        Ok((write("server.crt", &self.certificate)?, write("server.key", &self.key)?))
    }
}
