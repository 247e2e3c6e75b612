//! The shop's programs in one image: `shop api`, `shop relay`, `shop saga`, `shop notifications`. Each ends when something that it stands on fails, and its Pod starts again.
//! `shop load` plays customers, and `shop check` says whether all is as the events say; both end with status 1 where it is not.
#![allow(clippy::print_stdout)]

use std::{net::SocketAddr, num::NonZeroUsize, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, Subcommand};
use shop::{
    api::{self, Api},
    brokers::{self, Brokers},
    check::{self, found::Sources},
    checkout,
    competing_consumers::{self, Notifier},
    database::{Database, Pool},
    json_client::JsonClient,
    load::{self, Score},
    orders, outbox,
    participants::Services,
    rate_limit::RateLimit,
    read_through_cache::ReadThroughCache,
    read_your_writes::Operator,
    saga::{self, Progress},
    tls,
};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    time::sleep,
};

/// How long a saga worker rests when no order is due.
const REST: Duration = Duration::from_millis(50);
/// How long an answer about stock is kept that nothing invalidates.
const CACHE_EXPIRY: Duration = Duration::from_secs(60);

/// A small shop
#[derive(Parser)]
#[command(name = "shop", version)]
struct Arguments {
    #[command(subcommand)]
    program: Program,
}

/// The write side.
#[derive(clap::Args)]
struct Writes {
    /// Its connection string
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    database_url: String,
    #[command(flatten)]
    servers: Servers,
}

/// Who is believed.
#[derive(clap::Args)]
struct Servers {
    /// The authority of the servers' certificates, in PEM; without it, TLS is not spoken to PostgreSQL
    #[arg(long, env = "SERVERS_CA")]
    servers_ca: Option<String>,
}

impl Servers {
    fn authority(&self) -> Option<&str> {
        self.servers_ca.as_deref()
    }
}

#[derive(Subcommand)]
enum Program {
    /// Answers requests
    Api(ApiArguments),
    /// Sends what is in the outbox
    Relay {
        #[command(flatten)]
        writes: Writes,
        /// Kafka's brokers
        #[arg(long, env = "KAFKA_BROKERS")]
        kafka: String,
        /// RabbitMQ
        #[arg(long, env = "AMQP_URL", hide_env_values = true)]
        amqp: String,
    },
    /// Brings orders to their end
    Saga(Writes),
    /// Tells customers how their orders ended
    Notifications {
        #[command(flatten)]
        writes: Writes,
        /// RabbitMQ
        #[arg(long, env = "AMQP_URL", hide_env_values = true)]
        amqp: String,
        /// Which worker it is
        #[arg(long, env = "HOSTNAME")]
        name: String,
    },
    /// Plays customers: mixed commands, with a sale in the middle
    Load {
        /// The API
        #[arg(long, env = "API_URL")]
        api: String,
        /// Commands a second, before and after the sale
        #[arg(long, default_value_t = 3.0)]
        rate: f64,
        /// How many times as many come in the sale
        #[arg(long, default_value_t = 10.0)]
        sale: f64,
        /// How long each of the three parts lasts, in seconds
        #[arg(long, default_value_t = 40)]
        seconds: u64,
    },
    /// Checks that read models, sagas and notifications are what the events say
    Check {
        #[command(flatten)]
        writes: Writes,
        #[command(flatten)]
        reads: Reads,
        /// The index of the order search
        #[arg(long, env = "SEARCH_URL", hide_env_values = true)]
        search: String,
        /// How long read models may take to catch up, in seconds
        #[arg(long, default_value_t = 120)]
        patience: u64,
    },
}

/// The read stores that queries are answered from.
#[derive(clap::Args)]
struct Reads {
    /// The read store of the order summary
    #[arg(long, env = "READS_URL", hide_env_values = true)]
    reads_url: String,
    /// Product cards, the cache, and rates
    #[arg(long, env = "REDIS_URL", hide_env_values = true)]
    redis: String,
}

#[derive(clap::Args)]
struct ApiArguments {
    #[command(flatten)]
    writes: Writes,
    #[command(flatten)]
    reads: Reads,
    /// Where to listen
    #[arg(long, env = "LISTEN", default_value = "0.0.0.0:8080")]
    listen: SocketAddr,
    /// Connections to each database
    #[arg(long, env = "CONNECTIONS", default_value = "8")]
    connections: NonZeroUsize,
    /// Requests a second of one client
    #[arg(long, env = "RATE", default_value_t = 50.0)]
    rate: f64,
    /// Requests of one client at once
    #[arg(long, env = "BURST", default_value_t = 100)]
    burst: u32,
    /// The operator's API
    #[arg(long, env = "OPERATOR_URL", default_value = "https://projectionist.projectionist.svc")]
    operator: String,
    /// The authority of its certificate, in PEM
    #[arg(long, env = "OPERATOR_CA")]
    operator_ca: String,
    /// The namespace of the Projections
    #[arg(long, env = "NAMESPACE")]
    namespace: String,
    /// The ServiceAccount's token
    #[arg(long, env = "TOKEN", default_value = "/var/run/secrets/kubernetes.io/serviceaccount/token")]
    token: PathBuf,
}

#[tokio::main]
async fn main() -> Result<()> {
    // First of all: the first process of a container is not ended by a signal that it has no handler for.
    let mut ends = signal(SignalKind::terminate())?;
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let program = Arguments::parse().program;
    let works = async {
        match program {
            Program::Api(given) => serve(given).await,
            Program::Relay { writes, kafka, amqp } => relay(&writes, &kafka, &amqp).await,
            Program::Saga(writes) => bring_to_their_ends(writes.database()?).await,
            Program::Notifications { writes, amqp, name } => notify(&writes, &amqp, name).await,
            Program::Load { api, rate, sale, seconds } => {
                play(&api, &Score { rate, sale, part: Duration::from_secs(seconds) }).await
            }
            Program::Check { writes, reads, search, patience } => {
                check_all(&writes, &reads, search, Duration::from_secs(patience)).await
            }
        }
    };
    // Whatever is half done is done again by another one: that is what the patterns are for.
    tokio::select! {
        ended = works => ended,
        _ = ends.recv() => Ok(()),
    }
}

impl Writes {
    fn database(&self) -> Result<Database> {
        Ok(Database::new(&self.database_url, self.servers.authority())?)
    }
}

async fn serve(given: ApiArguments) -> Result<()> {
    let writes = given.writes.database()?;
    let authority = given.writes.servers.authority();
    let reads = Database::new(&given.reads.reads_url, authority)?;
    let redis = api::connect_redis(&given.reads.redis, authority).await.context("connecting to Redis")?;
    let api = Api {
        bus: checkout::commands()?,
        writes: Pool::new(writes, given.connections),
        reads: Pool::new(reads, given.connections),
        cache: ReadThroughCache::new(redis.clone(), CACHE_EXPIRY),
        redis,
        limit: RateLimit { per_second: given.rate, burst: given.burst },
        operator: Operator::new(given.operator, tls::trust(&given.operator_ca)?, given.namespace, given.token),
    };
    let listener = TcpListener::bind(given.listen).await.with_context(|| format!("listening at {}", given.listen))?;
    warp::serve(api::routes(Arc::new(api))).incoming(listener).run().await;
    Ok(())
}

async fn relay(writes: &Writes, kafka: &str, amqp: &str) -> Result<()> {
    let client = writes.database()?.connect().await?;
    outbox::wait_for_turn(&client).await?;
    // Only now: connecting to Kafka ends the transactions of the relay before.
    let mut brokers = Brokers::connect(kafka, amqp, writes.servers.authority()).await?;
    match outbox::relay(&client, &mut brokers).await? {}
}

async fn bring_to_their_ends(database: Database) -> Result<()> {
    let mut client = database.connect().await?;
    let services = Services::new(Pool::new(database, NonZeroUsize::MIN));
    loop {
        match saga::step(&mut client, &services).await {
            Ok(Progress::Nothing) => sleep(REST).await,
            Ok(Progress::Stepped | Progress::Overtaken) => {}
            // The order is tried again when its lease ends; others are not held up.
            Err(error) if !client.is_closed() => tracing::warn!("{error}"),
            Err(error) => return Err(error.into()),
        }
    }
}

async fn notify(writes: &Writes, amqp: &str, name: String) -> Result<()> {
    let mut notifier = Notifier::new(writes.database()?.connect().await?, name);
    let connection = brokers::connect(amqp, writes.servers.authority()).await?;
    let channel = connection.create_channel().await?;
    match competing_consumers::consume(&channel, orders::NOTIFICATIONS, &mut notifier).await? {}
}

async fn play(url: &str, score: &Score) -> Result<()> {
    let played = load::play(&JsonClient::new(tls::trust_nothing()?), url, score).await;
    println!("{played}");
    ensure!(played.is_sound(), "not every command was answered, or a read model was said to show what it did not");
    Ok(())
}

async fn check_all(writes: &Writes, reads: &Reads, search: String, patience: Duration) -> Result<()> {
    let authority = writes.servers.authority();
    let pool = |database| Pool::new(database, NonZeroUsize::MIN);
    let sources = Sources {
        writes: pool(writes.database()?),
        reads: pool(Database::new(&reads.reads_url, authority)?),
        redis: api::connect_redis(&reads.redis, authority).await.context("connecting to Redis")?,
        http: JsonClient::new(authority.map_or_else(tls::trust_nothing, tls::trust)?),
        search,
    };
    let (expected, differences) = check::check(&sources, patience).await?;
    let (orders, products) = (expected.orders.len(), expected.products.len());
    println!("{} events of {orders} orders and {products} products", expected.events);
    differences.iter().take(20).for_each(|difference| println!("  {difference}"));
    ensure!(differences.is_empty(), "{} things are not as the events say", differences.len());
    println!("order summary, product cards and order search are what the events say");
    println!("every order has ended, and each customer was told once");
    Ok(())
}
