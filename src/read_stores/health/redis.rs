//! Connections, memory, refusals and evictions of a Redis server, or of the masters of a Redis Cluster, as `INFO` tells them.

use tokio::time::{Instant, timeout_at};

use crate::{
    api::{ConnectionLimit, Reason},
    clients::redis::{Command, Reply, ServerAnswer, refusal},
    measure::MeasureError,
    read_stores::{RedisStore, node_counters::NodeCounters},
    store_health::{Connections, Memory, StoreSample},
};

pub(in crate::read_stores) async fn health(store: &RedisStore, deadline: Instant) -> Result<StoreSample, MeasureError> {
    let place = store.identity().settings();
    let commands = ["clients", "memory", "stats", "errorstats"].map(|section| Command::new(["INFO", section]));
    let Ok(mut client) = timeout_at(deadline, store.client.lock()).await else {
        let late = MeasureError {
            reason: Reason::TimedOut,
            message: "the server has not answered an earlier question in time".to_owned(),
        };
        return Err(late.about(place));
    };
    let servers = client.ask_servers(&commands, deadline).await;
    drop(client);
    let servers = servers.map_err(|error| error.about(place))?;
    let (mut nodes, mut alone) = (Vec::new(), None);
    for ServerAnswer { node, latency, replies } in servers {
        let replies: Result<Vec<Reply>, MeasureError> = replies.into_iter().collect();
        let sample = replies.and_then(|replies| interpret(&replies)).map(|sample| StoreSample { latency, ..sample });
        match node {
            Some(node) => nodes.push((node, sample)),
            None => alone = Some(sample),
        }
    }
    let sample = match alone {
        Some(alone) => alone,
        None => of_cluster(nodes, &mut *store.counters.lock().await),
    };
    sample.map_err(|error| error.about(place))
}

/// How a cluster is, whose masters answered so: clients and their limits together, the memory of the node that is fullest, the latency of the slowest. A node that
/// does not answer is told of and hides none of the others' figures.
fn of_cluster(
    nodes: Vec<(String, Result<StoreSample, MeasureError>)>,
    counters: &mut NodeCounters<3>,
) -> Result<StoreSample, MeasureError> {
    let (mut answered, mut away) = (Vec::new(), Vec::new());
    for (node, sample) in nodes {
        match sample {
            Ok(sample) => answered.push((node, sample)),
            Err(why) => away.push((node, why)),
        }
    }
    let told: Vec<(&str, [Option<u64>; 3])> = answered
        .iter()
        .map(|(node, of)| (node.as_str(), [of.rejected_connections, of.refused_writes, of.evicted_keys]))
        .collect();
    let away_names: Vec<&str> = away.iter().map(|(node, _)| node.as_str()).collect();
    // It counts ours among those that it refuses, and cannot be asked how many there are.
    if away.iter().any(|(_, why)| why.reason == Reason::TooManyConnections) {
        counters.add(0);
    }
    let [rejected_connections, refused_writes, evicted_keys] = counters.take(&told, &away_names);
    if answered.is_empty() {
        let none = MeasureError { reason: Reason::SourceFailed, message: "the cluster has no masters".to_owned() };
        return Err(away.into_iter().next().map_or(none, |(_, why)| why));
    }
    let samples: Vec<&StoreSample> = answered.iter().map(|(_, sample)| sample).collect();
    let unknown = samples.iter().find_map(|sample| sample.missing.clone());
    let silent = away.first().map(|(_, why)| {
        let others = match away.len() {
            1 => String::new(),
            count => format!(", and {} more", count - 1),
        };
        format!("the figures are those of the other masters: {}{others}", why.message).into()
    });
    Ok(StoreSample {
        latency: samples.iter().map(|sample| sample.latency).max().unwrap_or_default(),
        connections: sum_of_connections(samples.iter().map(|sample| sample.connections)),
        memory: samples.iter().filter_map(|sample| sample.memory).max_by(|a, b| fullness(*a).total_cmp(&fullness(*b))),
        rejected_connections,
        refused_writes,
        evicted_keys,
        missing: silent.or(unknown),
        ..StoreSample::default()
    })
}

/// All together; without a limit where one of them tells none, and unknown where one tells none at all.
fn sum_of_connections(each: impl Iterator<Item = Option<Connections>>) -> Option<Connections> {
    each.reduce(|a, b| {
        let (a, b) = (a?, b?);
        let limit = a.limit.zip(b.limit).map(|(a, b)| a.saturating_add(b));
        Some(Connections { used: a.used.saturating_add(b.used), limit, ..a })
    })
    .flatten()
}

/// The part of its limit that is in use. A node without a limit is never full: of such the one with most in use counts.
// A node has less than 2^53 bytes.
#[allow(clippy::cast_precision_loss)]
fn fullness(memory: Memory) -> f64 {
    match memory.limit {
        Some(limit) => memory.used as f64 / limit as f64,
        None => -1.0 / (1.0 + memory.used as f64),
    }
}

/// What the replies to `INFO clients`, `INFO memory`, `INFO stats` and `INFO errorstats` mean.
fn interpret(replies: &[Reply]) -> Result<StoreSample, MeasureError> {
    if let Some(Reply::Error(error)) = replies.iter().find(|reply| matches!(reply, Reply::Error(_))) {
        // It answers, though not this.
        let advice = if error.starts_with("NOPERM") {
            "the user in the Secret may not ask for them: grant +info (ACL SETUSER)"
        } else if error.contains("nknown command") {
            "the server, or a proxy before it, does not answer INFO"
        } else {
            return Err(refusal(error));
        };
        let missing = format!("connections, memory and evictions: {advice}");
        return Ok(StoreSample { missing: Some(missing.into()), ..StoreSample::default() });
    }
    let figure = |name: &str| {
        replies.iter().filter_map(Reply::as_str).flat_map(str::lines).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            (key == name).then(|| value.trim().parse::<u64>().ok()).flatten()
        })
    };
    let connections = figure("connected_clients").map(|used| Connections {
        used,
        exact: true,
        limit: figure("maxclients"),
        limited_by: ConnectionLimit::Server,
    });
    // Counted under the first word of the error. A server that counts errors and none of these has refused none.
    let counts_errors = figure("total_error_replies").is_some();
    let refused = errors_of(replies, "OOM").or(counts_errors.then_some(0));
    // 0 is no limit.
    let memory =
        figure("used_memory").map(|used| Memory { used, limit: figure("maxmemory").filter(|limit| *limit > 0) });
    let missing = (connections.is_none() || memory.is_none())
        .then(|| "connections or memory: INFO does not tell them: is it Redis that answers?".into());
    Ok(StoreSample {
        connections,
        memory,
        rejected_connections: figure("rejected_connections"),
        refused_writes: refused,
        evicted_keys: figure("evicted_keys"),
        missing,
        ..StoreSample::default()
    })
}

/// How often the server has answered with this error: `errorstat_OOM:count=3`.
fn errors_of(replies: &[Reply], error: &str) -> Option<u64> {
    replies.iter().filter_map(Reply::as_str).flat_map(str::lines).find_map(|line| {
        let count = line.strip_prefix("errorstat_")?.strip_prefix(error)?.strip_prefix(":count=")?;
        count.trim().parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Reply {
        Reply::Text(text.as_bytes().to_vec())
    }

    #[test]
    fn figures_are_read_by_their_whole_names_and_none_is_made_up() {
        let replies = [
            text("# Clients\r\nconnected_clients:7\r\nmaxclients:10000\r\n"),
            text("used_memory:100\r\nused_memory_rss:900\r\nmaxmemory:0\r\nmaxmemory_human:0B\r\n"),
            text("rejected_connections:3\r\ntotal_evicted_keys:9\r\ntotal_error_replies:14\r\n"),
            text("# Errorstats\r\nerrorstat_ERR:count=2\r\nerrorstat_OOM:count=12\r\n"),
        ];
        let sample = interpret(&replies).unwrap();
        assert_eq!(sample.connections.map(|it| (it.used, it.limit)), Some((7, Some(10_000))));
        assert_eq!(sample.memory, Some(Memory { used: 100, limit: None }), "0 is no limit");
        assert_eq!((sample.rejected_connections, sample.evicted_keys, sample.missing), (Some(3), None, None));
        assert_eq!(sample.refused_writes, Some(12));
        let none = interpret(&[text("total_error_replies:2\r\n"), text("errorstat_ERR:count=2\r\n")]).unwrap();
        assert_eq!(none.refused_writes, Some(0));
        let old = interpret(&[text("connected_clients:7\r\nused_memory:100\r\n")]).unwrap();
        assert_eq!(old.refused_writes, None, "a server before 6.2 does not count them");
        let nothing = interpret(&[text("<html>"), Reply::Nil, Reply::LongText(9_999_999)]).unwrap();
        assert!(nothing.connections.is_none() && nothing.missing.unwrap().contains("INFO"));
    }

    fn node(name: &str, used: u64, limit: Option<u64>, refused: u64) -> (String, Result<StoreSample, MeasureError>) {
        let limited_by = ConnectionLimit::Server;
        let sample = StoreSample {
            latency: std::time::Duration::from_millis(used),
            connections: Some(Connections { used, exact: true, limit: Some(100), limited_by }),
            memory: Some(Memory { used, limit }),
            refused_writes: Some(refused),
            ..StoreSample::default()
        };
        (name.to_owned(), Ok(sample))
    }

    fn away(name: &str, reason: Reason) -> (String, Result<StoreSample, MeasureError>) {
        (name.to_owned(), Err(MeasureError { reason, message: format!("{name} is away") }))
    }

    #[test]
    fn of_a_cluster_clients_and_refusals_are_summed_and_the_fullest_node_counts() {
        let mut counters = NodeCounters::default();
        let nodes = vec![node("a", 50, None, 1), node("b", 10, Some(11), 2), node("c", 40, Some(400), 3)];
        let all = of_cluster(nodes, &mut counters).unwrap();
        assert_eq!(all.connections.map(|it| (it.used, it.limit)), Some((100, Some(300))));
        assert_eq!(all.memory, Some(Memory { used: 10, limit: Some(11) }));
        assert_eq!((all.refused_writes, all.latency.as_millis(), all.missing), (Some(6), 50, None));
        let without = of_cluster(vec![node("a", 5, None, 1), node("b", 70, None, 2)], &mut counters).unwrap();
        assert_eq!(without.memory, Some(Memory { used: 70, limit: None }));
    }

    #[test]
    fn a_node_that_does_not_answer_hides_no_other_and_is_told() {
        let mut counters = NodeCounters::default();
        of_cluster(vec![node("a", 1, None, 5), node("b", 1, None, 5)], &mut counters).unwrap();
        let one = of_cluster(vec![node("a", 1, None, 6), away("b", Reason::TimedOut)], &mut counters).unwrap();
        assert_eq!((one.refused_writes, one.rejected_connections), (Some(11), None));
        assert!(one.missing.unwrap().contains("b is away"));
        let full = of_cluster(vec![node("a", 1, None, 6), away("b", Reason::TooManyConnections)], &mut counters);
        assert_eq!(full.unwrap().rejected_connections, Some(1), "ours");
        let none = vec![away("a", Reason::TimedOut), away("b", Reason::ConnectionRefused)];
        assert_eq!(of_cluster(none, &mut counters).unwrap_err().reason, Reason::TimedOut);
    }

    #[test]
    fn a_refusal_of_the_figures_is_no_failure_and_any_other_is() {
        let refused = interpret(&[Reply::Error("NOPERM this user has no permissions".to_owned())]).unwrap();
        assert!(refused.missing.unwrap().contains("+info"));
        let busy = interpret(&[Reply::Error("BUSY Redis is busy running a script".to_owned())]).unwrap_err();
        assert_eq!(busy.reason, Reason::SourceFailed);
    }
}
