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
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::harness::{ask, ask_within, declare, exactly, probe, publish, question, server, settings, until_pending};

const SHORT: Duration = Duration::from_millis(500);

/// What a fake server says to whoever connects, after it has read something.
#[derive(Clone)]
enum Says {
    Nothing,
    Once(Vec<u8>),
    /// Once, and then it hangs up.
    AndHangsUp(Vec<u8>),
    ForEver(Vec<u8>),
    /// A byte now and then.
    Dripping(Vec<u8>),
}

/// A fake server at this address; counts what it has sent.
async fn fake(says: Says) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://shop:hunter2@{}", listener.local_addr().unwrap());
    let sent = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&sent);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let (says, counter) = (says.clone(), Arc::clone(&counter));
            tokio::spawn(async move {
                let mut request = [0; 4_096];
                let _ = stream.read(&mut request).await;
                let send = async |stream: &mut tokio::net::TcpStream, bytes: &[u8]| {
                    counter.fetch_add(bytes.len(), Ordering::Relaxed);
                    stream.write_all(bytes).await
                };
                match says {
                    Says::Nothing => {}
                    Says::Once(bytes) => drop(send(&mut stream, &bytes).await),
                    Says::AndHangsUp(bytes) => {
                        let _ = send(&mut stream, &bytes).await;
                        return;
                    }
                    Says::ForEver(bytes) => while send(&mut stream, &bytes).await.is_ok() {},
                    Says::Dripping(bytes) => {
                        for byte in bytes.into_iter().cycle() {
                            if send(&mut stream, &[byte]).await.is_err() {
                                return;
                            }
                            tokio::time::sleep(Duration::from_millis(20)).await;
                        }
                    }
                }
                std::future::pending::<()>().await;
            });
        }
    });
    (url, sent)
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
async fn a_server_that_is_away_or_hangs_is_unknown_and_comes_back() {
    let mut own = RabbitMq::on_loopback().unwrap();
    declare(&own, "orders", "classic");
    let mut probe = probe(&own.url());
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
