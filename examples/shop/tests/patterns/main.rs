//! The shop's patterns on real servers: what a repeated request, a second writer, a killed worker and a busy cache must not change.
#![allow(clippy::unwrap_used, clippy::panic)]

mod cache;
mod commands;
mod messages;
mod programs;
mod rates;
mod requests;
mod sagas;
mod servers;
mod write_side;
