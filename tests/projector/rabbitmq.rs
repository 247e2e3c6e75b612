//! Queues of a real RabbitMQ: each effect once, however workers and the server end, and whatever is delivered twice.

use std::{sync::OnceLock, time::Duration};

use projectionist::{
    api::HumanDuration,
    projector::{Input, QueueInput, QueueKind, RabbitMqQueues},
};
use serde_json::{Value, json};
use test_cluster::{
    RabbitMq, eventually_is,
    rabbitmq::{Consumer, Published},
};

use crate::{
    certificates::{Authority, Files, authority},
    killing::{SLOWLY, keeps_the_order_through_a_kill},
    queues::{APPLY, assert_each_once, assert_positions_are_refused, failures},
    workshop::{PATIENCE, Workshop},
};

/// The one server for all tests that do not restart it, which takes fifteen seconds to start: with TLS beside plain AMQP.
struct Shared {
    rabbit: RabbitMq,
    authority: Authority,
    tls: [u16; 2],
    _files: Files,
}

fn shared() -> &'static Shared {
    static SHARED: OnceLock<Shared> = OnceLock::new();
    SHARED.get_or_init(|| {
        let authority = authority();
        let files = Files::signed(&authority);
        let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let tls @ [amqp, management] = [free(), free()];
        let [crt, key, ca] = ["crt", "key", "ca"].map(|name| files.path(name));
        let rabbit = RabbitMq::with(&format!(
            "listeners.ssl.1 = 127.0.0.1:{amqp}\nssl_options.certfile = {crt}\nssl_options.keyfile = {key}\nssl_options.cacertfile = {ca}\nmanagement.ssl.ip = 127.0.0.1\nmanagement.ssl.port = {management}\nmanagement.ssl.certfile = {crt}\nmanagement.ssl.keyfile = {key}\nmanagement.ssl.cacertfile = {ca}"
        ));
        Shared { rabbit: rabbit.unwrap(), authority, tls, _files: files }
    })
}

fn server() -> &'static RabbitMq {
    &shared().rabbit
}

pub(crate) fn declare(rabbit: &RabbitMq, queue: &str, arguments: &Value) {
    let body = json!({"durable": true, "arguments": arguments});
    rabbit.run("PUT", &format!("queues/%2F/{queue}"), &body).unwrap();
}

/// Workers that take from these queues of the server.
pub(crate) async fn open(rabbit: &RabbitMq, queues: &[&str], handler: &str, alone: bool) -> Workshop {
    let mut shop = Workshop::open(queues[0], handler).await;
    let queues = queues.iter().map(|queue| (*queue).to_owned()).collect();
    shop.config.input = Input::Queue(QueueInput {
        queue: QueueKind::RabbitMq(RabbitMqQueues { vhost: "/".to_owned(), queues, ..RabbitMqQueues::default() }),
        keep_for: HumanDuration(Duration::from_secs(3_600)),
        alone,
    });
    shop.source_url = rabbit.url();
    shop.amqp_port = Some(rabbit.amqp().port());
    shop
}

/// An event with this number, of one of forty streams, that is called after it.
fn event(n: i64) -> Published {
    Published {
        id: Some(format!("m-{n}")),
        type_: Some("Counted".to_owned()),
        headers: vec![("stream".to_owned(), format!("o-{}", n % 40))],
        body: format!("{{\"n\": {n}}}"),
    }
}

fn publisher(rabbit: &RabbitMq) -> Consumer {
    rabbit.consumer().unwrap()
}

/// Publishes events with these numbers, and waits until the server has confirmed them.
pub(crate) fn append(rabbit: &RabbitMq, queue: &str, numbers: std::ops::Range<i64>) {
    publisher(rabbit).publish_all(queue, numbers.map(event)).unwrap();
}

/// Messages that wait and messages that workers hold, as the server counts them.
pub(crate) async fn left(rabbit: &RabbitMq, queue: &str) -> anyhow::Result<[Option<i64>; 2]> {
    let told = rabbit.run("GET", &format!("queues/%2F/{queue}"), &Value::Null)?;
    Ok(["messages_ready", "messages_unacknowledged"].map(|name| told[name].as_i64()))
}

/// Waits until so many messages are held by workers, and none waits.
pub(crate) async fn held(rabbit: &RabbitMq, queue: &str, count: i64) {
    let is_so = |seen: &[Option<i64>; 2]| *seen == [Some(0), Some(count)];
    eventually_is(PATIENCE, "all that can be is acknowledged", is_so, || left(rabbit, queue)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_cannot_be_handled_stays_and_is_told_while_the_others_go_on() {
    declare(server(), "rabbit_poison", &json!({"x-queue-type": "quorum"}));
    let mut shop = open(server(), &["rabbit_poison"], APPLY, false).await;
    shop.config.max_event_bytes = 1_024;
    shop.sql.setup = Some(
        "create table if not exists applied (seq bigserial, position bigint, stream text, n bigint constraint unlucky check (n <> 13))"
            .to_owned(),
    );
    let nameless = Published { id: None, ..event(1_000) };
    let unreadable = Published { id: Some("bad".to_owned()), body: "no-json-canary".to_owned(), ..event(0) };
    let unheard = Published { id: None, type_: Some("Other".to_owned()), body: "no-json".to_owned(), ..event(0) };
    let large = Published { id: Some("large".to_owned()), body: "canary".repeat(500_000), ..event(0) };
    publisher(server()).publish_all("rabbit_poison", [nameless, unreadable, unheard, large]).unwrap();
    append(server(), "rabbit_poison", 0..50);
    let worker = shop.start("a");
    shop.applied(49).await;
    append(server(), "rabbit_poison", 50..60);
    shop.applied(59).await;
    held(server(), "rabbit_poison", 4).await;
    let told = eventually_is(PATIENCE, "all are told", |told: &Vec<String>| told.len() == 4, || failures(&shop));
    let told: Vec<String> = told.await.unwrap();
    for words in [
        "message bad of queue rabbit_poison cannot be read: its value is no JSON",
        "3000000 bytes",
        "a message of queue rabbit_poison cannot be read: it has no property message-id",
        "unlucky",
    ] {
        assert!(told.iter().any(|why| why.contains(words)), "{words}: {told:?}");
    }
    assert!(told.iter().all(|why| !why.contains("canary")), "{told:?}");
    // Once it can be handled, it is; nothing is told of it any more.
    shop.store.batch_execute("alter table applied drop constraint unlucky").await.unwrap();
    shop.applied(60).await;
    eventually_is(PATIENCE, "three are left", |told: &Vec<String>| told.len() == 3, || failures(&shop)).await.unwrap();
    held(server(), "rabbit_poison", 3).await;
    // A worker that stops gives back what it kept, at once.
    worker.stop().await;
    let is_back = |seen: &[Option<i64>; 2]| *seen == [Some(3), Some(0)];
    eventually_is(PATIENCE, "they are back", is_back, || left(server(), "rabbit_poison")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_is_published_twice_or_comes_by_two_queues_is_handled_once() {
    let queues = ["rabbit_again", "rabbit_again_too"];
    for queue in queues {
        declare(server(), queue, &json!({}));
    }
    let shop = open(server(), &queues, APPLY, false).await;
    let worker = shop.start("a");
    append(server(), queues[0], 0..300);
    assert_each_once(&shop, 300).await;
    for queue in queues {
        append(server(), queue, 0..310);
    }
    assert_each_once(&shop, 310).await;
    for queue in queues {
        held(server(), queue, 0).await;
    }
    assert_eq!(shop.ask::<i64>("select count(*) from applied").await, 310, "none twice");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_alone_keeps_the_order_through_a_kill() {
    for (queue, kind) in [("rabbit_order", "classic"), ("rabbit_order_quorum", "quorum")] {
        declare(server(), queue, &json!({"x-queue-type": kind}));
        let shop = open(server(), &[queue], SLOWLY, true).await;
        append(server(), queue, 0..1_000);
        keeps_the_order_through_a_kill(&shop, 1_000).await;
        held(server(), queue, 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_is_verified_and_a_small_share_of_rights_suffices() {
    let Shared { authority, tls: [amqp, management], .. } = shared();
    declare(server(), "rabbit_rights", &json!({}));
    let page = include_str!("../../docs/sources/rabbitmq.md");
    assert!(page.contains("set_permissions -p / projectionist '^$' '^$' '^(orders|invoices)$'"), "the page lists them");
    for (user, read) in [("worker", "^(rabbit_rights)$"), ("stranger", "^$")] {
        server().run("PUT", &format!("users/{user}"), &json!({"password": "hunter2", "tags": "management"})).unwrap();
        let rights = json!({"configure": "^$", "write": "^$", "read": read});
        server().run("PUT", &format!("permissions/%2F/{user}"), &rights).unwrap();
    }
    let mut shop = open(server(), &["rabbit_rights"], APPLY, false).await;
    append(server(), "rabbit_rights", 0..50);
    shop.amqp_port = Some(*amqp);
    let url = |user: &str, password: &str| format!("https://{user}:{password}@localhost:{management}");
    shop.source_url = url("worker", "hunter2");
    shop.start("a").says("TLS failed").await;
    shop.source_authority = Some(authority.pem());
    for (user, password, words) in
        [("stranger", "hunter2", "set_permissions"), ("worker", "wrong", "refuses the login")]
    {
        shop.source_url = url(user, password);
        let told = shop.start("a").says(words).await;
        assert!(!told.contains("hunter2") && !told.contains("wrong"), "{told}");
    }
    shop.source_url = url("worker", "hunter2");
    let worker = shop.start("a");
    assert_each_once(&shop, 50).await;
    held(server(), "rabbit_rights", 0).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn queues_that_would_lose_events_are_refused_until_they_are_changed() {
    let mut shop = open(server(), &["rabbit_refused"], APPLY, false).await;
    shop.start("a").says("there is no such queue").await;
    for (arguments, auto_delete, words) in [
        (json!({"x-queue-type": "quorum", "x-delivery-limit": 5}), false, "more than 5 times"),
        (json!({}), true, "auto_delete"),
        (json!({"x-queue-type": "stream"}), false, "it is a stream"),
    ] {
        let body = json!({"durable": true, "auto_delete": auto_delete, "arguments": arguments});
        server().run("PUT", "queues/%2F/rabbit_refused", &body).unwrap();
        shop.start("a").says(words).await;
        server().run("DELETE", "queues/%2F/rabbit_refused", &Value::Null).unwrap();
    }
    declare(server(), "rabbit_refused", &json!({}));
    let worker = shop.start("a");
    worker.says("200 OK").await;
    // A queue that is deleted under a worker is told, and one that is made again is read.
    server().run("DELETE", "queues/%2F/rabbit_refused", &Value::Null).unwrap();
    worker.says("queue").await;
    declare(server(), "rabbit_refused", &json!({}));
    append(server(), "rabbit_refused", 0..20);
    assert_each_once(&shop, 20).await;
    worker.stop().await;
    assert_positions_are_refused(&mut shop).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_worker_takes_ahead_is_bounded_by_bytes() {
    declare(server(), "rabbit_large", &json!({}));
    let mut shop = open(server(), &["rabbit_large"], APPLY, false).await;
    shop.config.batch_size = 1_000;
    let worker = shop.start_process("a");
    // Small messages, of which it takes many at once, before large ones.
    append(server(), "rabbit_large", 0..3_000);
    shop.applied(3_000).await;
    let padding = "x".repeat(900_000);
    let large = |n: i64| Published { body: format!("{{\"n\": {n}, \"padding\": \"{padding}\"}}"), ..event(n) };
    for first in (3_000..3_200).step_by(10) {
        publisher(server()).publish_all("rabbit_large", (first..first + 10).map(large)).unwrap();
    }
    assert_each_once(&shop, 3_200).await;
    held(server(), "rabbit_large", 0).await;
    // All of the large ones have 180 MB. What pods of the built-in projector are granted by default is enough.
    let peak = worker.peak_memory();
    assert!(peak < 128 << 20, "{peak} bytes");
}
