//! How to reach a PostgreSQL server, ask it safely, and say what went wrong in words that help.
//!
//! The sampler and the built-in projector both build on it. It knows how a spec describes an event table and with which reasons a condition tells
//! what went wrong, and nothing of samples or workers. Identifiers come in as the user wrote them and leave quoted; a password leaves only towards the server.

mod certificates;
mod classify;
pub mod columns;
mod connect;
mod database;
mod expression;
pub(crate) mod gaps;
mod log_error;
mod ordering;
mod p521;
mod parameters;
mod pooled;
mod positions;
mod quote;
pub(crate) mod row_security;
pub mod safe_head;
mod secret_keys;
mod settings;
mod sqlstate;
mod statement;
mod tls;
mod words;

pub use classify::classify;
pub use connect::{ConnectError, Session, connect};
pub use database::{APPLICATION_NAME, Database, Lease, Live};
pub use expression::{ExpressionError, check_expression};
pub use log_error::LogError;
pub use quote::{quote_identifier, quote_table, shard_expression};
pub use settings::{ConnectionIdentity, ConnectionSettings};
pub use statement::{Query, reading};
pub use words::{is_stale_plan, named, repeatable};
