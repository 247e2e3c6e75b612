//! What is reported in each state of topics and group, through the sampler as the operator runs it.

use std::{convert::Infallible, time::Duration};

use projectionist::{
    api::Reason,
    lag::{AtLeast, Certain, CheckpointState, Limit, Pending, Position},
};
use serde_json::json;
use test_cluster::{eventually_is, kafka::Listener};

use crate::{
    harness::{ask, broker, commit, pki, produce, token, topic},
    sampler::Running,
};

const NOW: Duration = Duration::ZERO;
const DEADLINE: Duration = Duration::from_secs(120);

fn exactly(events: u64) -> Pending {
    Pending { events, exact: true }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_that_never_committed_is_unknown_unless_the_spec_says_where_it_begins() {
    topic("never", 2, "");
    produce("never", 0, 3, NOW);
    let mut sampler = Running::start();
    sampler.declare("never", &["never"], "never-group", |_| {});
    sampler.declare("from-the-first", &["never"], "never-group", |kafka| kafka["offsetReset"] = json!("Earliest"));
    let unknown = sampler.wait_unknown("never", Reason::NeverCommitted).await;
    assert!(!unknown.message.is_empty());
    sampler.wait_pending("from-the-first", exactly(3)).await;
    ask(&["deleterecords", "never", "0", "2"]);
    // From the first record that is kept, not from zero.
    sampler.wait_pending("from-the-first", exactly(1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_topic_a_backlog_and_a_group_that_has_caught_up() {
    topic("backlog", 3, "");
    topic("backlog-too", 1, "");
    for n in 0..3 {
        commit("backlog-group", "backlog", n, 0);
    }
    commit("backlog-group", "backlog-too", 0, 0);
    let mut sampler = Running::start();
    sampler.declare("backlog", &["backlog", "backlog-too"], "backlog-group", |_| {});
    let empty = sampler.wait_pending("backlog", exactly(0)).await;
    assert_eq!(empty.sample.staleness, Some(Duration::ZERO));
    assert_eq!(empty.sample.arrived, 0);
    produce("backlog", 1, 4, Duration::from_secs(300));
    produce("backlog", 2, 2, Duration::from_secs(100));
    produce("backlog-too", 0, 1, NOW);
    let behind = sampler.wait_pending("backlog", exactly(7)).await;
    assert_eq!(behind.sample.pending_by_shard, [0, 4, 2, 1]);
    assert_eq!(behind.sample.arrived, 7);
    let age = behind.sample.staleness.unwrap();
    assert!((Duration::from_secs(300)..Duration::from_secs(420)).contains(&age), "{age:?}");
    commit("backlog-group", "backlog", 1, 4);
    let nearer = sampler.wait_pending("backlog", exactly(3)).await;
    let age = nearer.sample.staleness.unwrap();
    assert!((Duration::from_secs(100)..Duration::from_secs(220)).contains(&age), "{age:?}");
    // Kafka's own consumer reads the rest, and no other consumer was ever in the group.
    ask(&["consume", "backlog-group", "backlog,backlog-too", "3"]);
    let done = sampler.wait_pending("backlog", exactly(0)).await;
    assert_eq!(done.sample.staleness, Some(Duration::ZERO));
    assert_eq!(ask(&["members", "backlog-group"]), "Empty 0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_a_group_rebalances_what_it_has_committed_counts() {
    topic("rebalancing", 2, "");
    produce("rebalancing", 0, 5, NOW);
    for (partition, offset) in [(0, 2), (1, 0)] {
        commit("rebalancing-group", "rebalancing", partition, offset);
    }
    let mut sampler = Running::start();
    sampler.declare("rebalancing", &["rebalancing"], "rebalancing-group", |_| {});
    sampler.wait_pending("rebalancing", exactly(3)).await;
    let members = || async { Ok::<_, Infallible>(ask(&["members", "rebalancing-group"])) };
    ask(&["join", "rebalancing-group", "rebalancing"]);
    assert_eq!(members().await.unwrap(), "Stable 1");
    ask(&["ask to join", "rebalancing-group", "rebalancing"]);
    let rebalances = |members: &String| members.starts_with("PreparingRebalance");
    eventually_is(DEADLINE, "the group rebalances", rebalances, members).await.unwrap();
    for round in 1..=3 {
        produce("rebalancing", 1, 1, NOW);
        sampler.wait_pending("rebalancing", exactly(3 + round)).await;
    }
    // It did so all the time, since one of its members does nothing.
    assert!(rebalances(&members().await.unwrap()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transaction_markers_are_no_lag() {
    topic("marked", 1, "");
    ask(&["begin", "marked-tx", "marked", "0", "3"]);
    ask(&["end", "marked-tx", "commit"]);
    let mut sampler = Running::start();
    commit("marked-group", "marked", 0, 1);
    sampler.declare("marked", &["marked"], "marked-group", |_| {});
    let marked = sampler.wait_pending("marked", Pending { events: 3, exact: false }).await;
    // The marker is none of the events that wait for certain. Offsets go on as records do.
    assert_eq!((marked.sample.certain, marked.sample.tells_rates), (Some(Certain::Oldest(2)), true));
    let at_least = marked.assessment.at_least.unwrap();
    assert_eq!((at_least.events, at_least.age), (2, marked.sample.staleness));
    // Where the last record ends; the marker behind it is never read by anybody.
    commit("marked-group", "marked", 0, 3);
    let done = sampler.wait_pending("marked", exactly(0)).await;
    assert_eq!(done.sample.checkpoint, CheckpointState::Committed(vec![Position(3)]));
    // An open transaction: what it holds cannot be read, and what is behind it cannot either.
    ask(&["begin", "marked-tx", "marked", "0", "2"]);
    produce("marked", 0, 1, NOW);
    sampler.declare("all", &["marked"], "marked-group", |kafka| kafka["isolation"] = json!("ReadUncommitted"));
    sampler
        .wait_measured("all three are there for those who read all", "all", |m| m.assessment.pending.events >= 3)
        .await;
    sampler.wait_pending("marked", exactly(0)).await;
    // A consumer that reads all stands beyond the open transaction: that is no checkpoint beyond the head.
    commit("marked-group", "marked", 0, 7);
    sampler.wait_pending("marked", exactly(0)).await;
    ask(&["end", "marked-tx", "abort"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_retention_deleted_before_it_was_handled_is_said() {
    topic("deleted", 1, "");
    produce("deleted", 0, 10, NOW);
    commit("deleted-group", "deleted", 0, 2);
    ask(&["deleterecords", "deleted", "0", "6"]);
    let mut sampler = Running::start();
    sampler.declare("deleted", &["deleted"], "deleted-group", |_| {});
    let lost = sampler.wait_pending("deleted", exactly(4)).await;
    assert_eq!(lost.sample.faults.deleted, 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compacted_topic_is_counted_as_an_upper_bound_and_planned_by_the_records_that_are_there() {
    topic("compacted", 1, "cleanup.policy=compact");
    for _ in 0..5 {
        ask(&["produce", "compacted", "0", "3", "0", "one-key"]);
    }
    commit("compacted-group", "compacted", 0, 0);
    let mut sampler = Running::start();
    sampler.declare("compacted", &["compacted"], "compacted-group", |_| {});
    let whole = sampler.wait_pending("compacted", Pending { events: 15, exact: false }).await;
    // Nothing is removed yet, which the records show.
    assert_eq!((whole.sample.certain, whole.sample.tells_rates), (Some(Certain::Oldest(15)), true));

    topic("holes", 1, "cleanup.policy=compact,segment.ms=100,min.cleanable.dirty.ratio=0.01");
    commit("holes-group", "holes", 0, 0);
    sampler.declare("holes", &["holes"], "holes-group", |_| {});
    let mut end = 0;
    let holes = loop {
        ask(&["produce", "holes", "0", "50", "0", "one-key"]);
        end += 50;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let seen = sampler.wait_measured("what was appended", "holes", |m| m.assessment.pending.events == end).await;
        if !seen.sample.tells_rates {
            break seen;
        }
        assert!(end < 10_000, "the broker compacts nothing: {seen:?}");
    };
    // Most of what is counted is gone. What is left waits, and its age is that of a record.
    let certain = holes.sample.certain.unwrap();
    assert!(matches!(certain, Certain::Oldest(1..)) && certain.events() < end, "{certain:?} of {end}");
    let at_least = AtLeast { events: certain.events(), age: holes.sample.staleness };
    assert_eq!(holes.assessment.at_least, Some(at_least));
    assert!(holes.sample.staleness.is_some_and(|age| age < Duration::from_secs(120)), "{holes:?}");
    // All is handled: nothing waits, and nothing keeps a worker.
    commit("holes-group", "holes", 0, i64::try_from(end).unwrap());
    let done = sampler.wait_pending("holes", exactly(0)).await;
    assert_eq!((done.sample.upper_bound.as_ref(), done.assessment.at_least), (None, None));
    let required = &done.assessment.required;
    assert!(required.workers <= 1 || required.limit == Limit::Min, "{required:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn times_of_a_clock_that_is_wrong_make_no_absurd_age() {
    let (half_an_hour, a_year) = (Duration::from_secs(1_800), Duration::from_secs(31_536_000));
    topic("skewed", 2, "");
    // The broker's clock counts here, whatever producers say.
    topic("appended", 1, "message.timestamp.type=LogAppendTime");
    ask(&["produce", "skewed", "0", "2", &format!("-{}", half_an_hour.as_millis()), ""]);
    produce("appended", 0, 1, a_year);
    for (topic, partition) in [("skewed", 0), ("skewed", 1), ("appended", 0)] {
        commit("skewed-group", topic, partition, 0);
    }
    let mut sampler = Running::start();
    sampler.declare("skewed", &["skewed"], "skewed-group", |_| {});
    sampler.declare("appended", &["appended"], "skewed-group", |_| {});
    let ahead = sampler.wait_pending("skewed", exactly(2)).await;
    assert_eq!(ahead.sample.staleness, Some(Duration::ZERO));
    let by = ahead.assessment.ahead_of_clock.unwrap();
    assert!((half_an_hour / 2..=half_an_hour).contains(&by), "{by:?}");
    // An age that is known counts beside one that is not.
    produce("skewed", 1, 1, Duration::from_secs(300));
    let older = sampler.wait_pending("skewed", exactly(3)).await;
    let age = older.sample.staleness.unwrap();
    assert!((Duration::from_secs(300)..Duration::from_secs(420)).contains(&age), "{age:?}");
    assert!(older.assessment.ahead_of_clock.is_some());
    let appended = sampler.wait_pending("appended", exactly(1)).await;
    assert!(appended.sample.staleness.unwrap() < a_year / 2, "{:?}", appended.sample.staleness);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_that_are_added_are_taken_up() {
    topic("grows", 1, "");
    produce("grows", 0, 2, NOW);
    commit("grows-group", "grows", 0, 2);
    let mut sampler = Running::start();
    sampler.declare("grows", &["grows"], "grows-group", |_| {});
    sampler.wait_pending("grows", exactly(0)).await;
    ask(&["partitions", "grows", "2"]);
    produce_when_there("grows", 1, 3);
    // Nothing committed there: what waits is at most all of it, and it is said why.
    let bound = sampler.wait_pending("grows", Pending { events: 3, exact: false }).await;
    assert!(bound.sample.upper_bound.as_ref().unwrap().contains("partition 1 of topic grows"));
    commit("grows-group", "grows", 1, 1);
    let told = sampler.wait_pending("grows", exactly(2)).await;
    assert_eq!((told.sample.pending_by_shard.as_slice(), told.sample.arrived), ([0, 2].as_slice(), 3));
}

/// A producer learns of a new partition a little later.
pub fn produce_when_there(topic: &str, partition: i32, count: u32) {
    let until = std::time::Instant::now() + Duration::from_secs(120);
    let (partition, count) = (partition.to_string(), count.to_string());
    while let Err(error) = broker().ask(&["produce", topic, &partition, &count, "0", ""]) {
        assert!(std::time::Instant::now() < until, "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_is_deleted_is_unknown_and_one_that_is_created_again_is_never_zero() {
    topic("vanishes", 1, "");
    produce("vanishes", 0, 5, NOW);
    commit("vanishes-group", "vanishes", 0, 5);
    topic("stays", 1, "");
    produce("stays", 0, 1, NOW);
    commit("vanishes-group", "stays", 0, 0);
    let mut sampler = Running::start();
    sampler.declare("vanishes", &["vanishes"], "vanishes-group", |_| {});
    sampler.declare("stays", &["stays"], "vanishes-group", |_| {});
    sampler.wait_pending("vanishes", exactly(0)).await;
    ask(&["delete", "vanishes"]);
    let gone = sampler.wait_unknown("vanishes", Reason::TableNotFound).await;
    assert!(gone.message.contains("topic vanishes"), "{}", gone.message);
    sampler.wait_pending("stays", exactly(1)).await;
    topic("vanishes", 1, "");
    produce_when_there("vanishes", 0, 2);
    // Kafka 4 deletes the group's offsets together with the topic. Where an older broker keeps them, the checkpoint is beyond the head.
    let lost = sampler.wait("unknown", "vanishes", |seen| {
        seen.failure.as_ref().is_some_and(|failure| failure.message.contains("has none any more"))
    });
    lost.await;
    commit("vanishes-group", "vanishes", 0, 1);
    sampler.wait_pending("vanishes", exactly(1)).await;
    commit("vanishes-group", "vanishes", 0, 9);
    let beyond = sampler.wait_unknown("vanishes", Reason::CheckpointBeyondHead).await;
    assert!(beyond.message.contains("9 is beyond the source's head 2"), "{}", beyond.message);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_that_is_deleted_is_unknown_until_it_commits_again() {
    topic("ungrouped", 1, "");
    produce("ungrouped", 0, 5, NOW);
    commit("ungrouped-group", "ungrouped", 0, 5);
    let mut sampler = Running::start();
    sampler.declare("ungrouped", &["ungrouped"], "ungrouped-group", |_| {});
    sampler.wait_pending("ungrouped", exactly(0)).await;
    ask(&["deletegroup", "ungrouped-group"]);
    // Not as one that never committed, for which one worker would be asked for.
    let gone = sampler.wait_unknown("ungrouped", Reason::SourceFailed).await;
    assert!(gone.message.contains("group ungrouped-group had committed offsets"), "{}", gone.message);
    commit("ungrouped-group", "ungrouped", 0, 4);
    sampler.wait_pending("ungrouped", exactly(1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_user_and_a_rotated_password_and_an_untrusted_broker() {
    topic("secret", 1, "");
    produce("secret", 0, 1, NOW);
    commit("secret-group", "secret", 0, 0);
    ask(&["scram", "sampler", "SCRAM-SHA-256", "right-canary"]);
    ask(&["allow", "sampler", "topic", "secret", "READ"]);
    ask(&["allow", "sampler", "topic", "secret", "DESCRIBE_CONFIGS"]);
    ask(&["allow", "sampler", "group", "secret-group", "DESCRIBE"]);
    let servers = broker().address(Listener::Sasl).to_string();
    let keys = |password: &str| {
        json!({
            "bootstrapServers": servers, "securityProtocol": "SASL_PLAINTEXT", "saslMechanism": "SCRAM-SHA-256",
            "username": "sampler", "password": password,
        })
    };
    let mut sampler = Running::start();
    sampler.secret("user", &keys("wrong-canary"));
    sampler.secret("ca", &json!({ "ca.crt": pki().broker_ca }));
    sampler.secret("tls", &json!({ "bootstrapServers": broker().address(Listener::Tls).to_string() }));
    sampler.declare("refused", &["secret"], "secret-group", |kafka| {
        kafka["connection"]["secretRef"]["name"] = json!("user");
    });
    sampler.declare("untrusted", &["secret"], "secret-group", |kafka| {
        kafka["connection"] = json!({ "secretRef": { "name": "tls" }, "caSecretRef": { "name": "other-ca" } });
    });
    sampler.secret("other-ca", &json!({ "ca.crt": pki().broker.client_ca }));
    sampler.declare("trusted", &["secret"], "secret-group", |kafka| {
        kafka["connection"] = json!({ "secretRef": { "name": "tls" }, "caSecretRef": { "name": "ca" } });
    });
    sampler.declare("open", &["secret"], "secret-group", |_| {});
    sampler.wait_unknown("refused", Reason::AuthenticationFailed).await;
    sampler.wait_unknown("untrusted", Reason::TlsFailed).await;
    sampler.wait_pending("trusted", exactly(1)).await;
    sampler.wait_pending("open", exactly(1)).await;
    sampler.secret("user", &keys("right-canary"));
    sampler.wait_pending("refused", exactly(1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_is_rotated_takes_effect() {
    topic("rotates", 1, "");
    produce("rotates", 0, 3, NOW);
    commit("rotates-group", "rotates", 0, 1);
    ask(&["allow", "rotates", "topic", "rotates", "READ"]);
    ask(&["allow", "rotates", "topic", "rotates", "DESCRIBE_CONFIGS"]);
    ask(&["allow", "rotates", "group", "rotates-group", "DESCRIBE"]);
    let servers = broker().address(Listener::Sasl).to_string();
    let keys =
        |token: String| json!({ "bootstrapServers": servers, "securityProtocol": "SASL_PLAINTEXT", "token": token });
    let mut sampler = Running::start();
    sampler.secret("token", &keys(token("rotates", -60)));
    sampler.declare("rotates", &["rotates"], "rotates-group", |kafka| {
        kafka["connection"]["secretRef"]["name"] = json!("token");
    });
    let refused = sampler.wait_unknown("rotates", Reason::AuthenticationFailed).await;
    assert!(refused.message.contains("key token of the Secret"), "{}", refused.message);
    sampler.secret("token", &keys(token("rotates", 600)));
    sampler.wait_pending("rotates", exactly(2)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_right_to_read_a_count_is_told_and_no_time_and_each_right_adds_what_it_is_for() {
    topic("described", 1, "");
    produce("described", 0, 4, NOW);
    commit("described-group", "described", 0, 1);
    ask(&["scram", "describer", "SCRAM-SHA-512", "describer-canary"]);
    ask(&["allow", "describer", "topic", "described", "DESCRIBE"]);
    ask(&["allow", "describer", "group", "described-group", "DESCRIBE"]);
    let mut sampler = Running::start();
    let servers = broker().address(Listener::Sasl).to_string();
    sampler.secret(
        "describer",
        &json!({ "bootstrapServers": servers, "username": "describer", "password": "describer-canary" }),
    );
    sampler.declare("described", &["described"], "described-group", |kafka| {
        kafka["connection"]["secretRef"]["name"] = json!("describer");
    });
    let counted = sampler.wait_pending("described", Pending { events: 3, exact: false }).await;
    assert_eq!(counted.sample.staleness, None);
    assert!(counted.sample.upper_bound.as_ref().unwrap().contains("DESCRIBE_CONFIGS"), "{:?}", counted.sample);
    commit("described-group", "described", 0, 4);
    sampler.wait_pending("described", exactly(0)).await;
    // With it the time is told, and whether the topic is compacted is still not known.
    ask(&["allow", "describer", "topic", "described", "READ"]);
    produce("described", 0, 2, NOW);
    let two = Pending { events: 2, exact: false };
    let timed = "two wait, and for how long";
    let read = sampler
        .wait_measured(timed, "described", |m| m.sample.staleness.is_some() && m.assessment.pending == two)
        .await;
    assert!(read.sample.upper_bound.as_ref().unwrap().contains("DESCRIBE_CONFIGS"), "{:?}", read.sample);
    ask(&["allow", "describer", "topic", "described", "DESCRIBE_CONFIGS"]);
    sampler.wait_pending("described", exactly(2)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_cluster_that_hangs_does_not_hold_up_another() {
    topic("healthy", 1, "");
    produce("healthy", 0, 2, NOW);
    commit("healthy-group", "healthy", 0, 0);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            kept.push(stream);
        }
    });
    let mut sampler = Running::start();
    sampler.secret("hangs", &json!({ "bootstrapServers": address }));
    sampler.declare("hangs", &["healthy"], "healthy-group", |kafka| {
        kafka["connection"]["secretRef"]["name"] = json!("hangs");
    });
    sampler.declare("healthy", &["healthy"], "healthy-group", |_| {});
    sampler.wait_pending("healthy", exactly(2)).await;
    let hung = sampler.wait_unknown("hangs", Reason::TimedOut).await;
    assert!(hung.message.contains(&address), "{}", hung.message);
    commit("healthy-group", "healthy", 0, 2);
    sampler.wait_pending("healthy", exactly(0)).await;
}
