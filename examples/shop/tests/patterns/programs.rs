//! The shop's programs as processes of their own, as their image runs them, with TLS to all servers but Kafka: orders come to their ends through all of them, and each is killed
//! on the way.

use std::{process::Stdio, time::Duration};

use anyhow::{Context as _, Result, ensure};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use shop::{database::Database, json_client::JsonClient, tls};
use test_cluster::{Postgres, Redis, ServerCertificate, eventually, eventually_is, free_address, kafka::Listener};
use tokio::process::{Child, Command};

use crate::{servers::brokers, write_side::WriteSide};

const PATIENCE: Duration = Duration::from_secs(180);

/// What the programs are told by their environment.
struct Environment(Vec<(&'static str, String)>);

impl Environment {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_shop"));
        command.args(arguments).env_clear().envs(self.0.iter().map(|(name, value)| (*name, value)));
        command.stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    /// Starts a program that goes on until it is killed.
    fn start(&self, program: &str) -> Result<Child> {
        self.command(&[program]).spawn().with_context(|| format!("starting `shop {program}`"))
    }
}

/// A database server that shows this certificate.
fn postgres_with_tls(certificate: &ServerCertificate) -> Result<Postgres> {
    let server = Postgres::on_loopback()?;
    server.offer_tls(&certificate.certificate, &certificate.key)?;
    server.stop()?;
    server.start()?;
    Ok(server)
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_come_to_their_ends_through_all_programs_while_each_is_killed() -> Result<()> {
    let brokers = brokers().await;
    let authority = brokers.certificate.authority.clone();
    let postgres = postgres_with_tls(&brokers.certificate)?;
    let url = postgres.create_database("shop").await?;
    let shop = WriteSide::of(Database::new(&url, Some(&authority))?).await?;
    let encrypted = "select count(*) from pg_stat_ssl where ssl and pid = pg_backend_pid()";
    assert_eq!(shop.number(encrypted).await?, 1);
    let redis = Redis::on_loopback_with_tls(&brokers.certificate)?;
    let listen = free_address()?.to_string();
    // A virtual host of its own: other tests have queues of the same names.
    let management = &brokers.rabbitmq;
    management.run("PUT", "vhosts/programs", &json!({}))?;
    let everything = json!({"configure": ".*", "write": ".*", "read": ".*"});
    management.run("PUT", "permissions/programs/guest", &everything)?;
    let amqp = management.amqp_url_as("guest", "guest").replace("/%2f", "/programs");
    let environment = Environment(vec![
        ("DATABASE_URL", url.clone()),
        ("SERVERS_CA", authority.clone()),
        ("READS_URL", url),
        ("REDIS_URL", redis.url()),
        ("KAFKA_BROKERS", brokers.kafka.address(Listener::Plaintext).to_string()),
        ("AMQP_URL", amqp),
        ("HOSTNAME", "worker".to_owned()),
        ("LISTEN", listen.clone()),
        // Nothing listens there: what is awaited is not known to be shown.
        ("OPERATOR_URL", "https://127.0.0.1:1".to_owned()),
        ("OPERATOR_CA", authority),
        ("NAMESPACE", "shop".to_owned()),
        ("API_URL", format!("http://{listen}")),
    ]);
    let http = JsonClient::new(tls::trust_nothing()?);
    let unknown = format!("http://{listen}/products/none");
    let answers = || async {
        let answer = http.ask(Method::GET, &unknown, &[], &Value::Null).await;
        Ok::<_, anyhow::Error>(answer.is_ok_and(|answer| answer.status == StatusCode::NOT_FOUND))
    };

    let mut workers = Vec::new();
    for program in ["relay", "saga", "notifications", "api"] {
        workers.push((program, environment.start(program)?));
    }
    eventually(PATIENCE, "the API answers", answers).await?;
    let load = ["load", "--rate=5", "--sale=4", "--seconds=3"];
    let load = environment.command(&load).stdout(Stdio::piped()).spawn().context("starting `shop load`")?;
    for (program, worker) in &mut workers {
        eventually_is(PATIENCE, "orders come", |orders| *orders > 0, || shop.number("select count(*) from sagas"))
            .await?;
        worker.kill().await?;
        *worker = environment.start(program)?;
    }
    let load = load.wait_with_output().await?;
    let printed = String::from_utf8_lossy(&load.stdout);
    ensure!(load.status.success() && printed.contains("0 unanswered"), "{}: {printed}", load.status);

    let look = |query: &'static str| {
        let shop = &shop;
        move || shop.number(query)
    };
    let none = |count: &i64| *count == 0;
    let open = "select count(*) from sagas where ended_at is null";
    eventually_is(PATIENCE, "every order is at its end", none, look(open)).await?;
    let unsent = "select count(*) from outbox where sent_at is null";
    eventually_is(PATIENCE, "everything is sent", none, look(unsent)).await?;
    let untold = "select count(*) from sagas where order_id not in (select order_id from notifications)";
    eventually_is(PATIENCE, "every customer is told", none, look(untold)).await?;
    let orders = shop.number("select count(*) from sagas").await?;
    assert_eq!(shop.number("select count(*) from notifications").await?, orders);
    assert_eq!(shop.number("select count(*) from events where type = 'OrderPlaced'").await?, orders);
    assert!(orders >= 50, "{orders}");
    for (program, worker) in &mut workers {
        ensure!(worker.try_wait()?.is_none(), "`shop {program}` has ended by itself");
    }
    Ok(())
}
