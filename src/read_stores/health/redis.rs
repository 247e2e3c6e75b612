//! Connections, memory, refusals and evictions of a Redis server, as `INFO` tells them.

use tokio::time::{Instant, timeout_at};

use crate::{
    api::{ConnectionLimit, Reason},
    clients::redis::{Command, Reply, refusal},
    measure::MeasureError,
    read_stores::RedisStore,
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
    if !client.is_connected() {
        // Connecting is not what is timed.
        client.ask(&commands[..1], deadline).await.remove(0).map_err(|error| error.about(place))?;
    }
    let started = Instant::now();
    let replies = client.ask(&commands, deadline).await;
    let (latency, is_cluster) = (started.elapsed(), client.is_cluster());
    drop(client);
    let replies: Vec<Reply> = replies.into_iter().collect::<Result<_, _>>().map_err(|error| error.about(place))?;
    let sample = interpret(&replies).map_err(|error| error.about(place))?;
    if is_cluster {
        // One of its nodes has answered, and its figures are not those of the cluster.
        let missing = "connections, memory and evictions: those of the nodes of a Redis Cluster are not summed";
        return Ok(StoreSample { latency, missing: Some(missing.into()), ..StoreSample::default() });
    }
    Ok(StoreSample { latency, ..sample })
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

    #[test]
    fn a_refusal_of_the_figures_is_no_failure_and_any_other_is() {
        let refused = interpret(&[Reply::Error("NOPERM this user has no permissions".to_owned())]).unwrap();
        assert!(refused.missing.unwrap().contains("+info"));
        let busy = interpret(&[Reply::Error("BUSY Redis is busy running a script".to_owned())]).unwrap_err();
        assert_eq!(busy.reason, Reason::SourceFailed);
    }
}
