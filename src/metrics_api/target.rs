//! What a request is about: its path and query, read strictly.

use percent_encoding::percent_decode_str;

use super::{GROUP, Selector, VERSION};

/// A longer path is refused unread.
const LONGEST_PATH: usize = 2 * 1024;
/// A longer query is refused unread.
const LONGEST_QUERY: usize = 32 * 1024;
/// No name in Kubernetes is longer. What is remembered of requests is bounded by it.
const LONGEST_SEGMENT: usize = 253;

/// What a path names.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Target {
    /// `/healthz`, `/livez`, `/readyz`
    Health,
    /// `/apis`
    Groups,
    /// `/apis/<group>`
    Group,
    /// `/apis/<group>/<version>`
    Resources,
    /// `/openapi/v2`
    OpenApiV2,
    /// `/openapi/v3`
    OpenApiV3,
    /// `/openapi/v3/apis/<group>/<version>`
    OpenApiV3Group,
    /// `/apis/<group>/<version>/namespaces/<namespace>/<metric>`
    Values {
        /// The namespace.
        namespace: String,
        /// The metric.
        metric: String,
    },
    /// Anything else.
    Nothing,
}

/// Why a request cannot be read.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum TargetError {
    /// The path.
    #[error("the path cannot be read: {0}")]
    Path(&'static str),
    /// The query.
    #[error("the query cannot be read: {0}")]
    Query(String),
}

impl Target {
    /// Reads a path. Each segment is decoded by itself, so that no encoding makes one segment two.
    pub(super) fn parse(path: &str) -> Result<Self, TargetError> {
        if path.len() > LONGEST_PATH {
            return Err(TargetError::Path("it is too long"));
        }
        // Neither the authority of CONNECT nor the asterisk of OPTIONS is a path.
        let path = path.strip_prefix('/').ok_or(TargetError::Path("it does not begin with a slash"))?;
        let segments = path.split('/').map(segment).collect::<Result<Vec<_>, _>>()?;
        // A slash at the end means the same.
        let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
        let segments = segments.strip_suffix(&[""]).unwrap_or(&segments);
        Ok(match segments {
            ["healthz" | "livez" | "readyz"] => Self::Health,
            ["apis"] => Self::Groups,
            ["apis", GROUP] => Self::Group,
            ["apis", GROUP, VERSION] => Self::Resources,
            ["openapi", "v2"] => Self::OpenApiV2,
            ["openapi", "v3"] => Self::OpenApiV3,
            ["openapi", "v3", "apis", GROUP, VERSION] => Self::OpenApiV3Group,
            ["apis", GROUP, VERSION, "namespaces", namespace, metric]
                if !namespace.is_empty() && !metric.is_empty() =>
            {
                Self::Values { namespace: (*namespace).to_owned(), metric: (*metric).to_owned() }
            }
            _ => Self::Nothing,
        })
    }
}

fn segment(encoded: &str) -> Result<String, TargetError> {
    let decoded = decode(encoded).map_err(TargetError::Path)?;
    match decoded.as_str() {
        "." | ".." => Err(TargetError::Path("it goes up or nowhere")),
        text if text.contains('/') => Err(TargetError::Path("a segment holds a slash")),
        text if text.len() > LONGEST_SEGMENT => Err(TargetError::Path("a name in it is longer than 253 bytes")),
        _ => Ok(decoded),
    }
}

/// Decodes `%xx`, each of which must be complete.
fn decode(encoded: &str) -> Result<String, &'static str> {
    let mut rest = encoded.as_bytes();
    while let Some(at) = rest.iter().position(|byte| *byte == b'%') {
        let complete = rest.get(at + 1..at + 3).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit));
        if !complete {
            return Err("a percent sign is not followed by two hexadecimal digits");
        }
        rest = &rest[at + 3..];
    }
    let text = percent_decode_str(encoded).decode_utf8().map_err(|_| "it is not UTF-8")?;
    if text.chars().any(char::is_control) { Err("it holds a control character") } else { Ok(text.into_owned()) }
}

/// The selector in a query string; none selects everything. Only the first `labelSelector` counts, as in the API server.
pub(super) fn label_selector(query: &str) -> Result<Selector, TargetError> {
    if query.len() > LONGEST_QUERY {
        return Err(TargetError::Query("it is too long".to_owned()));
    }
    let mut selector = None;
    for pair in query.split('&') {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let text = |encoded: &str| decode(&encoded.replace('+', " ")).map_err(|why| TargetError::Query(why.to_owned()));
        // Every pair must be readable, also those that do not matter: a query that is half understood selects the wrong thing.
        let (key, value) = (text(key)?, text(value)?);
        if key == "labelSelector" && selector.is_none() {
            selector = Some(Selector::parse(&value).map_err(|error| TargetError::Query(error.to_string()))?);
        }
    }
    Ok(selector.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_path_names_its_target() {
        let values = Target::Values { namespace: "shop".to_owned(), metric: "projection_pending_events".to_owned() };
        for (path, target) in [
            ("/healthz", Target::Health),
            ("/apis", Target::Groups),
            ("/apis/", Target::Groups),
            ("/apis/external.metrics.k8s.io", Target::Group),
            ("/apis/external.metrics.k8s.io/v1beta1", Target::Resources),
            ("/apis/external.metrics.k8s.io/v1beta1/", Target::Resources),
            ("/openapi/v3/apis/external.metrics.k8s.io/v1beta1", Target::OpenApiV3Group),
            ("/apis/external.metrics.k8s.io/v1beta1/namespaces/shop/projection_pending_events", values.clone()),
            ("/apis/external.metrics.k8s.io/v1beta1/namespaces/sh%6fp/projection_pending_events", values),
            ("/apis/external.metrics.k8s.io/v1beta1/namespaces/shop", Target::Nothing),
            ("/apis/external.metrics.k8s.io/v1beta1/namespaces/shop/group/metric", Target::Nothing),
            ("/apis/external.metrics.k8s.io/v1beta1/namespaces//metric", Target::Nothing),
            ("/apis/external.metrics.k8s.io/v1beta1/nonexistent", Target::Nothing),
            ("/apis//external.metrics.k8s.io", Target::Nothing),
            ("/", Target::Nothing),
        ] {
            assert_eq!(Target::parse(path), Ok(target), "{path}");
        }
    }

    #[test]
    fn tricks_with_encodings_are_refused() {
        for path in [
            "/apis/%2e%2e/x",
            "/apis/..",
            "/a%2fb",
            "/a%00",
            "/a%zz",
            "/a%2",
            "/a%ff",
            "",
            "*",
            "db:5432",
            &"/a".repeat(20_000),
            &"/a".repeat(1_100),
            &format!("/{}", "a".repeat(254)),
        ] {
            assert!(Target::parse(path).is_err(), "{path:.40}");
        }
    }

    #[test]
    fn a_query_is_understood_whole_or_refused() {
        let written = |query: &str| label_selector(query).map(|selector| selector.to_string());
        assert_eq!(written(""), Ok(String::new()));
        assert_eq!(written("labelSelector=projection%3Dorders&timeout=30s"), Ok("projection=orders".to_owned()));
        assert_eq!(written("labelSelector=a+in+(x,y)"), Ok("a in (x,y)".to_owned()));
        assert_eq!(written("labelSelector=a%3D1&labelSelector=b%3D2"), Ok("a=1".to_owned()));
        for query in [
            "labelSelector=%zz",
            "x=%zz&labelSelector=a%3Db",
            "labelSelector=a%3Db&x=%zz",
            "labelSelector==",
            "labelSelector=%00",
            &"x".repeat(40_000),
        ] {
            assert!(written(query).is_err(), "{query:.40}");
        }
    }

    proptest! {
        #[test]
        fn no_path_or_query_makes_it_panic(text in "\\PC{0,80}", encoded in "(/|%[0-9a-f]{2}|[a-z]){0,40}") {
            let _ = (Target::parse(&text), label_selector(&text), Target::parse(&encoded), label_selector(&encoded));
        }
    }
}
