//! How to reach the management API of a RabbitMQ server, ask it over one connection, and say what went wrong in words that help.
//!
//! Only GET, and only below `/api/`. Nothing of an answer's body is repeated in a message: a URL may lead to a server that is none of RabbitMQ's.

mod client;
mod server_settings;
mod settings;
mod words;

pub use client::{Answer, Client, LARGEST_ANSWER};
pub use settings::{ConnectionIdentity, ConnectionSettings};
