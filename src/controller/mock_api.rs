//! An API server for tests. The test answers request by request, and so sees which requests come and in which order.

use http::{Method, Request, Response};
use http_body_util::BodyExt as _;
use kube::{Client, client::Body};
use serde_json::{Value, json};
use tower_test::mock::{self, Handle};

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
