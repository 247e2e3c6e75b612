//! What a connection is made of, before any Secret has been read.

use std::{fmt, sync::Arc};

use crate::{
    api::{Connection, HttpConnection},
    clients::ServerKind,
};

/// A Secret, or one value in it.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct SecretName {
    /// The Secret's (and the Projection's) namespace.
    pub namespace: Arc<str>,
    /// The Secret's name.
    pub name: String,
    /// The key in it; absent where all that are known are looked for.
    pub key: Option<String>,
}

impl fmt::Display for SecretName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret {}/{}", self.namespace, self.name)?;
        self.key.as_ref().map_or(Ok(()), |key| write!(f, ", key {key}"))
    }
}

/// What a connection is made of.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ConnectionName {
    /// What kind of server it leads to.
    pub server: ServerKind,
    /// The Secret with the connection string or its parts; absent where the spec says all.
    pub secret: Option<SecretName>,
    /// The certificate authority, where it is not a public one.
    pub ca: Option<SecretName>,
    /// The client certificate, where there is one.
    pub client: Option<SecretName>,
    /// Parts that the spec gives itself, by the keys that a Secret would have for them.
    pub given: Vec<(&'static str, String)>,
}

impl ConnectionName {
    /// The connection that `connection`, in a spec of this namespace, describes.
    pub fn new(server: ServerKind, namespace: &Arc<str>, connection: &Connection) -> Self {
        let secret = |name: &str, key: Option<&str>| SecretName {
            namespace: Arc::clone(namespace),
            name: name.to_owned(),
            key: key.map(str::to_owned),
        };
        Self {
            server,
            secret: Some(secret(&connection.secret_ref.name, connection.secret_ref.key.as_deref())),
            ca: connection.ca_secret_ref.as_ref().map(|ca| secret(&ca.name, Some(&ca.key))),
            client: connection.client_certificate_secret_ref.as_ref().map(|client| secret(&client.name, None)),
            given: connection.given(),
        }
    }

    /// The connection over HTTP that `connection` describes.
    pub fn over_http(server: ServerKind, namespace: &Arc<str>, connection: &HttpConnection) -> Self {
        let secret = |name: &str, key: Option<&str>| SecretName {
            namespace: Arc::clone(namespace),
            name: name.to_owned(),
            key: key.map(str::to_owned),
        };
        let HttpConnection { url, secret_ref, ca_secret_ref, client_certificate_secret_ref } = connection;
        Self {
            server,
            secret: secret_ref.as_ref().map(|reference| secret(&reference.name, reference.key.as_deref())),
            ca: ca_secret_ref.as_ref().map(|ca| secret(&ca.name, Some(&ca.key))),
            client: client_certificate_secret_ref.as_ref().map(|client| secret(&client.name, None)),
            // A credential goes only to the server that its Secret names.
            given: url.iter().filter(|_| secret_ref.is_none()).map(|url| ("url", url.clone())).collect(),
        }
    }
}
