//! How to reach Elasticsearch or OpenSearch, which answer what is asked here alike, and what their refusals mean.

mod bounded;
mod client;
mod server_settings;
mod settings;
mod words;

pub use client::{Client, JSON, LINES};
pub use settings::{ConnectionIdentity, ConnectionSettings};
pub use words::{error_type, is_too_large, refusal};
