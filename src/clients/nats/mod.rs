//! How to reach a NATS server, ask its JetStream many questions in one round trip, and say what went wrong in words that help.
//!
//! The few verbs of the protocol are spoken here and not by the library async-nats, since that library keeps any payload that a server announces,
//! whatever its length (it does not apply `max_payload` to what comes in): it buffered 300 MB from a server that lied. Here lengths are checked
//! before anything is kept, and of long payloads (messages come with their bodies) only the end is kept. Only requests that read are published.

mod client;
mod connection;
mod nkeys;
mod protocol;
mod server_settings;
mod settings;
mod words;

pub use client::Client;
pub use connection::{Reply, Request};
pub use protocol::Payload;
pub use settings::{ConnectionIdentity, ConnectionSettings};
