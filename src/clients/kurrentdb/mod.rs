//! How to reach KurrentDB (EventStoreDB), ask it by gRPC over one HTTP/2 connection, and say what went wrong in words that help.
//!
//! Only reads: `Streams/Read` and `PersistentSubscriptions/List`. Only servers that the Secret names are connected to, also where a server tells of another one
//! that leads the cluster, so that the credential goes only to the endpoint that it came with.

mod client;
mod connection;
mod grpc;
mod messages;
mod server_settings;
mod settings;
mod words;

pub use client::{Client, Filter, Page, Read, Recorded, Request, Response, Start};
pub use messages::{Consumer, Subscription};
pub use settings::{ConnectionIdentity, ConnectionSettings};
