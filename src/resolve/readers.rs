//! What leads the readers of a read model to one of its versions, and how the read store names a version there. Pure.

use super::{runs::has_runs, versions};
use crate::api::{ElasticsearchAlias, PostgresViews, Projection, ProjectionSpec, ReaderSwitch, RedisPointer};

/// What leads readers to a version.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum LedBy {
    /// Views in PostgreSQL, which show the tables of the schema that a version is built in.
    Views {
        /// Their schema.
        schema: String,
        /// Their names.
        views: Vec<String>,
    },
    /// A key in Redis, which holds the version.
    Pointer {
        /// The key.
        key: String,
    },
    /// Aliases in Elasticsearch, which lead to the indices of a version.
    Aliases(Vec<LedAlias>),
}

/// An alias, and where it leads.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LedAlias {
    /// Its name.
    pub alias: String,
    /// The index, with `{version}` once in its name.
    pub index: String,
}

impl LedAlias {
    /// The index of a version.
    pub fn index_of(&self, version: &str) -> String {
        self.index.replacen(versions::PLACEHOLDER, version, 1)
    }

    /// The version whose index this is.
    pub fn version_of<'a>(&self, index: &'a str) -> Option<&'a str> {
        version_between(&self.index, index)
    }
}

impl LedBy {
    /// Why nothing is changed where the read store leads readers to a place that is of no version of the Projection.
    pub fn stray(&self, place: &str) -> String {
        match self {
            Self::Views { schema, .. } => format!(
                "the views in schema {schema} show schema {place}, which is of no version of this Projection: does another one lead these readers? Name other views"
            ),
            // What it holds may be anything, and is not told.
            Self::Pointer { key } => format!(
                "key {key} holds no version that this Projection has workers of: does something else write there? Name another key; or set it to the version that readers are to see, or delete it"
            ),
            Self::Aliases(aliases) => {
                let names: Vec<&str> = aliases.iter().map(|one| one.alias.as_str()).collect();
                format!(
                    "alias {} leads to version {place}, which is none of this Projection: does another one lead these readers? Name other aliases",
                    names.join(", ")
                )
            }
        }
    }

    /// Why readers are not led to a version that has no place.
    pub fn placeless(&self, version: &str) -> String {
        match self {
            Self::Views { .. } => format!("spec.readStore.postgres.schema of version {version} is missing"),
            Self::Pointer { .. } | Self::Aliases(_) => format!("there is no run of version {version}"),
        }
    }
}

/// What leads readers to a version, where there are runs.
pub fn led_by(projection: &Projection) -> Option<LedBy> {
    let rollout = projection.spec.rollout.as_ref().filter(|_| has_runs(projection))?;
    let ReaderSwitch { postgres_view, redis_pointer, elasticsearch_aliases } = rollout.switch.as_ref()?;
    if let Some(PostgresViews { schema, views }) = postgres_view {
        return Some(LedBy::Views { schema: schema.clone(), views: views.clone() });
    }
    if let Some(RedisPointer { key }) = redis_pointer {
        return Some(LedBy::Pointer { key: key.clone() });
    }
    let aliases = elasticsearch_aliases
        .iter()
        .map(|ElasticsearchAlias { alias, index }| LedAlias { alias: alias.clone(), index: index.clone() });
    Some(LedBy::Aliases(aliases.collect())).filter(|_| !elasticsearch_aliases.is_empty())
}

/// How the read store names the version of this run to readers: by the schema that it is built in, or by its name where there are no schemas.
pub fn place_of(run: &Projection) -> Option<String> {
    match led_by(run)? {
        LedBy::Views { .. } => versions::filled(&run.spec).read_store.as_ref()?.postgres.as_ref()?.schema.clone(),
        LedBy::Pointer { .. } | LedBy::Aliases(_) => run.spec.version.clone(),
    }
}

/// The version that is called so by the spec as it is now, for versions of which there is no run any more.
pub fn version_in(projection: &Projection, place: &str) -> Option<String> {
    match led_by(projection)? {
        LedBy::Views { .. } => {
            let schema = projection.spec.read_store.as_ref()?.postgres.as_ref()?.schema.as_deref()?;
            version_between(schema, place).map(str::to_owned)
        }
        // A text is no mark: before readers were led to any version, it is not taken for what a switch wrote.
        LedBy::Pointer { .. } => {
            let led = projection.status.as_ref().is_some_and(|status| status.live_version().is_some());
            (led && ProjectionSpec::may_be_version(place)).then(|| place.to_owned())
        }
        // It was read from the names of indices.
        LedBy::Aliases(_) => Some(place.to_owned()),
    }
}

/// The version in this name, which was made from the template.
fn version_between<'a>(template: &str, name: &'a str) -> Option<&'a str> {
    let (before, after) = template.split_once(versions::PLACEHOLDER)?;
    let version = name.strip_prefix(before)?.strip_suffix(after)?;
    (ProjectionSpec::may_be_version(version) && !after.contains(versions::PLACEHOLDER)).then_some(version)
}
