//! An event store, a read store and workers: what every test begins with.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    process::{Child, Command, Stdio},
    sync::OnceLock,
    time::Duration,
};

use projectionist::{
    api::{EventRows, EventTable},
    clients::{elasticsearch, kafka, kurrentdb, nats, postgres::ConnectionSettings, rabbitmq, redis},
    projector::{
        ElasticsearchOutput, Input, Output, Poison, PostgresInput, PostgresOutput, ProjectorConfig, ProjectorError,
        QueueInput, QueueKind, RedisOutput, RunOptions, SourceConnection, StoreConnection, run,
    },
};
use test_cluster::{EventStore, Postgres, eventually_is, free_address};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::oneshot,
    task::JoinHandle,
};
use tokio_postgres::{Client, types::FromSqlOwned};

/// Generous: a passing test never waits for it, and machines are noisy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);
/// Writes down what was handled, and in which order.
pub(crate) const APPLY: &str =
    "insert into applied (position, stream, n) values (:position, :stream, (:data->>'n')::bigint)";
pub(crate) const SETUP: &str = "create table if not exists applied (
     seq bigserial, position bigint, stream text, n bigint, backend int default pg_backend_pid());
     create table if not exists totals (stream text primary key, sum numeric not null, events bigint not null)";

/// One server for all tests that neither stop nor reconfigure it.
pub(crate) fn server() -> &'static Postgres {
    static SERVER: OnceLock<Postgres> = OnceLock::new();
    SERVER.get_or_init(|| {
        // Only who asks for a log gets one: RUST_LOG=projectionist=debug.
        let _ = tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_test_writer()
            .try_init();
        Postgres::on_loopback().unwrap()
    })
}

/// A read model in Redis.
#[derive(Clone, Debug)]
pub(crate) struct RedisTarget {
    pub(crate) url: String,
    pub(crate) handlers: BTreeMap<String, Vec<Vec<String>>>,
    pub(crate) shared: bool,
}

/// A read model in Elasticsearch.
#[derive(Clone, Debug)]
pub(crate) struct SearchTarget {
    pub(crate) url: String,
    /// In PEM, where the server speaks TLS.
    pub(crate) authority: Option<String>,
    pub(crate) output: ElasticsearchOutput,
}

impl SearchTarget {
    pub(crate) fn settings(&self) -> elasticsearch::ConnectionSettings {
        let url = |key: &str| (key == "url").then_some(self.url.as_str());
        let settings = elasticsearch::ConnectionSettings::from_keys(url).unwrap();
        match &self.authority {
            Some(authority) => settings.with_ca(authority.as_bytes()),
            None => settings,
        }
    }
}

/// Two databases and what is to be done between them.
pub(crate) struct Workshop {
    pub(crate) events: EventStore,
    pub(crate) store: Client,
    /// All but what is done with the events: see [`Workshop::config`].
    pub(crate) config: ProjectorConfig,
    pub(crate) sql: PostgresOutput,
    /// Where that is set, the read model is there.
    pub(crate) redis: Option<RedisTarget>,
    /// Where that is set, the read model is there.
    pub(crate) search: Option<SearchTarget>,
    pub(crate) source_url: String,
    /// Where AMQP is spoken, of a source in RabbitMQ.
    pub(crate) amqp_port: Option<u16>,
    /// In PEM, where the source speaks TLS with a certificate of its own authority.
    pub(crate) source_authority: Option<String>,
    pub(crate) store_url: String,
}

impl Workshop {
    pub(crate) async fn open(name: &str, handler: &str) -> Self {
        Self::open_on(server(), name, handler).await
    }

    pub(crate) async fn open_on(server: &Postgres, name: &str, handler: &str) -> Self {
        let (source, store) = (format!("{name}_events"), format!("{name}_reads"));
        let source_url = server.create_database(&source).await.unwrap();
        let store_url = server.create_database(&store).await.unwrap();
        Self {
            events: EventStore::create_events_table(server, &source, "events").await.unwrap(),
            store: server.connect(&store).await.unwrap(),
            config: ProjectorConfig {
                projection: format!("shop/{name}"),
                input: Input::Postgres(PostgresInput {
                    event_table: EventTable { notify_channel: Some("events".to_owned()), ..EventTable::default() },
                    events: EventRows::All,
                    shards: 12,
                }),
                batch_size: 100,
                max_event_bytes: 1 << 20,
                coalesce: Vec::new(),
                poison: Poison::default(),
                output: Output::Postgres(PostgresOutput::default()),
            },
            sql: PostgresOutput {
                schema: None,
                setup: Some(SETUP.to_owned()),
                handlers: BTreeMap::from([("Counted".to_owned(), handler.to_owned())]),
            },
            redis: None,
            search: None,
            source_url,
            amqp_port: None,
            source_authority: None,
            store_url,
        }
    }

    /// What is read, to be changed.
    pub(crate) fn table(&mut self) -> &mut PostgresInput {
        match &mut self.config.input {
            Input::Postgres(input) => input,
            Input::Kafka(_) | Input::KurrentDb(_) | Input::Queue(_) => panic!("the events are in no table"),
        }
    }

    /// Into how many shards the streams are divided.
    pub(crate) fn shards(&self) -> u32 {
        match &self.config.input {
            Input::Postgres(input) => input.shards,
            Input::Kafka(_) | Input::KurrentDb(_) | Input::Queue(_) => panic!("the events are in no table"),
        }
    }

    /// What workers are told.
    pub(crate) fn config(&self) -> ProjectorConfig {
        let output = match (&self.redis, &self.search) {
            (Some(redis), _) => Output::Redis(RedisOutput { handlers: redis.handlers.clone(), shared: redis.shared }),
            (None, Some(search)) => Output::Elasticsearch(search.output.clone()),
            (None, None) => Output::Postgres(self.sql.clone()),
        };
        ProjectorConfig { output, ..self.config.clone() }
    }

    pub(crate) fn options(&self, worker: &str) -> RunOptions {
        let store = match (&self.redis, &self.search) {
            (Some(redis), _) => {
                let url = |key: &str| (key == "url").then_some(redis.url.as_str());
                StoreConnection::Redis(redis::ConnectionSettings::from_keys(url).unwrap())
            }
            (None, Some(search)) => StoreConnection::Elasticsearch(search.settings()),
            (None, None) => StoreConnection::Postgres(Box::new(ConnectionSettings::parse(&self.store_url).unwrap())),
        };
        let source = match &self.config.input {
            Input::Postgres(_) | Input::Queue(QueueInput { queue: QueueKind::Outbox(_), .. }) => {
                SourceConnection::Postgres(Box::new(ConnectionSettings::parse(&self.source_url).unwrap()))
            }
            Input::Kafka(_) => {
                let servers = |key: &str| (key == "bootstrapServers").then_some(self.source_url.as_str());
                SourceConnection::Kafka(kafka::Settings::from_keys(servers).unwrap())
            }
            Input::KurrentDb(_) => {
                let url = |key: &str| (key == "url").then_some(self.source_url.as_str());
                SourceConnection::KurrentDb(kurrentdb::ConnectionSettings::from_keys(url).unwrap())
            }
            Input::Queue(QueueInput { queue: QueueKind::Redis(_), .. }) => {
                let url = |key: &str| (key == "url").then_some(self.source_url.as_str());
                SourceConnection::Redis(redis::ConnectionSettings::from_keys(url).unwrap())
            }
            Input::Queue(QueueInput { queue: QueueKind::Nats(_), .. }) => {
                let url = |key: &str| (key == "url").then_some(self.source_url.as_str());
                SourceConnection::Nats(nats::ConnectionSettings::from_keys(url).unwrap())
            }
            Input::Queue(QueueInput { queue: QueueKind::RabbitMq(_), .. }) => {
                let amqp_port = self.amqp_port.unwrap().to_string();
                let value = |key: &str| match key {
                    "url" => Some(self.source_url.as_str()),
                    "amqp-port" => Some(amqp_port.as_str()),
                    _ => None,
                };
                let settings = rabbitmq::ConnectionSettings::from_keys(value).unwrap();
                SourceConnection::RabbitMq(match &self.source_authority {
                    Some(authority) => settings.with_ca(authority.as_bytes()),
                    None => settings,
                })
            }
        };
        RunOptions {
            config: self.config(),
            source,
            store,
            worker_name: worker.to_owned(),
            health_listen: None,
            give_back_after: Duration::from_millis(300),
        }
    }

    /// Starts a worker inside the test.
    pub(crate) fn start(&self, worker: &str) -> Worker {
        let address = free_address().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let options = RunOptions { health_listen: Some(address), ..self.options(worker) };
        let task = tokio::spawn(run(options, async {
            let _ = stopped.await;
        }));
        Worker { task, stop: Some(stop), health: address }
    }

    /// Starts a worker as a process of its own, as in a pod; it can be killed.
    pub(crate) fn start_process(&self, worker: &str) -> Process {
        self.start_process_that_logs(worker, "trace")
    }

    /// The same, which writes down only what goes wrong: for many side by side.
    pub(crate) fn start_quiet_process(&self, worker: &str) -> Process {
        self.start_process_that_logs(worker, "warn")
    }

    fn start_process_that_logs(&self, worker: &str, level: &str) -> Process {
        let health = free_address().unwrap();
        let files = tempfile::tempdir().unwrap();
        let output = std::fs::File::create(files.path().join("output")).unwrap();
        let config = files.path().join("projector.json");
        std::fs::write(&config, serde_json::to_string(&self.config()).unwrap()).unwrap();
        let store_url = match (&self.redis, &self.search) {
            (Some(redis), _) => &redis.url,
            (None, Some(search)) => &search.url,
            (None, None) => &self.store_url,
        };
        let authority = self.search.as_ref().and_then(|search| search.authority.as_ref());
        let child = Command::new(env!("CARGO_BIN_EXE_projectionist"))
            .args(["projector", &format!("--health-listen={health}"), "--config"])
            .arg(&config)
            .env("PROJECTIONIST_LOG_LEVEL", level)
            .env(
                match &self.config.input {
                    Input::Postgres(_) | Input::KurrentDb(_) | Input::Queue(_) => "EVENT_SOURCE_URL",
                    Input::Kafka(_) => "EVENT_SOURCE_BOOTSTRAPSERVERS",
                },
                &self.source_url,
            )
            .envs(self.amqp_port.map(|port| ("EVENT_SOURCE_AMQP_PORT", port.to_string())))
            .env("READ_STORE_URL", store_url)
            .envs(authority.map(|authority| ("READ_STORE_CA", authority)))
            .env("PROJECTION_WORKER", worker)
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap();
        Process { child, health, files }
    }

    /// One value from the read store.
    pub(crate) async fn ask<T: FromSqlOwned>(&self, query: &str) -> T {
        self.try_ask(query).await.unwrap()
    }

    pub(crate) async fn try_ask<T: FromSqlOwned>(&self, query: &str) -> anyhow::Result<T> {
        Ok(self.store.query_one(query, &[]).await?.try_get(0)?)
    }

    /// Waits until so many rows are in `applied`.
    pub(crate) async fn applied(&self, count: i64) {
        eventually_is(
            PATIENCE,
            "the events are handled",
            |seen| *seen >= count,
            || async {
                Ok::<_, anyhow::Error>(self.try_ask::<i64>("select count(*) from applied").await.unwrap_or(-1))
            },
        )
        .await
        .unwrap();
        assert_eq!(self.ask::<i64>("select count(*) from applied").await, count, "none twice");
    }

    /// How many shards each worker holds, most first.
    pub(crate) async fn holdings(&self) -> Vec<i64> {
        let rows = self
            .store
            .query(
                "select count(*) from projectionist_checkpoints where owner is not null group by owner order by 1 desc",
                &[],
            )
            .await;
        rows.unwrap_or_default().iter().map(|row| row.get(0)).collect()
    }

    /// Waits until the workers hold so many shards each.
    pub(crate) async fn shared(&self, holdings: &[i64]) -> Duration {
        let started = std::time::Instant::now();
        eventually_is(
            PATIENCE,
            "the shards are shared",
            |seen| seen == holdings,
            || async { Ok::<_, anyhow::Error>(self.holdings().await) },
        )
        .await
        .unwrap();
        started.elapsed()
    }

    /// Each stream's events were handled in the order of their positions.
    pub(crate) async fn assert_in_order(&self) {
        let disorder = "select count(*) from (
             select position < lag(position) over (partition by stream order by seq) as wrong from applied) s where wrong";
        assert_eq!(self.ask::<i64>(disorder).await, 0, "the order of each stream holds");
    }

    /// The read store holds every event of the event store once, and each stream's in order.
    pub(crate) async fn assert_exact(&self, events: i64) {
        self.applied(events).await;
        assert_eq!(self.ask::<i64>("select count(distinct position) from applied").await, events, "each event once");
        let written: i64 = self
            .events
            .client()
            .query_one("select sum((data->>'n')::bigint)::bigint from events", &[])
            .await
            .unwrap()
            .get(0);
        assert_eq!(self.ask::<i64>("select sum(n)::bigint from applied").await, written, "the sums are equal");
        self.assert_in_order().await;
    }
}

/// A worker as a task of the test.
pub(crate) struct Worker {
    task: JoinHandle<Result<(), ProjectorError>>,
    stop: Option<oneshot::Sender<()>>,
    health: SocketAddr,
}

impl Worker {
    /// As SIGTERM does.
    pub(crate) async fn stop(mut self) {
        self.stop.take();
        (&mut self.task).await.unwrap().unwrap();
    }

    /// How it ended by itself.
    pub(crate) async fn ended(mut self) -> ProjectorError {
        tokio::time::timeout(PATIENCE, &mut self.task).await.expect("it ends").unwrap().unwrap_err()
    }

    /// Waits until it is ready, or how it ended by itself before.
    pub(crate) async fn begun(&mut self) -> Result<(), ProjectorError> {
        let health = self.health;
        let is_ready = |answer: &String| answer.contains("200 OK");
        tokio::select! {
            ended = &mut self.task => ended.unwrap(),
            ready = eventually_is(PATIENCE, "the worker is ready", is_ready, || readiness(health)) => {
                ready.unwrap();
                Ok(())
            }
        }
    }

    /// The answer of `/readyz`.
    pub(crate) async fn readiness(&self) -> anyhow::Result<String> {
        readiness(self.health).await
    }

    /// Waits until it is ready, or says this.
    pub(crate) async fn says(&self, words: &str) -> String {
        eventually_is(PATIENCE, "the worker says it", |answer: &String| answer.contains(words), || self.readiness())
            .await
            .unwrap()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn readiness(health: SocketAddr) -> anyhow::Result<String> {
    let mut connection = TcpStream::connect(health).await?;
    connection.write_all(b"GET /readyz HTTP/1.1\r\nHost: worker\r\nConnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// A worker as a process; killed when dropped.
pub(crate) struct Process {
    child: Child,
    health: SocketAddr,
    files: tempfile::TempDir,
}

impl Process {
    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill").args([format!("-{name}"), self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// All that it has written so far, of every level.
    pub(crate) fn output(&self) -> String {
        std::fs::read_to_string(self.files.path().join("output")).unwrap()
    }

    /// The answer of `/readyz`.
    pub(crate) async fn readiness(&self) -> anyhow::Result<String> {
        readiness(self.health).await
    }

    /// The most memory that it has held so far, in bytes.
    pub(crate) fn peak_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        peak.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    }

    pub(crate) fn wait(&mut self) -> std::process::ExitStatus {
        self.child.wait().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
