//! `make demo-shop`: examples/shop with all its servers on a real cluster of its own, under a load with a sale in the middle and with faults.
//!
//! Fails if a command was not answered, or if read models, notifications or sagas are not what the events say. Nothing stays behind, also after Ctrl-C.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod faults;
mod programs;
mod stage;
mod watch;

use std::{process::ExitCode, time::Duration, time::Instant};

use anyhow::{Result, bail};
use clap::Parser;
use demo::{plot, step, table};
use test_cluster::{Cluster, ClusterOptions, Instance};

use stage::{Servers, Stage};

/// Width of the plots, in characters.
const PLOT_WIDTH: usize = 100;

/// A shop of commands, events and read models, on a real Kubernetes and real servers
#[derive(Clone, Debug, Parser)]
#[command(name = "demo-shop", version)]
pub(crate) struct Options {
    /// Commands a second, before and after the sale
    #[arg(long, default_value_t = 3.0)]
    rate: f64,
    /// How many times as many come in the sale
    #[arg(long, default_value_t = 10.0)]
    sale: f64,
    /// How long the time before, in and after the sale lasts, in seconds each
    #[arg(long, default_value_t = 40)]
    seconds: u64,
    /// Let nothing fail
    #[arg(long)]
    without_faults: bool,
    /// Keep cluster and servers up afterwards, until Ctrl-C, to look around
    #[arg(long)]
    keep: bool,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\ndemo-shop: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    let started = Instant::now();
    let images = [test_cluster::images::image()?, test_cluster::images::shop()?];
    let cluster = Cluster::start_named(&Instance::new("demo-shop", None)?, &ClusterOptions::default())?;
    for image in &images {
        cluster.import_image(image)?;
    }
    step(started, "a Kubernetes node is up");
    let servers = Servers::start(&cluster)?;
    step(started, "PostgreSQL, Redis, Kafka, RabbitMQ and Elasticsearch are up");
    cluster.install_operator(&[])?;
    step(started, "helm installed the operator; the metrics API is available");
    let played = cluster.block_on(async {
        let interrupted = tokio::signal::ctrl_c();
        let played = tokio::select! {
            played = play(&cluster, servers, options, started) => played,
            _ = interrupted => bail!("interrupted: taking the cluster down"),
        };
        if options.keep {
            if let Err(error) = &played {
                eprintln!("\ndemo-shop: {error:#}");
            }
            println!(
                "\nThe cluster stays up until Ctrl-C: {} shell --name demo-shop",
                test_cluster::program()?.display()
            );
            tokio::signal::ctrl_c().await?;
        }
        played
    })?;
    let stopped = cluster.stop();
    // Why it failed matters more than what was left behind.
    played.and(stopped)
}

/// Load, faults, plots, verdict.
async fn play(cluster: &Cluster, servers: Servers, options: &Options, started: Instant) -> Result<()> {
    let mut stage = Stage::open(cluster, servers).await?;
    step(started, "the shop is open: an API, six Projections, a worker of each ready\n");
    let load = programs::load(options);
    cluster.apply(&load.to_string())?;
    let part = Duration::from_secs(options.seconds);
    let (client, lock) = (stage.client.clone(), stage.servers.postgres.connect(stage::READS).await?);
    let faults = async {
        if options.without_faults {
            Ok(())
        } else {
            faults::play(&client, &lock, &mut stage.servers.rabbitmq, part).await
        }
    };
    // A task of its own, which looks on while a fault blocks this one.
    let watching = tokio::spawn(watch::until_done(client.clone(), part));
    let (played, watched) = tokio::join!(faults, watching);
    let watched = watched?.map_err(|error| cluster.explain(&error, stage::NAMESPACE))?;
    played.map_err(|error| cluster.explain(&error, stage::NAMESPACE))?;
    let loaded = programs::ended(cluster, &client, "load").await?;
    println!("{}", loaded.printed);

    cluster.apply(&programs::check().to_string())?;
    let checked = programs::ended(cluster, &client, "check").await?;
    for (projection, samples) in &watched {
        println!("\n{projection}\n{}", plot::plot(samples, projection.target, PLOT_WIDTH));
    }
    for (projection, samples) in &watched {
        println!("{}", watch::summary(projection, &table::missed(samples, projection.target), samples));
    }
    println!("\n{}", checked.printed);
    step(started, "the end");
    if loaded.succeeded && checked.succeeded { Ok(()) } else { bail!("the shop is not as it should be") }
}
