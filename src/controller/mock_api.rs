//! An API server for tests. The test answers request by request, and so sees which requests come and in which order.
//!
//! [`Server::answers`] expects one request; [`Server::during`] answers all that come while some work is done, for tests that look at the outcome.

use std::pin::pin;

use http::{Method, Request, Response};
use http_body_util::BodyExt as _;
use kube::{Client, client::Body};
use serde_json::{Value, json};
use tower_test::mock::{self, Handle};

/// A request that came.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) method: Method,
    /// Path and query.
    pub(super) uri: String,
    /// Null where there was none.
    pub(super) body: Value,
}

impl Asked {
    /// The path alone.
    pub(super) fn path(&self) -> &str {
        self.uri.split('?').next().unwrap_or_default()
    }

    /// Something is to be changed.
    pub(super) fn writes(&self) -> bool {
        self.method != Method::GET
    }
}

/// What the server does with a request.
pub(super) enum Answer {
    /// Answers with this code and object.
    Object(u16, Value),
    /// Answers a watch with these events, and ends it.
    Events(Vec<Value>),
    /// Lets it wait for as long as the test lasts.
    Never,
}

/// The server's side of a client.
pub(super) struct Server(Handle<Request<Body>, Response<Body>>);

impl Server {
    /// A server, and a client whose requests it gets.
    pub(super) fn mocked() -> (Self, Client) {
        let (service, handle) = mock::pair::<Request<Body>, Response<Body>>();
        (Self(handle), Client::new(service, "shop"))
    }

    /// Waits for a request by this method and answers it with what `answer` makes of its body; returns its path and body.
    pub(super) async fn answers(
        &mut self,
        method: Method,
        code: u16,
        answer: impl FnOnce(&Value) -> Value,
    ) -> (String, Value) {
        let (request, send) = self.0.next_request().await.expect("a request");
        assert_eq!(request.method(), method, "{}", request.uri());
        let path = request.uri().path().to_owned();
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let body = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).unwrap() };
        let answer = answer(&body).to_string().into_bytes();
        send.send_response(Response::builder().status(code).body(Body::from(answer)).unwrap());
        (path, body)
    }

    /// Answers what is asked while `work` is done; returns what it gave and all that was asked, in order.
    pub(super) async fn during<T>(
        &mut self,
        work: impl Future<Output = T>,
        mut answer: impl FnMut(&Asked) -> Answer,
    ) -> (T, Vec<Asked>) {
        let (mut work, mut all, mut waiting) = (pin!(work), Vec::new(), Vec::new());
        loop {
            tokio::select! {
                biased;
                done = &mut work => return (done, all),
                Some((request, send)) = self.0.next_request() => {
                    let (method, uri) = (request.method().clone(), request.uri().to_string());
                    let body = request.into_body().collect().await.unwrap().to_bytes();
                    let body = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).unwrap() };
                    let asked = Asked { method, uri, body };
                    let respond = |code: u16, text: String| {
                        Response::builder().status(code).body(Body::from(text.into_bytes())).unwrap()
                    };
                    match answer(&asked) {
                        Answer::Object(code, object) => send.send_response(respond(code, object.to_string())),
                        Answer::Events(events) => {
                            let lines: String = events.iter().map(|event| format!("{event}\n")).collect();
                            send.send_response(respond(200, lines));
                        }
                        Answer::Never => waiting.push(send),
                    }
                    all.push(asked);
                }
            }
        }
    }

    /// Nothing more is asked once all clients are gone.
    pub(super) async fn is_asked_no_more(&mut self) {
        if let Some((request, _)) = self.0.next_request().await {
            panic!("{} {}", request.method(), request.uri());
        }
    }
}

/// A Status of a failure.
pub(super) fn failure(code: u16, reason: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code, "message": reason})
}
