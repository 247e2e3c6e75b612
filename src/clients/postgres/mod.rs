//! How to reach a PostgreSQL server, ask it safely, and say what went wrong in words that help.
//!
//! The sampler and the built-in projector both build on it. It knows how a spec describes an event table and with which reasons a condition tells
//! what went wrong, and nothing of samples or workers. Identifiers come in as the user wrote them and leave quoted; a password leaves only towards the server.

mod certificates;
mod classify;
mod column_types;
mod connect;
mod database;
mod libpq;
mod p521;
mod parameters;
mod pooled;
mod quote;
pub(crate) mod row_security;
mod secret_keys;
mod server_settings;
mod settings;
mod socket;
mod sqlstate;
mod statement;
mod tls;
mod users_query;
mod words;

pub use classify::classify;
pub use column_types::{ColumnType, column_types};
pub use connect::{ConnectError, Session, connect};
pub use database::{APPLICATION_NAME, Database, Lease, Live};
pub use quote::{quote_identifier, quote_table, shard_expression};
pub use settings::{ConnectionIdentity, ConnectionSettings};
pub use statement::{Query, reading, reading_and_undoing, reading_one_moment};
pub use users_query::UsersQuery;
pub use words::{is_stale_plan, named, repeatable};
