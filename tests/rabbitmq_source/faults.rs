//! Servers that are away, hang, hang up, answer nonsense or without end.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use projectionist::{
    api::Reason, clients::rabbitmq::LARGEST_ANSWER, lag::Sample, measure::MeasureError,
    sources::rabbitmq::RabbitMqProbe,
};
use serde_json::json;
use test_cluster::RabbitMq;

use crate::{
    fake::Says,
    harness::{ask, ask_within, declare, exactly, handled, probe, publish, question, server, settings, until_pending},
};

const SHORT: Duration = Duration::from_millis(500);

/// The URL of a fake server, and how much it has sent.
async fn fake(says: Says) -> (String, Arc<AtomicUsize>) {
    let (address, sent) = crate::fake::fake(says).await;
    (format!("http://shop:hunter2@{address}"), sent)
}

/// An answer in HTTP.
fn http(status: &str, kind: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

async fn measured(says: Says) -> Result<Sample, MeasureError> {
    let (url, _) = fake(says).await;
    ask_within(&mut probe(&url), &question(&["orders"]), SHORT).await
}

#[tokio::test]
async fn whatever_a_server_answers_instead_the_lag_is_unknown_with_its_reason() {
    const JSON: &str = "application/json";
    let text = |text: &str| text.as_bytes().to_vec();
    let queue = |fields: &str| Says::Once(http("200 OK", JSON, &format!(r#"[{{"name":"orders",{fields}}}]"#)));
    let whole = http("200 OK", JSON, r#"[{"name":"orders","messages_ready":1,"messages_unacknowledged":0}]"#);
    for (what, says, reason) in [
        ("hangs", Says::Nothing, Reason::TimedOut),
        ("hangs up", Says::AndHangsUp(Vec::new()), Reason::SourceFailed),
        ("cut in the head", Says::AndHangsUp(whole[..30].to_vec()), Reason::SourceFailed),
        ("cut in the body", Says::AndHangsUp(whole[..whole.len() - 9].to_vec()), Reason::SourceFailed),
        ("hangs in the body", Says::Once(whole[..whole.len() - 9].to_vec()), Reason::TimedOut),
        ("a byte now and then", Says::Dripping(whole.clone()), Reason::TimedOut),
        ("AMQP", Says::AndHangsUp(text("AMQP\0\0\u{9}\u{1}")), Reason::InvalidAnswer),
        ("garbage", Says::ForEver(text("garbage hunter2 \r\n")), Reason::InvalidAnswer),
        ("headers without end", Says::ForEver(text("HTTP/1.1 200 OK\r\n")), Reason::InvalidAnswer),
        ("HTML", Says::Once(http("200 OK", "text/html", "<html>hunter2</html>")), Reason::InvalidAnswer),
        ("HTML as JSON", Says::Once(http("200 OK", JSON, "<html>hunter2</html>")), Reason::InvalidAnswer),
        ("another object", Says::Once(http("200 OK", JSON, r#"{"a":"hunter2"}"#)), Reason::InvalidAnswer),
        (
            "a huge length",
            Says::Once(text(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 9223372036854775807\r\n\r\n[",
            )),
            Reason::TimedOut,
        ),
        (
            "a redirection",
            Says::Once(text("HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n")),
            Reason::InvalidAnswer,
        ),
        ("unavailable", Says::Once(http("503 Service Unavailable", "text/plain", "hunter2")), Reason::SourceFailed),
        ("refused", Says::Once(http("401 Unauthorized", "text/plain", "hunter2")), Reason::AuthenticationFailed),
        ("no queue", Says::Once(http("200 OK", JSON, "[]")), Reason::QueueNotFound),
        ("no numbers", queue(r#""state":"running""#), Reason::SourceFailed),
        ("one number", queue(r#""messages_ready":7"#), Reason::SourceFailed),
        ("a number below zero", queue(r#""messages_ready":-1,"messages_unacknowledged":0"#), Reason::SourceFailed),
        ("a text for a number", queue(r#""messages_ready":"7","messages_unacknowledged":0"#), Reason::SourceFailed),
        ("down", queue(r#""state":"down","messages_ready":7,"messages_unacknowledged":0"#), Reason::SourceFailed),
        ("crashed", queue(r#""state":"crashed","messages_ready":0,"messages_unacknowledged":0"#), Reason::SourceFailed),
        (
            "no majority",
            queue(r#""state":"minority","messages_ready":0,"messages_unacknowledged":0"#),
            Reason::SourceFailed,
        ),
    ] {
        let unknown = measured(says).await.expect_err(what);
        assert_eq!(unknown.reason, reason, "{what}: {}", unknown.message);
        assert!(!unknown.message.contains("hunter2"), "{what}: {}", unknown.message);
        assert!(unknown.message.contains("management API at 127.0.0.1:"), "{what}: {}", unknown.message);
    }
    assert_eq!(measured(Says::Once(whole)).await.unwrap().pending, exactly(1), "the fake itself");
}

#[tokio::test]
async fn an_endless_answer_ends_the_connection() {
    let mut endless = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n[".to_vec();
    endless.resize(1 << 20, b' ');
    let (url, sent) = fake(Says::ForEver(endless)).await;
    let unknown = ask(&mut probe(&url), &["orders"]).await.unwrap_err();
    assert_eq!(unknown.reason, Reason::InvalidAnswer, "{}", unknown.message);
    assert!(unknown.message.contains("larger than 16 MiB"), "{}", unknown.message);
    assert!(sent.load(Ordering::Relaxed) < 4 * LARGEST_ANSWER);
}

#[tokio::test]
async fn a_redirection_is_not_followed_and_carries_no_credential() {
    let (elsewhere, sent) = fake(Says::Once(http("200 OK", "application/json", "[]"))).await;
    let place = elsewhere.rsplit('@').next().unwrap().to_owned();
    let redirection =
        format!("HTTP/1.1 307 Temporary Redirect\r\nlocation: http://{place}/\r\ncontent-length: 0\r\n\r\n");
    let unknown = measured(Says::Once(redirection.into_bytes())).await.unwrap_err();
    assert!(unknown.message.contains("not followed"), "{}", unknown.message);
    assert_eq!(sent.load(Ordering::Relaxed), 0, "the other server was not asked");
    let metadata = ask(&mut probe("http://u:hunter2@169.254.169.254"), &["orders"]).await.unwrap_err();
    assert_eq!(metadata.reason, Reason::AddressRefused, "{}", metadata.message);
    let (own, sent) = fake(Says::Once(http("200 OK", "application/json", "[]"))).await;
    for host in ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]"] {
        let url = own.replace("127.0.0.1", host);
        let mut probe = RabbitMqProbe::new(settings(&url), Arc::default(), std::time::Instant::now());
        let refused = ask(&mut probe, &["orders"]).await.unwrap_err();
        assert_eq!(refused.reason, Reason::AddressRefused, "{host}: {}", refused.message);
    }
    assert_eq!(sent.load(Ordering::Relaxed), 0, "no connection was made");
}

#[tokio::test]
async fn depths_are_told_where_statistics_are_off_and_a_server_that_is_away_or_hangs_is_unknown_and_comes_back() {
    let mut own = RabbitMq::with("management_agent.disable_metrics_collector = true").unwrap();
    for (queue, kind) in [("off", "classic"), ("off-quorum", "quorum")] {
        declare(&own, queue, kind);
    }
    let queues = ["off", "off-quorum"];
    let mut probe = probe(&own.url());
    until_pending(&mut probe, &queues, 0).await;
    publish(&own, "off", 3, &json!({"delivery_mode": 2}));
    publish(&own, "off-quorum", 2, &json!({"delivery_mode": 2}));
    let behind = until_pending(&mut probe, &queues, 5).await;
    assert_eq!((behind.arrived, behind.staleness), (5, None), "without counters the depth tells");
    let mut consumer = own.consumer().unwrap();
    let held = consumer.take("off-quorum").unwrap().unwrap();
    until_pending(&mut probe, &queues, 5).await;
    consumer.acknowledge(held).unwrap();
    let one_less = until_pending(&mut probe, &queues, 4).await;
    assert_eq!((one_less.arrived, handled(&one_less)), (5, 1));
    drop(consumer);
    declare(&own, "orders", "classic");
    until_pending(&mut probe, &["orders"], 0).await;
    own.pause();
    // The server's threads stop one after the other, so that one may still answer.
    let mut hung = ask_within(&mut probe, &question(&["orders"]), SHORT).await;
    while hung.is_ok() {
        hung = ask_within(&mut probe, &question(&["orders"]), SHORT).await;
    }
    let hung = hung.unwrap_err();
    assert_eq!(hung.reason, Reason::TimedOut, "{}", hung.message);
    own.resume();
    publish(&own, "orders", 1, &json!({}));
    until_pending(&mut probe, &["orders"], 1).await;
    own.kill();
    let away = ask(&mut probe, &["orders"]).await.unwrap_err();
    assert!(matches!(away.reason, Reason::ConnectionRefused | Reason::SourceFailed), "{}", away.message);
    let away = ask(&mut probe, &["orders"]).await.unwrap_err();
    assert_eq!(away.reason, Reason::ConnectionRefused, "{}", away.message);
    let nowhere = ask(&mut super::harness::probe("http://u:p@nowhere.invalid"), &["orders"]).await.unwrap_err();
    assert_eq!(nowhere.reason, Reason::HostNotFound, "{}", nowhere.message);
    let amqp = format!("http://guest:guest@{}", server().amqp());
    let wrong_port = ask(&mut super::harness::probe(&amqp), &["orders"]).await.unwrap_err();
    assert_eq!(wrong_port.reason, Reason::InvalidAnswer, "{}", wrong_port.message);
    assert!(wrong_port.message.contains("15672"), "{}", wrong_port.message);
}
