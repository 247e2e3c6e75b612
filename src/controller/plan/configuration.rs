//! The ConfigMap with the built-in projector's configuration.

use serde_json::{Map, Value, json};

use crate::{
    controller::parts::{Desired, Owner, Part},
    names,
};

/// The ConfigMap.
pub fn plan_configuration(configuration: &Value, owner: &Owner) -> Desired {
    let data = json!({ names::PROJECTOR_CONFIG_KEY: configuration.to_string() });
    Desired::new(Part::ConfigMap, owner, Map::from_iter([("data".to_owned(), data)]))
}
