//! Which workers there are: announces this one, keeps its lease, and lists the others.
//!
//! The leases are judged by the server's clock alone.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

use super::{
    super::{super::error::ProjectorError, View, looking::Looking},
    state::{State, script},
};
use crate::clients::redis::Reply;

/// How long a lease lasts after a renewal. A killed worker's shards wait for its end: Redis does not tell clients whose connection is gone.
const LEASE: Duration = Duration::from_secs(6);

/// This worker among the others.
pub(in crate::projector) struct RedisMembership {
    state: State,
    me: String,
    shards: u32,
}

impl RedisMembership {
    /// Connects, forgets earlier runs of the worker `name`, and announces `me`, its present one.
    pub(super) async fn join(state: State, me: &str, name: &str, shards: u32) -> Result<Self, ProjectorError> {
        let mut membership = Self { state, me: me.to_owned(), shards };
        membership.look_without(Some(name), true).await?;
        Ok(membership)
    }

    /// Forgets earlier runs of the worker `name`, where it is given.
    async fn look_without(&mut self, name: Option<&str>, renew: bool) -> Result<View, ProjectorError> {
        let since = Instant::now();
        let lease = if renew { LEASE.as_millis() } else { 0 };
        let words = [self.me.clone(), lease.to_string()].into_iter().chain(name.map(str::to_owned)).collect();
        let doing = "read store: looking at the other workers";
        let reply = self.state.run(doing, script!("look.lua"), words).await?;
        view(&reply, self.shards, since).ok_or_else(|| self.state.nonsense(doing))
    }
}

fn view(reply: &Reply, shards: u32, since: Instant) -> Option<View> {
    let [members, owners] = reply.as_array()? else { return None };
    let members = members.as_array()?.iter().map(|member| member.as_str().map(str::to_owned)).collect::<Option<_>>()?;
    let owners: HashMap<u32, String> = owners
        .as_array()?
        .chunks_exact(2)
        .map(|pair| Some((pair[0].as_str()?.parse().ok()?, pair[1].as_str()?.to_owned())))
        .collect::<Option<_>>()?;
    let owners = (0..shards).map(|shard| owners.get(&shard).cloned()).collect();
    Some(View { since: Some(since), members, owners, holds: Vec::new() })
}

impl Looking for RedisMembership {
    async fn look(&mut self, renew: bool) -> Result<View, ProjectorError> {
        self.look_without(None, renew).await
    }
}
