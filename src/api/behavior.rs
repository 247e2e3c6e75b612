//! The schema of `spec.scaling.behavior`: that of a HorizontalPodAutoscaler's, with the bounds that the API server enforces there and publishes in no
//! schema.
//!
//! Without them a wrong rule would be accepted here and refused later, when the operator applies the autoscaler and the user no longer watches.

use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

/// A quantity that is not negative: `0.05`, `50m` or `1e-2`.
const NOT_NEGATIVE: &str = r"^\+?([0-9]+(\.[0-9]*)?|\.[0-9]+)([numkMGTPE]|[KMGTPE]i|[eE][+-]?[0-9]+)?$";

pub(super) fn schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "description": "Passed to the HorizontalPodAutoscaler as it is, and held against its rules here. Default: scale up at once, down after 15 s.",
        "type": "object",
        "nullable": true,
        "properties": {
            "scaleUp": rules("Rules for scaling up. What is absent: no window, and 4 pods or 100 % in 15 s, whichever is more."),
            "scaleDown": rules("Rules for scaling down. What is absent: a window of 300 s, and 100 % in 15 s."),
        },
    })
}

fn rules(description: &str) -> Value {
    json!({
        "description": description,
        "type": "object",
        "properties": {
            "stabilizationWindowSeconds": {
                "description": "The most careful recommendation of so many seconds counts. From 0 to 3600.",
                "type": "integer",
                "format": "int32",
                "minimum": 0,
                "maximum": 3_600,
            },
            "selectPolicy": {
                "description": "Which policy counts where there are several: the one that allows the largest change (Max), the smallest (Min), or none (Disabled: no change in this direction). Default: Max.",
                "type": "string",
                "enum": ["Max", "Min", "Disabled"],
            },
            "policies": {
                "description": "The most that may change in a period. At least one, or absent.",
                "type": "array",
                "x-kubernetes-list-type": "atomic",
                "minItems": 1,
                "items": {
                    "type": "object",
                    "required": ["type", "value", "periodSeconds"],
                    "properties": {
                        "type": {
                            "description": "Of what value is a number.",
                            "type": "string",
                            "enum": ["Pods", "Percent"],
                        },
                        "value": {
                            "description": "How many. At least 1.",
                            "type": "integer",
                            "format": "int32",
                            "minimum": 1,
                            "maximum": i32::MAX,
                        },
                        "periodSeconds": {
                            "description": "In how many seconds. From 1 to 1800.",
                            "type": "integer",
                            "format": "int32",
                            "minimum": 1,
                            "maximum": 1_800,
                        },
                    },
                },
            },
            "tolerance": {
                "description": "How far from 1 usage over target must be before anything is done, such as 0.05. Not negative. Default: 0, where the API server has this field (from 1.35).",
                "nullable": true,
                "x-kubernetes-int-or-string": true,
                "minimum": 0,
                "pattern": NOT_NEGATIVE,
            },
        },
    })
}
