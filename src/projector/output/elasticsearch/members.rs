//! Which workers there are: announces this one, keeps its lease, and lists the others.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{
    super::{super::error::ProjectorError, View, looking::Looking},
    kept::{Beat, Workers, json},
    lease::Lease,
    requests::Condition,
    state::State,
};

/// The dead are listed for so long.
const FORGET_AFTER: Duration = Duration::from_secs(60);
/// The longest pause before the list is written again after another worker has written it.
const AGAIN: Duration = Duration::from_millis(50);
const DOING: &str = "read store: looking at the other workers";

/// This worker among the others.
pub(in crate::projector) struct SearchMembership {
    state: State,
    me: String,
    shards: Vec<u32>,
    lease: Lease,
}

/// Takes a worker off the list.
pub(super) async fn leave(state: &mut State, me: &str) -> Result<(), ProjectorError> {
    loop {
        let (mut workers, _) = state.look(DOING, &[]).await?;
        workers.value.workers.retain(|worker| worker.name != me);
        let document = (state.workers_id(), Condition::Unchanged(workers.cas), json(&workers.value));
        if state.write(DOING, &[document]).await?.first().is_some_and(Option::is_some) {
            return Ok(());
        }
        sleep(AGAIN.mul_f64(rand::random())).await;
    }
}

impl SearchMembership {
    /// Connects, forgets earlier runs of the worker `name`, and announces `me`, its present one.
    pub(super) async fn join(
        state: State,
        (me, name): (&str, &str),
        shards: u32,
        lease: Lease,
    ) -> Result<Self, ProjectorError> {
        let mut membership = Self { state, me: me.to_owned(), shards: (0..shards).collect(), lease };
        membership.look_without(Some(name), true).await?;
        Ok(membership)
    }

    /// Forgets earlier runs of the worker `name`, where it is given.
    async fn look_without(&mut self, name: Option<&str>, renew: bool) -> Result<View, ProjectorError> {
        loop {
            let sent = Instant::now();
            let (workers, shards) = self.state.look(DOING, &self.shards).await?;
            let answered = Instant::now();
            let mut list = workers.value.workers;
            if renew {
                let was_listed = list.iter().any(|worker| worker.name == self.me);
                list = renewed(list, (&self.me, name), |dead| self.lease.is_dead_for(dead, FORGET_AFTER, sent));
                let document = Workers { workers: list.clone() };
                let document = (self.state.workers_id(), Condition::Unchanged(workers.cas), json(&document));
                let renewing = Instant::now();
                if self.state.write(DOING, &[document]).await?.first().is_none_or(Option::is_none) {
                    sleep(AGAIN.mul_f64(rand::random())).await;
                    continue;
                }
                self.lease.renewed(renewing, was_listed);
            }
            let members = self.lease.look(&list, sent, answered);
            let owners = shards.into_iter().map(|(_, shard)| shard.value.owner).collect();
            return Ok(View { since: Some(sent), members, owners, holds: Vec::new() });
        }
    }
}

/// The list with this worker's lease renewed, without earlier runs of it, and without those who are long dead.
fn renewed(mut list: Vec<Beat>, (me, name): (&str, Option<&str>), is_long_dead: impl Fn(&str) -> bool) -> Vec<Beat> {
    let is_earlier = |other: &str| {
        name.is_some_and(|name| other.strip_prefix(name).is_some_and(|rest| rest.starts_with(':') && other != me))
    };
    list.retain(|worker| !is_earlier(&worker.name) && (worker.name == me || !is_long_dead(&worker.name)));
    match list.iter_mut().find(|worker| worker.name == me) {
        Some(worker) => worker.beat = worker.beat.wrapping_add(1),
        None => list.push(Beat { name: me.to_owned(), beat: 1 }),
    }
    list
}

impl Looking for SearchMembership {
    async fn look(&mut self, renew: bool) -> Result<View, ProjectorError> {
        self.look_without(None, renew).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_renewal_counts_up_and_forgets_earlier_runs_and_the_long_dead() {
        let beat = |name: &str, beat| Beat { name: name.to_owned(), beat };
        let list = vec![beat("a:1", 7), beat("a:2", 3), beat("ab:1", 5), beat("old:1", 9)];
        let joined = renewed(list.clone(), ("a:3", Some("a")), |name| name == "old:1");
        assert_eq!(joined, [beat("ab:1", 5), beat("a:3", 1)]);
        let kept = renewed(list, ("a:2", None), |_| false);
        assert_eq!(kept, [beat("a:1", 7), beat("a:2", 4), beat("ab:1", 5), beat("old:1", 9)]);
    }
}
