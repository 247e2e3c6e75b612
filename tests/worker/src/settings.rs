//! What the worker is told by its environment.

use std::time::Duration;

use anyhow::{Context, Result, bail};

/// The worker that holds this number of the advisory locks is the slow one. Shards have those below.
pub(crate) const SLOW_ONE: i32 = 9_999;

/// When progress is committed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Commit {
    /// So long after the last time; zero: after each event.
    Every(Duration),
    /// After so many events.
    After(u32),
}

/// All of it.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// `DATABASE_URL`.
    pub(crate) database: String,
    /// `SCHEMA`: where the tables are.
    pub(crate) schema: String,
    /// `GROUP_NUMBER`: the first number of the advisory locks, by which groups are told apart.
    pub(crate) group: i32,
    /// `SHARDS`.
    pub(crate) shards: i32,
    /// `ROWS=one`: the lowest of all shards is committed in one row. Otherwise (`ROWS=shard`) each shard has its own.
    pub(crate) one_row: bool,
    /// `COMMIT`: `each`, `500ms`, `5000ms`, or `1000` for after so many events.
    pub(crate) commit: Commit,
    /// `SLOW_START`, in seconds.
    pub(crate) slow_start: Duration,
    /// `SLOW_ONE`: one worker takes so many times as long; 1 for none.
    pub(crate) slow_one: f64,
    /// `PORT`: listened at by a worker that is ready.
    pub(crate) port: u16,
}

impl Settings {
    pub(crate) fn from_environment() -> Result<Self> {
        Self::read(|name| std::env::var(name).ok())
    }

    fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let text = |name: &str| variable(name).with_context(|| format!("{name} is not set"));
        let or = |name: &str, usual: &str| variable(name).unwrap_or_else(|| usual.to_owned());
        let rows = or("ROWS", "shard");
        if rows != "shard" && rows != "one" {
            bail!("ROWS must be shard or one, and is {rows:?}");
        }
        let slow_start: f64 = or("SLOW_START", "0").parse().context("SLOW_START")?;
        Ok(Self {
            database: text("DATABASE_URL")?,
            schema: text("SCHEMA")?,
            group: text("GROUP_NUMBER")?.parse().context("GROUP_NUMBER")?,
            shards: or("SHARDS", "24").parse().context("SHARDS")?,
            one_row: rows == "one",
            commit: commit(&or("COMMIT", "500ms"))?,
            slow_start: Duration::try_from_secs_f64(slow_start).context("SLOW_START")?,
            slow_one: or("SLOW_ONE", "1").parse().context("SLOW_ONE")?,
            port: or("PORT", "8080").parse().context("PORT")?,
        })
    }
}

fn commit(text: &str) -> Result<Commit> {
    match text.strip_suffix("ms") {
        _ if text == "each" => Ok(Commit::Every(Duration::ZERO)),
        Some(millis) => Ok(Commit::Every(Duration::from_millis(millis.parse().context("COMMIT")?))),
        None => Ok(Commit::After(text.parse().context("COMMIT must be each, 500ms or a number of events")?)),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn is_told_when_to_commit() {
        for (text, expected) in [
            ("each", Commit::Every(Duration::ZERO)),
            ("500ms", Commit::Every(Duration::from_millis(500))),
            ("1000", Commit::After(1_000)),
        ] {
            assert_eq!(commit(text).unwrap(), expected, "{text}");
        }
        assert!(commit("often").is_err());
    }

    #[test]
    fn says_what_is_missing() {
        let error = Settings::read(|name| (name == "DATABASE_URL").then(|| "x".to_owned())).unwrap_err();
        assert_eq!(error.to_string(), "SCHEMA is not set");
    }
}
