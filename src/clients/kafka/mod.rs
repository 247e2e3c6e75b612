//! How to reach a Kafka cluster, ask it where logs end and what groups have committed, and say what went wrong in words that help.
//!
//! Joins no group, and writes nothing but the offsets of a group without members. The codec is `kacrab-protocol`; connections, authentication, deadlines and limits are here. Knows nothing of Projections.

mod batch;
mod calls;
mod client;
mod commit;
mod compression;
mod connection;
mod error;
mod fetch;
mod offsets;
mod policies;
mod read;
mod sasl;
mod scram;
mod server_settings;
mod settings;
mod tls;

pub use client::{Client, Topic};
pub use error::{Code, KafkaError};
pub use fetch::FirstRecord;
pub use offsets::{At, Isolation, Offset, Partition, Wanted};
pub use read::{ReadFrom, Record, Records, Sent, UnreadableBatch};
pub use settings::{Mechanism, Settings, SettingsError};
