//! A consumer of a stream in Redis, as the client library's users write one: a member of a consumer group that reads small batches, takes its time over
//! each entry by sleeping, and acknowledges it in the transaction that records it.
//!
//! What it records: the hash `<stream>:handled` (by entry, how many times it was handled) and `<stream>:handled-by` (by consumer, how many entries). Told to
//! end, it finishes the entry at hand. The rest of its batch stays pending, as what a consumer held that was killed does, until another member claims it.

use std::time::Duration;

use anyhow::{Context, Result};
use redis::{
    AsyncCommands, AsyncConnectionConfig, Client,
    aio::MultiplexedConnection,
    streams::{StreamAutoClaimOptions, StreamAutoClaimReply, StreamId, StreamReadOptions, StreamReadReply},
};
use tokio::{
    signal::unix::Signal,
    time::{Instant, sleep},
};

/// Entries that one read brings at most.
const BATCH: usize = 10;
/// How long a read waits for the first of them.
const BLOCK: Duration = Duration::from_millis(500);
/// How long the server may take over an answer, which includes the wait of a read.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// What it is told by its environment.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// `REDIS_URL`.
    server: String,
    /// `STREAM`: the stream's key.
    stream: String,
    /// `GROUP`: the consumer group, which is made if it is missing.
    group: String,
    /// `CONSUMER`, or the host's name, which is the pod's.
    consumer: String,
    /// `COST_MS`: how long each entry takes.
    cost: Duration,
    /// `CLAIM_AFTER_MS`: entries that others have held for so long are taken over.
    claim_after: Duration,
}

impl Settings {
    /// `None` without `STREAM`.
    pub(crate) fn from_environment() -> Result<Option<Self>> {
        let variable = |name: &str| std::env::var(name).ok();
        let text = |name: &str| variable(name).with_context(|| format!("{name} is not set"));
        let millis = |name: &str, usual: u64| -> Result<Duration> {
            let millis = variable(name).map_or(Ok(usual), |text| text.parse()).with_context(|| name.to_owned())?;
            Ok(Duration::from_millis(millis))
        };
        let Some(stream) = variable("STREAM") else { return Ok(None) };
        Ok(Some(Self {
            server: text("REDIS_URL")?,
            stream,
            group: text("GROUP")?,
            consumer: variable("CONSUMER").or_else(|| variable("HOSTNAME")).context("CONSUMER is not set")?,
            cost: millis("COST_MS", 25)?,
            claim_after: millis("CLAIM_AFTER_MS", 20_000)?,
        }))
    }
}

/// Consumes until it is told to end.
///
/// # Errors
/// When the server is away or refuses a command.
pub(crate) async fn consume(settings: &Settings, ends: &mut Signal) -> Result<()> {
    let mut member = Member::join(settings).await?;
    while !is_told(ends).await {
        for entry in member.next().await? {
            sleep(settings.cost).await;
            member.record(&entry.id).await?;
            if is_told(ends).await {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Whether it has been told to end.
pub(crate) async fn is_told(ends: &mut Signal) -> bool {
    tokio::select! {
        biased;
        _ = ends.recv() => true,
        () = std::future::ready(()) => false,
    }
}

struct Member<'a> {
    settings: &'a Settings,
    connection: MultiplexedConnection,
    /// When there was nothing to claim.
    looked: Option<Instant>,
}

impl<'a> Member<'a> {
    async fn join(settings: &'a Settings) -> Result<Self> {
        let client = Client::open(settings.server.as_str()).context("REDIS_URL")?;
        let config = AsyncConnectionConfig::new().set_response_timeout(Some(ANSWER_WITHIN));
        let connection = client.get_multiplexed_async_connection_with_config(&config).await;
        let mut connection = connection.context("connecting to Redis")?;
        let made: redis::RedisResult<()> =
            connection.xgroup_create_mkstream(&settings.stream, &settings.group, "0").await;
        match made {
            Err(error) if error.code() != Some("BUSYGROUP") => Err(error).context("making the group"),
            _ => Ok(Self { settings, connection, looked: None }),
        }
    }

    /// Entries to handle: of consumers that are gone, or new ones. None if none came for a moment.
    async fn next(&mut self) -> Result<Vec<StreamId>> {
        let Settings { stream, group, consumer, claim_after, .. } = self.settings;
        if self.looked.is_none_or(|looked| looked.elapsed() >= *claim_after / 4) {
            let (idle, options) = (u64::try_from(claim_after.as_millis())?, StreamAutoClaimOptions::default());
            let claim = self.connection.xautoclaim_options(stream, group, consumer, idle, "0", options.count(BATCH));
            let reply: StreamAutoClaimReply = claim.await.context("claiming entries")?;
            if !reply.claimed.is_empty() {
                return Ok(reply.claimed);
            }
            self.looked = Some(Instant::now());
        }
        let options = StreamReadOptions::default().group(group, consumer).count(BATCH);
        let options = options.block(usize::try_from(BLOCK.as_millis())?);
        let read = self.connection.xread_options(&[stream], &[">"], &options).await;
        let reply: Option<StreamReadReply> = read.context("reading the stream")?;
        Ok(reply.unwrap_or_default().keys.into_iter().flat_map(|key| key.ids).collect())
    }

    async fn record(&mut self, entry: &str) -> Result<()> {
        let Settings { stream, group, consumer, .. } = self.settings;
        redis::pipe()
            .atomic()
            .hincr(format!("{stream}:handled"), entry, 1)
            .hincr(format!("{stream}:handled-by"), consumer, 1)
            .xack(stream, group, &[entry])
            .exec_async(&mut self.connection)
            .await
            .with_context(|| format!("recording the entry {entry}"))
    }
}
