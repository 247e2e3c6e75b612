//! What the log says of requests that were denied: enough for an auditor, and nothing for a thief.

use std::{
    io::Write,
    sync::{Arc, Mutex, atomic::Ordering},
};

use projectionist::metrics_api::{Offer, Rate};

use crate::harness::{AS_MASTER, Authority, METRIC, Server, things};

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    /// Everything that this thread logs from now on, and what keeps it so.
    fn capture() -> (Self, tracing::subscriber::DefaultGuard) {
        let log = Self::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_max_level(tracing::Level::DEBUG)
            .with_writer(move || writer.clone());
        (log, tracing::subscriber::set_default(subscriber.finish()))
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    fn denials(&self) -> Vec<String> {
        self.text().lines().filter(|line| line.contains(" audit: denied")).map(ToOwned::to_owned).collect()
    }
}

#[tokio::test]
async fn each_request_that_is_denied_leaves_one_line_that_says_whose_it_was_and_why() {
    let (log, _guard) = Log::capture();
    let server = Server::start().await;
    let proxy = || Some(server.front.client("front-proxy-client"));
    let forged = Some(Authority::new().client("front-proxy-client"));
    let secret = format!("{METRIC}?access_token=canary");
    let mut expected = Vec::new();
    for (identity, headers, code, says) in [
        (None, &[][..], 401, vec![r#"user="""#, "code=401", "neither"]),
        (forged, AS_MASTER, 401, vec![r#"user="""#, "code=401", "the client certificate"]),
        (None, &[("Authorization", "Bearer canary")], 401, vec![r#"user="""#, "code=401", "the token is not valid"]),
        (proxy(), &[("X-Remote-User", "bob")], 403, vec![r#"user="bob""#, "code=403", "no role"]),
        (Some(server.users.client("eve")), &[], 403, vec![r#"user="eve""#, "code=403", "no role"]),
    ] {
        assert_eq!(server.get(identity, &secret, headers).await.0, code);
        expected.push(says);
    }
    server.cluster.down.store(true, Ordering::Relaxed);
    assert_eq!(server.get(proxy(), METRIC, &[("X-Remote-User", "ann")]).await.0, 500);
    expected.push(vec![r#"user="ann""#, "code=500", "could not be authorized"]);
    // Who is answered leaves none, and neither does a question that is merely wrong.
    assert_eq!(server.get(proxy(), METRIC, AS_MASTER).await.0, 200);
    assert_eq!(server.get(proxy(), "/apis/nothing", AS_MASTER).await.0, 404);
    let lines = log.denials();
    assert_eq!(lines.len(), expected.len(), "{lines:#?}");
    for (line, says) in lines.iter().zip(&expected) {
        let common = ["from=127.0.0.1:", "method=GET", METRIC];
        assert!(says.iter().chain(&common).all(|part| line.contains(part)), "{says:?}: {line}");
    }
    assert!(!log.text().contains("canary"), "{}", log.text());
}

#[tokio::test]
async fn who_runs_wild_is_told_of_once_and_not_a_thousand_times() {
    let (log, _guard) = Log::capture();
    let offer = Offer { external: true, objects: Some(things()) };
    let server = Server::with(offer, |options| options.rate = Rate { per_second: 1, burst: 10 }).await;
    let mut client = server.connect(Some(server.users.client("ann"))).await;
    for _ in 0..200 {
        client.get(METRIC, &[]).await;
    }
    let lines = log.denials();
    assert!(lines.len() == 1 && lines[0].contains("code=429") && lines[0].contains(r#"user="ann""#), "{lines:#?}");
    assert!(server.metrics.throttled.get() > 100);
}

#[tokio::test]
async fn a_token_is_never_repeated_in_an_answer_or_a_log() {
    const CANARY: &str = "canary-7f3a9d";
    let (log, _guard) = Log::capture();
    let server = Server::start().await;
    let bearer = format!("Bearer {CANARY}");
    let mut client = server.connect(None).await;
    for path in [METRIC, "/apis", "/healthz", "/nothing", "/apis/%zz"] {
        let answer = client.send("GET", path, &[("Authorization", &bearer)]).await;
        assert!(!String::from_utf8_lossy(answer.body()).contains(CANARY), "{path}");
        assert!(!format!("{:?}", answer.headers()).contains(CANARY), "{path}");
    }
    // A caller known by certificate is denied: the line for the auditor is there, and the token beside it is not.
    let mut denied = server.connect(Some(server.users.client("bob"))).await;
    assert_eq!(denied.send("GET", METRIC, &[("Authorization", &bearer)]).await.status(), 403);
    let log = log.text();
    assert!(log.contains("denied") && log.contains("bob"), "the log was not captured: {log}");
    assert!(!log.contains(CANARY));
}
