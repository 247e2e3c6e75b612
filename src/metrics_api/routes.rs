//! Handles one request: reads it, identifies the caller, asks the cluster whether the caller is authorized, and answers from memory.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use arc_swap::ArcSwap;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Version, uri::Authority};
use tokio::sync::watch;
use warp::{Filter, Reply, path::FullPath};

use super::{
    ApiMetrics, ClientAuthorities, MetricValues, ObjectQuery, ReadModels, ReviewError, Reviews, User, ValueError,
    audit::{self, Denied},
    authn::{Standing, bearer},
    authz::{Attributes, Gate},
    awaiting, custom_v1beta1, custom_v1beta2,
    delegate::{DelegatedResource, Forwarder, Forwarders, Listed},
    discovery::Discovery,
    external_v1beta1::ExternalMetricValueList,
    object_values::Asked,
    offer::{ApiVersion, Offer},
    openapi::OpenApi,
    path,
    peer::Peer,
    query::Query,
    rate::{Callers, RateDecision},
    reply::{self, Answer},
    requested::{ObjectPath, Requested},
};

/// Names under which no role can grant a metric: `namespaces/status` and `namespaces/finalize` are subresources of the namespace itself.
const UNUSABLE: [&str; 2] = ["status", "finalize"];

/// Everything that requests share.
pub(super) struct Api<V, R> {
    pub(super) values: V,
    pub(super) read_models: Option<Arc<dyn ReadModels>>,
    pub(super) gate: Gate<R>,
    pub(super) callers: Callers,
    /// The rate limit by IP address, for callers that have not been identified yet.
    pub(super) strangers: Callers,
    pub(super) metrics: ApiMetrics,
    pub(super) authorities: watch::Receiver<Arc<ClientAuthorities>>,
    pub(super) offer: Offer,
    pub(super) discovery: ArcSwap<Discovery>,
    pub(super) openapi: OpenApi,
    pub(super) forwarders: Forwarders,
    /// The metrics that other adapters have, as the discovery lists them.
    pub(super) listed: Mutex<Listed>,
}

/// The only filter: it takes every method and path, so that every answer has the form that Kubernetes expects.
pub(super) fn filter<V: MetricValues, R: Reviews>(
    api: Arc<Api<V, R>>,
    peer: Arc<Peer>,
) -> impl Filter<Extract = (impl Reply,), Error = Infallible> + Clone + Send + Sync + 'static {
    let query = warp::query::raw().or(warp::any().map(String::new)).unify();
    warp::method().and(warp::path::full()).and(query).and(warp::header::headers_cloned()).then(
        move |method: Method, path: FullPath, query: String, headers| {
            let (api, peer) = (api.clone(), peer.clone());
            async move {
                let began = Instant::now();
                let answer = api.answer(&method, path.as_str(), &query, &headers, &peer).await;
                if !awaiting::is_at(path.as_str()) {
                    api.metrics.duration.observe(began.elapsed().as_secs_f64());
                }
                if method == Method::HEAD { reply::without_body(answer) } else { answer }
            }
        },
    )
}

/// Refuses a request that does not name a path of one host: CONNECT and `OPTIONS *`, on which warp panics, and a request over HTTP/1.1 without
/// exactly one valid `Host` header (RFC 9112, section 3.2).
pub(super) fn refusal<B>(request: &Request<B>) -> Option<Answer> {
    let refuse = |why: &str| Some(reply::failure(StatusCode::BAD_REQUEST, why.to_owned()));
    if request.method() == Method::CONNECT || !request.uri().path().starts_with('/') {
        return refuse("a request must name a path");
    }
    let mut hosts = request.headers().get_all(http::header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(host), None) if is_host(host) => None,
        (Some(_), None) => refuse("the Host header names no host"),
        (Some(_), Some(_)) => refuse("a request must have one Host header"),
        (None, _) if request.version() == Version::HTTP_11 => refuse("a request over HTTP/1.1 must have a Host header"),
        (None, _) => None,
    }
}

/// True for a valid host name. An empty `Host` header is allowed: it says that the target has no host.
fn is_host(value: &HeaderValue) -> bool {
    value.is_empty() || Authority::try_from(value.as_bytes()).is_ok_and(|authority| !authority.as_str().contains('@'))
}

impl<V: MetricValues, R: Reviews> Api<V, R> {
    async fn answer(&self, method: &Method, path: &str, query: &str, headers: &HeaderMap, peer: &Peer) -> Answer {
        let segments = match path::segments(path) {
            Ok(segments) => segments,
            Err(why) => return reply::failure(StatusCode::BAD_REQUEST, format!("the path cannot be read: {why}")),
        };
        let segments: Vec<&str> = segments.iter().map(AsRef::as_ref).collect();
        let target = Requested::of(&segments, &self.offer);
        if target == Requested::Health && method == Method::GET {
            return reply::text("ok");
        }
        let mut request = Denied { from: peer.from(), user: audit::UNKNOWN_CALLER, method, path };
        let user = match self.user(headers, peer).await {
            Ok(user) => user,
            Err(why) => return why.answer(request, &self.metrics),
        };
        request.user = &user.name;
        peer.identified();
        // The rate limit comes first, so that a refused request costs the cluster no access review.
        if let RateDecision::Refused { first } = self.callers.take(&user.name, Instant::now()) {
            return too_many(request, first, &self.metrics);
        }
        let attributes = Attributes::of(&segments);
        match self.gate.may(&user, &attributes).await {
            Ok(Ok(())) => {}
            Ok(Err(why)) => return forbidden(request, &attributes, &why),
            Err(error) => {
                let what = format!("the cluster could not be asked whether {:?} may read: {error}", user.name);
                return unasked(request, &what, "the request could not be authorized");
            }
        }
        if method != Method::GET {
            return reply::failure(
                StatusCode::METHOD_NOT_ALLOWED,
                format!("{method} is not supported: metrics are only read"),
            );
        }
        if !reply::takes_json(headers) {
            return reply::failure(StatusCode::NOT_ACCEPTABLE, "only application/json is offered".to_owned());
        }
        if let (Requested::Await { namespace, name }, Some(read_models)) = (&target, &self.read_models) {
            let _waiting = awaiting::Counted::new(&self.metrics.awaiting);
            return awaiting::answer(&**read_models, namespace, name, query).await;
        }
        if let Some((forwarder, version)) = self.elsewhere(&target) {
            return match Query::parse(query) {
                Ok(query) => forwarder.read(version, &format!("{}{}", path::join(&segments), query.written())).await,
                Err(why) => answer_or_status(Err(bad_query(&why))),
            };
        }
        self.read(&target, path, query, headers)
    }

    /// The adapter that serves this target instead of the operator, and the API version to ask it for; `None` where there is none. Metrics that no
    /// role can grant (see `UNUSABLE`) are not forwarded.
    fn elsewhere(&self, target: &Requested<'_>) -> Option<(&Forwarder, ApiVersion)> {
        match *target {
            Requested::External { metric, .. } if !UNUSABLE.contains(&metric) => {
                self.forwarders.of_external(metric).map(|forwarder| (forwarder, ApiVersion::ExternalV1Beta1))
            }
            Requested::Objects(path) if !self.is_ours(path.resource) && !UNUSABLE.contains(&path.resource) => {
                self.forwarders.of_objects().map(|forwarder| (forwarder, path.version))
            }
            Requested::OfAnother(version) => self.forwarders.of_objects().map(|forwarder| (forwarder, version)),
            _ => None,
        }
    }

    fn is_ours(&self, resource: &str) -> bool {
        self.offer.objects.as_ref().is_some_and(|measured| measured.resource == resource)
    }

    /// Stores which metrics another adapter has in a version, and rebuilds the discovery. Returns true when the list has changed.
    pub(super) fn has_listed(&self, version: ApiVersion, mut resources: Vec<DelegatedResource>) -> bool {
        self.forwarders.not_ours(&mut resources, version, &self.offer);
        let mut listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
        if listed.get(&version) == Some(&resources) {
            return false;
        }
        listed.insert(version, resources);
        self.discovery.store(Arc::new(Discovery::new(&self.offer, &listed)));
        true
    }

    fn read(&self, target: &Requested<'_>, path: &str, query: &str, headers: &HeaderMap) -> Answer {
        let nothing = || reply::failure(StatusCode::NOT_FOUND, format!("there is nothing at {path}"));
        match *target {
            Requested::Health => reply::text("ok"),
            Requested::Groups => self.discovery.load().groups(headers),
            Requested::Group(group) => self.discovery.load().group(group, headers).unwrap_or_else(nothing),
            Requested::Resources(version) => self.discovery.load().resources(version, headers).unwrap_or_else(nothing),
            Requested::OpenApiV2 => self.openapi.v2(headers),
            Requested::OpenApiV3 => self.openapi.v3(headers),
            Requested::OpenApiV3Group(version) => self.openapi.v3_group(version, headers).unwrap_or_else(nothing),
            Requested::OfAnother(_) | Requested::Await { .. } | Requested::Nothing => nothing(),
            Requested::External { namespace, metric } => answer_or_status(self.external(namespace, metric, query)),
            Requested::Objects(path) => answer_or_status(self.objects(&path, query)),
        }
    }

    fn external(&self, namespace: &str, metric: &str, query: &str) -> Result<Answer, ErrorAnswer> {
        let query = Query::parse(query).map_err(|why| bad_query(&why))?;
        let values = self.values.external(namespace, metric, &query.labels)?;
        Ok(reply::json(&ExternalMetricValueList::of(metric, values)))
    }
    fn objects(&self, path: &ObjectPath<'_>, query: &str) -> Result<Answer, ErrorAnswer> {
        let ObjectPath { version, namespace, resource, name, metric } = *path;
        let missing = |message: String| ErrorAnswer { code: StatusCode::NOT_FOUND, message };
        let measured = self.offer.objects.as_ref().filter(|measured| measured.resource == resource);
        let kind = measured.ok_or_else(|| missing(format!("the metrics of {resource:?} are not served here")))?;
        if !kind.metrics.iter().any(|known| known == metric) {
            let all = kind.metrics.join(", ");
            return Err(missing(format!("{resource} have no metric {metric:?}: there are {all}")));
        }
        let Query { labels, metric_labels } = Query::parse(query).map_err(|why| bad_query(&why))?;
        let query = ObjectQuery { namespace, name, labels: &labels, metric, metric_labels: &metric_labels };
        let values = self.values.objects(&query)?;
        let selector = metric_labels.as_label_selector();
        let asked = Asked { kind, namespace, metric, selector: selector.as_ref() };
        Ok(match version {
            ApiVersion::CustomV1Beta1 => reply::json(&custom_v1beta1::MetricValueList::of(&asked, &values)),
            ApiVersion::CustomV1Beta2 | ApiVersion::ExternalV1Beta1 => {
                reply::json(&custom_v1beta2::MetricValueList::of(&asked, &values))
            }
        })
    }

    /// Identifies the caller: by the front proxy's request headers, then by the connection's client certificate, then by a bearer token. A
    /// certificate or token that is not recognized is an error; its caller is not treated as anonymous. The rate limit of the caller's address
    /// applies before the cluster is asked about a token and before a refusal is logged.
    async fn user(&self, headers: &HeaderMap, peer: &Peer) -> Result<User, Unidentified> {
        let authorities = self.authorities.borrow().clone();
        let standing = peer.standing(&authorities);
        let is_stranger = standing == Standing::Stranger;
        match standing {
            Standing::FrontProxy => {
                if let Some(user) = authorities.passed_on(headers) {
                    return Ok(user);
                }
            }
            Standing::User(user) => return Ok(user),
            Standing::Stranger | Standing::NoCertificate => {}
        }
        let token = bearer(headers).filter(|_| !is_stranger);
        if let Some(user) = token.and_then(|token| self.gate.known_by_token(token)) {
            return Ok(user);
        }
        let address = peer.from().ip().to_string();
        if let RateDecision::Refused { first } = self.strangers.take(&address, Instant::now()) {
            return Err(Unidentified::TooOften { first });
        }
        if is_stranger || token.is_none() {
            return Err(match (authorities.read, is_stranger) {
                (false, _) => Unidentified::TooEarly,
                (true, true) => Unidentified::Stranger,
                (true, false) => Unidentified::Nameless,
            });
        }
        let token = token.ok_or(Unidentified::Nameless)?;
        self.gate.user_of_token(token).await.map_err(Unidentified::Unasked)?.ok_or(Unidentified::WrongToken)
    }
}

/// Why the caller could not be identified.
enum Unidentified {
    /// `first` as in [`RateDecision::Refused`].
    TooOften {
        first: bool,
    },
    /// The cluster's authorities of client certificates have not been read yet.
    TooEarly,
    Stranger,
    Nameless,
    WrongToken,
    Unasked(ReviewError),
}

impl Unidentified {
    /// The caller learns only that it is not known (401); the audit log says why.
    fn answer(self, request: Denied<'_>, metrics: &ApiMetrics) -> Answer {
        let why = match self {
            Self::Stranger => "the client certificate is not signed by a trusted authority, or not valid now",
            Self::Nameless => "neither a caller passed on by the front proxy, nor a client certificate, nor a token",
            Self::WrongToken => "the token is not valid",
            Self::TooOften { first } => return too_many(request, first, metrics),
            Self::TooEarly => {
                let message = "the authorities of client certificates have not been read yet: try again in a moment";
                request.tell(StatusCode::SERVICE_UNAVAILABLE, message);
                return reply::failure(StatusCode::SERVICE_UNAVAILABLE, message.to_owned());
            }
            Self::Unasked(error) => {
                let what = format!("the cluster could not be asked whose token it is: {error}");
                return unasked(request, &what, "the token could not be checked");
            }
        };
        request.tell(StatusCode::UNAUTHORIZED, why);
        reply::failure(StatusCode::UNAUTHORIZED, "Unauthorized".to_owned())
    }
}

/// An error answer.
struct ErrorAnswer {
    code: StatusCode,
    message: String,
}

impl From<ValueError> for ErrorAnswer {
    fn from(error: ValueError) -> Self {
        let (code, message) = match error {
            ValueError::NotFound(message) => (StatusCode::NOT_FOUND, message),
            ValueError::Unavailable(message) => (StatusCode::SERVICE_UNAVAILABLE, message),
        };
        Self { code, message }
    }
}

fn bad_query(why: &str) -> ErrorAnswer {
    ErrorAnswer { code: StatusCode::BAD_REQUEST, message: format!("the query cannot be read: {why}") }
}

fn answer_or_status(answer: Result<Answer, ErrorAnswer>) -> Answer {
    answer.unwrap_or_else(|ErrorAnswer { code, message }| reply::failure(code, message))
}

/// Answers 429 to a caller that exceeds its rate limit. Logs only the first refusal (`first`) until the caller has paused; the metric
/// `metrics_api_throttled_requests` counts all of them.
fn too_many(request: Denied<'_>, first: bool, metrics: &ApiMetrics) -> Answer {
    metrics.throttled.inc();
    let who = match request.user {
        audit::UNKNOWN_CALLER => "an unknown caller at this address".to_owned(),
        user => format!("User {user:?}"),
    };
    if first {
        tracing::warn!("{who} ({}) asks the metrics API too often: its requests are refused for now", request.from);
        request.tell(StatusCode::TOO_MANY_REQUESTS, "it asks too often");
    }
    let message = format!("{who} asks for metrics too often: ask less, or have the operator's limit raised");
    reply::failure(StatusCode::TOO_MANY_REQUESTS, message)
}

/// Answers 403 with a message in the form that RBAC uses.
fn forbidden(request: Denied<'_>, attributes: &Attributes, why: &str) -> Answer {
    request.tell(StatusCode::FORBIDDEN, why);
    let why = if why.is_empty() { String::new() } else { format!(": {why}") };
    let message = format!("forbidden: User {:?} cannot {attributes}{why}", request.user);
    reply::failure(StatusCode::FORBIDDEN, message)
}

/// Answers 500: the cluster could not be asked, so the request is not authorized.
fn unasked(request: Denied<'_>, what: &str, message: &str) -> Answer {
    tracing::warn!("{what}");
    request.tell(StatusCode::INTERNAL_SERVER_ERROR, message);
    reply::failure(StatusCode::INTERNAL_SERVER_ERROR, message.to_owned())
}
