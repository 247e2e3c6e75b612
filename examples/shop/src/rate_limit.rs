//! A token bucket in Redis, shared by all replicas of an API: a client may ask `burst` times at once, and `per_second` times a second in the long run.
//!
//! Bucket and clock are Redis's, and one script does the whole: two replicas that ask at the same time cannot both take the last token.

use std::time::Duration;

use redis::{RedisError, aio::ConnectionManager};

/// Fills the bucket by the time that has passed, and takes a token. Answers with 1 or 0, and with the milliseconds until there is one.
///
/// The bucket is forgotten once it would be full again, which is what an unknown one is taken for.
const TAKE: &str = "
local per_second, burst = tonumber(ARGV[1]), tonumber(ARGV[2])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local bucket = redis.call('HMGET', KEYS[1], 'tokens', 'at')
local tokens, at = tonumber(bucket[1]) or burst, tonumber(bucket[2]) or now
-- A clock that was put back adds nothing.
tokens = math.min(burst, tokens + math.max(0, now - at) * per_second / 1000)
local taken = tokens >= 1
if taken then tokens = tokens - 1 end
redis.call('HSET', KEYS[1], 'tokens', tostring(tokens), 'at', now)
redis.call('PEXPIRE', KEYS[1], math.ceil((burst - tokens) * 1000 / per_second) + 1000)
if taken then return {1, 0} end
return {0, math.ceil((1 - tokens) * 1000 / per_second)}";

/// What a client may do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RateLimit {
    /// Requests a second in the long run. More than 0.
    pub per_second: f64,
    /// Requests at once after a rest. At least 1.
    pub burst: u32,
}

/// Whether a request may go on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// It may.
    Allowed,
    /// Not before this time has passed.
    TooMany {
        /// For the header `Retry-After`.
        retry_after: Duration,
    },
}

impl RateLimit {
    /// Takes a token of this client's.
    ///
    /// # Errors
    /// When Redis is away. The caller decides what that means: a shop goes on without limits, a login does not.
    pub async fn take(&self, connection: &mut ConnectionManager, client: &str) -> Result<Verdict, RedisError> {
        let mut take = redis::cmd("EVAL");
        take.arg(TAKE).arg(1).arg(format!("rate:{client}")).arg(self.per_second).arg(self.burst);
        let (taken, wait): (u8, u64) = take.query_async(connection).await?;
        Ok(match taken {
            0 => Verdict::TooMany { retry_after: Duration::from_millis(wait) },
            _ => Verdict::Allowed,
        })
    }
}
