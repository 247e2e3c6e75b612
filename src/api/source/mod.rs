//! The kinds of event sources besides PostgreSQL: one file a kind, with the rules that the API server checks beside the fields.

mod redis;

pub use redis::{RedisSource, StreamGroup};
