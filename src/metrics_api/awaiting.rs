//! Waits until a read model has reached a position: `/v1/namespaces/NAMESPACE/projections/NAME/await?position=P&timeout=5s`. The only request that is not
//! answered from memory.

use futures::future::BoxFuture;
use http::StatusCode;
use prometheus_client::metrics::gauge::Gauge;
use serde::Serialize;

use super::{
    path::decode,
    reply::{self, Answer},
    types::{Cause, StatusDetails},
};
use crate::names::GROUP;

/// The version of this API, as the path has it.
pub(super) const VERSION: &str = "v1";
/// The resource in the terms of RBAC, without its subresource.
pub(super) const RESOURCE: &str = "projections";
/// Its subresource.
pub(super) const SUBRESOURCE: &str = "await";
/// A longer query is refused unread.
const LONGEST_QUERY: usize = 1_024;

/// What is waited for.
#[derive(Clone, Copy, Debug)]
pub struct AwaitQuery<'a> {
    /// The namespace.
    pub namespace: &'a str,
    /// The Projection.
    pub name: &'a str,
    /// The position, as the caller wrote it.
    pub position: &'a str,
    /// How long to wait, as the caller wrote it.
    pub timeout: Option<&'a str>,
}

/// Why the position was not reached.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum AwaitError {
    /// The position or the time cannot be read, or the source has no such positions: 400.
    BadRequest(String),
    /// There is no such Projection: 404.
    NotFound(String),
    /// Too many requests wait: 429.
    TooMany(String),
    /// The time is over, and the read model is known not to be there: 504.
    TimedOut {
        /// What to say.
        message: String,
        /// How far it is; absent before its first checkpoint.
        position: Option<String>,
    },
    /// The time is over, and how far it is is not known: 503.
    Unknown(String),
}

/// Says when a read model has reached a position.
pub trait ReadModels: Send + Sync + 'static {
    /// Waits until the read model has everything up to the position, and returns how far it is. Ends when it is dropped.
    ///
    /// # Errors
    /// [`AwaitError`]
    fn reached<'a>(&'a self, query: AwaitQuery<'a>) -> BoxFuture<'a, Result<String, AwaitError>>;
}

/// Answered where the position was reached.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ReadModelPosition<'a> {
    kind: &'static str,
    api_version: String,
    namespace: &'a str,
    projection: &'a str,
    /// What was asked for.
    awaited: &'a str,
    /// It has everything up to here.
    position: String,
}

/// True for the paths of this API.
pub(super) fn is_at(path: &str) -> bool {
    path.strip_prefix('/').and_then(|path| path.strip_prefix(VERSION)).is_some_and(|rest| rest.starts_with('/'))
}

/// Counts a request as long as it waits, also where its caller goes away.
pub(super) struct Counted<'a>(&'a Gauge);

impl<'a> Counted<'a> {
    pub(super) fn new(gauge: &'a Gauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Answers a request that may be answered. `query` is the one of its URL.
pub(super) async fn answer(read_models: &dyn ReadModels, namespace: &str, name: &str, query: &str) -> Answer {
    let parameters = match Parameters::parse(query) {
        Ok(parameters) => parameters,
        Err(why) => return reply::failure(StatusCode::BAD_REQUEST, format!("the query cannot be read: {why}")),
    };
    let Parameters { position: awaited, timeout } = &parameters;
    let query = AwaitQuery { namespace, name, position: awaited, timeout: timeout.as_deref() };
    match read_models.reached(query).await {
        Ok(position) => reply::json(&ReadModelPosition {
            kind: "ReadModelPosition",
            api_version: format!("{GROUP}/{VERSION}"),
            namespace,
            projection: name,
            awaited,
            position,
        }),
        Err(AwaitError::BadRequest(why)) => reply::failure(StatusCode::BAD_REQUEST, why),
        Err(AwaitError::NotFound(why)) => reply::failure(StatusCode::NOT_FOUND, why),
        Err(AwaitError::TooMany(why)) => reply::failure(StatusCode::TOO_MANY_REQUESTS, why),
        Err(AwaitError::Unknown(why)) => reply::failure(StatusCode::SERVICE_UNAVAILABLE, why),
        Err(AwaitError::TimedOut { message, position }) => {
            let cause = |position| Cause { reason: "ReadModelPosition", message: position, field: "position" };
            let causes = position.into_iter().map(cause).collect();
            let details = StatusDetails { name: name.to_owned(), group: GROUP, kind: RESOURCE, causes };
            reply::failure_about(StatusCode::GATEWAY_TIMEOUT, message, details)
        }
    }
}

#[derive(Debug, Eq, PartialEq)]
struct Parameters {
    position: String,
    timeout: Option<String>,
}

impl Parameters {
    /// Reads a query whole, or refuses it: a misspelt parameter would be waited for with another meaning.
    fn parse(query: &str) -> Result<Self, String> {
        if query.len() > LONGEST_QUERY {
            return Err("it is too long".to_owned());
        }
        let (mut position, mut timeout) = (None, None);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (key, value) = (decode(key)?, decode(value)?.into_owned());
            let known = match &*key {
                "position" => &mut position,
                "timeout" => &mut timeout,
                _ => return Err(format!("there is no parameter {key:?}: there are position and timeout")),
            };
            if known.replace(value).is_some() {
                return Err(format!("{key} is there twice"));
            }
        }
        let position = position.ok_or("position is missing: which position is waited for?")?;
        Ok(Self { position, timeout })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_query_makes_it_panic_and_what_is_encoded_is_read(query in "\\PC{0,80}", position in "\\PC{0,20}") {
            let _ = Parameters::parse(&query);
            let encoded = percent_encoding::utf8_percent_encode(&position, percent_encoding::NON_ALPHANUMERIC);
            let read = Parameters::parse(&format!("position={encoded}")).map(|found| found.position);
            prop_assert_eq!(read, Ok(position));
        }
    }

    #[test]
    fn a_query_is_understood_whole_or_refused() {
        let parse = |query: &str| Parameters::parse(query).map(|found| (found.position, found.timeout));
        assert_eq!(parse("position=57"), Ok(("57".to_owned(), None)));
        assert_eq!(parse("timeout=5s&position=16%2FB3"), Ok(("16/B3".to_owned(), Some("5s".to_owned()))));
        for (bad, why) in [
            ("", "position is missing"),
            ("timeout=5s", "position is missing"),
            ("position=1&position=2", "twice"),
            ("position=1&timout=5s", "\"timout\""),
            ("position=%zz", ""),
        ] {
            assert!(parse(bad).unwrap_err().contains(why), "{bad}");
        }
        assert!(parse(&format!("position={}", "1".repeat(2_000))).is_err());
    }
}
