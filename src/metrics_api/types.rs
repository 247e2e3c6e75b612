//! The wire types that several answers share and Kubernetes' own libraries do not offer in Rust.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;

/// Of a list: there is nothing to say.
#[derive(Clone, Copy, Debug, Default, JsonSchema, Serialize)]
#[schemars(inline)]
pub(super) struct ListMeta {}

/// A moment as Kubernetes writes it: whole seconds, and never later than it was.
pub(super) fn time(moment: jiff::Timestamp) -> String {
    moment.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The object that a value describes.
#[derive(Clone, Copy, Debug, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub(super) struct DescribedObject<'a> {
    /// Its kind.
    pub(super) kind: &'a str,
    /// Its namespace.
    pub(super) namespace: &'a str,
    /// Its name.
    pub(super) name: &'a str,
    /// Its API version.
    pub(super) api_version: &'a str,
}

/// A label selector: all of its requirements hold.
#[derive(Clone, Debug, Default, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub(super) struct LabelSelector {
    /// Labels that must have these values.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) match_labels: BTreeMap<String, String>,
    /// Further requirements.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) match_expressions: Vec<LabelRequirement>,
}

/// One requirement of a label selector.
#[derive(Clone, Debug, Eq, JsonSchema, PartialEq, Serialize)]
#[schemars(inline)]
pub(super) struct LabelRequirement {
    /// The label.
    pub(super) key: String,
    /// In, NotIn, Exists or DoesNotExist.
    pub(super) operator: &'static str,
    /// The values that In and NotIn speak of.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) values: Vec<String>,
}

/// `v1` Status of a failed request.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Status {
    kind: &'static str,
    api_version: &'static str,
    metadata: ListMeta,
    status: &'static str,
    message: String,
    reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<StatusDetails>,
    code: u16,
}

impl Status {
    pub(super) fn failure(code: u16, reason: &'static str, message: String, details: Option<StatusDetails>) -> Self {
        let (kind, api_version, metadata, status) = ("Status", "v1", ListMeta {}, "Failure");
        Self { kind, api_version, metadata, status, message, reason, details, code }
    }
}

/// What a failed request was about.
#[derive(Debug, Serialize)]
pub(super) struct StatusDetails {
    /// The object.
    pub(super) name: String,
    /// Its group.
    pub(super) group: &'static str,
    /// Its resource.
    pub(super) kind: &'static str,
    /// More on why it failed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) causes: Vec<Cause>,
}

/// One reason of a failure.
#[derive(Debug, Serialize)]
pub(super) struct Cause {
    /// For machines.
    pub(super) reason: &'static str,
    /// A value or a sentence.
    pub(super) message: String,
    /// What it is about.
    pub(super) field: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_never_written_later_than_it_was() {
        for (moment, written) in [
            ("2026-01-02T03:04:05.999999999Z", "2026-01-02T03:04:05Z"),
            ("2026-01-02T03:04:05Z", "2026-01-02T03:04:05Z"),
            ("2026-01-02T05:04:05+02:00", "2026-01-02T03:04:05Z"),
        ] {
            assert_eq!(time(moment.parse().unwrap()), written);
        }
    }
}
