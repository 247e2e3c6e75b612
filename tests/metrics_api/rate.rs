//! A client that has run wild is slowed, and no other.

use projectionist::metrics_api::{Offer, Rate};

use crate::harness::{METRIC, Server, things};

const DISCOVERY: &str = "/apis/external.metrics.k8s.io/v1beta1";

#[tokio::test]
async fn a_caller_that_asks_too_often_is_refused_alone_whichever_proxy_carries_its_requests() {
    // Practically no refill, so that only the burst counts and not how long the test takes.
    let offer = Offer { external: true, objects: Some(things()) };
    let server = Server::with(offer, |options| options.rate = Rate { per_second: 1, burst: 100 }).await;
    let as_user = |name: &'static str| [("X-Remote-User", name), ("X-Remote-Group", "system:masters")];
    let mut proxy = server.connect(Some(server.front.client("front-proxy-client"))).await;
    let mut refused = None;
    for _ in 0..100_000 {
        let (code, body, headers) = proxy.get(METRIC, &as_user("wild")).await;
        if code != 200 {
            refused = Some((code, body, headers));
            break;
        }
    }
    let (code, body, headers) = refused.expect("it is not stopped");
    assert_eq!((code, body["code"].as_u64()), (429, Some(429)));
    assert_eq!((body["kind"].as_str(), body["status"].as_str()), (Some("Status"), Some("Failure")));
    assert_eq!(body["reason"], "TooManyRequests");
    assert!(body["message"].as_str().unwrap().contains("\"wild\""), "{body}");
    assert_eq!(headers["content-type"], "application/json");
    assert!(!headers.contains_key("retry-after"), "client-go would block a worker of the autoscaler");
    assert_eq!(server.metrics.throttled.get(), 1);

    // Everybody else asks over the same connection, or one of his own, or has no identity at all.
    assert_eq!(proxy.get(METRIC, &as_user("system:serviceaccount:kube-system:horizontal-pod-autoscaler")).await.0, 200);
    for path in [DISCOVERY, "/apis", "/openapi/v2"] {
        assert_eq!(proxy.get(path, &as_user("system:kube-aggregator")).await.0, 200, "{path}");
    }
    assert_eq!(server.get(None, "/healthz", &[]).await.0, 200);
    // The same user is the same by whichever door; a token or certificate without a user costs no user anything.
    let mut wild = server.connect(Some(server.users.client("wild"))).await;
    let mut spent = false;
    for _ in 0..100 {
        spent = spent || wild.get(METRIC, &[]).await.0 == 429;
    }
    assert!(spent, "the bucket is another behind another door");
    assert_eq!(server.get(Some(server.users.client("ann")), METRIC, &[]).await.0, 200);
}
