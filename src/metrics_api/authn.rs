//! Identifies the caller of a request: by the front proxy's headers, by a client certificate or by a token. Without any of them the caller is
//! unknown.
//!
//! The aggregator, as front proxy, names its callers in request headers. They count only on a connection whose client certificate was signed by the
//! front proxy's authority for an allowed name; on any other connection they are ignored.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use http::{HeaderMap, HeaderValue};
use percent_encoding::percent_decode_str;
use rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime, pem::PemObject};
use webpki::{ALL_VERIFICATION_ALGS, EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_parser::prelude::{FromDer, X509Certificate};

/// The group of every authenticated caller.
const AUTHENTICATED: &str = "system:authenticated";
/// The user and the group of an anonymous caller, as the API server names and passes them on.
const ANONYMOUS: &str = "system:anonymous";
const UNAUTHENTICATED: &str = "system:unauthenticated";
/// The longest bearer token, in bytes. Longer ones are not tokens of a cluster, and would only fill memory.
const LONGEST_TOKEN: usize = 8 * 1024;

/// A caller.
#[derive(Clone, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct User {
    /// The name.
    pub name: String,
    /// The UID, where there is one.
    pub uid: Option<String>,
    /// The groups.
    pub groups: BTreeSet<String>,
    /// Further attributes that the authenticator gave.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// Adds the group of authenticated callers, unless the caller is anonymous: otherwise what is granted to every authenticated user would be
    /// granted to all users.
    pub(super) fn authenticated(mut self) -> Self {
        if self.name != ANONYMOUS && !self.groups.contains(UNAUTHENTICATED) {
            self.groups.insert(AUTHENTICATED.to_owned());
        }
        self
    }
}

/// The authorities to trust, from the ConfigMap `kube-system/extension-apiserver-authentication`.
#[derive(Clone, Debug, Default)]
pub struct ClientAuthorities {
    /// The ConfigMap has been read. Until then a caller that cannot be identified is asked to try again (503) and not refused (401).
    pub read: bool,
    /// The front proxy, which may name other callers; `None` where the cluster has none.
    pub request_header: Option<RequestHeader>,
    /// The authorities that sign client certificates of users.
    pub client_authorities: Vec<TrustAnchor<'static>>,
}

/// The front proxy: its authority, the names it may have and the headers it uses.
#[derive(Clone, Debug)]
pub struct RequestHeader {
    authorities: Vec<TrustAnchor<'static>>,
    /// The common names that its certificate may have; if empty, any name.
    allowed_names: Vec<String>,
    username_headers: Vec<String>,
    uid_headers: Vec<String>,
    group_headers: Vec<String>,
    extra_prefixes: Vec<String>,
}

impl ClientAuthorities {
    /// Reads the data of the ConfigMap.
    ///
    /// # Errors
    /// Names the key that cannot be read, and why. An absent key is no error: no caller is identified by it.
    pub fn from_config(data: &BTreeMap<String, String>) -> Result<Self, String> {
        let client_authorities = anchors(data, "client-ca-file")?;
        let authorities = anchors(data, "requestheader-client-ca-file")?;
        let list = |key: &str| -> Result<Vec<String>, String> {
            let text = data.get(key).map_or("[]", String::as_str);
            serde_json::from_str(text).map_err(|error| format!("{key} is not a JSON array of strings: {error}"))
        };
        let request_header = RequestHeader {
            allowed_names: list("requestheader-allowed-names")?,
            username_headers: list("requestheader-username-headers")?,
            uid_headers: list("requestheader-uid-headers")?,
            group_headers: list("requestheader-group-headers")?,
            extra_prefixes: list("requestheader-extra-headers-prefix")?,
            authorities,
        };
        let usable = !request_header.authorities.is_empty() && !request_header.username_headers.is_empty();
        Ok(Self { read: true, request_header: usable.then_some(request_header), client_authorities })
    }

    /// What a client certificate says about its connection.
    pub fn judge(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Standing {
        let Some((leaf, intermediates)) = chain.split_first() else { return Standing::NoCertificate };
        let Ok((_, certificate)) = X509Certificate::from_der(leaf) else { return Standing::Stranger };
        if !is_for_clients(&certificate) {
            return Standing::Stranger;
        }
        let common_name = certificate.subject().iter_common_name().last().and_then(|name| name.as_str().ok());
        if let Some(proxy) = &self.request_header {
            let allowed =
                |name: &str| proxy.allowed_names.is_empty() || proxy.allowed_names.iter().any(|it| it == name);
            if signed_by(&proxy.authorities, leaf, intermediates, now) && allowed(common_name.unwrap_or_default()) {
                return Standing::FrontProxy;
            }
        }
        match common_name {
            Some(name) if !name.is_empty() && signed_by(&self.client_authorities, leaf, intermediates, now) => {
                let groups = certificate.subject().iter_organization();
                let groups = groups.filter_map(|group| group.as_str().ok()).map(ToOwned::to_owned).collect();
                Standing::User(User { name: name.to_owned(), groups, ..User::default() }.authenticated())
            }
            _ => Standing::Stranger,
        }
    }

    /// The caller that the front proxy names in the headers; `None` if it names none.
    pub fn passed_on(&self, headers: &HeaderMap) -> Option<User> {
        let proxy = self.request_header.as_ref()?;
        let first = |names: &[String]| {
            let values = names.iter().filter_map(|name| text(headers.get(name.as_str())?));
            values.filter(|value| !value.is_empty()).map(ToOwned::to_owned).next()
        };
        let groups = proxy.group_headers.iter().flat_map(|name| headers.get_all(name.as_str()));
        let mut user = User {
            name: first(&proxy.username_headers)?,
            uid: first(&proxy.uid_headers),
            groups: groups.filter_map(text).map(ToOwned::to_owned).collect(),
            extra: BTreeMap::new(),
        };
        for (name, value) in headers {
            let (name, Some(value)) = (name.as_str(), text(value)) else { continue };
            // Header names are in lower case here already.
            let key = proxy.extra_prefixes.iter().find_map(|prefix| name.strip_prefix(&prefix.to_ascii_lowercase()));
            if let Some(key) = key {
                let key = percent_decode_str(key).decode_utf8_lossy().into_owned();
                user.extra.entry(key).or_default().push(value.to_owned());
            }
        }
        Some(user.authenticated())
    }
}

#[cfg(any(test, fuzzing))]
impl RequestHeader {
    /// The header names that most clusters use, without an authority.
    pub(super) fn usual() -> Self {
        Self {
            authorities: Vec::new(),
            allowed_names: Vec::new(),
            username_headers: vec!["X-Remote-User".to_owned()],
            uid_headers: vec!["X-Remote-Uid".to_owned()],
            group_headers: vec!["X-Remote-Group".to_owned()],
            extra_prefixes: vec!["X-Remote-Extra-".to_owned()],
        }
    }
}

/// What a client certificate says about its connection.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Standing {
    /// The connection has no client certificate.
    NoCertificate,
    /// No trusted authority signed the certificate, or it is not valid now, or it is not for clients.
    Stranger,
    /// The certificate is the front proxy's, which may name other callers.
    FrontProxy,
    /// The certificate is this user's own.
    User(User),
}

/// The value as UTF-8: names need not be ASCII.
fn text(value: &HeaderValue) -> Option<&str> {
    std::str::from_utf8(value.as_bytes()).ok()
}

/// The request's bearer token; `None` without one, or where it is too long.
pub(super) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(http::header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && (1..=LONGEST_TOKEN).contains(&token.len())).then_some(token)
}

fn anchors(data: &BTreeMap<String, String>, key: &str) -> Result<Vec<TrustAnchor<'static>>, String> {
    let Some(pem) = data.get(key) else { return Ok(Vec::new()) };
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .map(|der| {
            let der = der.map_err(|_| format!("{key} is not PEM"))?;
            let anchor =
                anchor_from_trusted_cert(&der).map_err(|error| format!("{key} holds no authority: {error}"))?;
            Ok(anchor.to_owned())
        })
        .collect()
}

/// True when the certificate lists client authentication among its usages. An authority may also sign certificates that list no usage: these identify
/// no client.
fn is_for_clients(certificate: &X509Certificate<'_>) -> bool {
    certificate.extended_key_usage().ok().flatten().is_some_and(|usage| usage.value.client_auth)
}

fn signed_by(
    authorities: &[TrustAnchor<'static>],
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    now: UnixTime,
) -> bool {
    let Ok(certificate) = EndEntityCert::try_from(leaf) else { return false };
    // Intermediate certificates need not list usages, the client certificate itself must: see `is_for_clients`.
    let usage = KeyUsage::client_auth();
    certificate.verify_for_usage(ALL_VERIFICATION_ALGS, authorities, intermediates, now, usage, None, None).is_ok()
}

/// How long an answer about a token may be used again.
pub const TOKEN_CACHED_FOR: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    fn authorities(data: &[(&str, &str)]) -> Result<ClientAuthorities, String> {
        let data = data.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        ClientAuthorities::from_config(&data)
    }

    fn with_headers() -> ClientAuthorities {
        ClientAuthorities { request_header: Some(RequestHeader::usual()), ..ClientAuthorities::default() }
    }

    #[test]
    fn every_group_and_extra_of_the_passed_on_caller_counts() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("x-remote-user", "ann"),
            ("x-remote-group", "one"),
            ("x-remote-group", "two"),
            ("x-remote-extra-acme.example%2fteam", "orders"),
            ("x-remote-extra-scopes", "a"),
            ("x-remote-extra-scopes", "b"),
        ] {
            headers.append(name, value.parse().unwrap());
        }
        let user = with_headers().passed_on(&headers).unwrap();
        assert_eq!(user.name, "ann");
        assert_eq!(user.groups.iter().map(String::as_str).collect::<Vec<_>>(), ["one", AUTHENTICATED, "two"]);
        assert_eq!(user.extra["acme.example/team"], ["orders"]);
        assert_eq!(user.extra["scopes"], ["a", "b"]);
    }

    #[test]
    fn no_user_is_passed_on_without_a_name() {
        let mut headers = HeaderMap::new();
        headers.append("x-remote-group", "system:masters".parse().unwrap());
        assert_eq!(with_headers().passed_on(&headers), None);
        headers.append("x-remote-user", "".parse().unwrap());
        assert_eq!(with_headers().passed_on(&headers), None);
    }

    #[test]
    fn an_empty_config_trusts_no_proxy_and_a_broken_one_is_refused_by_key() {
        let empty = authorities(&[]).unwrap();
        assert!(empty.request_header.is_none() && empty.client_authorities.is_empty());
        let error = authorities(&[("requestheader-allowed-names", "front")]).unwrap_err();
        assert!(error.starts_with("requestheader-allowed-names is not a JSON array"), "{error}");
        let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(authorities(&[("client-ca-file", broken)]).unwrap_err().starts_with("client-ca-file"));
    }

    #[test]
    fn only_bearer_tokens_are_tokens() {
        let token = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.append("authorization", text.parse().unwrap());
            bearer(&headers).map(ToOwned::to_owned)
        };
        assert_eq!(token("Bearer abc"), Some("abc".to_owned()));
        assert_eq!(token("bearer  abc "), Some("abc".to_owned()));
        for text in ["Basic abc", "Bearer", "Bearer ", "abc"] {
            assert_eq!(token(text), None, "{text:?}");
        }
    }
}
