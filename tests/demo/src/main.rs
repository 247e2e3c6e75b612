//! `make demo`: the orders example on a real cluster of its own, under a load that one worker cannot bear.
//!
//! Brings everything up, drives the load, shows a live table and a plot, and fails if the read model is not what the events say.
//! Nothing stays behind, also after Ctrl-C: the cluster ends with the process that owns it.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod check;
mod load;
mod shop;
mod watch;

use std::{process::ExitCode, time::Instant};

use anyhow::{Result, bail};
use clap::Parser;
use demo::{plot, step, table};
use projectionist::api::HumanDuration;
use test_cluster::{Cluster, ClusterOptions, Instance, Postgres};

/// Width of the plots, in characters.
const PLOT_WIDTH: usize = 100;

/// Workers scaled by lag, on a real Kubernetes and a real PostgreSQL
#[derive(Clone, Debug, Parser)]
#[command(name = "demo", version)]
pub(crate) struct Options {
    /// Events a second at first
    #[arg(long, default_value_t = 20.0)]
    steady_rate: f64,
    /// For so many seconds
    #[arg(long, default_value_t = 30)]
    steady_seconds: u64,
    /// Then events a second in the burst; one worker handles 40 to 50
    #[arg(long, default_value_t = 250.0)]
    burst_rate: f64,
    /// For so many seconds
    #[arg(long, default_value_t = 30)]
    burst_seconds: u64,
    /// Then events a second in the quiet
    #[arg(long, default_value_t = 2.0)]
    quiet_rate: f64,
    /// For at most so many seconds; it ends earlier when the workers are back at their minimum
    #[arg(long, default_value_t = 150)]
    quiet_seconds: u64,
    /// What one event costs the database, in milliseconds, so that one worker has a known capacity
    #[arg(long, default_value_t = 20)]
    event_milliseconds: u32,
    /// The lag target: no event may wait longer
    #[arg(long, default_value = "10s")]
    target: HumanDuration,
    /// The most workers there may be
    #[arg(long, default_value_t = 8)]
    max_workers: i32,
    /// Keep cluster and database up afterwards, until Ctrl-C, to look around
    #[arg(long)]
    keep: bool,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\ndemo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    let started = Instant::now();
    let image = test_cluster::images::image()?;
    let instance = Instance::new("demo", None)?;
    let cluster = Cluster::start_named(&instance, &ClusterOptions::default())?;
    step(started, "a Kubernetes node is up; its autoscaler looks every 15 s, as by default");
    cluster.import_image(&image)?;
    let postgres = cluster.postgres()?;
    step(started, "PostgreSQL is up");
    cluster.install_operator(&[])?;
    step(started, "helm installed the operator; the metrics API is available");

    let played = cluster.block_on(async {
        let interrupted = tokio::signal::ctrl_c();
        let played = tokio::select! {
            played = play(&cluster, &postgres, options, started) => played,
            _ = interrupted => bail!("interrupted: taking the cluster down"),
        };
        if options.keep {
            if let Err(error) = &played {
                eprintln!("\ndemo: {error:#}");
            }
            look_around(&cluster).await?;
        }
        played
    })?;
    drop(postgres);
    let stopped = cluster.stop();
    // Why it failed matters more than what was left behind.
    played.and(stopped)
}

/// Load, table, plot, verdict.
async fn play(cluster: &Cluster, postgres: &Postgres, options: &Options, started: Instant) -> Result<()> {
    let shop = shop::Shop::open(cluster, postgres, options).await?;
    step(started, "the shop is open: an events table, a Projection, a first worker ready\n");

    let (phase, phase_now) = tokio::sync::watch::channel(load::Phase::Steady);
    let (enough, no_more) = tokio::sync::watch::channel(false);
    let loading = load::run(&shop.events, options, &phase, no_more);
    let watching = watch::run(&shop, options, phase_now, &enough);
    let (appended, watched) = tokio::try_join!(loading, watching)?;

    let target = options.target.0.as_secs_f64();
    println!("\n{}", plot::plot(&watched.samples, target, PLOT_WIDTH));
    if !watched.shown.is_empty() {
        println!("In the middle of the burst:\n\n{}", watched.shown);
    }
    let verdict = check::check(&shop, appended).await?;
    println!("{}", check::report(&verdict, &table::missed(&watched.samples, target), &options.target));
    if verdict.is_sound() { Ok(()) } else { bail!("the read model differs from the events") }
}

async fn look_around(cluster: &Cluster) -> Result<()> {
    let name = cluster.instance().name();
    let bed = test_cluster::program()?;
    let bed = bed.display();
    println!(
        "\nThe cluster stays up until Ctrl-C. In another terminal:\n  \
         {bed} shell --name {name}\n  \
         kubectl get projections -n {}",
        shop::NAMESPACE
    );
    tokio::signal::ctrl_c().await?;
    Ok(())
}
