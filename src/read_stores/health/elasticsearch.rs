//! The write thread pools, the memory for writes and the connections of all nodes of Elasticsearch or OpenSearch.

use http::{Method, StatusCode};
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use crate::{
    api::{ConnectionLimit, Reason},
    clients::elasticsearch::refusal,
    measure::MeasureError,
    read_stores::ElasticsearchStore,
    store_health::{Connections, StoreSample, WriteQueue},
};

/// A few hundred bytes a node. A node that hangs is left out after two seconds.
const STATISTICS: &str = "/_nodes/stats/thread_pool,http,indexing_pressure?timeout=2s&filter_path=_nodes.failed,nodes.*.thread_pool.write.queue,nodes.*.thread_pool.write.rejected,nodes.*.http.current_open,nodes.*.indexing_pressure.memory.total.*_rejections";
/// Where a node counts the writes that it has refused: since the queue was full, or since those under way take too much memory, where the client or another
/// node sent them. Replicas' are writes that were accepted.
const REJECTED: [&str; 3] = [
    "/thread_pool/write/rejected",
    "/indexing_pressure/memory/total/coordinating_rejections",
    "/indexing_pressure/memory/total/primary_rejections",
];

pub(in crate::read_stores) async fn health(
    store: &ElasticsearchStore,
    deadline: Instant,
) -> Result<StoreSample, MeasureError> {
    let place = store.identity().settings();
    let Ok(mut client) = timeout_at(deadline, store.health.lock()).await else {
        let late = MeasureError {
            reason: Reason::TimedOut,
            message: "the server has not answered an earlier question in time".to_owned(),
        };
        return Err(late.about(place));
    };
    if !client.is_connected() {
        // Connecting is not what is timed.
        let opened = client.ask(Method::GET, STATISTICS.to_owned(), None, deadline).await;
        opened.map_err(|error| error.about(place))?;
    }
    let started = Instant::now();
    let answer = client.ask(Method::GET, STATISTICS.to_owned(), None, deadline).await;
    let latency = started.elapsed();
    let (status, answer) = answer.map_err(|error| error.about(place))?;
    interpret(status, &answer).map(|sample| StoreSample { latency, ..sample }).map_err(|error| error.about(place))
}

fn interpret(status: StatusCode, answer: &Value) -> Result<StoreSample, MeasureError> {
    let missing = |why: String| StoreSample { missing: Some(why.into()), ..StoreSample::default() };
    match status.as_u16() {
        200 => {}
        // It answers, though not this.
        403 => {
            let why = "the user in the Secret may not ask for them: grant the cluster privilege monitor (in OpenSearch cluster:monitor/nodes/stats)";
            return Ok(missing(format!("write rejections and queue: {why}")));
        }
        400 | 404 | 405 | 410 => {
            return Ok(missing("write rejections and queue: the server offers no statistics of its nodes".to_owned()));
        }
        _ => return Err(refusal(status, answer)),
    }
    let nodes: Vec<&Value> =
        answer.get("nodes").and_then(Value::as_object).into_iter().flat_map(|all| all.values()).collect();
    let sum = |path: &str| {
        let each: Option<Vec<u64>> = nodes.iter().map(|node| node.pointer(path).and_then(Value::as_u64)).collect();
        each.filter(|each| !each.is_empty()).map(|each| each.into_iter().fold(0, u64::saturating_add))
    };
    let failed = answer.pointer("/_nodes/failed").and_then(Value::as_u64).unwrap_or(0);
    if failed > 0 {
        // A sum that lacks a node is too small.
        return Ok(missing(format!("write rejections and queue: {failed} nodes do not tell their statistics")));
    }
    let rejected: Option<Vec<u64>> = REJECTED.into_iter().map(sum).collect();
    let rejected = rejected.map(|each| each.into_iter().fold(0, u64::saturating_add));
    let queue = sum("/thread_pool/write/queue").zip(rejected);
    let why = queue.is_none().then(|| "write rejections and queue: the nodes do not tell them".into());
    Ok(StoreSample {
        connections: sum("/http/current_open").map(|used| Connections {
            used,
            exact: true,
            limit: None,
            limited_by: ConnectionLimit::Server,
        }),
        writes: queue.map(|(queued, rejected)| WriteQueue { queued, rejected }),
        missing: why,
        ..StoreSample::default()
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nodes_are_summed_and_a_sum_that_lacks_one_is_not_told() {
        let node = |queue: u64, rejected: u64| {
            let memory =
                json!({"total": {"coordinating_rejections": 10, "primary_rejections": 100, "replica_rejections": 7}});
            json!({
                "thread_pool": {"write": {"queue": queue, "rejected": rejected}},
                "http": {"current_open": 2},
                "indexing_pressure": {"memory": memory},
            })
        };
        let all = interpret(StatusCode::OK, &json!({"nodes": {"a": node(1, 5), "b": node(2, 0)}})).unwrap();
        assert_eq!(all.writes, Some(WriteQueue { queued: 3, rejected: 225 }));
        assert_eq!(all.connections.map(|it| (it.used, it.limit)), Some((4, None)));
        for lacking in [
            json!({"nodes": {"a": node(1, 5), "b": {}}}),
            json!({"_nodes": {"failed": 1}, "nodes": {"a": node(1, 5)}}),
            json!({}),
        ] {
            let sample = interpret(StatusCode::OK, &lacking).unwrap();
            assert!(sample.writes.is_none() && sample.missing.is_some(), "{lacking}");
        }
    }

    #[test]
    fn a_server_that_may_not_be_asked_is_there_and_one_that_is_overloaded_is_not_healthy() {
        let refused = interpret(StatusCode::FORBIDDEN, &json!({})).unwrap();
        assert!(refused.missing.unwrap().contains("monitor"));
        for (status, reason) in
            [(401, Reason::AuthenticationFailed), (429, Reason::SourceFailed), (503, Reason::SourceFailed)]
        {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(interpret(status, &json!({})).unwrap_err().reason, reason);
        }
    }
}
