//! What leads the readers of a read model to one of its versions, and how the read store names a version there. Pure.

use super::{runs::has_runs, versions};
use crate::api::{Projection, ProjectionSpec};

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
}

impl LedBy {
    /// Why nothing is changed where the read store leads readers to a place that is of no version of the Projection.
    pub fn stray(&self, place: &str) -> String {
        match self {
            Self::Views { schema, .. } => format!(
                "the views in schema {schema} show schema {place}, which is of no version of this Projection: does another one lead these readers? Name other views"
            ),
        }
    }

    /// Why readers are not led to a version that has no place.
    pub fn placeless(&self, version: &str) -> String {
        match self {
            Self::Views { .. } => format!("spec.readStore.postgres.schema of version {version} is missing"),
        }
    }
}

/// What leads readers to a version, where there are runs.
pub fn led_by(projection: &Projection) -> Option<LedBy> {
    let rollout = projection.spec.rollout.as_ref().filter(|_| has_runs(projection))?;
    let views = &rollout.switch.as_ref()?.postgres_view;
    Some(LedBy::Views { schema: views.schema.clone(), views: views.views.clone() })
}

/// How the read store names the version of this run to readers: by the schema that it is built in.
pub fn place_of(run: &Projection) -> Option<String> {
    let spec = versions::filled(&run.spec);
    spec.read_store.as_ref()?.postgres.as_ref()?.schema.clone()
}

/// The version that is called so by the spec as it is now, for versions of which there is no run any more.
pub fn version_in(projection: &Projection, place: &str) -> Option<String> {
    let schema = projection.spec.read_store.as_ref()?.postgres.as_ref()?.schema.as_deref()?;
    let (before, after) = schema.split_once(versions::PLACEHOLDER)?;
    let version = place.strip_prefix(before)?.strip_suffix(after)?;
    (ProjectionSpec::may_be_version(version) && !after.contains(versions::PLACEHOLDER)).then(|| version.to_owned())
}
