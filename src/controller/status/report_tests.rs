//! Against a mocked API server: what is asked of it, in order, and what comes of its answers.

use std::{
    io::{self, Write},
    sync::{Arc, Mutex},
};

use http::Method;
use serde_json::{Value, json};

use super::*;
use crate::{
    controller::mock_api::{Server, failure},
    measure::RunKey,
};

fn server() -> (Server, Reports) {
    let (server, client) = Server::mocked();
    (server, Reports::new(client, "replica-1"))
}

fn owner() -> Owner {
    Owner { run: RunKey::unversioned("shop", "orders"), uid: "ours".to_owned() }
}

fn projection(uid: &str, version: &str) -> Value {
    json!({
        "apiVersion": "projectionist.dev/v1alpha1", "kind": "Projection",
        "metadata": {"namespace": "shop", "name": "orders", "uid": uid, "resourceVersion": version},
        "spec": {
            "source": {"postgres": {"connection": {"secretRef": {"name": "db"}}, "eventTable": {}}},
            "readStore": {"postgres": {"connection": {"secretRef": {"name": "db"}}}},
            "lag": {"target": "5s"},
        },
    })
}

/// Writes a status for what was version 7.
async fn write(reports: &Reports) -> Result<Stored, Unwritten> {
    reports.write_status(&owner(), "7", &ProjectionStatus::default()).await
}

#[tokio::test]
async fn a_status_is_written_for_one_version_of_one_projection() {
    let (mut server, reports) = server();
    let play = async move {
        let (path, body) = server.answers(Method::PATCH, 200, |_| projection("ours", "8")).await;
        assert_eq!(path, "/apis/projectionist.dev/v1alpha1/namespaces/shop/projections/orders/status");
        let operation = |path: &str| body.as_array().unwrap().iter().find(|one| one["path"] == path).cloned().unwrap();
        assert_eq!(operation("/metadata/uid"), json!({"op": "test", "path": "/metadata/uid", "value": "ours"}));
        assert_eq!(operation("/metadata/resourceVersion")["value"], "7");
    };
    let (written, ()) = tokio::join!(write(&reports), play);
    assert_eq!(written.unwrap().version, "8");
}

#[tokio::test]
async fn a_projection_that_changed_meanwhile_gets_its_status_on_the_newer_version() {
    let (mut server, reports) = server();
    let play = async move {
        server.answers(Method::PATCH, 409, |_| failure(409, "Conflict")).await;
        server.answers(Method::GET, 200, |_| projection("ours", "9")).await;
        let (_, body) = server.answers(Method::PATCH, 200, |_| projection("ours", "10")).await;
        assert!(body.to_string().contains("\"9\""), "{body}");
    };
    let (written, ()) = tokio::join!(write(&reports), play);
    assert_eq!(written.unwrap().version, "10");
}

#[tokio::test]
async fn a_namesake_gets_no_status_of_a_projection_that_is_gone() {
    for (code, answer) in [(200, projection("another", "9")), (404, failure(404, "NotFound"))] {
        let (mut server, reports) = server();
        let play = async move {
            server.answers(Method::PATCH, 422, |_| failure(422, "Invalid")).await;
            server.answers(Method::GET, code, |_| answer).await;
        };
        let (written, ()) = tokio::join!(write(&reports), play);
        assert!(matches!(written, Err(Unwritten::Gone)), "{written:?}");
    }
}

#[tokio::test]
async fn a_refusal_that_a_fresh_read_does_not_explain_is_tried_no_further() {
    let (mut server, reports) = server();
    let play = async move {
        server.answers(Method::PATCH, 422, |_| failure(422, "Invalid")).await;
        server.answers(Method::GET, 200, |_| projection("ours", "7")).await;
    };
    let (written, ()) = tokio::join!(write(&reports), play);
    assert!(matches!(written, Err(Unwritten::Failed(_))), "{written:?}");
}

/// Keeps what is logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn what_warns_in_an_event_warns_in_the_log() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let (mut server, reports) = server();
    let announcement = |warning: bool, reason: &str| Announcement {
        warning,
        reason: reason.to_owned(),
        action: "Observe".to_owned(),
        note: format!("because of {reason}"),
    };
    let all = vec![announcement(true, "ApplyFailed"), announcement(false, "Scaled")];
    let play = async move {
        for (type_, reason) in [("Warning", "ApplyFailed"), ("Normal", "Scaled")] {
            let (path, body) = server.answers(Method::POST, 201, Clone::clone).await;
            assert_eq!(path, "/apis/events.k8s.io/v1/namespaces/shop/events");
            assert_eq!((body["type"].as_str(), body["reason"].as_str()), (Some(type_), Some(reason)));
        }
    };
    let publish = async { reports.publish(&owner(), all).await };
    tokio::join!(publish, play);
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let line = |reason: &str| log.lines().find(|line| line.contains(reason)).unwrap().to_owned();
    assert!(line("ApplyFailed").contains(" WARN ") && line("ApplyFailed").contains("orders"), "{log}");
    assert!(line("Scaled").contains(" INFO "), "{log}");
}
