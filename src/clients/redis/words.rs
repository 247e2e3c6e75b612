//! What a refusal of the server means: a reason for machines and a sentence for people.

use crate::{api::Reason, clients::words::shortened, measure::MeasureError};

/// What the server's refusal of a command means. The caller says where, and about which key.
pub fn refusal(error: &str) -> MeasureError {
    let code = error.split([' ', '\r', '\n']).next().unwrap_or_default();
    let (reason, advice) = match code {
        "NOAUTH" | "WRONGPASS" => (Reason::AuthenticationFailed, "correct username and password in the Secret"),
        "NOPERM" => {
            (Reason::PermissionDenied, "grant the user in the Secret what docs/sources/redis.md lists (ACL SETUSER)")
        }
        "WRONGTYPE" => (Reason::InvalidSpec, "the key holds no stream: correct the key in the Projection"),
        "LOADING" => (Reason::SourceFailed, "the server has just started and still reads its data"),
        "MASTERDOWN" => (
            Reason::SourceIsReplica,
            "the server is a replica that has lost its primary: name the primary in the Secret",
        ),
        "READONLY" => (Reason::SourceIsReplica, "the server is a replica: name the primary in the Secret"),
        "CLUSTERDOWN" => (Reason::SourceFailed, "the Redis Cluster does not serve all slots: mend the cluster"),
        "MOVED" | "ASK" => (
            Reason::SourceFailed,
            "the nodes of the Redis Cluster redirect to each other: do they agree on who holds the slot (redis-cli --cluster check)?",
        ),
        "TRYAGAIN" => (Reason::SourceFailed, "the slot of the key is being moved to another node"),
        "OOM" => (
            Reason::SourceFailed,
            "the server has reached its maxmemory: raise it or remove what is not needed. What waits to be written is written then",
        ),
        "BUSY" => (Reason::SourceFailed, "a script keeps the server busy"),
        "DENIED" => (
            Reason::AuthenticationFailed,
            "the server runs in protected mode: give its default user a password, or add a user",
        ),
        _ if error.contains("max number of clients") => {
            (Reason::TooManyConnections, "close connections or raise maxclients")
        }
        _ if error.contains("without any password configured") => {
            (Reason::AuthenticationFailed, "the server knows no password: leave it out of the Secret")
        }
        _ if error.contains("SELECT is not allowed in cluster mode") => {
            (Reason::DatabaseNotFound, "a Redis Cluster has database 0 alone: leave the number out of the Secret")
        }
        _ if error.contains("DB index") => (Reason::DatabaseNotFound, "correct the number of the database"),
        _ if error.contains("unknown command") || error.contains("nknown subcommand") => {
            (Reason::SourceFailed, "Redis 7.0 or newer is needed, reached without a proxy that withholds commands")
        }
        _ => (Reason::SourceFailed, ""),
    };
    // A script's own lines are of no use to those who did not write it.
    let said = shortened(error.split(" script: ").next().unwrap_or(error));
    let message = if advice.is_empty() { said } else { format!("{said}: {advice}") };
    MeasureError { reason, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_has_its_reason_and_says_what_to_do() {
        for (error, reason, advice) in [
            ("NOAUTH Authentication required.", Reason::AuthenticationFailed, "in the Secret"),
            ("WRONGPASS invalid username-password pair or user is disabled.", Reason::AuthenticationFailed, "Secret"),
            (
                "NOPERM User a has no permissions to run the 'xinfo|stream' command",
                Reason::PermissionDenied,
                "ACL SETUSER",
            ),
            ("LOADING Redis is loading the dataset in memory", Reason::SourceFailed, "just started"),
            (
                "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
                Reason::SourceIsReplica,
                "primary",
            ),
            ("READONLY You can't write against a read only replica.", Reason::SourceIsReplica, "primary"),
            ("CLUSTERDOWN Hash slot not served", Reason::SourceFailed, "mend the cluster"),
            ("MOVED 3999 127.0.0.1:6381", Reason::SourceFailed, "redirect to each other"),
            ("ERR SELECT is not allowed in cluster mode", Reason::DatabaseNotFound, "database 0 alone"),
            ("ERR max number of clients reached", Reason::TooManyConnections, "maxclients"),
            ("ERR DB index is out of range", Reason::DatabaseNotFound, "correct the number"),
            ("ERR unknown command 'HELLO'", Reason::SourceFailed, "Redis 7.0"),
            ("ERR something else", Reason::SourceFailed, "something else"),
            ("", Reason::SourceFailed, ""),
        ] {
            let found = refusal(error);
            assert_eq!(found.reason, reason, "{error}");
            assert!(found.message.contains(advice), "{}", found.message);
        }
        assert!(refusal(&"x".repeat(10_000)).message.chars().count() < 300);
    }
}
