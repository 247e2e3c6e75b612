//! How a new version of a read model takes the place of the one that readers see.

use std::time::Duration;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{HumanDuration, scaling::span, spec::NAME};

/// What Elasticsearch takes for the name of an index, with places in braces.
const INDEX: &str = r#"^[^A-Z\\/*?"<>| ,#:+_-][^A-Z\\/*?"<>| ,#:]*$"#;

/// What a change of `spec.version` does.
#[derive(Clone, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.promote) || !has(self.promote.parity) || !has(self.switch) || has(self.switch.postgresView)").message("spec.rollout.promote.parity must be absent without spec.rollout.switch.postgresView: versions are compared by a query in SQL"),
    validation = Rule::new("(has(self.strategy) && self.strategy == 'BlueGreen') || (!has(self.promote) && !has(self.switch) && !has(self.deadline))").message("spec.rollout: promote, switch and deadline have no meaning without strategy BlueGreen"),
)]
pub struct Rollout {
    /// What a change of `spec.version` does. Cannot be changed later. Default: `InPlace`.
    #[serde(default)]
    pub strategy: RolloutStrategy,
    /// When readers are led to the new version by themselves. Absent: when the annotation `projectionist.dev/promote` names the version, and not before it has
    /// caught up (no event waits longer than `lag.target`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub promote: Option<Promotion>,
    /// How readers are led to a version. Cannot be changed later.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub switch: Option<ReaderSwitch>,
    /// How long the version that readers saw before is kept up to date, so that the annotation `projectionist.dev/rollback` can lead them back at once. Then
    /// its workers are removed; what they built stays. Default: `1h`; 0s to 8760h.
    #[serde(default = "default_keep_old")]
    #[x_kube(validation = Rule::new(span!("0s", "8760h")).message("spec.rollout.keepOld must be from 0s to 8760h"))]
    pub keep_old: HumanDuration,
    /// A new version that is not promoted within this time has failed. Absent: it may take as long as it takes. 1m to 8760h.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new(span!("1m", "8760h")).message("spec.rollout.deadline must be from 1m to 8760h"))]
    pub deadline: Option<HumanDuration>,
    /// What becomes of the workers of a new version that has failed. Readers keep what they see. Default: `Keep`.
    #[serde(default)]
    pub on_failure: OnRolloutFailure,
}

impl Rollout {
    /// The longest that a version is fresh before it is promoted, where the spec does not say.
    pub(super) const FRESH_FOR: Duration = Duration::from_secs(60);
}

fn default_keep_old() -> HumanDuration {
    HumanDuration(Duration::from_secs(3_600))
}

/// What a change of `spec.version` does.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum RolloutStrategy {
    /// The workers are restarted, and get the new version in `PROJECTION_VERSION`.
    #[default]
    InPlace,
    /// A second run with workers of its own builds the new version in places of its own, while the one that readers see is kept up to date. Then readers are led
    /// to it in one step.
    BlueGreen,
}

/// When readers are led to a new version by themselves.
#[derive(Clone, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Promotion {
    /// No event may wait longer than this in the new version. Default: `lag.target`; 0s to 168h.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new(span!("0s", "168h")).message("spec.rollout.promote.stalenessBelow must be from 0s to 168h"))]
    pub staleness_below: Option<HumanDuration>,
    /// For this long without a break. Default: `1m`; 0s to 168h.
    #[serde(rename = "for", default = "default_fresh_for")]
    #[x_kube(validation = Rule::new(span!("0s", "168h")).message("spec.rollout.promote.for must be from 0s to 168h"))]
    pub fresh_for: HumanDuration,
    /// Then both versions are asked the same, at a moment at which both have handled the same events, and must give the same answer. Not asked of the first
    /// version, nor of one that the annotation `projectionist.dev/promote` names. Absent: they are not compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parity: Option<Parity>,
}

/// What two versions must have in common before readers are led from one to the other.
#[derive(Clone, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Parity {
    /// A query (`select …`) that names tables without their schema: it runs with the schema of each version as its `search_path`, in a read-only transaction that is
    /// rolled back, for at most 30 s. Rows are compared by the column `key`, each other column for itself; without a column `key` it must give one row. At most
    /// 5,000 rows and 20,000 values of 200 characters. What differs is told by key in the status.
    #[schemars(length(min = 1, max = 16_384))]
    pub query: String,
    /// Numbers may differ by this share of the larger one: 0 (default, they must be equal) to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self >= 0.0 && self <= 1.0").message("spec.rollout.promote.parity.tolerance must be from 0 to 1"))]
    pub tolerance: Option<f64>,
}

fn default_fresh_for() -> HumanDuration {
    HumanDuration(Rollout::FRESH_FOR)
}

/// How readers are led to a version. Exactly one field, for the kind of `readStore`.
#[derive(Clone, Debug, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.postgresView), has(self.redisPointer), has(self.elasticsearchAliases)].exists_one(x, x)").message("spec.rollout.switch must have exactly one of postgresView, redisPointer and elasticsearchAliases"))]
pub struct ReaderSwitch {
    /// By views that readers name: the operator makes them, and replaces all of them in one transaction.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub postgres_view: Option<PostgresViews>,
    /// By a key in Redis that readers ask first: the operator writes the version's name there, in one step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redis_pointer: Option<RedisPointer>,
    /// By aliases in Elasticsearch or OpenSearch that readers name: the operator makes them, and moves all of them in one call.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("minItems" = 1, "maxItems" = 20, "x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["alias"]))]
    pub elasticsearch_aliases: Vec<ElasticsearchAlias>,
}

/// A key in the database of the read store that holds the version that readers are to read.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RedisPointer {
    /// The key, a text: the version's name, such as `v2`. Readers ask for it (`GET orders:current`), and then for the keys with that version in their names
    /// (`orders:v2:…`). No version is built in it, and nothing else writes it.
    #[schemars(length(min = 1, max = 512))]
    pub key: String,
}

/// An alias that readers name in place of an index.
#[derive(Clone, Debug, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ElasticsearchAlias {
    /// The alias, which is the name of no index.
    #[schemars(length(min = 1, max = 150), regex(pattern = "^[A-Za-z0-9][-A-Za-z0-9._]*$"))]
    pub alias: String,
    /// The index of a version, which the alias leads to, with `{version}` once in its name: `orders-{version}`.
    #[schemars(length(min = 1, max = 255), regex(pattern = INDEX))]
    #[x_kube(validation = Rule::new("self.matches('^[^{}]*[{]version[}][^{}]*$')").message("spec.rollout.switch.elasticsearchAliases[].index must hold {version} once, and no other brace"))]
    pub index: String,
}

/// Views in the database of the read store, through which readers see one version.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PostgresViews {
    /// The schema of the views, which must be there. No version is built in it.
    #[schemars(length(min = 1, max = 63), regex(pattern = NAME))]
    pub schema: String,
    /// The views: each shows the table (or view) of its name in the schema of the version.
    #[schemars(length(min = 1, max = 50), inner(length(min = 1, max = 63), regex(pattern = NAME)), extend("x-kubernetes-list-type" = "set"))]
    pub views: Vec<String>,
}

/// What becomes of the workers of a new version that has failed.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum OnRolloutFailure {
    /// They stay, to be looked at. The annotation `projectionist.dev/promote` may still promote the version once it has caught up.
    #[default]
    Keep,
    /// They are removed. Another version starts another attempt.
    Remove,
}
