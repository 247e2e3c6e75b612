//! Which workers there are: announces this one, keeps its lease, and lists the others.
//!
//! The leases are judged by the server's clock alone.

use std::{collections::HashMap, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use super::{
    super::{super::error::ProjectorError, Membership, View},
    state::{State, script},
};
use crate::clients::redis::Reply;

/// How long a lease lasts after a renewal. A killed worker's shards wait for its end: Redis shows nobody whose connection is gone.
const LEASE: Duration = Duration::from_secs(6);
const RENEW_EVERY: Duration = Duration::from_secs(2);
/// How often to look at the others.
const LOOK_EVERY: Duration = Duration::from_millis(500);

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
        membership.look(true, Some(name)).await?;
        Ok(membership)
    }

    async fn look(&mut self, renew: bool, name: Option<&str>) -> Result<View, ProjectorError> {
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
    Some(View { since: Some(since), members, owners })
}

impl Membership for RedisMembership {
    async fn keep(mut self, views: &watch::Sender<View>) -> ProjectorError {
        let mut renewed = Instant::now();
        loop {
            let began = Instant::now();
            let renew = renewed.elapsed() >= RENEW_EVERY;
            match self.look(renew, None).await {
                Ok(view) => drop(views.send_replace(view)),
                Err(error) => return error,
            }
            if renew {
                renewed = began;
            }
            sleep_until(began + LOOK_EVERY.mul_f64(rand::random_range(0.8..1.2))).await;
        }
    }
}
