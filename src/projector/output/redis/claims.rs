//! The claims of all Projections to keys: one hash of the database, which in a Redis Cluster has a slot of its own.

use jiff::Timestamp;

use super::{
    super::{
        super::error::ProjectorError,
        claims::{KeptClaims, Step, Unnamed, Words, step},
    },
    dry_run::quoted,
    handlers::Commands,
    state::State,
};
use crate::{
    clients::redis::{ConnectionSettings, Reply},
    names::redis_state,
};

const DOING: &str = "read store: claiming the keys";

/// Claims the keys that the handlers of a Projection name, on a connection of its own. All of them or none.
///
/// # Errors
/// Where another Projection has some of them, or may have.
pub(in crate::projector) async fn claim(
    settings: &ConnectionSettings,
    projection: &str,
    commands: &Commands,
    unnamed: Unnamed,
) -> Result<(), ProjectorError> {
    let wanted = commands.wanted(projection);
    let mut state = State::of_claims(settings, projection);
    let words = Words {
        at: state.at(),
        key: format!("key {}", redis_state::CLAIMS),
        names: ("key", "keys"),
        shared: "spec.projector.builtin.redis.shared",
        remove: &|owner| format!("HDEL {} {}", redis_state::CLAIMS, quoted(owner)),
    };
    let mut change = Vec::new();
    loop {
        let reply = state.run(DOING, include_str!("claims.lua"), change).await?;
        let (digest, fields) = match reply.as_array() {
            Some([written]) if written.as_str() == Some("written") => return Ok(()),
            Some([foreign]) if foreign.as_str() == Some("foreign") => {
                return Err(words.unreadable("", format!("DEL {}", redis_state::CLAIMS)));
            }
            Some([kept, digest, fields @ ..]) if kept.as_str() == Some("kept") => (digest.as_str(), fields),
            _ => (None, &[][..]),
        };
        let digest = digest.ok_or_else(|| state.garbled(DOING))?.to_owned();
        let kept = fields.chunks_exact(2).map(|field| (text(&field[0]), text(&field[1])));
        let kept: KeptClaims = kept.collect();
        let claims = match step(&kept, &wanted, unnamed, Timestamp::now())
            .map_err(|refusal| words.error(&wanted.projection, refusal))?
        {
            Step::Nothing => return Ok(()),
            Step::Write(json) => json,
            Step::Remove => String::new(),
        };
        change = vec![wanted.projection.clone(), claims, digest];
    }
}

/// Also of what is no text, which no worker has written.
fn text(reply: &Reply) -> String {
    match reply {
        Reply::Text(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        _ => String::new(),
    }
}
