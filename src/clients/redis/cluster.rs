//! Asks the nodes of a Redis Cluster: each command goes to the master that holds its key, and redirections are followed.
//!
//! The masters of all slots are learnt from one node (`CLUSTER SLOTS`), and again when a node redirects for good, says that the cluster is down, or does not
//! answer. Nodes are asked at the same time, each with a part of the time, so that one that hangs leaves the others' answers.

use std::{
    collections::{BTreeMap, HashMap},
    mem,
    time::Duration,
};

use futures::future::join_all;
use tokio::time::Instant;

use super::{
    Answered, Command, Reply, ServerAnswer,
    address::Address,
    connection::{Access, timed_out},
    link::Link,
    slots::{Redirection, SlotMap, slot_of},
    words::refusal,
};
use crate::{api::Reason, measure::MeasureError};

/// A command is sent this often at most: to a node, to where that one redirects, and so on.
const MOST_PASSES: usize = 4;
/// A node that did not answer in time has the usual time again once in so many polls, and less in between.
const LATE_RETRY: u32 = 8;

/// No more masters are asked how they are.
const MOST_ASKED: usize = 100;

/// What is known of a cluster.
pub(super) struct Cluster {
    map: Option<SlotMap>,
    /// Whether the map has to be learnt again.
    is_stale: bool,
    links: HashMap<Address, Link>,
    /// Whether a node has said that it is no node of a cluster.
    is_lost: bool,
}

/// One command on its way.
struct Pending {
    /// Its place among all.
    place: usize,
    /// Where a node has redirected it.
    to: Option<Redirection>,
}

impl Cluster {
    /// Known by one node.
    pub(super) fn of(node: Address, link: Link) -> Self {
        Self { map: None, is_stale: true, links: HashMap::from([(node, link)]), is_lost: false }
    }

    /// Whether a node has said that it is no node of a cluster: then what the settings name may be something else now.
    pub(super) fn is_lost(&self) -> bool {
        self.is_lost
    }

    /// Asks as [`super::Client::ask_each`] does.
    pub(super) async fn ask_each(
        &mut self,
        access: &Access,
        of_each: &[Command],
        commands: &[Command],
        by: Instant,
    ) -> Answered {
        if let Err(why) = self.refresh(access, by).await {
            return Answered::unknown(commands.len(), &why);
        }
        let mut answered = Answered::unknown(commands.len(), &redirected_too_often());
        let mut pending: Vec<Pending> = (0..commands.len()).map(|place| Pending { place, to: None }).collect();
        for pass in 0..MOST_PASSES {
            let mut by_node: BTreeMap<Address, Vec<Pending>> = BTreeMap::new();
            for one in mem::take(&mut pending) {
                match self.target(&commands[one.place], one.to.as_ref()) {
                    Some(node) => by_node.entry(node).or_default().push(one),
                    None => answered.replies[one.place] = (Err(no_master()), None),
                }
            }
            if by_node.is_empty() {
                break;
            }
            let asked: Vec<_> = by_node.into_iter().map(|(node, these)| (self.link(&node), node, these)).collect();
            let asked = join_all(asked.into_iter().map(|(mut link, node, these)| async move {
                let (heads, replies) = ask_node(access, &mut link, (of_each, commands, &these), by).await;
                (link, node, these, heads, replies)
            }));
            let mut moved_by = None;
            for (link, node, these, heads, replies) in asked.await {
                let server = answered.servers.len();
                self.note(&node, link, heads.iter().chain(&replies));
                answered.servers.push(named(heads, &node));
                for (Pending { place, to: _ }, reply) in these.into_iter().zip(named(replies, &node)) {
                    let redirection = match &reply {
                        Ok(Reply::Error(error)) => Redirection::read(error, &node),
                        _ => None,
                    };
                    if let Some(Redirection::Moved(_)) = redirection {
                        moved_by = Some(node.clone());
                    }
                    let waits = commands[place].waits_for_slot() && matches!(redirection, Some(Redirection::Ask(_)));
                    match redirection.filter(|_| pass + 1 < MOST_PASSES && !waits) {
                        Some(to) => pending.push(Pending { place, to: Some(to) }),
                        None => answered.replies[place] = (reply, Some(server)),
                    }
                }
            }
            // The node that redirects knows who holds the slot; where its map cannot be had, its redirection is followed all the same.
            if let Some(node) = moved_by {
                self.is_stale = true;
                let _ = self.learn(access, Some(&node), share(by, 4)).await;
            }
        }
        answered
    }

    /// Asks as [`super::Client::ask_servers`] does, no more than [`MOST_ASKED`] at a time.
    pub(super) async fn ask_masters(
        &mut self,
        access: &Access,
        commands: &[Command],
        by: Instant,
    ) -> Result<Vec<ServerAnswer>, MeasureError> {
        self.refresh(access, by).await?;
        let mut masters: Vec<Address> = self.map.iter().flat_map(SlotMap::masters).cloned().collect();
        let left_out = masters.split_off(masters.len().min(MOST_ASKED));
        if masters.is_empty() {
            return Err(no_master());
        }
        let asked: Vec<_> = masters.into_iter().map(|node| (self.link(&node), node)).collect();
        let asked = join_all(asked.into_iter().map(|(mut link, node)| async move {
            let (latency, replies) = link.ask_timed(access, commands, time_for(&link, by)).await;
            (link, node, latency, replies)
        }));
        let mut answers = Vec::new();
        for (link, node, latency, replies) in asked.await {
            self.note(&node, link, replies.iter());
            answers.push(ServerAnswer { node: Some(node.to_string()), latency, replies: named(replies, &node) });
        }
        answers.extend(left_out.into_iter().map(|node| {
            let replies = vec![Err(not_asked(&node)); commands.len()];
            ServerAnswer { node: Some(node.to_string()), latency: Duration::ZERO, replies }
        }));
        Ok(answers)
    }

    /// Learns who holds which slots, where what is known of it is old. An old map is better than none.
    async fn refresh(&mut self, access: &Access, by: Instant) -> Result<(), MeasureError> {
        if self.is_stale
            && let Err(why) = self.learn(access, None, share(by, 4)).await
            && self.map.is_none()
        {
            return Err(why);
        }
        Ok(())
    }

    /// Where a command goes.
    fn target(&self, command: &Command, to: Option<&Redirection>) -> Option<Address> {
        let map = self.map.as_ref()?;
        match (to, command.key()) {
            (Some(Redirection::Moved(node) | Redirection::Ask(node)), _) => Some(map.known(node.clone())),
            (None, Some(key)) => map.master_of(slot_of(key)).cloned(),
            (None, None) => map.masters().first().copied().cloned(),
        }
    }

    /// Taken out, so that a call that is given up half-way leaves no connection with answers to come.
    fn link(&mut self, node: &Address) -> Link {
        self.links.remove(node).unwrap_or_else(|| Link::to(node.clone()))
    }

    /// Notes what a node's replies say of it and of the cluster.
    fn note<'a>(
        &mut self,
        node: &Address,
        mut link: Link,
        replies: impl Iterator<Item = &'a Result<Reply, MeasureError>>,
    ) {
        link.late += 1;
        for reply in replies {
            match reply {
                Ok(reply) => {
                    link.late = 0;
                    self.is_stale |= matches!(reply, Reply::Error(error) if error.starts_with("CLUSTERDOWN"));
                }
                Err(unknown) => {
                    self.is_stale = true;
                    if unknown.reason != Reason::TimedOut {
                        link.late = 0;
                    }
                }
            }
        }
        self.links.insert(node.clone(), link);
    }

    /// Learns the masters of all slots from `first`, or from the first node that tells.
    async fn learn(&mut self, access: &Access, first: Option<&Address>, by: Instant) -> Result<(), MeasureError> {
        let mut candidates: Vec<Address> = first.into_iter().cloned().collect();
        // Those that answered last come first, those that hang last.
        let order = |node: &Address| match self.links.get(node) {
            Some(link) if link.late > 0 => 2,
            Some(link) if link.is_open() => 0,
            _ => 1,
        };
        let known = self.map.iter().flat_map(SlotMap::nodes).chain(self.links.keys()).chain(&access.settings.servers);
        let mut known: Vec<Address> = known.cloned().collect();
        known.sort_by_key(order);
        for node in known {
            if !candidates.iter().any(|other| other.is_at(&node)) {
                candidates.push(node);
            }
        }
        let mut why = timed_out();
        let count = candidates.len();
        for (turn, node) in candidates.into_iter().enumerate() {
            let mut link = self.link(&node);
            let least = u32::try_from(count - turn).unwrap_or(u32::MAX).clamp(1, 4);
            let reply = link.ask(access, &[slots()], share(by, least)).await.pop();
            let told = reply.unwrap_or_else(|| Err(timed_out())).and_then(|reply| match reply {
                Reply::Error(error) => {
                    self.is_lost |= error.contains("cluster support disabled");
                    Err(not_told(&error))
                }
                reply => SlotMap::read(&reply, &node)
                    .map_err(|why| MeasureError { reason: Reason::InvalidAnswer, message: why.to_owned() }),
            });
            self.links.insert(node.clone(), link);
            match told {
                Ok(map) => {
                    // A node that is a master no more is not asked, and its connection not kept.
                    let masters = map.masters();
                    self.links.retain(|node, _| masters.contains(&node));
                    (self.map, self.is_stale) = (Some(map), false);
                    return Ok(());
                }
                Err(unknown) => why = unknown.about(format_args!("the node {node}")),
            }
        }
        Err(why)
    }
}

/// Asks one node what each is asked and its commands, in one round trip. Returns the replies to both.
async fn ask_node(
    access: &Access,
    link: &mut Link,
    (of_each, commands, these): (&[Command], &[Command], &[Pending]),
    by: Instant,
) -> (Vec<Result<Reply, MeasureError>>, Vec<Result<Reply, MeasureError>>) {
    let is_asking = |one: &Pending| matches!(one.to, Some(Redirection::Ask(_)));
    let mut all = of_each.to_vec();
    for one in these {
        if is_asking(one) {
            all.push(Command::new(["ASKING"]));
        }
        all.push(commands[one.place].clone());
    }
    let mut replies = link.ask(access, &all, time_for(link, by)).await.into_iter();
    let mut next = || replies.next().unwrap_or_else(|| Err(timed_out()));
    let heads = of_each.iter().map(|_| next()).collect();
    let mut own = Vec::new();
    for one in these {
        // A refusal of ASKING says more than that of the command, which is another redirection then.
        let asking = if is_asking(one) { Some(next()) } else { None };
        let reply = next();
        own.push(match asking {
            Some(Ok(Reply::Error(error))) => Ok(Reply::Error(error)),
            _ => reply,
        });
    }
    (heads, own)
}

/// Until when a node may answer.
fn time_for(link: &Link, by: Instant) -> Instant {
    let is_short = !link.late.is_multiple_of(LATE_RETRY);
    share(by, if is_short { 5 } else { 2 })
}

fn slots() -> Command {
    Command::new(["CLUSTER", "SLOTS"])
}

/// One part of so many of the time that is left.
fn share(by: Instant, parts: u32) -> Instant {
    let left = by.saturating_duration_since(Instant::now());
    Instant::now() + left.checked_div(parts).unwrap_or(Duration::ZERO)
}

/// The same, and says which node it was.
fn named(replies: Vec<Result<Reply, MeasureError>>, node: &Address) -> Vec<Result<Reply, MeasureError>> {
    let named = |unknown: MeasureError| unknown.about(format_args!("the node {node} of the Redis Cluster"));
    replies.into_iter().map(|reply| reply.map_err(named)).collect()
}

fn not_told(error: &str) -> MeasureError {
    if error.starts_with("NOPERM") {
        return MeasureError {
            reason: Reason::PermissionDenied,
            message: "the user in the Secret may not ask where keys are: grant +cluster|slots (ACL SETUSER) on each node, as docs/sources/redis.md lists".to_owned(),
        };
    }
    refusal(error)
}

fn no_master() -> MeasureError {
    MeasureError {
        reason: Reason::SourceFailed,
        message: "no node of the Redis Cluster says that it serves the slot of this key: mend the cluster (redis-cli --cluster check), and see that each master announces an address".to_owned(),
    }
}

fn not_asked(node: &Address) -> MeasureError {
    MeasureError {
        reason: Reason::SourceFailed,
        message: format!("the node {node} is not asked: the cluster has more than {MOST_ASKED} masters"),
    }
}

fn redirected_too_often() -> MeasureError {
    MeasureError {
        reason: Reason::SourceFailed,
        message: "the nodes of the Redis Cluster redirect to each other: do they agree on who holds the slot?"
            .to_owned(),
    }
}
