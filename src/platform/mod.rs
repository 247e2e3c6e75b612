//! What any operator needs besides its own purpose: leader election, certificates, the cluster's Secrets, health, metrics and an orderly end. Knows
//! nothing of lag.

pub mod api_server;
pub mod delegate_client;
pub mod delegated_auth;
pub mod errors;
pub mod leader;
pub mod listen;
pub mod readiness;
pub mod registration;
pub mod secrets;
pub mod serving_certificate;
pub mod shutdown;
pub mod telemetry;
pub mod uninstall;
