//! From a request to its answer: read it, find out who asks, ask whether they may, answer from memory.

use std::{convert::Infallible, sync::Arc};

use http::{HeaderMap, Method, Request, StatusCode};
use tokio::sync::watch;
use warp::{Filter, Reply, path::FullPath};

use super::{
    ClientAuthorities, MetricValues, Reviews, User, ValueError,
    authn::{Standing, bearer},
    authz::{Attributes, Gate},
    discovery::Discovery,
    openapi::OpenApi,
    peer::Peer,
    reply::{self, Answer},
    target::{Target, label_selector},
    types::ExternalMetricValueList,
};

/// Everything that requests share.
pub(super) struct Api<V, R> {
    pub(super) values: V,
    pub(super) gate: Gate<R>,
    pub(super) authorities: watch::Receiver<Arc<ClientAuthorities>>,
    pub(super) discovery: Discovery,
    pub(super) openapi: OpenApi,
}

/// The one filter: every method and path comes here, so that every answer has the form that Kubernetes expects.
pub(super) fn filter<V: MetricValues, R: Reviews>(
    api: Arc<Api<V, R>>,
    peer: Arc<Peer>,
) -> impl Filter<Extract = (impl Reply,), Error = Infallible> + Clone + Send + Sync + 'static {
    let query = warp::query::raw().or(warp::any().map(String::new)).unify();
    warp::method().and(warp::path::full()).and(query).and(warp::header::headers_cloned()).then(
        move |method, path: FullPath, query: String, headers| {
            let (api, peer) = (api.clone(), peer.clone());
            async move { api.answer(&method, path.as_str(), &query, &headers, &peer).await }
        },
    )
}

/// Refuses what has no path: CONNECT, and OPTIONS of an asterisk. warp panics on them, so they must not reach it.
pub(super) fn without_path<B>(request: &Request<B>) -> Option<Answer> {
    let refusal = || reply::failure(StatusCode::BAD_REQUEST, "a request must name a path".to_owned());
    (request.method() == Method::CONNECT || !request.uri().path().starts_with('/')).then(refusal)
}

impl<V: MetricValues, R: Reviews> Api<V, R> {
    async fn answer(&self, method: &Method, path: &str, query: &str, headers: &HeaderMap, peer: &Peer) -> Answer {
        let target = match Target::parse(path) {
            Ok(target) => target,
            Err(error) => return reply::failure(StatusCode::BAD_REQUEST, error.to_string()),
        };
        if target == Target::Health && method == Method::GET {
            return reply::text("ok");
        }
        let user = match self.user(headers, peer).await {
            Ok(user) => user,
            Err(answer) => return answer,
        };
        peer.identified();
        let attributes = Attributes::of(&target, path);
        match self.gate.may(&user, &attributes).await {
            Ok(Ok(())) => {}
            Ok(Err(why)) => return forbidden(&user, &attributes, &why),
            Err(error) => {
                tracing::warn!("the cluster could not be asked whether {} may read: {error}", user.name);
                return reply::failure(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "the request could not be authorized".to_owned(),
                );
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
        self.read(&target, path, query, headers)
    }

    fn read(&self, target: &Target, path: &str, query: &str, headers: &HeaderMap) -> Answer {
        match target {
            Target::Health => reply::text("ok"),
            Target::Groups => self.discovery.groups(headers),
            Target::Group => self.discovery.group(headers),
            Target::Resources => self.discovery.resources(headers),
            Target::OpenApiV2 => self.openapi.v2(headers),
            Target::OpenApiV3 => self.openapi.v3(headers),
            Target::OpenApiV3Group => self.openapi.v3_group(headers),
            Target::Nothing => reply::failure(StatusCode::NOT_FOUND, format!("there is nothing at {path}")),
            Target::Values { namespace, metric } => {
                let selector = match label_selector(query) {
                    Ok(selector) => selector,
                    Err(error) => return reply::failure(StatusCode::BAD_REQUEST, error.to_string()),
                };
                match self.values.external(namespace, metric, &selector) {
                    Ok(values) => reply::json(&ExternalMetricValueList::of(metric, values)),
                    Err(ValueError::NotFound(message)) => reply::failure(StatusCode::NOT_FOUND, message),
                    Err(ValueError::Unavailable(message)) => reply::failure(StatusCode::SERVICE_UNAVAILABLE, message),
                }
            }
        }
    }

    /// Who asks: request headers of the front proxy, then a client certificate of their own, then a token. A certificate or token
    /// that nobody knows is an error and not an anonymous caller.
    async fn user(&self, headers: &HeaderMap, peer: &Peer) -> Result<User, Answer> {
        let unauthorized = || reply::failure(StatusCode::UNAUTHORIZED, "Unauthorized".to_owned());
        let authorities = self.authorities.borrow().clone();
        match peer.standing(&authorities) {
            Standing::FrontProxy => {
                if let Some(user) = authorities.passed_on(headers) {
                    return Ok(user);
                }
            }
            Standing::User(user) => return Ok(user),
            Standing::Stranger => return Err(unauthorized()),
            Standing::NoCertificate => {}
        }
        let Some(token) = bearer(headers) else { return Err(unauthorized()) };
        match self.gate.user_of_token(token).await {
            Ok(Some(user)) => Ok(user),
            Ok(None) => Err(unauthorized()),
            Err(error) => {
                tracing::warn!("the cluster could not be asked whose token it is: {error}");
                Err(reply::failure(StatusCode::INTERNAL_SERVER_ERROR, "the token could not be checked".to_owned()))
            }
        }
    }
}

/// Says no in the words of RBAC, and leaves a line for whoever audits.
fn forbidden(user: &User, attributes: &Attributes, why: &str) -> Answer {
    let (verb, name) = (attributes.verb(), &user.name);
    let what = match attributes {
        Attributes::Metric { namespace, metric } => {
            let (group, _) = attributes.group_version();
            format!(
                "User {name:?} cannot {verb} resource {metric:?} in API group {group:?} in the namespace {namespace:?}"
            )
        }
        Attributes::Path(path) => format!("User {name:?} cannot {verb} path {path:?}"),
    };
    tracing::info!(target: "audit", user = name, "denied: {what}");
    let why = if why.is_empty() { String::new() } else { format!(": {why}") };
    reply::failure(StatusCode::FORBIDDEN, format!("forbidden: {what}{why}"))
}
