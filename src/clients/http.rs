//! Bounded HTTP/1.1 for all servers that speak it: one connection, opened when it is needed, kept from request to request, and closed when an answer
//! makes no sense.
//!
//! Deadlines, sizes of heads and bodies, and the addresses that may be asked are held here. Redirections are not followed and no proxy is used, so
//! that a credential goes only to the server that it came with. Nothing of an answer is repeated in a message: a URL may lead to any server.

use std::{io, sync::Arc};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::JoinHandle,
    time::{Instant, timeout_at},
};
use tokio_rustls::TlsConnector;

use super::{
    address::{connect as connect_to, host_and_port},
    tls::{ClientCertificate, verifying},
    words::{by_io, shortened},
};
use crate::{addresses::AddressRules, api::Reason, measure::MeasureError};

/// What a server may say before the body, in bytes.
const LARGEST_HEAD: usize = 64 << 10;
/// How failures begin that [`is_too_large`] tells.
pub(super) const TOO_LARGE: &str = "the answer is larger than";
/// So much is read of an answer with a status other than 200, to tell its kind.
const LARGEST_REFUSAL: usize = 64 << 10;

/// A byte stream to a server, with TLS or without.
pub trait Stream: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Sync + Unpin> Stream for S {}

/// Where a server is, and how to connect.
#[derive(Clone, Eq, Hash, PartialEq)]
pub struct Server {
    /// A name or an address, IPv6 without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
    /// With TLS the certificate is verified against the host.
    pub tls: bool,
    /// Trusted instead of the public authorities (PEM).
    pub ca: Option<Arc<[u8]>>,
    /// Shown where the server asks for one.
    pub client: Option<Arc<ClientCertificate>>,
}

impl Server {
    /// Host and port as in a URL.
    pub fn authority(&self) -> String {
        let Self { host, port, .. } = self;
        host_and_port(host, *port)
    }
}

/// What is asked. The same request may be sent twice, where a connection was idle for so long that the server closed it: only what reads,
/// or what may be done twice.
#[derive(Clone)]
pub struct HttpRequest {
    /// GET, or POST where the question is too long for a URL.
    pub method: Method,
    /// Path and query, percent-encoded, beginning with a slash.
    pub path: String,
    /// Besides `Host` and `User-Agent`. Credentials are marked as sensitive.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Empty where there is none.
    pub body: Bytes,
    /// An answer with status 200 and a larger body is given up, in bytes.
    pub largest: usize,
}

/// What a server answered, whatever its status.
#[derive(Clone, Debug)]
pub struct HttpAnswer {
    /// The status.
    pub status: StatusCode,
    /// In lower case, without parameters; empty where the server does not tell.
    pub content_type: String,
    /// The body, as the server sent it.
    pub body: Bytes,
    /// The server said how long the body is, or sent it in chunks up to an end. False where the body ends with the connection: a server that dies half-way
    /// ends it in the same way.
    pub has_end: bool,
    /// The server's time, in whole seconds; absent where it does not tell.
    pub at: Option<jiff::Timestamp>,
}

impl HttpAnswer {
    /// The server says that the body is JSON.
    pub fn is_json(&self) -> bool {
        self.content_type == "application/json"
    }
}

/// The header for HTTP's Basic authentication. Absent where the user holds what no header can.
pub fn basic(user: &str, password: &str) -> Option<HeaderValue> {
    sensitive(&format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}"))))
}

/// A header that is never logged. Absent where the text cannot be one.
pub fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Asks one server. Keeps its connection from call to call; one that broke is opened again by the next call.
pub struct HttpClient {
    server: Server,
    addresses: Arc<AddressRules>,
    /// What it means that something else serves there, from a few words on how that shows.
    not_this_server: fn(&str) -> MeasureError,
    connection: Option<Connection>,
}

struct Connection {
    requests: SendRequest<Full<Bytes>>,
    /// Reads and writes; ends with the connection.
    driver: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl HttpClient {
    /// Not connected yet. `not_this_server` makes the failure of an answer that is not HTTP.
    pub fn new(server: Server, addresses: Arc<AddressRules>, not_this_server: fn(&str) -> MeasureError) -> Self {
        Self { server, addresses, not_this_server, connection: None }
    }

    /// A connection is open, as far as is known.
    pub fn is_connected(&self) -> bool {
        self.connection.as_ref().is_some_and(|connection| connection.requests.is_ready())
    }

    /// Sends the request and reads the answer to its end.
    ///
    /// # Errors
    /// Why there is no whole answer until `by`. Holds no secret, nothing of the answer's body, and does not say where.
    pub async fn send(&mut self, request: &HttpRequest, by: Instant) -> Result<HttpAnswer, MeasureError> {
        timeout_at(by, self.send_in_time(request)).await.unwrap_or_else(|_| Err(timed_out(self.server.tls)))
    }

    async fn send_in_time(&mut self, request: &HttpRequest) -> Result<HttpAnswer, MeasureError> {
        // Taken out, so that a call that is given up half-way leaves no connection with an answer to come.
        let kept = self.connection.take().filter(|connection| connection.requests.is_ready());
        if let Some(mut connection) = kept {
            match self.exchange(&mut connection, request).await {
                // The server may have closed a connection that was idle: a new one is tried once.
                Err(broken) if broken.reason == Reason::SourceFailed => {}
                answer => return self.keep(connection, answer),
            }
        }
        let mut connection = self.open().await?;
        let answer = self.exchange(&mut connection, request).await;
        self.keep(connection, answer)
    }

    /// Keeps a connection whose answer was read to its end.
    fn keep(
        &mut self,
        connection: Connection,
        answer: Result<HttpAnswer, MeasureError>,
    ) -> Result<HttpAnswer, MeasureError> {
        let answer = answer?;
        self.connection = Some(connection);
        Ok(answer)
    }

    async fn exchange(&self, connection: &mut Connection, request: &HttpRequest) -> Result<HttpAnswer, MeasureError> {
        let sent = connection.requests.send_request(self.written(request)?);
        let answer = sent.await.map_err(|error| self.broken(&error))?;
        let status = answer.status();
        let text = |name| answer.headers().get(name).and_then(|value| value.to_str().ok());
        let content_type = text(header::CONTENT_TYPE).unwrap_or_default();
        let content_type = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        let at = text(header::DATE).and_then(|date| jiff::fmt::rfc2822::parse(date).ok()).map(|date| date.timestamp());
        let has_end =
            [header::CONTENT_LENGTH, header::TRANSFER_ENCODING].iter().any(|name| answer.headers().contains_key(name));
        let most = if status == StatusCode::OK { request.largest } else { LARGEST_REFUSAL };
        let body = Limited::new(answer.into_body(), most).collect().await.map_err(|error| {
            if error.is::<LengthLimitError>() {
                too_large(most)
            } else {
                let error = error.downcast_ref::<hyper::Error>();
                error.map_or_else(|| (self.not_this_server)("not HTTP"), |error| self.broken(error))
            }
        })?;
        Ok(HttpAnswer { status, content_type, body: body.to_bytes(), has_end, at })
    }

    fn written(&self, request: &HttpRequest) -> Result<Request<Full<Bytes>>, MeasureError> {
        let HttpRequest { method, path, headers, body, largest: _ } = request;
        let mut written = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, self.server.authority())
            .header(header::USER_AGENT, concat!("projectionist-sampler/", env!("CARGO_PKG_VERSION")));
        for (name, value) in headers {
            written = written.header(name, value);
        }
        written.body(Full::new(body.clone())).map_err(|_| MeasureError {
            reason: Reason::SourceFailed,
            message: "the request cannot be written: host and path".to_owned(),
        })
    }

    async fn open(&self) -> Result<Connection, MeasureError> {
        let stream = connect(&self.server, &self.addresses).await?;
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
            let advice = if self.server.tls { "" } else { ", or does the server want TLS (https://)" };
            return (self.not_this_server)(&format!("not HTTP{advice}"));
        }
        let advice = if self.server.tls { "" } else { " at once: does the server want TLS (https://)?" };
        let advice = if error.is_incomplete_message() { advice } else { "" };
        MeasureError { reason: Reason::SourceFailed, message: format!("the connection broke{advice}") }
    }
}

/// Connects and agrees on TLS.
///
/// # Errors
/// Why there is no connection, or that the address is refused. Does not say where.
pub async fn connect(server: &Server, addresses: &AddressRules) -> Result<Box<dyn Stream>, MeasureError> {
    let Server { host, port, tls, ca, client } = server;
    let stream = connect_to(host, *port, addresses).await?;
    if !tls {
        return Ok(Box::new(stream));
    }
    let failed = |message: String| MeasureError { reason: Reason::TlsFailed, message };
    let name = ServerName::try_from(host.clone())
        .map_err(|_| failed("the host is no name that a certificate could be for".to_owned()))?;
    let config = verifying(ca.as_deref(), client.as_deref()).map_err(failed)?;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    Ok(Box::new(stream.map_err(|error| tls_failed(&error))?))
}

fn timed_out(tls: bool) -> MeasureError {
    let advice = if tls { ", does the port speak no TLS" } else { "" };
    MeasureError {
        reason: Reason::TimedOut,
        message: format!(
            "no whole answer in time: does a firewall or network policy drop packets{advice}, or does the server hang?"
        ),
    }
}

fn too_large(most: usize) -> MeasureError {
    let (size, unit) = if most < 1 << 20 { (most >> 10, "KiB") } else { (most >> 20, "MiB") };
    MeasureError { reason: Reason::InvalidAnswer, message: format!("{TOO_LARGE} {size} {unit}") }
}

/// Whether an answer was given up for its size, so that less may be asked for.
pub(super) fn is_too_large(error: &MeasureError) -> bool {
    error.reason == Reason::InvalidAnswer && error.message.starts_with(TOO_LARGE)
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
