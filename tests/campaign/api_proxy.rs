//! A proxy between one operator and the API server. It writes down each write to a Projection or an object made for one, and does to the
//! n-th what it was told to. Everything else passes.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::{Bytes, BytesMut};
use futures::{SinkExt as _, channel::mpsc as stream};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioIo, TokioTimer};
use kube::Client;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

use crate::faults::{Fault, LATE, WATCH_TROUBLE};

/// The resources whose writes count.
const COUNTED: [&str; 6] =
    ["projections", "deployments", "statefulsets", "horizontalpodautoscalers", "poddisruptionbudgets", "configmaps"];
/// What an operator sees of the APIService of its metrics: one that leads to it, though the cluster has none. A real one could lead to one
/// operator only, and many run at once.
const API_SERVICES: &str = "/apis/apiregistration.k8s.io/v1/apiservices";

type Body = UnsyncBoxBody<Bytes, Failure>;
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// One write.
#[derive(Clone, Debug)]
pub(crate) struct Write {
    /// Such as `PATCH deployments/orders`.
    pub(crate) what: String,
    /// Such as `deployments/orders`.
    pub(crate) object: String,
    /// What the API server answered; absent where it was not asked.
    pub(crate) code: Option<u16>,
    /// The UID of the object that it created.
    pub(crate) created: Option<String>,
    pub(crate) at: Instant,
}

/// What happens to which write.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rules {
    /// A fault at the n-th write, counted from 0.
    pub(crate) at: Option<(usize, Fault)>,
    /// Each answer to a write whose name contains this text is held back for so long.
    pub(crate) late: Option<(String, Duration)>,
    /// Each write whose name contains this text is refused with 500.
    pub(crate) refused: Option<String>,
    /// Watches lag by so much, all the time.
    pub(crate) lag: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Watches {
    Pass,
    LagUntil(Instant),
    Lose,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Never,
    Cut,
    Gone,
}

struct Shared {
    client: Client,
    namespace: String,
    writes: Mutex<Vec<Write>>,
    rules: Mutex<Rules>,
    watches: Mutex<Watches>,
    end: watch::Sender<End>,
    crash: mpsc::UnboundedSender<()>,
}

/// A proxy that runs until it is dropped.
pub(crate) struct ApiProxy {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    listening: tokio::task::JoinHandle<()>,
}

impl ApiProxy {
    /// Forwards with `client` for the operator in `namespace`. `crash` is told when the operator is to be killed.
    pub(crate) async fn start(client: Client, namespace: &str, crash: mpsc::UnboundedSender<()>) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            client,
            namespace: namespace.to_owned(),
            writes: Mutex::default(),
            rules: Mutex::default(),
            watches: Mutex::new(Watches::Pass),
            end: watch::Sender::new(End::Never),
            crash,
        });
        let listening = tokio::spawn({
            let shared = Arc::clone(&shared);
            async move {
                while let Ok((connection, _)) = listener.accept().await {
                    tokio::spawn(serve(Arc::clone(&shared), connection));
                }
            }
        });
        Ok(Self { address, shared, listening })
    }

    pub(crate) fn rule(&self, rules: Rules) {
        *lock(&self.shared.rules) = rules;
    }

    pub(crate) fn writes(&self) -> Vec<Write> {
        lock(&self.shared.writes).clone()
    }

    /// How long there has been no write.
    pub(crate) fn quiet_for(&self) -> Duration {
        lock(&self.shared.writes).last().map_or(Duration::MAX, |last| last.at.elapsed())
    }

    /// How often each object was created, and how often the operator deleted it.
    pub(crate) fn counts(&self) -> BTreeMap<String, (usize, usize)> {
        let mut created: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let mut deleted: BTreeMap<String, usize> = BTreeMap::new();
        for write in self.writes() {
            if let Some(uid) = write.created {
                created.entry(write.object.clone()).or_default().insert(uid);
            }
            if write.what.starts_with("DELETE") && write.code == Some(200) {
                *deleted.entry(write.object).or_default() += 1;
            }
        }
        let names: BTreeSet<&String> = created.keys().chain(deleted.keys()).collect();
        let count = |name: &String| {
            (created.get(name).map_or(0, BTreeSet::len), deleted.get(name).copied().unwrap_or_default())
        };
        names.into_iter().map(|name| (name.clone(), count(name))).collect()
    }
}

impl Drop for ApiProxy {
    fn drop(&mut self) {
        self.listening.abort();
        self.shared.end.send_replace(End::Cut);
    }
}

fn lock<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    value.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve(shared: Arc<Shared>, connection: TcpStream) {
    let service = hyper::service::service_fn(move |request| answer(Arc::clone(&shared), request));
    // An error is a connection that was cut, by either side.
    let _ = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(connection), service)
        .await;
}

async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Response<Body>, Failure> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let path = head.uri.path().to_owned();
    let watched =
        head.uri.query().is_some_and(|query| query.split('&').any(|part| part == "watch=true" || part == "watch=1"));
    if path.starts_with(API_SERVICES) {
        return Ok(api_service(&shared.namespace, watched, path != API_SERVICES));
    }
    let mut forwarded = Request::builder().method(head.method.clone()).uri(head.uri.clone());
    for name in [header::ACCEPT, header::CONTENT_TYPE] {
        if let Some(value) = head.headers.get(&name) {
            forwarded = forwarded.header(name, value);
        }
    }
    let forwarded = forwarded.body(kube::client::Body::from(body.to_vec()))?;
    let Some(object) = counted(&head.method, &path) else {
        let response = shared.client.send(forwarded).await?;
        let (head, body) = response.into_parts();
        let body = if watched { pump(shared, body) } else { body.map_err(Failure::from).boxed_unsync() };
        return Ok(Response::from_parts(stripped(head), body));
    };
    let rules = lock(&shared.rules).clone();
    let what = format!("{} {object}", head.method);
    let number = {
        let mut writes = lock(&shared.writes);
        writes.push(Write { what: what.clone(), object, code: None, created: None, at: Instant::now() });
        writes.len() - 1
    };
    let fault = rules.at.filter(|(at, _)| *at == number).map(|(_, fault)| fault);
    if rules.refused.is_some_and(|text| what.contains(&text)) {
        return Ok(refusal(500));
    }
    match fault {
        Some(Fault::CrashBefore) => return crash(&shared).await,
        Some(Fault::Refused(code)) => return Ok(refusal(code)),
        Some(Fault::WatchesCut) => drop(shared.end.send_replace(End::Cut)),
        Some(Fault::WatchesLag) => *lock(&shared.watches) = Watches::LagUntil(Instant::now() + WATCH_TROUBLE),
        Some(Fault::WatchesLose) => lose_events(Arc::clone(&shared)),
        _ => {}
    }
    // The write is the API server's matter from here on, whether or not the operator still waits for the answer.
    let forwarding = tokio::spawn({
        let shared = Arc::clone(&shared);
        async move {
            let (head, body) = shared.client.send(forwarded).await?.into_parts();
            let body = body.collect().await?.to_bytes();
            let mut writes = lock(&shared.writes);
            let write = &mut writes[number];
            write.code = Some(head.status.as_u16());
            if head.status == StatusCode::CREATED {
                let object: Value = serde_json::from_slice(&body)?;
                write.created = object.pointer("/metadata/uid").and_then(Value::as_str).map(ToOwned::to_owned);
            }
            Ok::<_, Failure>(Response::from_parts(stripped(head), full(body)))
        }
    });
    let response = forwarding.await??;
    if let Some((_, late)) = rules.late.filter(|(text, _)| what.contains(text)) {
        tokio::time::sleep(late).await;
    }
    match fault {
        Some(Fault::CrashAfter | Fault::AwayAfter) => crash(&shared).await,
        Some(Fault::AnswerLost) => Err("the answer is lost".into()),
        Some(Fault::AnswerLate) => {
            tokio::time::sleep(LATE).await;
            Ok(response)
        }
        _ => Ok(response),
    }
}

/// Has the operator killed, and answers nothing.
async fn crash(shared: &Shared) -> Result<Response<Body>, Failure> {
    let _ = shared.crash.send(());
    std::future::pending().await
}

fn lose_events(shared: Arc<Shared>) {
    *lock(&shared.watches) = Watches::Lose;
    tokio::spawn(async move {
        tokio::time::sleep(WATCH_TROUBLE).await;
        *lock(&shared.watches) = Watches::Pass;
        shared.end.send_replace(End::Gone);
    });
}

/// The object that a request writes, if it counts: `deployments/orders/scale`.
fn counted(method: &Method, path: &str) -> Option<String> {
    if ![Method::PATCH, Method::POST, Method::PUT, Method::DELETE].contains(method) {
        return None;
    }
    let mut parts = path.split('/').skip_while(|part| *part != "namespaces").skip(2);
    let resource = parts.next().filter(|resource| COUNTED.contains(resource))?;
    Some([resource].into_iter().chain(parts).collect::<Vec<_>>().join("/"))
}

/// Hands on a watch event by event.
fn pump(shared: Arc<Shared>, mut upstream: kube::client::Body) -> Body {
    let (mut to, from) = stream::channel::<Result<Frame<Bytes>, Failure>>(16);
    let mut end = shared.end.subscribe();
    end.mark_unchanged();
    tokio::spawn(async move {
        let mut pending = BytesMut::new();
        let lag = lock(&shared.rules).lag;
        loop {
            let frame = tokio::select! {
                changed = end.changed() => {
                    if changed.is_ok() && *end.borrow() == End::Gone {
                        let _ = to.send(Ok(Frame::data(gone()))).await;
                    }
                    return;
                }
                frame = upstream.frame() => frame,
            };
            let Some(Ok(frame)) = frame else { return };
            pending.extend_from_slice(&frame.into_data().unwrap_or_default());
            while let Some(line) = pending.iter().position(|byte| *byte == b'\n') {
                let event = pending.split_to(line + 1).freeze();
                if let Some(lag) = lag {
                    tokio::time::sleep(lag).await;
                }
                let watches = *lock(&shared.watches);
                match watches {
                    Watches::Pass => {}
                    Watches::LagUntil(until) => tokio::time::sleep_until(until.into()).await,
                    Watches::Lose => continue,
                }
                if to.send(Ok(Frame::data(event))).await.is_err() {
                    return;
                }
            }
        }
    });
    StreamBody::new(from).boxed_unsync()
}

fn gone() -> Bytes {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "too old resource version", "reason": "Expired", "code": 410,
    });
    Bytes::from(format!("{}\n", json!({"type": "ERROR", "object": status})))
}

fn refusal(code: u16) -> Response<Body> {
    let reason = match code {
        409 => "Conflict",
        429 => "TooManyRequests",
        500 => "InternalError",
        _ => "ServiceUnavailable",
    };
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": format!("the campaign answers {code}"), "reason": reason, "code": code,
    });
    let mut response = json_response(&status);
    *response.status_mut() = StatusCode::from_u16(code).unwrap();
    if code == 429 {
        response.headers_mut().insert(header::RETRY_AFTER, "1".parse().unwrap());
    }
    response
}

fn json_response(value: &Value) -> Response<Body> {
    let response = Response::builder().header(header::CONTENT_TYPE, "application/json");
    response.body(full(Bytes::from(value.to_string()))).unwrap()
}

fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never: Infallible| match never {}).boxed_unsync()
}

/// What concerns one connection is not handed on.
fn stripped(mut head: http::response::Parts) -> http::response::Parts {
    for name in [header::TRANSFER_ENCODING, header::CONNECTION, header::CONTENT_LENGTH] {
        head.headers.remove(name);
    }
    head.version = http::Version::HTTP_11;
    head
}

fn api_service(namespace: &str, watched: bool, by_name: bool) -> Response<Body> {
    if watched {
        let silent = futures::stream::pending::<Result<Frame<Bytes>, Failure>>();
        let response = Response::builder().header(header::CONTENT_TYPE, "application/json");
        return response.body(StreamBody::new(silent).boxed_unsync()).unwrap();
    }
    let name = projectionist::names::EXTERNAL_API_SERVICE;
    let service = json!({
        "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
        "metadata": {"name": name, "resourceVersion": "1", "uid": "1"},
        "spec": {
            "group": "external.metrics.k8s.io", "version": "v1beta1", "groupPriorityMinimum": 100, "versionPriority": 100,
            "caBundle": "",
            "service": {"namespace": namespace, "name": "projectionist", "port": 443},
        },
    });
    if by_name {
        return json_response(&service);
    }
    json_response(&json!({
        "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIServiceList", "metadata": {"resourceVersion": "1"},
        "items": [service],
    }))
}
