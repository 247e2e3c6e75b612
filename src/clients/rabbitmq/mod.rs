//! How to reach the management API of a RabbitMQ server, ask it over one connection, and say what went wrong in words that help.
//!
//! And how to ask about streams, of which the management API tells too little, and how workers take messages. Of HTTP only GET, and only below `/api/`. Nothing of an answer's body is repeated in a message: a URL may lead to a server that is none of RabbitMQ's.

mod amqp;
mod client;
mod frames;
mod server_settings;
mod settings;
mod stream;
mod words;

pub use amqp::{Body, Bounds, Message, Properties, Subscriber};
pub use client::{Answer, Client, LARGEST_ANSWER};
pub use frames::{Call, Chunk, Place};
pub use settings::{ConnectionIdentity, ConnectionSettings};
pub use stream::{StreamClient, Told};
