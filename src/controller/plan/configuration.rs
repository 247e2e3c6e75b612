//! The ConfigMap of a run: what its built-in workers are told, and the spec that it was made with, where another run may follow on it.

use serde_json::{Map, Value};

use crate::{
    controller::parts::{Desired, Owner, Part},
    names,
};

/// The ConfigMap; `None` where there is nothing to keep in one.
pub fn plan_configuration(configuration: Option<&Value>, stored: Option<&str>, owner: &Owner) -> Option<Desired> {
    let configuration = configuration.map(|told| (names::PROJECTOR_CONFIG_KEY.to_owned(), told.to_string().into()));
    let stored = stored.map(|spec| (names::STORED_SPEC_KEY.to_owned(), spec.into()));
    let data: Map<String, Value> = configuration.into_iter().chain(stored).collect();
    let rest = |data: Map<String, Value>| Map::from_iter([("data".to_owned(), data.into())]);
    (!data.is_empty()).then(|| Desired::new(Part::ConfigMap, owner, rest(data)))
}
