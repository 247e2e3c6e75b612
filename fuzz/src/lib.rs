//! The metrics API by itself, without the operator and the Kubernetes client around it, which would take many minutes to compile
//! with instruments.

#[path = "../../src/metrics_api/mod.rs"]
pub mod metrics_api;
