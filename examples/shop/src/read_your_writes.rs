//! Whoever has written waits until a read model has it, by the operator's `await`, and reads then.
//!
//! The ServiceAccount needs `get` on `projections/await` (the ClusterRole `projectionist-await`).

use std::{path::PathBuf, time::Duration};

use http::{Request, StatusCode, header::AUTHORIZATION};
use http_body_util::Empty;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use rustls::ClientConfig;
use serde::Serialize;
use thiserror::Error;

/// How much longer than it is asked to wait the operator may take to answer.
const GRACE: Duration = Duration::from_secs(2);

/// Where the operator's API is.
#[derive(Clone)]
pub struct Operator {
    client: Client<HttpsConnector<HttpConnector>, Empty<bytes::Bytes>>,
    /// `https://projectionist.projectionist.svc`
    url: String,
    namespace: String,
    /// Where the token is: read anew for each request, since the kubelet renews it.
    token: PathBuf,
}

/// Whether a read model has what was written.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Shown {
    /// It has.
    Yes,
    /// Not yet.
    NotYet,
    /// How far it is is not known. Never taken for either of the others.
    Unknown,
}

/// Why the operator could not be asked, or refused.
#[derive(Debug, Error)]
pub enum AwaitError {
    /// The token cannot be read.
    #[error("the token at {path}: {error}")]
    Token {
        /// Where it should be.
        path: PathBuf,
        /// What is wrong.
        error: std::io::Error,
    },
    /// The request cannot be written.
    #[error("the request to the operator: {0}")]
    Request(#[from] http::Error),
    /// The operator is away.
    #[error("the operator: {0}")]
    Away(#[from] hyper_util::client::legacy::Error),
    /// It did not answer.
    #[error("the operator did not answer within {0:?}")]
    TooLate(Duration),
    /// It refuses: the right or the Projection is missing.
    #[error("the operator refuses with {0}")]
    Refused(StatusCode),
}

impl Operator {
    /// The operator at this URL, whose certificate is judged by `tls`; for Projections of this namespace.
    #[must_use]
    pub fn new(url: String, tls: ClientConfig, namespace: String, token: PathBuf) -> Self {
        let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_only().enable_http1().build();
        Self { client: Client::builder(TokioExecutor::new()).build(connector), url, namespace, token }
    }

    /// Waits until the read model of a Projection has everything up to this position, no longer than `timeout` (10 s at most).
    ///
    /// # Errors
    /// When the operator cannot be asked, or refuses: what was written is written all the same.
    pub async fn shows(&self, projection: &str, position: i64, timeout: Duration) -> Result<Shown, AwaitError> {
        let token = tokio::fs::read_to_string(&self.token).await;
        let token = token.map_err(|error| AwaitError::Token { path: self.token.clone(), error })?;
        let uri = format!(
            "{}/v1/namespaces/{}/projections/{projection}/await?position={position}&timeout={}ms",
            self.url,
            self.namespace,
            timeout.as_millis()
        );
        let request = Request::get(uri).header(AUTHORIZATION, format!("Bearer {}", token.trim())).body(Empty::new())?;
        let within = timeout + GRACE;
        let asked = tokio::time::timeout(within, self.client.request(request)).await;
        match asked.map_err(|_| AwaitError::TooLate(within))??.status() {
            StatusCode::OK => Ok(Shown::Yes),
            StatusCode::GATEWAY_TIMEOUT => Ok(Shown::NotYet),
            StatusCode::SERVICE_UNAVAILABLE => Ok(Shown::Unknown),
            refused => Err(AwaitError::Refused(refused)),
        }
    }
}
