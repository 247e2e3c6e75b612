//! The accept loop: limits the number of connections and the time of each stage of a connection, and closes connections gracefully.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use futures::{
    FutureExt,
    future::{Either, ready},
};
use http::Request;
use hyper::{
    body::Incoming,
    service::{Service, service_fn},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;
use warp::Reply;

use super::{
    ApiMetrics, ClientAuthorities, Delegates, MetricValues, Offer, ReadModels, Reviews,
    authn::Standing,
    authz::Gate,
    connection_limiter::{ConnectionLimiter, Permit},
    delegate::{Forwarders, LIST_EVERY, LIST_RETRY, Listed},
    discovery::Discovery,
    openapi::OpenApi,
    peer::Peer,
    rate::{Callers, Rate},
    routes::{self, Api},
    tls::{self, CertificateWatch},
};

/// A connection ends after this time if no request on it has identified its caller, unless it is the front proxy's. Probes are done by then.
const IDENTIFIED_WITHIN: Duration = Duration::from_secs(10);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
const LARGEST_HEADERS: usize = 64 * 1024;
const MOST_STREAMS: u32 = 250;
/// How long a connection lives. HTTP/2 keeps to one replica for as long as its connection lives, so that without this limit a new or restarted
/// replica would get no requests.
pub const CONNECTION_AGE: Duration = Duration::from_secs(300);
/// How long a connection that is to end and has not sent a request yet gets to send one: if it were closed before, that request would fail.
const FIRST_REQUEST: Duration = Duration::from_secs(3);
/// How long requests under way may take to end when the server or a connection stops: longer than any request waits for a read model.
const DRAIN: Duration = Duration::from_secs(12);
/// How many connections in the listen queue are still accepted when the server stops.
const LAST_CALL: usize = 512;

/// What the server needs.
pub struct ServeOptions<V, R> {
    /// The serving certificate; until there is one, handshakes fail.
    pub certificate: CertificateWatch,
    /// The authorities of client certificates that the cluster publishes.
    pub authorities: watch::Receiver<Arc<ClientAuthorities>>,
    /// The metrics APIs to offer.
    pub offer: Offer,
    /// The adapters to which requests for other metrics are forwarded.
    pub delegates: Delegates,
    /// The values.
    pub values: V,
    /// Tells when a read model has reached a position; without it requests for that are answered 404.
    pub read_models: Option<Arc<dyn ReadModels>>,
    /// Asks the cluster whose token a request has, and what its caller may read.
    pub reviews: R,
    /// The rate limit of each caller.
    pub rate: Rate,
    /// The age at which connections are asked to end, give or take a fifth, so that clients do not all reconnect at once. See [`CONNECTION_AGE`].
    pub connection_age: Duration,
    /// The metrics to count in.
    pub metrics: ApiMetrics,
}

/// Why the server does not run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// TLS could not be set up.
    #[error("the metrics API cannot serve TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// Serves on `listener` until `shutdown`, then lets the requests under way end.
///
/// # Errors
/// When TLS cannot be set up.
pub async fn serve<V: MetricValues, R: Reviews>(
    listener: TcpListener,
    options: ServeOptions<V, R>,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), ServeError> {
    let acceptor = TlsAcceptor::from(Arc::new(tls::server_config(options.certificate)?));
    let api = Arc::new(Api {
        values: options.values,
        read_models: options.read_models,
        gate: Gate::new(options.reviews),
        callers: Callers::new(options.rate),
        strangers: Callers::new(Rate::OF_STRANGERS),
        authorities: options.authorities,
        discovery: ArcSwap::from_pointee(Discovery::new(&options.offer, &Listed::new())),
        forwarders: Forwarders::new(options.delegates, &options.offer, &options.metrics.delegates),
        metrics: options.metrics,
        listed: Mutex::default(),
        openapi: OpenApi::new(&options.offer),
        offer: options.offer,
    });
    let limiter = Arc::new(ConnectionLimiter::default());
    let (stop, stopped) = watch::channel(false);
    // The background tasks end when this function returns.
    let mut background = JoinSet::new();
    for index in 0..api.forwarders.all().count() {
        background.spawn(follow_list(api.clone(), index));
    }
    let mut connections = JoinSet::new();
    let admit = |connections: &mut JoinSet<()>, stream: TcpStream, from: SocketAddr| {
        // A connection beyond the limits is closed at once instead of kept waiting: its client may reach another replica.
        let Some(permit) = limiter.accept(from.ip()) else {
            return tracing::debug!("a connection of {from} to the metrics API was refused: there are too many");
        };
        let permit = Arc::new(permit);
        let age = options.connection_age.mul_f64(rand::random_range(0.8..1.2));
        let connection = connection(stream, from, permit.clone(), acceptor.clone(), api.clone(), age, stopped.clone());
        connections.spawn(async move {
            tokio::select! {
                () = connection => {}
                () = permit.evicted() => tracing::debug!("a connection of {from} to the metrics API gave way to another one"),
            }
        });
    };
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, from)) => admit(&mut connections, stream, canonical(from)),
                Err(error) => {
                    // Usually the process is out of file descriptors: accepting again at once would only spin.
                    tracing::warn!("a connection to the metrics API could not be accepted: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
    // The kernel has completed the connections in the listen queue, so their clients expect an answer: each still gets its first one.
    for _ in 0..LAST_CALL {
        let Some(Ok((stream, from))) = listener.accept().now_or_never() else { break };
        admit(&mut connections, stream, canonical(from));
    }
    drop(listener);
    stop.send_replace(true);
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN, drained).await.is_err() {
        tracing::warn!("requests to the metrics API were cut off {} s after the stop", DRAIN.as_secs());
    }
    Ok(())
}

/// An IPv4 address that came through an IPv6 listener, in its IPv4 form.
fn canonical(from: SocketAddr) -> SocketAddr {
    SocketAddr::new(from.ip().to_canonical(), from.port())
}

/// Keeps one adapter's metrics in the discovery up to date, for ever. When the list cannot be read, the last one stays in force: it may be old, but
/// when a metric disappears from the discovery, the autoscalers that read it stop scaling.
async fn follow_list<V: MetricValues, R: Reviews>(api: Arc<Api<V, R>>, index: usize) {
    let Some(forwarder) = api.forwarders.all().nth(index) else { return };
    let mut failing: Option<Instant> = None;
    let mut fresh = Instant::now();
    loop {
        let mut failure = None;
        for version in forwarder.versions() {
            match forwarder.list(*version).await {
                Ok(resources) => {
                    let count = resources.len();
                    if api.has_listed(*version, resources) {
                        tracing::info!("{} has {count} metrics in {}", forwarder.name(), version.group_version());
                    }
                }
                Err(why) => failure = Some(why),
            }
        }
        match (&failure, failing) {
            (Some(why), None) => {
                let age = fresh.elapsed().as_secs();
                tracing::warn!(
                    "{} does not say which metrics it has; what it said {age} s ago stays: {why}",
                    forwarder.name()
                );
                failing = Some(Instant::now());
            }
            (None, Some(since)) => {
                let time = since.elapsed().as_secs();
                tracing::info!("{} says again which metrics it has, after {time} s", forwarder.name());
                failing = None;
            }
            (Some(_), Some(_)) | (None, None) => {}
        }
        if failure.is_none() {
            fresh = Instant::now();
        }
        let pause = if failure.is_none() { LIST_EVERY } else { LIST_RETRY };
        tokio::time::sleep(pause.mul_f64(rand::random_range(0.8..1.2))).await;
    }
}

async fn connection<V: MetricValues, R: Reviews>(
    stream: TcpStream,
    from: SocketAddr,
    permit: Arc<Permit>,
    acceptor: TlsAcceptor,
    api: Arc<Api<V, R>>,
    age: Duration,
    mut stopped: watch::Receiver<bool>,
) {
    // Small answers must not wait for more data (Nagle's algorithm).
    let _ = stream.set_nodelay(true);
    let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!("a TLS handshake failed: {error}"),
        Err(_) => return tracing::debug!("a TLS handshake took too long"),
    };
    // The server uses the protocol that ALPN agreed on, and no other.
    let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let chain = chain.iter().map(|certificate| certificate.clone().into_owned()).collect();
    let peer = Arc::new(Peer::new(from, chain, permit.clone()));
    let authorities = api.authorities.borrow().clone();
    if !permit.established(peer.standing(&authorities) == Standing::FrontProxy) {
        return tracing::debug!("a connection of {from} to the metrics API was closed: its address has too many");
    }
    let routes = TowerToHyperService::new(warp::service(routes::filter(api, peer.clone())));
    let service = service_fn(move |request: Request<Incoming>| match routes::refusal(&request) {
        Some(refusal) => Either::Left(ready(Ok(refusal.into_response()))),
        None => Either::Right(routes.call(request)),
    });
    let builder = Builder::new(TokioExecutor::new());
    let mut builder = if http2 { builder.http2_only() } else { builder.http1_only() };
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).max_buf_size(LARGEST_HEADERS);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MOST_STREAMS)
        .max_header_list_size(u32::try_from(LARGEST_HEADERS).unwrap_or(u32::MAX))
        .keep_alive_interval(Duration::from_secs(30));
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let unidentified = async {
        tokio::time::sleep(IDENTIFIED_WITHIN).await;
        if peer.is_known() || permit.is_vouched_for() {
            std::future::pending::<()>().await;
        }
    };
    let time_to_go = async {
        tokio::select! {
            () = tokio::time::sleep(age) => {}
            () = unidentified => return,
            _ = stopped.wait_for(|stopped| *stopped) => {}
        }
        let asked = async {
            while !peer.is_known() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let _ = tokio::time::timeout(FIRST_REQUEST, asked).await;
    };
    tokio::select! {
        result = connection.as_mut() => return log_end(result),
        () = time_to_go => {}
    }
    // HTTP/2's GOAWAY: requests in progress or on their way are answered, new requests go to a new connection.
    connection.as_mut().graceful_shutdown();
    // A client that keeps the connection after that is cut off.
    if let Ok(result) = tokio::time::timeout(DRAIN, connection).await {
        log_end(result);
    }
}

fn log_end(result: Result<(), Box<dyn std::error::Error + Send + Sync>>) {
    if let Err(error) = result {
        tracing::debug!("a connection to the metrics API ended: {error}");
    }
}
