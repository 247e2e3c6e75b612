//! Servers that are away, hang, hang up, answer nonsense or without end.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use projectionist::{api::Reason, clients::prometheus::LARGEST_ANSWER, sources::prometheus::PrometheusProbe};
use test_cluster::Prometheus;
use tokio::time::Instant;

use crate::harness::{Says, ask, ask_within, fake, http, number, probe, settings, target, value};

const SHORT: Duration = Duration::from_millis(500);

#[tokio::test]
async fn whatever_a_server_answers_instead_the_number_is_unknown_with_its_reason() {
    const JSON: &str = "application/json";
    let whole = number("7");
    for (what, says, reason) in [
        ("hangs", Says::Nothing, Reason::TimedOut),
        ("hangs up", Says::AndHangsUp(Vec::new()), Reason::SourceFailed),
        ("cut in the body", Says::AndHangsUp(whole[..whole.len() - 9].to_vec()), Reason::SourceFailed),
        ("hangs in the body", Says::Once(whole[..whole.len() - 9].to_vec()), Reason::TimedOut),
        ("a byte now and then", Says::Dripping(whole.clone()), Reason::TimedOut),
        ("garbage", Says::ForEver(b"garbage hunter2 \r\n".to_vec()), Reason::InvalidAnswer),
        ("headers without end", Says::ForEver(b"HTTP/1.1 200 OK\r\n".to_vec()), Reason::InvalidAnswer),
        ("HTML", Says::Once(http("200 OK", "text/html", "<html>hunter2</html>")), Reason::InvalidAnswer),
        ("HTML as JSON", Says::Once(http("200 OK", JSON, "<html>hunter2</html>")), Reason::InvalidAnswer),
        ("another object", Says::Once(http("200 OK", JSON, r#"{"a":"hunter2"}"#)), Reason::InvalidAnswer),
        (
            "a huge length",
            Says::Once(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 9223372036854775807\r\n\r\n["
                    .to_vec(),
            ),
            Reason::TimedOut,
        ),
        (
            "a redirection",
            Says::Once(b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n".to_vec()),
            Reason::InvalidAnswer,
        ),
        ("unavailable", Says::Once(http("503 Service Unavailable", "text/plain", "hunter2")), Reason::SourceFailed),
        ("refused", Says::Once(http("401 Unauthorized", "text/plain", "hunter2")), Reason::AuthenticationFailed),
        ("not a number", Says::Once(number("hunter2")), Reason::InvalidAnswer),
    ] {
        let (url, _) = fake(says).await;
        let unknown = ask_within(&mut probe(&url), &value("x"), SHORT).await.expect_err(what);
        assert_eq!(unknown.reason, reason, "{what}: {}", unknown.message);
        assert!(!unknown.message.contains("hunter2"), "{what}: {}", unknown.message);
    }
    let (url, _) = fake(Says::Once(whole)).await;
    assert_eq!(ask(&mut probe(&url), &value("x")).await.unwrap().value, Some(7.0), "the fake itself");
}

#[tokio::test]
async fn an_endless_answer_ends_the_connection() {
    let mut endless = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n[".to_vec();
    endless.resize(256 << 10, b' ');
    let (url, counts) = fake(Says::ForEver(endless)).await;
    let unknown = ask(&mut probe(&url), &value("x")).await.unwrap_err();
    assert!(unknown.message.contains("larger than 1 MiB"), "{}", unknown.message);
    assert!(counts.bytes.load(Ordering::Relaxed) < 16 * LARGEST_ANSWER);
}

#[tokio::test]
async fn a_refused_address_is_not_connected_to_and_a_redirection_carries_no_token() {
    let (elsewhere, counts) = fake(Says::Once(number("7"))).await;
    let redirection = format!("HTTP/1.1 307 Temporary Redirect\r\nlocation: {elsewhere}/\r\ncontent-length: 0\r\n\r\n");
    let (url, _) = fake(Says::Once(redirection.into_bytes())).await;
    let with_token = settings(&[("url", &url), ("token", "hunter2")]);
    let followed = ask(&mut crate::harness::probe_with(&with_token), &value("x")).await.unwrap_err();
    assert!(followed.message.contains("not followed") && !followed.message.contains("hunter2"), "{}", followed.message);
    for url in [elsewhere.clone(), elsewhere.replace("127.0.0.1", "localhost"), "http://169.254.169.254".to_owned()] {
        let settings = settings(&[("url", &url)]);
        let mut probe = PrometheusProbe::new(&settings, &Arc::default(), std::time::Instant::now());
        let refused = ask(&mut probe, &value("x")).await.unwrap_err();
        assert_eq!(refused.reason, Reason::AddressRefused, "{url}: {}", refused.message);
    }
    assert_eq!(counts.connections.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_query_that_takes_too_long_delays_no_other_twice() {
    let (url, counts) = fake(Says::HangsFor("slow", number("7"))).await;
    let mut probe = probe(&url);
    let (slow, good) = (value("slow"), value("good"));
    for poll in 0..3 {
        let answers = probe.answer(&[&slow, &good], Instant::now() + Duration::from_secs(2)).await;
        assert_eq!(answers[0].as_ref().unwrap_err().reason, Reason::TimedOut, "poll {poll}");
        assert_eq!(answers[1].as_ref().unwrap().value, Some(7.0), "poll {poll}");
    }
    let questions: Vec<_> = (0..100).map(|n| value(&format!("good{}", n % 10))).collect();
    let before = counts.requests.load(Ordering::Relaxed);
    let answers = probe.answer(&questions.iter().collect::<Vec<_>>(), Instant::now() + Duration::from_secs(60)).await;
    assert!(answers.iter().all(Result::is_ok));
    assert_eq!(counts.requests.load(Ordering::Relaxed) - before, 10, "one request for each different query");
}

#[tokio::test]
async fn with_more_queries_than_there_is_time_for_each_is_answered_in_its_turn() {
    let (url, counts) = fake(Says::After(Duration::from_millis(50), number("7"))).await;
    let mut probe = probe(&url);
    // Some 20 to 30 fit into one poll.
    let questions: Vec<_> = (0..100).map(|index| value(&format!("q{index:03}"))).collect();
    let questions: Vec<_> = questions.iter().collect();
    let mut answered = [false; 100];
    let mut polls = 0;
    while answered.contains(&false) {
        let answers = probe.answer(&questions, Instant::now() + Duration::from_secs(1)).await;
        for (answer, answered) in answers.iter().zip(&mut answered) {
            match answer {
                Ok(_) => *answered = true,
                Err(unknown) => assert_eq!(unknown.reason, Reason::TimedOut, "{}", unknown.message),
            }
        }
        polls += 1;
        assert!(
            polls < 100,
            "never answered: {:?}",
            answered.iter().enumerate().filter(|(_, it)| !**it).collect::<Vec<_>>()
        );
    }
    assert!(polls > 1, "all fit, so that this shows nothing");
    assert!(
        counts.connections.load(Ordering::Relaxed) <= 2 * (polls + 1),
        "a connection ends only with a query that took too long"
    );
}

#[tokio::test]
async fn a_server_that_hangs_or_is_away_is_unknown_and_comes_back() {
    let mut own = Prometheus::scraping(target()).unwrap();
    let mut probe = probe(&own.url());
    assert_eq!(ask(&mut probe, &value("1")).await.unwrap().value, Some(1.0));
    own.pause();
    let hung = ask_within(&mut probe, &value("1"), SHORT).await.unwrap_err();
    assert_eq!(hung.reason, Reason::TimedOut, "{}", hung.message);
    own.resume();
    assert_eq!(ask(&mut probe, &value("1")).await.unwrap().value, Some(1.0));
    own.kill();
    let away = ask(&mut probe, &value("1")).await.unwrap_err();
    assert_eq!(away.reason, Reason::ConnectionRefused, "{}", away.message);
}
