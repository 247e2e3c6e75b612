//! How to reach KurrentDB (EventStoreDB), ask it by gRPC over one HTTP/2 connection, and say what went wrong in words that help.
//!
//! Only reads: `Streams/Read` and `PersistentSubscriptions/List`. Only servers that the Secret names are connected to, also where a server tells of another one
//! that leads the cluster, so that the credential goes only to the endpoint that it came with.

mod client;
mod connection;
mod events;
mod grpc;
mod messages;
mod reads;
mod server_settings;
mod settings;
mod shards;
mod words;

pub use client::{Client, Page, Recorded, Request, Response};
pub use events::{Content, EventPage, LoggedEvent};
pub use messages::{Consumer, Subscription};
pub use reads::{Filter, Read, Start};
pub use settings::{ConnectionIdentity, ConnectionSettings};
pub use shards::{shard_of, stream_hash};
