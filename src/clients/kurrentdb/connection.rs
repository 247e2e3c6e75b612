//! One HTTP/2 connection to one server of a cluster, which many requests share.

use std::{error::Error, io, net::SocketAddr, sync::Arc, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::HeaderValue;
use http_body_util::Full;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use tokio::{
    net::TcpStream,
    task::JoinHandle,
    time::{Instant, timeout_at},
};
use tokio_rustls::TlsConnector;

use super::{
    ConnectionSettings,
    words::{Trouble, not_the_api, refused},
};
use crate::{
    addresses::AddressRules,
    api::Reason,
    clients::{
        address::{Address, look_up},
        http::Stream,
        tls::verifying,
        words::{by_io, shortened},
    },
    measure::MeasureError,
};

/// The server may send so much of an answer before it is read, in bytes.
const STREAM_WINDOW: u32 = 256 << 10;
/// The same for all answers on the connection together.
const CONNECTION_WINDOW: u32 = 4 << 20;
/// What a server may say before the body, in bytes.
const LARGEST_HEAD: u32 = 16 << 10;

/// What goes into the head of each request.
#[derive(Clone)]
pub(super) struct RequestHead {
    /// `host:port`, as the Secret writes it.
    pub(super) authority: String,
    pub(super) tls: bool,
    /// For Basic authentication.
    pub(super) credential: Option<HeaderValue>,
    /// The connection's name.
    pub(super) program: &'static str,
}

/// A server of the cluster at one of its addresses.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Candidate {
    pub(super) server: Address,
    pub(super) at: SocketAddr,
}

pub(super) struct Connection {
    pub(super) requests: SendRequest<Full<Bytes>>,
    pub(super) target: RequestHead,
    pub(super) candidate: Candidate,
    /// Reads and writes; ends with the connection.
    driver: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Connection {
    pub(super) fn is_open(&self) -> bool {
        !self.driver.is_finished() && !self.requests.is_closed()
    }

    /// Connects, agrees on TLS and on HTTP/2.
    pub(super) async fn open(
        settings: &ConnectionSettings,
        candidate: Candidate,
        program: &'static str,
        by: Instant,
    ) -> Result<Self, MeasureError> {
        let opened = timeout_at(by, Self::open_in_time(settings, candidate, program)).await;
        opened.unwrap_or_else(|_| Err(timed_out(settings.tls)))
    }

    async fn open_in_time(
        settings: &ConnectionSettings,
        candidate: Candidate,
        program: &'static str,
    ) -> Result<Self, MeasureError> {
        let credential = match &settings.login {
            None => None,
            Some((user, password)) => {
                let text = format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")));
                let mut value = HeaderValue::from_str(&text).map_err(|_| MeasureError {
                    reason: Reason::ConnectionStringInvalid,
                    message: "user and password cannot be sent".to_owned(),
                })?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        let target = RequestHead { authority: candidate.server.to_string(), tls: settings.tls, credential, program };
        let stream = TcpStream::connect(candidate.at).await.map_err(|error| by_io(&error))?;
        stream.set_nodelay(true).map_err(|error| by_io(&error))?;
        let stream: Box<dyn Stream> =
            if settings.tls { with_tls(settings, &candidate.server.host, stream).await? } else { Box::new(stream) };
        let handshake = Builder::new(TokioExecutor::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(LARGEST_HEAD)
            .handshake(TokioIo::new(stream));
        let (requests, connection) = handshake.await.map_err(|error| told(broken(&error, &target)))?;
        // How it ended is told by the requests under way.
        let driver = tokio::spawn(async { drop(connection.await) });
        Ok(Self { requests, target, candidate, driver })
    }
}

async fn with_tls(
    settings: &ConnectionSettings,
    host: &str,
    stream: TcpStream,
) -> Result<Box<dyn Stream>, MeasureError> {
    let failed = |message: String| MeasureError { reason: Reason::TlsFailed, message };
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| failed("the host is no name that a certificate could be for".to_owned()))?;
    let mut config = verifying(settings.ca.as_deref(), settings.client.as_deref()).map_err(failed)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream =
        TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(|error| tls_failed(&error))?;
    if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
        return Err(told(not_the_api("no HTTP/2 was agreed on within TLS")));
    }
    Ok(Box::new(stream))
}

/// The servers' addresses in their order, and why the last of those that have none cannot be asked. Each name is resolved once: what was judged is what is
/// connected to.
pub(super) async fn resolve(
    servers: &[Address],
    rules: &AddressRules,
    by: Instant,
) -> (Vec<Candidate>, Option<MeasureError>) {
    let (mut candidates, mut failed) = (Vec::new(), None);
    for server in servers {
        match timeout_at(by, look_up(&server.host, server.port, rules)).await {
            Err(_) => failed = Some(timed_out(false)),
            Ok(Err(error)) => failed = Some(error),
            Ok(Ok(addresses)) => {
                candidates.extend(addresses.into_iter().map(|at| Candidate { server: server.clone(), at }));
            }
        }
    }
    (candidates, failed)
}

/// What a failure in the middle of a request means.
pub(super) fn broken(error: &hyper::Error, target: &RequestHead) -> Trouble {
    let h2 = error.source().and_then(|cause| cause.downcast_ref::<h2::Error>());
    let io = h2.and_then(h2::Error::get_io).or_else(|| error.source().and_then(|cause| cause.downcast_ref()));
    if let Some(cause) = io {
        // After the handshake of TLS 1.3 a server may still refuse our certificate. h2 keeps only the text of that.
        let alert = cause.to_string().contains("received fatal alert");
        let is_tls = alert || cause.get_ref().is_some_and(|cause| cause.is::<rustls::Error>());
        return if is_tls { Trouble::Refused(tls_failed(cause)) } else { Trouble::Broken(by_io(cause)) };
    }
    let broke =
        |message: &str| Trouble::Broken(MeasureError { reason: Reason::SourceFailed, message: message.to_owned() });
    match h2 {
        Some(h2) if h2.is_library() => {
            let advice = if target.tls { "" } else { ", or does the server want TLS (leave tls=false out)" };
            not_the_api(&format!("not HTTP/2{advice}"))
        }
        Some(h2) if h2.is_go_away() => broke("the server closes the connection (GOAWAY)"),
        Some(h2) if h2.is_reset() => broke("the server ended the request before it was answered (RST_STREAM)"),
        _ => broke("the connection broke"),
    }
}

/// The error of a trouble that is of a connection alone.
pub(super) fn told(trouble: Trouble) -> MeasureError {
    match trouble {
        Trouble::Broken(error) | Trouble::Refused(error) => error,
        Trouble::NotLeader(_) | Trouble::NoSubscriptions => {
            MeasureError { reason: Reason::SourceFailed, message: "the server does not answer".to_owned() }
        }
    }
}

pub(super) fn timed_out(tls: bool) -> MeasureError {
    let advice = if tls { ", does the port speak no TLS" } else { "" };
    MeasureError {
        reason: Reason::TimedOut,
        message: format!(
            "no whole answer in time: does a firewall or network policy drop packets{advice}, or does the server hang?"
        ),
    }
}

fn tls_failed(error: &io::Error) -> MeasureError {
    let no_tls = error.kind() == io::ErrorKind::UnexpectedEof
        || matches!(
            error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>()),
            Some(rustls::Error::InvalidMessage(_))
        );
    let advice = if no_tls {
        "does the server speak TLS at this port? Write tls=false where it does not"
    } else {
        "check the server's certificate, connection.caSecretRef and connection.clientCertificateSecretRef"
    };
    MeasureError {
        reason: Reason::TlsFailed,
        message: format!("TLS failed: {}: {advice}", shortened(&error.to_string())),
    }
}

/// How long before the deadline the last of several servers is tried.
pub(super) fn share(left: Duration, servers: usize) -> Duration {
    left / u32::try_from(servers.max(1)).unwrap_or(u32::MAX)
}

/// None of the servers that are named leads the cluster.
pub(super) fn no_leader(leader: Option<&str>) -> MeasureError {
    let message = match leader {
        Some(leader) => format!(
            "none of the servers in the Secret leads the cluster, which {} does: name it as well",
            shortened(leader)
        ),
        None => "none of the servers in the Secret leads the cluster: name all that may lead it".to_owned(),
    };
    told(refused(Reason::SourceFailed, &message))
}
