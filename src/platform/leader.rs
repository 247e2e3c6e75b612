//! Leader election: only the replica that holds the Lease reconciles.
//!
//! The pure function [`decide`] and a loop around it. Whether the Lease has expired is judged by when *this replica* saw it change, on its own
//! monotonic clock: the clocks of two nodes may differ by more than the Lease lasts. A leader that cannot renew the Lease steps down before another
//! replica can take over.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use tokio::{sync::watch, time::Instant};

use crate::{
    leader_required::{Following, Outdated},
    names,
    platform::errors::in_words,
};

/// How long a Lease is valid without being renewed.
const LEASE_DURATION: Duration = Duration::from_secs(15);
/// How often the leader renews the Lease.
const RENEW_EVERY: Duration = Duration::from_secs(5);
/// How often the other replicas read the Lease.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// A leader that has not renewed for this long stops leading; what it has in progress ends before the Lease expires.
const STEP_DOWN_AFTER: Duration = Duration::from_secs(10);
/// The longest that a request may take: with a longer one the leader would notice too late that it is cut off.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);

/// This replica's name, and the Lease to follow.
#[derive(Clone, Debug)]
pub struct LeaderSettings {
    /// The operator's namespace.
    pub namespace: String,
    /// The name of this replica, unique among the replicas.
    pub identity: String,
    /// The Lease's name.
    pub lease_name: String,
}

/// What to do about the Lease now.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Decision {
    /// There is no Lease: create it.
    Create,
    /// The Lease is free or has expired: take it.
    Take,
    /// This replica holds the Lease: renew it.
    Renew,
    /// Another replica holds the Lease: wait.
    Wait,
}

/// Identifies one state of the Lease: any renewal changes it.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Mark {
    holder: Option<String>,
    renewed: Option<Timestamp>,
}

/// The newest state of the Lease that this replica saw, and when it first saw that state (time on its own clock).
#[derive(Clone, Debug, Eq, PartialEq)]
struct Observed {
    mark: Mark,
    since: Duration,
    lasts: Duration,
}

impl Observed {
    /// Takes in what the Lease says. `since` stays the same while the Lease does not change.
    fn update(before: Option<Self>, lease: &LeaseSpec, now: Duration) -> Self {
        let mark = Mark {
            holder: lease.holder_identity.clone().filter(|holder| !holder.is_empty()),
            renewed: lease.renew_time.as_ref().map(|time| time.0),
        };
        let seconds = lease.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        let lasts = seconds.map_or(LEASE_DURATION, Duration::from_secs);
        match before {
            Some(before) if before.mark == mark => Self { lasts, ..before },
            _ => Self { mark, since: now, lasts },
        }
    }

    fn is_held_by_another(&self, me: &str, now: Duration) -> bool {
        self.mark.holder.as_ref().is_some_and(|holder| holder != me) && now.saturating_sub(self.since) <= self.lasts
    }
}

fn decide(lease: Option<&LeaseSpec>, me: &str, observed: Option<&Observed>, now: Duration) -> Decision {
    let (Some(_), Some(observed)) = (lease, observed) else { return Decision::Create };
    match &observed.mark.holder {
        Some(holder) if holder == me => Decision::Renew,
        _ if observed.is_held_by_another(me, now) => Decision::Wait,
        _ => Decision::Take,
    }
}

/// The Lease as this replica writes it.
fn written(before: Option<&LeaseSpec>, me: &str, decision: Decision, wall: Timestamp) -> LeaseSpec {
    let transitions = before.and_then(|spec| spec.lease_transitions).unwrap_or(0);
    let acquired = before.and_then(|spec| spec.acquire_time.clone());
    LeaseSpec {
        holder_identity: Some(me.to_owned()),
        lease_duration_seconds: i32::try_from(LEASE_DURATION.as_secs()).ok(),
        renew_time: Some(MicroTime(wall)),
        acquire_time: if decision == Decision::Renew { acquired } else { Some(MicroTime(wall)) },
        lease_transitions: Some(if decision == Decision::Take { transitions.saturating_add(1) } else { transitions }),
        ..LeaseSpec::default()
    }
}

/// Follows the Lease until `shutdown`. Publishes through `leading` whether this replica holds it, and through `following` whether another replica
/// does, as far as is known. At the end gives the Lease back, so that another replica need not wait for it to expire. While this replica holds the
/// Lease, each renewal writes the answer of `outdated` into an annotation.
pub async fn run(
    client: Client,
    settings: LeaderSettings,
    leading: watch::Sender<bool>,
    following: watch::Sender<Following>,
    outdated: impl FnMut() -> Outdated,
    shutdown: impl Future<Output = ()>,
) {
    let mut follower = Follower {
        leases: Api::namespaced(client, &settings.namespace),
        settings,
        started: Instant::now(),
        observed: None,
        held: None,
        renewed: None,
        outdated,
        told: Outdated::default(),
    };
    tokio::pin!(shutdown);
    loop {
        let is_leading = follower.turn().await;
        let another_leads = !is_leading && follower.another_leads();
        following.send_replace(Following { another_leads, outdated: follower.told.clone() });
        if leading.send_replace(is_leading) != is_leading {
            tracing::info!(
                identity = follower.settings.identity,
                "{}",
                if is_leading { "leading: reconciling starts" } else { "no longer leading" }
            );
        }
        let pause = if is_leading && follower.healthy() { RENEW_EVERY } else { LOOK_EVERY };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = &mut shutdown => break,
        }
    }
    leading.send_replace(false);
    follower.release().await;
}

struct Follower<O> {
    leases: Api<Lease>,
    settings: LeaderSettings,
    started: Instant,
    observed: Option<Observed>,
    /// The Lease as this replica last wrote it: the leader renews it without reading it first.
    held: Option<Lease>,
    /// When this replica's last successful write was sent.
    renewed: Option<Instant>,
    /// Returns the Projections whose status does not show the number of workers that this replica asks for.
    outdated: O,
    /// The same, as the Lease's annotation says.
    told: Outdated,
}

impl<O: FnMut() -> Outdated> Follower<O> {
    /// Reads the Lease once, and writes it if this replica may; returns whether this replica leads.
    async fn turn(&mut self) -> bool {
        let sent = Instant::now();
        match tokio::time::timeout(REQUEST_TIMEOUT, self.attempt()).await {
            Ok(Ok(true)) => self.renewed = Some(sent),
            Ok(Ok(false)) => self.renewed = None,
            Ok(Err(error)) => {
                self.held = None;
                tracing::warn!(
                    "the Lease {}/{} could not be read or renewed: {}",
                    self.settings.namespace,
                    self.settings.lease_name,
                    in_words(&error)
                );
            }
            Err(_) => {
                self.held = None;
                tracing::warn!("the API server did not answer about the Lease within {} s", REQUEST_TIMEOUT.as_secs());
            }
        }
        self.renewed.is_some_and(|renewed| renewed.elapsed() < STEP_DOWN_AFTER)
    }

    /// Judged by the newest Lease that this replica saw, even if the Lease cannot be read now.
    fn another_leads(&self) -> bool {
        let observed = self.observed.as_ref();
        observed.is_some_and(|observed| observed.is_held_by_another(&self.settings.identity, self.started.elapsed()))
    }

    fn healthy(&self) -> bool {
        self.held.is_some()
    }

    async fn attempt(&mut self) -> kube::Result<bool> {
        let now = self.started.elapsed();
        let lease = match self.held.take() {
            Some(lease) => Some(lease),
            None => self.leases.get_opt(&self.settings.lease_name).await?,
        };
        let spec = lease.as_ref().and_then(|lease| lease.spec.clone());
        self.observed = spec.as_ref().map(|spec| Observed::update(self.observed.take(), spec, now));
        let annotations = lease.as_ref().and_then(|lease| lease.metadata.annotations.as_ref());
        let told = annotations.and_then(|all| all.get(names::OUTDATED_ANNOTATION));
        self.told = Outdated::from_annotation(told.map(String::as_str));
        let decision = match &lease {
            None => Decision::Create,
            Some(_) if spec.is_none() => Decision::Take,
            Some(_) => decide(spec.as_ref(), &self.settings.identity, self.observed.as_ref(), now),
        };
        if decision == Decision::Wait {
            return Ok(false);
        }
        let spec = Some(written(spec.as_ref(), &self.settings.identity, decision, Timestamp::now()));
        let result = match lease {
            None => {
                let metadata = ObjectMeta { name: Some(self.settings.lease_name.clone()), ..ObjectMeta::default() };
                self.leases.create(&PostParams::default(), &Lease { metadata, spec }).await
            }
            // The update contains the resource version: of two replicas that write, the API server refuses the second.
            Some(mut lease) => {
                let annotations = lease.metadata.annotations.get_or_insert_default();
                match (self.outdated)().to_annotation() {
                    Some(text) => drop(annotations.insert(names::OUTDATED_ANNOTATION.to_owned(), text)),
                    None => drop(annotations.remove(names::OUTDATED_ANNOTATION)),
                }
                self.leases.replace(&self.settings.lease_name, &PostParams::default(), &Lease { spec, ..lease }).await
            }
        };
        match result {
            Ok(lease) => {
                self.held = Some(lease);
                Ok(true)
            }
            // Another replica wrote first; the next turn reads which one.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn release(&mut self) {
        let Some(lease) = self.held.take() else { return };
        let spec = lease.spec.clone().map(|spec| LeaseSpec { holder_identity: Some(String::new()), ..spec });
        let (parameters, lease) = (PostParams::default(), Lease { spec, ..lease });
        let released = self.leases.replace(&self.settings.lease_name, &parameters, &lease);
        if !matches!(tokio::time::timeout(REQUEST_TIMEOUT, released).await, Ok(Ok(_))) {
            tracing::warn!("the Lease could not be given back; it expires within {} s", LEASE_DURATION.as_secs());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(holder: &str, renewed_second: i64) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            lease_duration_seconds: Some(15),
            renew_time: Some(MicroTime(Timestamp::from_second(renewed_second).unwrap())),
            lease_transitions: Some(4),
            ..LeaseSpec::default()
        }
    }

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    fn seen(spec: &LeaseSpec, at: u64) -> Observed {
        Observed::update(None, spec, seconds(at))
    }

    #[test]
    fn a_missing_lease_is_created_and_a_released_one_taken() {
        assert_eq!(decide(None, "me", None, seconds(0)), Decision::Create);
        let free = spec("", 100);
        assert_eq!(decide(Some(&free), "me", Some(&seen(&free, 0)), seconds(0)), Decision::Take);
    }

    #[test]
    fn our_own_is_renewed_even_after_a_restart() {
        let ours = spec("me", 100);
        assert_eq!(decide(Some(&ours), "me", Some(&seen(&ours, 0)), seconds(9_999)), Decision::Renew);
    }

    #[test]
    fn anothers_is_taken_only_after_it_lasted_unchanged_by_our_clock() {
        // The other replica's time stamp is years old: that says only that the clocks differ.
        let theirs = spec("other", 100);
        let observed = seen(&theirs, 50);
        assert_eq!(decide(Some(&theirs), "me", Some(&observed), seconds(50)), Decision::Wait);
        assert_eq!(decide(Some(&theirs), "me", Some(&observed), seconds(65)), Decision::Wait);
        assert_eq!(decide(Some(&theirs), "me", Some(&observed), seconds(66)), Decision::Take);
        assert!(observed.is_held_by_another("me", seconds(65)), "it leads, as far as we know");
        assert!(!observed.is_held_by_another("me", seconds(66)), "and no longer, though no replica has taken it yet");
        assert!(!observed.is_held_by_another("other", seconds(50)));
    }

    #[test]
    fn a_renewal_restarts_the_wait_and_an_unchanged_lease_does_not() {
        let observed = seen(&spec("other", 100), 50);
        assert_eq!(Observed::update(Some(observed.clone()), &spec("other", 100), seconds(60)).since, seconds(50));
        assert_eq!(Observed::update(Some(observed), &spec("other", 101), seconds(60)).since, seconds(60));
    }

    #[test]
    fn a_take_over_counts_as_a_transition_and_a_renewal_does_not() {
        let wall = Timestamp::from_second(200).unwrap();
        let taken = written(Some(&spec("other", 100)), "me", Decision::Take, wall);
        assert_eq!((taken.lease_transitions, taken.acquire_time), (Some(5), Some(MicroTime(wall))));
        let renewed = written(Some(&spec("me", 100)), "me", Decision::Renew, wall);
        assert_eq!((renewed.lease_transitions, renewed.acquire_time), (Some(4), None));
    }

    #[test]
    fn a_leader_steps_down_before_its_lease_can_be_taken() {
        assert!(STEP_DOWN_AFTER + REQUEST_TIMEOUT < LEASE_DURATION);
        assert!(RENEW_EVERY + REQUEST_TIMEOUT < STEP_DOWN_AFTER);
    }
}
