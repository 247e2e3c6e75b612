//! Projectionist runs CQRS projections on Kubernetes and scales them by how far behind they are.
//!
//! Data flows one way. The [`sampler`] measures what the watched Projections describe; [`sources`] and [`read_stores`] ask the databases; [`lag`]
//! turns samples into an assessment; [`snapshot`] holds the latest of them. The [`controller`] (on the leader only) changes the cluster accordingly,
//! and the [`metrics_api`] answers the HorizontalPodAutoscaler, both from the snapshot.

pub mod addresses;
pub mod api;
pub mod app;
pub mod backoff;
pub mod cli;
pub mod clients;
pub mod controller;
pub mod field_managers;
pub mod hpa;
pub mod lag;
pub mod leader_required;
pub mod measure;
pub mod metrics;
pub mod metrics_api;
pub mod names;
pub mod platform;
pub mod projector;
pub mod quantity;
pub mod read_stores;
pub mod read_your_writes;
pub mod rebuild;
pub mod required_workers;
pub mod resolve;
pub mod runs;
pub mod sampler;
pub mod simulate;
pub mod simulation;
pub mod snapshot;
pub mod sources;
pub mod store_health;
pub mod worker_pods;
