//! How to reach a Redis server or a Redis Cluster, ask it many questions in one round trip, and say what went wrong in words that help.
//!
//! The protocol (RESP2) is spoken here and not by a library, since replies of Redis have no upper size, and none of the libraries can be told one:
//! a stream's entries come with their bodies, which may be 512 MB each. The decoder keeps the beginning of each text and skips the rest, so that
//! a reply takes a bounded amount of memory and of the network, whatever is in it. Callers send commands that read, and one script that switches a version.

mod address;
mod client;
mod cluster;
mod command;
mod connection;
mod link;
mod protocol;
mod sentinel;
mod server_settings;
mod settings;
mod slots;
mod tls;
mod words;
mod written;

pub use client::Client;
pub use command::{Answered, Command, ServerAnswer};
pub use protocol::{Bounds, Reply};
pub use settings::{ConnectionIdentity, ConnectionSettings};
pub use words::refusal;
