//! `make bench-projector`: the figures of the built-in projector alone, which need no cluster.
#![allow(clippy::print_stdout)]

#[path = "../../support/event_stores.rs"]
#[allow(clippy::unwrap_used)]
mod event_stores;
mod projector;

use anyhow::Result;
use clap::Parser;

/// What to measure with.
#[derive(Clone, Debug, Parser)]
struct Options {
    /// Events for each figure
    #[arg(long, default_value_t = 100_000)]
    events: u32,
}

#[tokio::main]
async fn main() -> Result<()> {
    projector::measure(Options::parse().events).await
}
