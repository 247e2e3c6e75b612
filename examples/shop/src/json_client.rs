//! JSON over HTTP: what the load and the check ask with.

use std::time::Duration;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{
    HeaderMap, Method, Request, StatusCode, Uri,
    header::{AUTHORIZATION, CONTENT_TYPE},
};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use percent_encoding::percent_decode_str;
use rustls::ClientConfig;
use serde_json::Value;
use thiserror::Error;

/// The largest answer, in bytes.
const LARGEST_ANSWER: usize = 64 * 1024 * 1024;
/// How long an answer may take.
const WITHIN: Duration = Duration::from_secs(20);

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum AskError {
    /// The request cannot be written.
    #[error("the request: {0}")]
    Request(#[from] http::Error),
    /// The server is away.
    #[error("the server: {0}")]
    Away(#[from] hyper_util::client::legacy::Error),
    /// It hung up in the middle of the answer, or the answer is too large.
    #[error("the server's answer: {0}")]
    Answer(Box<dyn std::error::Error + Send + Sync>),
    /// It takes too long.
    #[error("the server did not answer within {WITHIN:?}")]
    TooLate,
}

/// What a server answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body; `null` where it is no JSON.
    pub body: Value,
}

/// Asks servers. Clones share connections.
#[derive(Clone)]
pub struct JsonClient {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

impl JsonClient {
    /// A client that judges certificates by `tls`, where the URL is one of HTTPS.
    #[must_use]
    pub fn new(tls: ClientConfig) -> Self {
        let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().build();
        Self { client: Client::builder(TokioExecutor::new()).build(connector) }
    }

    /// Asks, with a body unless that is null. A user and a password in the URL are told the server.
    ///
    /// # Errors
    /// When there is no answer. Whether the server did what it was asked for is not known then.
    pub async fn ask(
        &self,
        method: Method,
        url: &str,
        headers: &[(&str, &str)],
        body: &Value,
    ) -> Result<Answer, AskError> {
        let url: Uri = url.parse().map_err(http::Error::from)?;
        let credential = url.authority().and_then(|authority| authority.as_str().rsplit_once('@'));
        let credential = credential
            .map(|(credential, _)| BASE64_STANDARD.encode(percent_decode_str(credential).collect::<Vec<u8>>()));
        let request = Request::builder().method(method).uri(url).header(CONTENT_TYPE, "application/json");
        let request = match credential {
            Some(credential) => request.header(AUTHORIZATION, format!("Basic {credential}")),
            None => request,
        };
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        let body = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
        let request = request.body(Full::new(body))?;
        let asked = async {
            let (parts, body) = self.client.request(request).await?.into_parts();
            let body = Limited::new(body, LARGEST_ANSWER).collect().await.map_err(AskError::Answer)?.to_bytes();
            let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
            Ok(Answer { status: parts.status, headers: parts.headers, body })
        };
        tokio::time::timeout(WITHIN, asked).await.map_err(|_| AskError::TooLate)?
    }
}
