//! One connection to one management API: opened when it is needed, kept from request to request, closed when an answer makes no sense.

use std::{io, net::IpAddr, sync::Arc};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, LengthLimitError, Limited};
use hyper::{
    body::Incoming,
    client::conn::http1::{Builder, SendRequest},
};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, lookup_host},
    task::JoinHandle,
    time::{Instant, timeout_at},
};
use tokio_rustls::TlsConnector;

use super::{
    ConnectionSettings,
    words::{not_the_api, refusal},
};
use crate::{
    api::Reason,
    clients::{
        tls::verifying,
        words::{by_io, shortened},
    },
    measure::MeasureError,
};

/// An answer with a larger body is given up, in bytes. A queue takes about 250.
pub const LARGEST_ANSWER: usize = 16 << 20;
/// What the server may say before the body, in bytes.
const LARGEST_HEAD: usize = 64 << 10;
/// So much of a refusal is read, to tell its kind.
const LARGEST_REFUSAL: usize = 64 << 10;

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// What the server answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// JSON, as far as the server says.
    pub body: Bytes,
    /// The server's time, in whole seconds; absent where it does not tell.
    pub at: Option<jiff::Timestamp>,
}

/// Asks one management API. Keeps its connection from call to call; one that broke is opened again by the next call.
pub struct Client {
    settings: ConnectionSettings,
    connection: Option<Connection>,
}

struct Connection {
    requests: SendRequest<Empty<Bytes>>,
    /// Reads and writes; ends with the connection.
    driver: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Client {
    /// Not connected yet.
    pub fn new(settings: ConnectionSettings) -> Self {
        Self { settings, connection: None }
    }

    /// Where it asks.
    pub fn settings(&self) -> &ConnectionSettings {
        &self.settings
    }

    /// Asks for what lies below `/api/`: `path` is percent-encoded and begins behind that.
    ///
    /// # Errors
    /// Why there is no answer with status 200 in JSON until `by`. Holds no secret, nothing of the answer's body, and does not say where.
    pub async fn get(&mut self, path: &str, by: Instant) -> Result<Answer, MeasureError> {
        timeout_at(by, self.get_in_time(path)).await.unwrap_or_else(|_| Err(self.timed_out()))
    }

    async fn get_in_time(&mut self, path: &str) -> Result<Answer, MeasureError> {
        // Taken out, so that a call that is given up half-way leaves no connection with an answer to come.
        let kept = self.connection.take().filter(|connection| connection.requests.is_ready());
        if let Some(mut connection) = kept {
            match self.exchange(&mut connection, path).await {
                // The server may have closed a connection that was idle: a new one is tried once.
                Err(broken) if broken.reason == Reason::SourceFailed => {}
                answer => return self.keep(connection, answer),
            }
        }
        let mut connection = self.open().await?;
        let answer = self.exchange(&mut connection, path).await;
        self.keep(connection, answer)
    }

    /// Keeps a connection whose answer was read to its end.
    fn keep(
        &mut self,
        connection: Connection,
        answer: Result<Result<Answer, MeasureError>, MeasureError>,
    ) -> Result<Answer, MeasureError> {
        let answer = answer?;
        self.connection = Some(connection);
        answer
    }

    /// One request. The inner result is what the server says, the outer what became of the connection.
    async fn exchange(
        &self,
        connection: &mut Connection,
        path: &str,
    ) -> Result<Result<Answer, MeasureError>, MeasureError> {
        let answer =
            connection.requests.send_request(self.request(path)?).await.map_err(|error| self.broken(&error))?;
        let status = answer.status();
        let (is_json, at) = (is_json(&answer), date(&answer));
        let most = if status == StatusCode::OK { LARGEST_ANSWER } else { LARGEST_REFUSAL };
        let body = Limited::new(answer.into_body(), most).collect().await.map_err(|error| {
            if error.is::<LengthLimitError>() {
                too_large(most)
            } else {
                error.downcast_ref::<hyper::Error>().map_or_else(|| not_the_api("not HTTP"), |error| self.broken(error))
            }
        })?;
        let body = body.to_bytes();
        Ok(match status {
            StatusCode::OK if is_json => Ok(Answer { body, at }),
            StatusCode::OK => Err(not_the_api("not JSON")),
            _ => Err(refusal(status, is_json, &body)),
        })
    }

    fn request(&self, path: &str) -> Result<Request<Empty<Bytes>>, MeasureError> {
        let ConnectionSettings { user, password, .. } = &self.settings;
        let failed = |what: &str| MeasureError {
            reason: Reason::SourceFailed,
            message: format!("the request cannot be written: {what}"),
        };
        let credential = format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")));
        let mut credential = HeaderValue::from_str(&credential).map_err(|_| failed("user and password"))?;
        credential.set_sensitive(true);
        Request::get(format!("/api/{path}"))
            .header(header::HOST, self.settings.authority())
            .header(header::ACCEPT, "application/json")
            .header(header::AUTHORIZATION, credential)
            .header(header::USER_AGENT, concat!("projectionist-sampler/", env!("CARGO_PKG_VERSION")))
            .body(Empty::new())
            .map_err(|_| failed("host and path"))
    }

    /// Connects and agrees on TLS.
    async fn open(&self) -> Result<Connection, MeasureError> {
        let ConnectionSettings { host, port, tls, ca, client, .. } = &self.settings;
        // Resolved once: what was looked at is what is connected to.
        let addresses = lookup_host((host.as_str(), *port)).await.map_err(|error| by_io(&error))?;
        let addresses: Vec<_> = addresses.filter(|address| is_allowed(address.ip())).collect();
        if addresses.is_empty() {
            return Err(MeasureError {
                reason: Reason::ConnectionStringInvalid,
                message: "the host leads to an address at which no RabbitMQ is asked (link-local, multicast or unspecified): correct it in the Secret".to_owned(),
            });
        }
        let stream = TcpStream::connect(addresses.as_slice()).await.map_err(|error| by_io(&error))?;
        stream.set_nodelay(true).map_err(|error| by_io(&error))?;
        let stream: Box<dyn Stream> = if *tls {
            let name = ServerName::try_from(host.clone()).map_err(|_| MeasureError {
                reason: Reason::TlsFailed,
                message: "the host is no name that a certificate could be for".to_owned(),
            })?;
            let config = verifying(ca.as_deref(), client.as_deref())
                .map_err(|message| MeasureError { reason: Reason::TlsFailed, message })?;
            let connector = TlsConnector::from(Arc::new(config));
            Box::new(connector.connect(name, stream).await.map_err(|error| tls_failed(&error))?)
        } else {
            Box::new(stream)
        };
        let (requests, connection) = Builder::new()
            .max_buf_size(LARGEST_HEAD)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.broken(&error))?;
        // How it ended is told by the request under way.
        let driver = tokio::spawn(async { drop(connection.await) });
        Ok(Connection { requests, driver })
    }

    /// What a failure in the middle of a request means.
    fn broken(&self, error: &hyper::Error) -> MeasureError {
        let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<io::Error>());
        if let Some(cause) = cause {
            // After the handshake of TLS 1.3 a server may still refuse our certificate.
            let is_tls = cause.get_ref().is_some_and(|cause| cause.is::<rustls::Error>());
            return if is_tls { tls_failed(cause) } else { by_io(cause) };
        }
        if error.is_parse_too_large() {
            return MeasureError {
                reason: Reason::InvalidAnswer,
                message: format!("the answer's headers are larger than {} KiB", LARGEST_HEAD >> 10),
            };
        }
        if error.is_parse() {
            let advice = if self.settings.tls { "" } else { ", or does the server want TLS (https://)" };
            return not_the_api(&format!("not HTTP{advice}"));
        }
        MeasureError { reason: Reason::SourceFailed, message: "the connection broke".to_owned() }
    }

    fn timed_out(&self) -> MeasureError {
        let advice = if self.settings.tls { ", does the port speak no TLS" } else { "" };
        MeasureError {
            reason: Reason::TimedOut,
            message: format!(
                "no whole answer in time: does a firewall or network policy drop packets{advice}, or does the server hang?"
            ),
        }
    }
}

/// Not where clouds serve the machine's own credentials, and nothing that is no single host.
fn is_allowed(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(ip) => !(ip.is_link_local() || ip.is_multicast() || ip.is_unspecified() || ip.is_broadcast()),
        IpAddr::V6(ip) => !(ip.is_unicast_link_local() || ip.is_multicast() || ip.is_unspecified()),
    }
}

fn is_json(answer: &Response<Incoming>) -> bool {
    let kind = answer.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    kind.is_some_and(|kind| kind.trim().to_ascii_lowercase().starts_with("application/json"))
}

fn date(answer: &Response<Incoming>) -> Option<jiff::Timestamp> {
    let date = answer.headers().get(header::DATE)?.to_str().ok()?;
    jiff::fmt::rfc2822::parse(date).ok().map(|date| date.timestamp())
}

fn too_large(most: usize) -> MeasureError {
    let (size, unit) = if most < 1 << 20 { (most >> 10, "KiB") } else { (most >> 20, "MiB") };
    MeasureError { reason: Reason::InvalidAnswer, message: format!("the answer is larger than {size} {unit}") }
}

fn tls_failed(error: &io::Error) -> MeasureError {
    let no_tls = error.kind() == io::ErrorKind::UnexpectedEof
        || matches!(
            error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>()),
            Some(rustls::Error::InvalidMessage(_))
        );
    let advice = if no_tls {
        "does the server speak TLS at this port? Write http:// where it does not"
    } else {
        "check the server's certificate, connection.caSecretRef and connection.clientCertificateSecretRef"
    };
    MeasureError {
        reason: Reason::TlsFailed,
        message: format!("TLS failed: {}: {advice}", shortened(&error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_the_machine_s_own_network_are_not_asked() {
        for refused in ["169.254.169.254", "fe80::1", "::ffff:169.254.169.254", "0.0.0.0", "::", "224.0.0.1", "ff02::1"]
        {
            assert!(!is_allowed(refused.parse().unwrap()), "{refused}");
        }
        for allowed in ["10.0.0.1", "127.0.0.1", "fd00::1", "192.0.2.1"] {
            assert!(is_allowed(allowed.parse().unwrap()), "{allowed}");
        }
    }
}
