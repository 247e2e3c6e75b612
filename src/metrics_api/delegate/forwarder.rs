//! Forwards a request to another adapter with a time limit, and turns its answer into one that the caller can use.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use http::StatusCode;
use serde::Deserialize;
use tokio::sync::Semaphore;

use super::{
    Delegate, DelegateAnswer, DelegateError, DelegateMetrics, DelegatedLabels, DelegatedResource, GroupLabels, Outcome,
    circuit::Circuit, listing,
};
use crate::metrics_api::{
    external_v1beta1::ExternalMetricValueList,
    object_values,
    offer::ApiVersion,
    reply::{self, Answer},
};

/// How long an adapter may take.
const DEADLINE: Duration = Duration::from_secs(5);
/// Requests in progress at an adapter. Far below the streams of one connection of the API server, so that an adapter that hangs takes none from the
/// operator's own metrics: more are refused, not kept waiting.
const MOST_AT_ONCE: usize = 64;
/// The largest answer with values, and the largest list of what there is.
const LARGEST_ANSWER: usize = 1024 * 1024;
const LARGEST_LIST: usize = 4 * 1024 * 1024;
/// The most characters of an adapter's own message that are passed on.
const LONGEST_MESSAGE: usize = 1024;
/// How often an adapter is asked which metrics it has, and how soon again when that failed.
pub(in crate::metrics_api) const LIST_EVERY: Duration = Duration::from_secs(30);
pub(in crate::metrics_api) const LIST_RETRY: Duration = Duration::from_secs(10);

/// One adapter, and the state of its circuit breaker.
pub(in crate::metrics_api) struct Forwarder {
    delegate: Arc<dyn Delegate>,
    versions: Vec<ApiVersion>,
    room: Semaphore,
    circuit: Mutex<Circuit>,
    metrics: DelegateMetrics,
}

/// The fields that every object has.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    kind: String,
    api_version: String,
}

/// The fields of a Status that are passed on.
#[derive(Deserialize)]
struct Words {
    message: String,
}

impl Forwarder {
    pub(super) fn new(delegate: Arc<dyn Delegate>, versions: Vec<ApiVersion>, metrics: DelegateMetrics) -> Self {
        let (room, circuit) = (Semaphore::new(MOST_AT_ONCE), Mutex::default());
        Self { delegate, versions, room, circuit, metrics }
    }

    /// The adapter's name for people.
    pub(in crate::metrics_api) fn name(&self) -> &str {
        self.delegate.name()
    }

    /// The versions of its group that are offered.
    pub(in crate::metrics_api) fn versions(&self) -> &[ApiVersion] {
        &self.versions
    }

    /// Reads values of a version. The operator must write `path_and_query` itself, from the parts by which the caller was authorized: with the
    /// caller's own spelling an adapter might read another path, which was not authorized.
    pub(in crate::metrics_api) async fn read(&self, version: ApiVersion, path_and_query: &str) -> Answer {
        let unavailable = |why: &str| {
            reply::failure(
                StatusCode::SERVICE_UNAVAILABLE,
                format!("{}, which is asked for metrics that are not served here, {why}", self.name()),
            )
        };
        let Ok(_place) = self.room.try_acquire() else {
            self.count(Outcome::Busy);
            return unavailable(&format!("has not yet answered {MOST_AT_ONCE} others"));
        };
        let admitted = self.circuit.lock().unwrap_or_else(PoisonError::into_inner).admit(Instant::now());
        if let Err(why) = admitted {
            self.count(Outcome::Spared);
            return unavailable(&format!("has just failed and is left alone for some seconds: {why}"));
        }
        let answer = match self.ask(path_and_query, LARGEST_ANSWER).await {
            Ok(answer) => answer,
            Err(Failure::Late) => {
                self.count(Outcome::TimedOut);
                let message = format!("{} did not answer within {} s", self.name(), DEADLINE.as_secs());
                return reply::failure(StatusCode::GATEWAY_TIMEOUT, message);
            }
            Err(Failure::Error(why)) => {
                self.count(Outcome::Failed);
                return unavailable(&format!("cannot be read: {why}"));
            }
        };
        let (outcome, answer) = match judge(&answer, version) {
            Judged::Values => (Outcome::Answered, reply::json_bytes(answer.body)),
            Judged::Refused(code, words) => {
                (Outcome::Refused, reply::failure(code, format!("{}: {words}", self.name())))
            }
            Judged::Failed(why) => (Outcome::Failed, unavailable(&why)),
        };
        self.count(outcome);
        answer
    }

    /// The metrics that the adapter has in a version; none where it does not know the version.
    ///
    /// # Errors
    /// Why that is not known.
    pub(in crate::metrics_api) async fn list(&self, version: ApiVersion) -> Result<Vec<DelegatedResource>, String> {
        let answer = match self.ask(&format!("/apis/{}", version.group_version()), LARGEST_LIST).await {
            Ok(answer) => answer,
            Err(Failure::Late) => return Err(format!("it did not answer within {} s", DEADLINE.as_secs())),
            Err(Failure::Error(why)) => return Err(why),
        };
        let listed = match answer.status {
            StatusCode::OK => listing::parse(&answer.body, version)?,
            StatusCode::NOT_FOUND => Vec::new(),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(no_rights(&answer)),
            code => return Err(format!("it answers {code}: {}", words(&answer.body))),
        };
        let now = jiff::Timestamp::now().as_second();
        self.metrics.listed.get_or_create(&GroupLabels { group: version.group() }).set(now);
        Ok(listed)
    }

    async fn ask(&self, path_and_query: &str, most_bytes: usize) -> Result<DelegateAnswer, Failure> {
        let asked = tokio::time::timeout(DEADLINE, self.delegate.get(path_and_query, most_bytes)).await;
        let mut circuit = self.circuit.lock().unwrap_or_else(PoisonError::into_inner);
        match asked {
            Ok(Ok(answer)) => {
                circuit.answered();
                Ok(answer)
            }
            Ok(Err(error @ DelegateError::TooLarge(_))) => {
                circuit.answered();
                Err(Failure::Error(error.to_string()))
            }
            Ok(Err(DelegateError::Unreachable(why))) => {
                circuit.failed(Instant::now(), &why);
                Err(Failure::Error(why))
            }
            Err(_) => {
                circuit.failed(Instant::now(), "it does not answer");
                Err(Failure::Late)
            }
        }
    }

    fn count(&self, outcome: Outcome) {
        let group = self.versions.first().map_or("", |version| version.group());
        self.metrics.requests.get_or_create(&DelegatedLabels { group, outcome }).inc();
    }
}

/// Why there is no answer.
enum Failure {
    Late,
    Error(String),
}

/// How an answer was judged.
#[derive(Debug, Eq, PartialEq)]
enum Judged {
    /// Values of this version.
    Values,
    /// The adapter's own message about why it has no values.
    Refused(StatusCode, String),
    /// Nothing that a caller could use, and why.
    Failed(String),
}

fn judge(answer: &DelegateAnswer, version: ApiVersion) -> Judged {
    match answer.status {
        StatusCode::OK => {
            let kind = match version {
                ApiVersion::ExternalV1Beta1 => ExternalMetricValueList::KIND,
                ApiVersion::CustomV1Beta1 | ApiVersion::CustomV1Beta2 => object_values::KIND,
            };
            // Reads the whole text, too: half an object is not an object.
            let head: Result<Head, _> = serde_json::from_slice(&answer.body);
            match head {
                Ok(head) if head.kind == kind && head.api_version == version.group_version() => Judged::Values,
                Ok(head) => Judged::Failed(format!(
                    "answers with {:.60} of {:.60} instead of values",
                    head.kind, head.api_version
                )),
                Err(_) => Judged::Failed("answers with something that is no object".to_owned()),
            }
        }
        code @ (StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND) => Judged::Refused(code, words(&answer.body)),
        // The caller is authorized; the adapter refused the operator.
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Judged::Failed(no_rights(answer)),
        code if code.is_redirection() => Judged::Failed(format!("answers {code}: redirects are not followed")),
        code => Judged::Failed(format!("answers {code}: {}", words(&answer.body))),
    }
}

fn no_rights(answer: &DelegateAnswer) -> String {
    format!(
        "lets the operator's own ServiceAccount for it read nothing: bind that to the adapter's ClusterRole for readers (it answers {}: {})",
        answer.status,
        words(&answer.body)
    )
}

/// The message of a Status.
fn words(body: &[u8]) -> String {
    let words: Result<Words, _> = serde_json::from_slice(body);
    match words {
        Ok(Words { message }) if !message.is_empty() => {
            message.chars().filter(|letter| !letter.is_control()).take(LONGEST_MESSAGE).collect()
        }
        _ => "it does not say why".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use hyper::body::Bytes;

    use super::*;

    #[test]
    fn an_answer_is_passed_on_only_as_what_a_caller_can_use() {
        let values = r#"{"kind":"ExternalMetricValueList","apiVersion":"external.metrics.k8s.io/v1beta1","items":[]}"#;
        let status = r#"{"kind":"Status","apiVersion":"v1","message":"no such metric","code":404}"#;
        let failed = |why: &str| Judged::Failed(why.to_owned());
        for (code, body, expected) in [
            (200, values, Judged::Values),
            (200, &values[..60], failed("answers with something that is no object")),
            (200, "<html>", failed("answers with something that is no object")),
            (200, status, failed("answers with Status of v1 instead of values")),
            (404, status, Judged::Refused(StatusCode::NOT_FOUND, "no such metric".to_owned())),
            (404, "404 page not found", Judged::Refused(StatusCode::NOT_FOUND, "it does not say why".to_owned())),
            (400, status, Judged::Refused(StatusCode::BAD_REQUEST, "no such metric".to_owned())),
            (302, "", failed("answers 302 Found: redirects are not followed")),
            (500, status, failed("answers 500 Internal Server Error: no such metric")),
            (429, "", failed("answers 429 Too Many Requests: it does not say why")),
        ] {
            let answer =
                DelegateAnswer { status: StatusCode::from_u16(code).unwrap(), body: Bytes::from(body.to_owned()) };
            assert_eq!(judge(&answer, ApiVersion::ExternalV1Beta1), expected, "{code} {body}");
        }
        for code in [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN] {
            let answer = DelegateAnswer { status: code, body: Bytes::from_static(b"{\"message\":\"no\"}") };
            let Judged::Failed(why) = judge(&answer, ApiVersion::ExternalV1Beta1) else { panic!("{code}") };
            assert!(why.contains("ServiceAccount") && why.ends_with("no)"), "{why}");
        }
    }

    #[test]
    fn an_adapters_words_are_bounded_and_one_line() {
        let body = serde_json::json!({"message": format!("a\nb{}", "x".repeat(5_000))}).to_string();
        let words = words(body.as_bytes());
        assert!(words.starts_with("abx") && words.len() == LONGEST_MESSAGE, "{words}");
    }
}
