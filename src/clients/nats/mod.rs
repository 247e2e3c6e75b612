//! How to reach a NATS server, ask its JetStream many questions in one round trip, and say what went wrong in words that help.
//!
//! The few verbs of the protocol are spoken here and not by the library async-nats, since that library keeps any payload that a server announces,
//! whatever its length (it does not apply `max_payload` to what comes in): it buffered 300 MB from a server that lied. Here lengths are checked
//! before anything is kept, and of long payloads (messages come with their bodies) only the end is kept. [`Client`] publishes only requests that read; a worker's
//! [`Puller`] takes messages and acknowledges them.

mod answer;
mod client;
mod connection;
mod nkeys;
mod protocol;
mod pulled;
mod puller;
mod server_settings;
mod settings;
mod words;

pub use answer::{ApiError, answer_text, no_jetstream, nonsense};
pub use client::Client;
pub use connection::{Reply, Request};
pub use protocol::{Bounds, Payload};
pub use pulled::{Place, Pulled};
pub use puller::{PullEnded, Puller};
pub use settings::{ConnectionIdentity, ConnectionSettings};
