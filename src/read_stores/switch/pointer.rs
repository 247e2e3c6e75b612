//! Versions in Redis: one key holds the version that readers are to read, and they look there first.

use std::sync::Arc;

use tokio::time::Instant;

use super::{SwitchError, Switched, VersionSwitch, judge};
use crate::{
    api::Reason,
    clients::redis::{Command, Reply, refusal},
    measure::MeasureError,
    read_stores::RedisStore,
};

/// Sets the key to the new version where it holds the expected one. Answers what it held.
const COMPARE_AND_SET: &str = "
local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'none' and kind ~= 'string' then return {'kind', kind} end
local found = redis.call('GET', KEYS[1])
if found == ARGV[2] then return {'same'} end
if (ARGV[1] == 'none' and not found) or (ARGV[1] == 'some' and found == ARGV[3]) then
    redis.call('SET', KEYS[1], ARGV[2])
    return {'set'}
end
if found then return {'other', found} end
return {'none'}";

/// The pointer key of one read model.
#[derive(Debug)]
pub struct PointerSwitch {
    store: Arc<RedisStore>,
    key: String,
}

impl PointerSwitch {
    /// Of the read model whose readers look at this key.
    pub fn new(store: Arc<RedisStore>, key: &str) -> Self {
        Self { store, key: key.to_owned() }
    }
}

impl PointerSwitch {
    fn place(&self) -> String {
        format!("{}, key {}", self.store.identity().settings(), self.key)
    }

    /// The server failed or refused.
    fn failed(&self, error: &MeasureError) -> SwitchError {
        let message = format!("{}: {}", self.place(), error.message);
        SwitchError::Failed(MeasureError { reason: error.reason, message })
    }

    fn not_ours(&self, kind: &str) -> SwitchError {
        SwitchError::NotOurs(format!(
            "{} holds {kind} and no version: it was not made by a switch; name another key",
            self.place()
        ))
    }

    /// An answer of another program than the server.
    fn nonsense(&self) -> SwitchError {
        let message = format!("{}: the answer makes no sense for this question", self.place());
        SwitchError::Failed(MeasureError { reason: Reason::InvalidAnswer, message })
    }

    async fn ask(&self, command: Command, by: Instant) -> Result<Reply, SwitchError> {
        match self.store.ask(&[command], by).await.pop() {
            Some(Ok(Reply::Error(error))) if error.starts_with("WRONGTYPE") => Err(self.not_ours("something else")),
            Some(Ok(Reply::Error(error))) if is_no_right(&error) => Err(self.failed(&MeasureError {
                reason: Reason::PermissionDenied,
                message: format!(
                    "the user in the Secret may not lead readers: grant it ~{} +eval +type +get +set (ACL SETUSER)",
                    self.key
                ),
            })),
            Some(Ok(Reply::Error(error))) => Err(self.failed(&refusal(&error))),
            Some(Ok(reply)) => Ok(reply),
            Some(Err(error)) => Err(self.failed(&error)),
            None => Err(self.nonsense()),
        }
    }
}

/// Servers say it in one way of a command and in others of one in a script.
fn is_no_right(error: &str) -> bool {
    let words = ["NOPERM", "The user executing the script can't", "ACL failure in script"];
    words.iter().any(|words| error.contains(words))
}

impl VersionSwitch for PointerSwitch {
    async fn shown(&self, by: Instant) -> Result<Option<String>, SwitchError> {
        match self.ask(Command::about_key(1, ["GET", &self.key]), by).await? {
            Reply::Nil => Ok(None),
            reply => Ok(Some(reply.as_str().ok_or_else(|| self.nonsense())?.to_owned())),
        }
    }

    async fn switch(&self, from: Option<&str>, to: &str, by: Instant) -> Result<Switched, SwitchError> {
        let expects = if from.is_some() { "some" } else { "none" };
        let words = ["EVAL", COMPARE_AND_SET, "1", &self.key, expects, to, from.unwrap_or_default()];
        let reply = self.ask(Command::about_key(3, words), by).await?;
        let words: Vec<&str> = reply.as_array().unwrap_or_default().iter().filter_map(Reply::as_str).collect();
        match words[..] {
            ["set"] => Ok(Switched::Now),
            ["same"] => Ok(Switched::Before),
            ["kind", kind] => Err(self.not_ours(&format!("a {kind}"))),
            ["other", found] => Err(judge(Some(found), from, to).err().unwrap_or_else(|| self.nonsense())),
            ["none"] => Err(judge(None, from, to).err().unwrap_or_else(|| self.nonsense())),
            _ => Err(self.nonsense()),
        }
    }
}
