//! Servers that are away, hang, hang up, follow another, answer nonsense or without end.

use std::{net::SocketAddr, time::Duration};

use projectionist::api::Reason;
use test_cluster::free_address;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::{
    harness::{Asked, ago, ask, ask_within, at, exactly, key, log, persistent, probe, probe_of, settings, stream},
    server::{Fake, Instead, framed},
};

const SHORT: Duration = Duration::from_millis(700);

/// A proper server with a stream of ten events.
async fn ten() -> Fake {
    let fake = Fake::start().await;
    fake.database(|database| {
        database.append("orders", 10, ago(60));
        database.pull("orders", "readers");
    });
    fake
}

#[tokio::test]
async fn whatever_a_server_answers_instead_the_lag_is_unknown_with_its_reason() {
    let head = |status, headers: &[(&'static str, &'static str)]| Instead::Head(status, headers.to_vec());
    let grpc = ("content-type", "application/grpc");
    let long: &'static str = Box::leak("x".repeat(64 << 10).into_boxed_str());
    let announced = |length: u32, there: &[u8]| [&[0], length.to_be_bytes().as_slice(), there].concat();
    for (what, instead, reason) in [
        ("hangs", Instead::Hangs, Reason::TimedOut),
        ("a byte now and then", Instead::Drips, Reason::TimedOut),
        ("hangs in an answer", Instead::BodyThenHangs(vec![0, 0, 0, 0, 9, 1]), Reason::TimedOut),
        ("resets", Instead::Resets, Reason::SourceFailed),
        ("resets in an answer", Instead::ResetsHalfWay, Reason::SourceFailed),
        ("goes away", Instead::GoesAway, Reason::SourceFailed),
        ("cut in an answer", Instead::Cuts, Reason::SourceFailed),
        ("nothing", Instead::Body(Vec::new()), Reason::InvalidAnswer),
        ("garbage", Instead::Body(framed(b"\xff\xff\xff\xff garbage")), Reason::InvalidAnswer),
        ("no prefix", Instead::Body(b"hunter2 and more".to_vec()), Reason::InvalidAnswer),
        ("compressed", Instead::Body(vec![1, 0, 0, 0, 1, 0]), Reason::InvalidAnswer),
        ("announces more than it sends", Instead::Body(announced(1_000, b"x")), Reason::InvalidAnswer),
        (
            "announces less than it sends",
            Instead::Body(announced(0, b"\x0a\x0a\x0a\x0a\x0a\x0a\x0a")),
            Reason::InvalidAnswer,
        ),
        ("announces 4 GiB", Instead::Body(announced(u32::MAX, b"x")), Reason::InvalidAnswer),
        ("no status", Instead::NoStatus, Reason::InvalidAnswer),
        ("another content type", Instead::Html("<html>hunter2"), Reason::InvalidAnswer),
        ("status 200 and no more", head(200, &[]), Reason::InvalidAnswer),
        ("a success without an answer", head(200, &[grpc, ("grpc-status", "0")]), Reason::InvalidAnswer),
        ("not found", head(404, &[]), Reason::InvalidAnswer),
        ("a redirection", head(307, &[("location", "http://127.0.0.1:1/")]), Reason::InvalidAnswer),
        ("a proxy's refusal", head(403, &[]), Reason::PermissionDenied),
        ("a refusal by HTTP", head(401, &[]), Reason::AuthenticationFailed),
        ("away behind a proxy", head(503, &[]), Reason::SourceFailed),
        ("headers only", head(200, &[grpc, ("grpc-status", "14")]), Reason::SourceFailed),
        ("refused by headers only", head(200, &[grpc, ("grpc-status", "16")]), Reason::AuthenticationFailed),
        ("an old server", head(200, &[grpc, ("grpc-status", "12")]), Reason::SourceFailed),
        (
            "our own password",
            head(200, &[grpc, ("grpc-status", "13"), ("grpc-message", "no hunter2")]),
            Reason::SourceFailed,
        ),
        ("endless headers", head(200, &[grpc, ("x-long", long)]), Reason::InvalidAnswer),
    ] {
        let fake = ten().await;
        fake.instead(instead);
        let mut probe = probe(&fake);
        for (question, checkpoint) in [(stream("orders"), Some(at(Some(2)))), (persistent(&["orders/readers"]), None)] {
            let unknown = ask_within(&mut probe, &question, checkpoint.as_ref(), SHORT).await.expect_err(what);
            assert_eq!(unknown.reason, reason, "{what}: {}", unknown.message);
            assert!(!unknown.message.contains("hunter2"), "{what}: {}", unknown.message);
            assert!(unknown.message.contains("KurrentDB at 127.0.0.1:"), "{what}: {}", unknown.message);
        }
        // The next poll finds a server that has come to its senses.
        fake.instead(Instead::Answers);
        assert_eq!(ask(&mut probe, &stream("orders"), Some(&at(Some(2)))).await.unwrap().pending, exactly(7), "{what}");
    }
}

#[tokio::test]
async fn a_page_that_ends_in_the_middle_of_an_event_is_none_although_its_status_says_that_it_is_whole() {
    let fake = ten().await;
    let whole = framed(&fake.database(|database| database.message("orders", 9)));
    let cut = [whole.as_slice(), &whole[..whole.len() / 2]].concat();
    for (body, reason) in [(whole, None), (cut, Some(Reason::InvalidAnswer))] {
        fake.instead(Instead::Body(body));
        let answer = ask(&mut probe(&fake), &log(), Some(&at(Some(0)))).await;
        assert_eq!(answer.err().map(|unknown| unknown.reason), reason);
    }
}

#[tokio::test]
async fn an_endless_answer_takes_no_memory_and_is_given_up() {
    let small = framed(&[]);
    let large = [vec![0], (8_u32 << 20).to_be_bytes().to_vec(), vec![b'x'; 8 << 20]].concat();
    for (what, instead) in [("empty messages", small.repeat(10_000)), ("large ones", large)] {
        let fake = ten().await;
        fake.instead(Instead::Endless(instead));
        let unknown = ask(&mut probe(&fake), &stream("orders"), Some(&at(Some(2)))).await.expect_err(what);
        assert_eq!(unknown.reason, Reason::InvalidAnswer, "{what}: {}", unknown.message);
        // The answer's limit, and what was on its way.
        assert!(fake.sent() < 128 << 20, "{what}: {}", fake.sent());
    }
}

#[tokio::test]
async fn a_list_of_very_many_subscriptions_is_not_taken_in() {
    let fake = ten().await;
    for (what, list, words) in [
        ("two bytes for each", b"\x0a\x00".repeat((8 << 20) / 2), "more than 10000 persistent subscriptions"),
        ("large", [b"\x0a\x80\x80\x80\x05".as_slice(), vec![0_u8; 10 << 20].as_slice()].concat(), "too large"),
    ] {
        fake.instead(Instead::Body(framed(&list)));
        let unknown = ask(&mut probe(&fake), &persistent(&["orders/readers"]), None).await.expect_err(what);
        assert_eq!(unknown.reason, Reason::InvalidAnswer, "{what}: {}", unknown.message);
        assert!(unknown.message.contains(words), "{what}: {}", unknown.message);
    }
}

/// A server that speaks another protocol: says this on connecting, then answers nothing.
async fn other(says: &'static [u8], hangs_up: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let _ = stream.write_all(says).await;
                let mut heard = [0; 4_096];
                while !hangs_up && stream.read(&mut heard).await.is_ok_and(|read| read > 0) {}
            });
        }
    });
    address
}

#[tokio::test]
async fn another_protocol_is_named_as_such() {
    for (what, says, hangs_up, reason) in [
        ("silence", b"".as_slice(), false, Reason::TimedOut),
        ("hangs up", b"", true, Reason::SourceFailed),
        ("HTTP/1.1", b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n", false, Reason::InvalidAnswer),
        ("TLS", b"\x15\x03\x01\x00\x02\x02\x46\x15\x03\x01\x00\x02\x02\x46", false, Reason::InvalidAnswer),
    ] {
        let address = other(says, hangs_up).await;
        let mut probe = probe_of(settings(&format!("esdb://shop:hunter2@{address}?tls=false")));
        let unknown = ask_within(&mut probe, &stream("orders"), Some(&at(Some(2))), SHORT).await.expect_err(what);
        assert_eq!(unknown.reason, reason, "{what}: {}", unknown.message);
    }
    let closed = free_address().unwrap();
    let mut away = probe_of(settings(&format!("esdb://{closed}?tls=false")));
    let refused = ask(&mut away, &stream("orders"), Some(&at(Some(2)))).await.unwrap_err();
    assert_eq!(refused.reason, Reason::ConnectionRefused, "{}", refused.message);
    let mut nowhere = probe_of(settings("esdb://nowhere.invalid?tls=false"));
    let unknown = ask(&mut nowhere, &stream("orders"), Some(&at(Some(2)))).await.unwrap_err();
    assert_eq!(unknown.reason, Reason::HostNotFound, "{}", unknown.message);
    let mut metadata = probe_of(settings("esdb://169.254.169.254?tls=false"));
    let unknown = ask(&mut metadata, &stream("orders"), Some(&at(Some(2)))).await.unwrap_err();
    assert_eq!(unknown.reason, Reason::AddressRefused, "{}", unknown.message);
}

#[tokio::test]
async fn a_connection_that_the_server_has_closed_is_opened_again() {
    let fake = ten().await;
    let mut probe = probe(&fake);
    for polls in 1..=3 {
        assert_eq!(ask(&mut probe, &stream("orders"), Some(&at(Some(2)))).await.unwrap().pending, exactly(7));
        assert_eq!(fake.connections(), polls);
        fake.close_connections();
    }
}

#[tokio::test]
async fn a_read_that_hangs_keeps_no_other_from_its_answer() {
    let fake = ten().await;
    fake.hang_for("hangs");
    let questions: Vec<_> = ["hangs", "orders"].map(stream).into();
    let (checkpoint, name) = (at(Some(2)), key("p"));
    let asked: Vec<_> =
        questions.iter().map(|question| Asked { key: &name, question, checkpoint: Some(&checkpoint) }).collect();
    let answers = probe(&fake).answer(&asked, tokio::time::Instant::now() + SHORT).await;
    assert_eq!(answers[0].as_ref().unwrap_err().reason, Reason::TimedOut);
    assert_eq!(answers[1].as_ref().unwrap().pending, exactly(7));
}

#[tokio::test]
async fn of_several_servers_the_one_that_leads_is_asked_also_after_it_has_changed() {
    let (one, two) = (ten().await, ten().await);
    let closed = free_address().unwrap();
    one.follow(Some(&two.at.to_string()));
    let url = format!("esdb://shop:hunter2@{closed},{},{}?tls=false", one.at, two.at);
    let mut probe = probe_of(settings(&url));
    let orders = stream("orders");
    assert_eq!(ask(&mut probe, &orders, Some(&at(Some(2)))).await.unwrap().pending, exactly(7));
    assert_eq!(ask(&mut probe, &orders, Some(&at(Some(2)))).await.unwrap().pending, exactly(7));
    assert_eq!((one.connections(), two.connections()), (1, 1), "the leader is remembered");
    one.follow(None);
    two.follow(Some(&one.at.to_string()));
    assert_eq!(ask(&mut probe, &orders, Some(&at(Some(2)))).await.unwrap().pending, exactly(7));
    one.follow(Some("10.1.2.3:2113"));
    two.follow(Some("10.1.2.3:2113"));
    let none = ask(&mut probe, &orders, Some(&at(Some(2)))).await.unwrap_err();
    assert_eq!(none.reason, Reason::SourceFailed);
    // That one may hold no password of ours.
    assert!(none.message.contains("10.1.2.3:2113") && none.message.contains("name it"), "{}", none.message);
}
