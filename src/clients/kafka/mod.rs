//! How to reach a Kafka cluster, ask it where logs end and what groups have committed, and say what went wrong in words that help.
//!
//! Only reads, and joins no group. The codec is `kacrab-protocol`; connections, authentication, deadlines and limits are here. Knows nothing of Projections.

mod calls;
mod client;
mod connection;
mod error;
mod fetch;
mod offsets;
mod policies;
mod sasl;
mod scram;
mod server_settings;
mod settings;
mod tls;

pub use client::{Client, Topic};
pub use error::{Code, KafkaError};
pub use fetch::FirstRecord;
pub use offsets::{At, Isolation, Offset, Partition, Wanted};
pub use settings::{Mechanism, Settings, SettingsError};
