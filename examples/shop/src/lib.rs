//! A small shop: commands are appended as events, a saga brings each order to its end, and read models are what Projections make of the events.
//!
//! Each module is one pattern, to be read and copied on its own:
//!
//! | module | pattern |
//! |---|---|
//! | [`command_bus`] | typed commands with one handler each |
//! | [`event_store`] | events in PostgreSQL, with optimistic concurrency |
//! | [`idempotency_key`] | a repeated request gets the first answer |
//! | [`outbox`] | messages are committed with the events, and sent afterwards |
//! | [`saga`] | steps across services, with compensation |
//! | [`competing_consumers`] | several workers on one queue, each message once |
//! | [`read_through_cache`] | Redis in front of a slow query |
//! | [`rate_limit`] | a token bucket in Redis |
//! | [`read_your_writes`] | waiting until a read model shows what was written |
//! | [`kill_switch`] | Projections are suspended by label |
//!
//! [`orders`], [`catalogue`] and [`participants`] are the shop itself, and [`checkout`] is where the patterns of the write side meet. [`api`] answers requests.

pub mod api;
pub mod brokers;
pub mod catalogue;
pub mod check;
pub mod checkout;
pub mod command_bus;
pub mod competing_consumers;
pub mod database;
pub mod event_store;
pub mod idempotency_key;
pub mod json_client;
pub mod kill_switch;
pub mod load;
pub mod orders;
pub mod outbox;
pub mod participants;
pub mod rate_limit;
pub mod read_through_cache;
pub mod read_your_writes;
pub mod saga;
pub mod tls;
