//! How to reach a Redis server, ask it many questions in one round trip, and say what went wrong in words that help.
//!
//! The protocol (RESP2) is spoken here and not by a library, since replies of Redis have no upper size, and none of the libraries can be told one:
//! a stream's entries come with their bodies, which may be 512 MB each. The decoder keeps the beginning of each text and skips the rest, so that
//! a reply takes a bounded amount of memory and of the network, whatever is in it. Callers send commands that read, and one script that switches a version.

mod client;
mod protocol;
mod server_settings;
mod settings;
mod tls;
mod words;

pub use client::{Client, Command};
pub use protocol::Reply;
pub use settings::{ConnectionIdentity, ConnectionSettings};
pub use words::refusal;
