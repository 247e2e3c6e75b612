//! Versions in Redis: one key holds what the keys of the version begin with, and readers look there first.

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

impl VersionSwitch for PointerSwitch {
    async fn switch(&self, from: Option<&str>, to: &str, by: Instant) -> Result<Switched, SwitchError> {
        let expects = if from.is_some() { "some" } else { "none" };
        let words = ["EVAL", COMPARE_AND_SET, "1", &self.key, expects, to, from.unwrap_or_default()];
        let place = format!("{}, key {}", self.store.identity().settings(), self.key);
        let failed = |error: &MeasureError| {
            SwitchError::Failed(MeasureError { reason: error.reason, message: format!("{place}: {}", error.message) })
        };
        let reply = self.store.ask(&[Command::about_key(3, words)], by).await.pop();
        let reply = match reply {
            Some(Ok(Reply::Error(error))) => return Err(failed(&refusal(&error))),
            Some(Ok(reply)) => reply,
            Some(Err(error)) => return Err(failed(&error)),
            None => Reply::Nil,
        };
        let words: Vec<&str> = reply.as_array().unwrap_or_default().iter().filter_map(Reply::as_str).collect();
        match words[..] {
            ["set"] => Ok(Switched::Now),
            ["same"] => Ok(Switched::Before),
            ["kind", kind] => Err(SwitchError::NotOurs(format!(
                "{place} holds a {kind} and no version: it was not made by a switch; name another key"
            ))),
            ["other", found] => Err(judge(Some(found), from, to).err().unwrap_or_else(|| nonsense(&place))),
            ["none"] => Err(judge(None, from, to).err().unwrap_or_else(|| nonsense(&place))),
            _ => Err(nonsense(&place)),
        }
    }
}

fn nonsense(place: &str) -> SwitchError {
    let message = format!("{place}: the answer makes no sense for this question");
    SwitchError::Failed(MeasureError { reason: Reason::InvalidAnswer, message })
}
