//! The PostgreSQL of tests that need no cluster.
#![allow(missing_docs, clippy::unwrap_used)]

use std::future::poll_fn;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;
use test_cluster::postgres::PASSWORD;
use test_cluster::{EventStore, Postgres, eventually};
use tokio_postgres::{AsyncMessage, NoTls};

#[tokio::test(flavor = "multi_thread")]
async fn a_server_on_loopback_stops_starts_pauses_and_resumes() {
    let server = Postgres::on_loopback().unwrap();
    let url = server.create_database("orders").await.unwrap();
    assert!(url.starts_with("postgres://postgres:"), "{url}");
    let events = EventStore::create_events_table(&server, "orders", "events").await.unwrap();
    assert_eq!(events.append("order-1", "OrderPlaced", &json!({"total": 7})).await.unwrap(), 1);
    assert_eq!(events.append_at(500.0, Duration::from_secs(1)).await.unwrap(), 500);
    assert_eq!(events.head().await.unwrap(), 501);

    server.pause().unwrap();
    let hung = tokio::time::timeout(Duration::from_millis(500), events.head()).await;
    assert!(hung.is_err(), "a paused server answered");
    server.resume().unwrap();
    eventually(Duration::from_secs(60), "the server answers", || async { events.head().await.map(|head| head == 501) })
        .await
        .unwrap();

    server.stop().unwrap();
    assert!(server.connect("orders").await.is_err());
    server.start().unwrap();
    let events = EventStore::open(&server, "orders", "events").await.unwrap();
    assert_eq!(events.head().await.unwrap(), 501, "a stopped server keeps its data");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_refused_and_a_role_may_only_what_it_was_granted() {
    let server = Postgres::on_loopback().unwrap();
    let refused = server.connect_as("postgres", "wrong", "postgres").await.unwrap_err();
    assert!(format!("{refused:?}").contains("password authentication failed"), "{refused:?}");
    server.create_role("reader", PASSWORD).await.unwrap();
    server.create_database("orders").await.unwrap();
    let events = EventStore::create_events_table(&server, "orders", "events").await.unwrap();
    events.append_events(3).await.unwrap();
    let reader = server.connect_as("reader", PASSWORD, "orders").await.unwrap();
    let denied = reader.query("select * from events", &[]).await.unwrap_err();
    assert!(format!("{denied:?}").contains("permission denied"), "{denied:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn those_who_listen_hear_of_every_append() {
    let server = Postgres::on_loopback().unwrap();
    server.create_database("orders").await.unwrap();
    let events = EventStore::create_events_table(&server, "orders", "events").await.unwrap();
    let (listener, mut connection) = tokio_postgres::connect(&server.url("orders"), NoTls).await.unwrap();
    let (heard, mut hear) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await {
            if let AsyncMessage::Notification(note) = message {
                let _ = heard.send(note.channel().to_owned());
            }
        }
    });
    listener.batch_execute("listen events").await.unwrap();
    events.append_events(3).await.unwrap();
    events.append_events(2).await.unwrap();
    for _ in 0..2 {
        let channel = tokio::time::timeout(Duration::from_secs(60), hear.recv()).await.unwrap();
        assert_eq!(channel.as_deref(), Some("events"));
    }
    assert!(hear.try_recv().is_err(), "one notification a statement");
}

#[test]
fn a_killed_owner_leaves_no_server_and_no_files() {
    let mut owner =
        Command::new(env!("CARGO_BIN_EXE_test-cluster")).arg("postgres").stdout(Stdio::piped()).spawn().unwrap();
    let mut url = String::new();
    BufReader::new(owner.stdout.take().unwrap()).read_line(&mut url).unwrap();
    let address = url.trim().rsplit('@').next().unwrap().split('/').next().unwrap().to_owned();
    let root = std::env::temp_dir().join(format!("test-postgres-{}-0", owner.id()));
    assert!(std::net::TcpStream::connect(&address).is_ok() && root.exists(), "{url}");
    owner.kill().unwrap();
    owner.wait().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while std::net::TcpStream::connect(&address).is_ok() || root.exists() {
        assert!(Instant::now() < deadline, "the server or its files outlived their owner");
        std::thread::sleep(Duration::from_millis(50));
    }
}
