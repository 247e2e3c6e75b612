//! Keys and certificates of one cluster: two authorities, since front-proxy headers must not be believed from just any client.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};

use crate::network::{API_SERVICE_ADDRESS, NODE_ADDRESS};

/// The directory of a cluster's keys and certificates, `<name>.crt` and `<name>.key`.
#[derive(Debug)]
pub(crate) struct Pki(PathBuf);

type Authority = CertifiedIssuer<'static, KeyPair>;

impl Pki {
    /// Writes all keys and certificates of a new cluster to `dir`.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub(crate) fn create(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
        let pki = Self(dir.to_owned());
        let clients = pki.authority("ca", "test-cluster")?;
        let front_proxy = pki.authority("front-proxy-ca", "test-cluster-front-proxy")?;
        pki.client(&clients, "admin", "admin", Some("system:masters"))?;
        pki.client(&clients, "apiserver-kubelet-client", "kube-apiserver-kubelet-client", Some("system:masters"))?;
        pki.client(&clients, "controller-manager", "system:kube-controller-manager", None)?;
        pki.client(&clients, "scheduler", "system:kube-scheduler", None)?;
        pki.client(&clients, "kubelet", "system:node:node", Some("system:nodes"))?;
        pki.client(&clients, "kube-proxy", "system:kube-proxy", None)?;
        pki.client(&clients, "coredns", "system:coredns", None)?;
        pki.client(&front_proxy, "front-proxy-client", "front-proxy-client", None)?;
        pki.api_server(&clients)?;
        let service_accounts = KeyPair::generate()?;
        pki.write("service-accounts.key", &service_accounts.serialize_pem())?;
        pki.write("service-accounts.pub", &service_accounts.public_key_pem())?;
        Ok(pki)
    }

    /// The path of one file.
    #[must_use]
    pub(crate) fn path(&self, file: &str) -> String {
        self.0.join(file).display().to_string()
    }

    /// A kubeconfig for the holder of certificate `who`, complete in itself.
    ///
    /// # Errors
    /// When a certificate cannot be read.
    pub(crate) fn kubeconfig(&self, who: &str) -> Result<String> {
        let inline = |file: &str| -> Result<serde_json::Value> {
            let path = self.0.join(file);
            let bytes = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
            Ok(serde_json::to_value(k8s_openapi::ByteString(bytes))?)
        };
        let config = serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test-cluster",
            "clusters": [{"name": "test-cluster", "cluster": {
                "server": format!("https://{NODE_ADDRESS}:6443"), "certificate-authority-data": inline("ca.crt")?}}],
            "users": [{"name": who, "user": {
                "client-certificate-data": inline(&format!("{who}.crt"))?, "client-key-data": inline(&format!("{who}.key"))?}}],
            "contexts": [{"name": "test-cluster", "context": {"cluster": "test-cluster", "user": who}}],
        });
        Ok(serde_json::to_string_pretty(&config)?)
    }

    fn authority(&self, file: &str, name: &str) -> Result<Authority> {
        let key = KeyPair::generate()?;
        self.write(&format!("{file}.key"), &key.serialize_pem())?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::CrlSign];
        let authority = CertifiedIssuer::self_signed(params, key)?;
        self.write(&format!("{file}.crt"), &authority.pem())?;
        Ok(authority)
    }

    fn client(&self, authority: &Authority, file: &str, user: &str, group: Option<&str>) -> Result<()> {
        let mut params = named(user);
        if let Some(group) = group {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(authority, file, &params)
    }

    fn api_server(&self, authority: &Authority) -> Result<()> {
        let mut params = named("kube-apiserver");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        for name in [
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
            "localhost",
        ] {
            params.subject_alt_names.push(SanType::DnsName(name.try_into()?));
        }
        for address in [NODE_ADDRESS, API_SERVICE_ADDRESS, "127.0.0.1"] {
            params.subject_alt_names.push(SanType::IpAddress(address.parse::<IpAddr>()?));
        }
        self.issue(authority, "apiserver", &params)
    }

    fn issue(&self, authority: &Authority, file: &str, params: &CertificateParams) -> Result<()> {
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, authority)?;
        self.write(&format!("{file}.key"), &key.serialize_pem())?;
        self.write(&format!("{file}.crt"), &certificate.pem())
    }

    fn write(&self, file: &str, text: &str) -> Result<()> {
        use std::os::unix::fs::OpenOptionsExt;
        let path = self.0.join(file);
        let mut options = fs::OpenOptions::new();
        let opened = options.write(true).create(true).truncate(true).mode(0o600).open(&path);
        let mut opened = opened.with_context(|| format!("creating {}", path.display()))?;
        std::io::Write::write_all(&mut opened, text.as_bytes()).with_context(|| format!("writing {}", path.display()))
    }
}

fn named(user: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, user);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params
}
