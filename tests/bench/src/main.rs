//! `make bench`: installs the operator on a cluster of its own and measures what it costs and how fast it is.
//!
//! Every figure of a comparison comes from one run on one machine; read ratios rather than milliseconds.
#![allow(clippy::print_stdout)]

mod availability;
#[path = "../../support/event_stores.rs"]
#[allow(clippy::unwrap_used)]
mod event_stores;
mod faulty_sources;
mod fixtures;
mod freshness;
mod kill_switch;
mod kinds;
mod load;
mod memory;
mod operator_pages;
mod own_share;
mod projector;
mod reads;
mod soak;
mod static_server;
mod wake;
mod writes;

use std::time::Duration;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use test_cluster::{Cluster, ClusterOptions};

use fixtures::Fixtures;

/// What the controller manager gets beyond its defaults, with which it would look at a thousand HPAs for longer than its period.
const CONTROLLER_FLAGS: [&str; 3] =
    ["--concurrent-horizontal-pod-autoscaler-syncs=50", "--kube-api-qps=500", "--kube-api-burst=1000"];

/// So many events are handled for each figure of the built-in projector.
const PROJECTED_EVENTS: u32 = 100_000;

/// What to measure with.
#[derive(Clone, Debug, Parser)]
struct Options {
    /// Projections in the cluster while reads are measured
    #[arg(long, default_value_t = 1_000)]
    projections: usize,
    /// Seconds of each load
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Seconds over which writes at rest are counted
    #[arg(long, default_value_t = 60)]
    rest_seconds: u64,
    /// Seconds of reads at 300 a second while the operator is upgraded, killed and led by another
    #[arg(long, default_value_t = 200)]
    availability_seconds: u64,
    /// Seconds of `--only soak`: memory under reads, and what the API server logs about us meanwhile
    #[arg(long, default_value_t = 3_600)]
    soak_seconds: u64,
    /// Reads a second of `--only soak`
    #[arg(long, default_value_t = 700)]
    soak_rate: u32,
    /// Only these figures, besides memory; all but the soak, which takes an hour, unless it is named
    #[arg(long, value_delimiter = ',')]
    only: Vec<Figure>,
}

/// A group of figures.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Figure {
    Reads,
    Availability,
    Freshness,
    Writes,
    Projector,
    Autoscalers,
    Wake,
    KillSwitch,
    FaultySources,
    Kinds,
    Soak,
}

impl Options {
    fn measures(&self, figure: Figure) -> bool {
        (self.only.is_empty() && figure != Figure::Soak) || self.only.contains(&figure)
    }
}

fn main() -> Result<()> {
    let options = Options::parse();
    let audit = writes::Audit::prepare()?;
    let cluster_options =
        audit.flags().into_iter().fold(ClusterOptions::default(), |all, flag| all.api_server_flag(&flag));
    let cluster_options = CONTROLLER_FLAGS.iter().fold(cluster_options, |all, flag| all.controller_manager_flag(flag));
    let cluster = Cluster::start(&cluster_options)?;
    let measured = cluster.block_on(measure(&cluster, &audit, &options))?;
    cluster.stop()?;
    measured
}

async fn measure(cluster: &Cluster, audit: &writes::Audit, options: &Options) -> Result<()> {
    let fixtures = Fixtures::set(cluster).await?;
    println!("machine: {} processors; one node, two replicas of the operator", std::thread::available_parallelism()?);
    println!("the HPA controller: {}\n", CONTROLLER_FLAGS.join(" "));

    println!("memory of a replica (resident)");
    let idle = memory::settled().await?;
    println!("  no Projection: {idle}");

    fixtures.create_measured(options.projections).await?;
    let full = memory::settled().await?;
    println!("  {} Projections: {full} (goal: 30 MiB + 15 MiB per 1,000)\n", options.projections);

    // What new Projections bring with them is over before anything is measured.
    tokio::time::sleep(writes::SETTLE).await;
    if options.measures(Figure::Writes) {
        writes::at_rest(audit, &fixtures, Duration::from_secs(options.rest_seconds)).await?;
    }
    if options.measures(Figure::Reads) {
        let static_server = static_server::start(&fixtures).await?;
        reads::compare(&fixtures, &static_server, options.projections, Duration::from_secs(options.seconds)).await?;
    }
    if options.measures(Figure::Soak) {
        let length = Duration::from_secs(options.soak_seconds);
        soak::under_load(&fixtures, options.projections, options.soak_rate, length).await?;
    }
    if options.measures(Figure::Availability) {
        let length = Duration::from_secs(options.availability_seconds);
        availability::through_disturbances(&fixtures, options.projections, length).await?;
    }
    if options.measures(Figure::Freshness) {
        freshness::append_to_metric(&fixtures).await?;
        freshness::checkpoint_to_awaited(&fixtures).await?;
    }
    if options.measures(Figure::Projector) {
        projector::measure(PROJECTED_EVENTS).await?;
    }
    if options.measures(Figure::Wake) {
        wake::from_append_to_workers(cluster).await?;
    }
    if options.measures(Figure::KillSwitch) {
        kill_switch::from_the_word_to_no_worker(cluster, &fixtures.postgres).await?;
    }
    if options.measures(Figure::FaultySources) {
        faulty_sources::beside_others(cluster, options.projections, Duration::from_secs(options.seconds)).await?;
    }
    if options.measures(Figure::Autoscalers) {
        fixtures.catch_up().await?;
        fixtures.delete_measured().await?;
        let before = audit.mark()?;
        fixtures.time_to_autoscalers(options.projections).await?;
        println!("  what the operator wrote meanwhile: {}", audit.since(before)?);
    }
    if options.measures(Figure::Kinds) {
        fixtures.delete_measured().await?;
        kinds::memory_with_all(cluster).await?;
    }
    Ok(())
}
