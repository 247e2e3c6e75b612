//! Asks a cluster what the questions of all its Projections need, together: one request of each kind a broker.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::{
    partitions::{Committed, Nature, Offsets, TopicId},
    question::{Progress, Question},
    stored,
};
use crate::{
    addresses::AddressRules,
    clients::kafka::{At, Client, FirstRecord, Isolation, KafkaError, Offset, Partition, Settings, Topic, Wanted},
};

/// How often it is asked which topics are compacted.
const POLICIES_EVERY: Duration = Duration::from_secs(300);
/// A right that is missing is not tried more often than this: brokers log each refusal.
const TRY_RIGHTS_EVERY: Duration = Duration::from_secs(60);

/// Groups at so many different places of one partition are looked at in one poll; the others' turn comes with the next.
const MOST_PLACES: usize = 32;

/// A record may be removed from a compacted topic: what was seen of it is believed for so long.
const COMPACTED_HOLDS: Duration = Duration::from_secs(5);

type Found = HashMap<Partition, Offsets>;
type Ends = BTreeMap<Partition, Result<Offset, KafkaError>>;

/// The last look at the record that a group reads next.
#[derive(Clone, Copy, Debug)]
struct KnownRecord {
    offset: i64,
    latest: i64,
    first: FirstRecord,
    at: Instant,
}

/// A client with what it remembers of the cluster.
pub(super) struct Looker {
    client: Client,
    coordinators: BTreeMap<Arc<str>, i32>,
    looks: HashMap<(Isolation, Progress, Partition), KnownRecord>,
    /// The identity of each topic: one that was created again is another.
    ids: HashMap<Arc<str>, TopicId>,
    compacted: BTreeMap<Arc<str>, bool>,
    /// Topics in which transactions were ever seen.
    transactional: BTreeSet<Arc<str>>,
    policies_asked: Option<(Instant, BTreeSet<Arc<str>>)>,
    /// Topics that may not be read, with when to try again.
    unreadable: HashMap<Arc<str>, Instant>,
    /// Whose records are looked at first.
    turn: usize,
}

impl Looker {
    /// Connects with the first look.
    ///
    /// # Errors
    /// The certificate authority or client certificate cannot be read.
    pub fn new(settings: Settings, addresses: Arc<AddressRules>) -> Result<Self, KafkaError> {
        Ok(Self {
            client: Client::new(settings, addresses)?,
            coordinators: BTreeMap::new(),
            looks: HashMap::new(),
            ids: HashMap::new(),
            compacted: BTreeMap::new(),
            transactional: BTreeSet::new(),
            policies_asked: None,
            unreadable: HashMap::new(),
            turn: 0,
        })
    }

    /// Requests made so far, and connections that are open.
    pub fn cost(&self) -> (u64, usize) {
        (self.client.requests(), self.client.connections())
    }

    /// Forgets what concerns other questions only.
    pub fn forget_all_but<'a>(&mut self, questions: impl Iterator<Item = &'a Question>) {
        let questions: Vec<&Question> = questions.collect();
        let groups: BTreeSet<&Arc<str>> = questions.iter().filter_map(|question| question.progress.group()).collect();
        let all: BTreeSet<&Progress> = questions.iter().map(|question| &question.progress).collect();
        let topics: BTreeSet<&Arc<str>> = questions.iter().flat_map(|question| question.topics.iter()).collect();
        self.coordinators.retain(|group, _| groups.contains(group));
        self.looks.retain(|(_, progress, (topic, _)), _| all.contains(progress) && topics.contains(topic));
        self.ids.retain(|topic, _| topics.contains(topic));
        self.compacted.retain(|topic, _| topics.contains(topic));
        self.transactional.retain(|topic| topics.contains(topic));
        self.unreadable.retain(|topic, _| topics.contains(topic));
    }

    /// What is known of the topic that makes its offsets more than its records.
    pub fn nature(&self, topic: &str) -> Nature {
        Nature { compacted: self.compacted.get(topic).copied(), transactional: self.transactional.contains(topic) }
    }

    /// Forgets what is known of topics that were created again since.
    fn follow_topics(&mut self, topics: &BTreeMap<Arc<str>, Result<Topic, KafkaError>>) {
        for (name, topic) in topics {
            let Ok(topic) = topic else { continue };
            let before = self.ids.insert(name.clone(), topic.id);
            if before.is_some_and(|before| before != topic.id) {
                self.looks.retain(|(_, _, (of, _)), _| of != name);
                self.compacted.remove(name);
                self.transactional.remove(name);
                self.policies_asked = None;
            }
        }
    }

    /// The offsets of all partitions of each question's topics, or why one of them is not known. Groups' offsets are asked for before the ends of the logs,
    /// so that a healthy group is never beyond them. With a question comes what the read store holds, where it holds the offsets.
    pub async fn look(
        &mut self,
        questions: &BTreeMap<Question, Committed>,
        by: Instant,
    ) -> Vec<(Question, Result<Found, KafkaError>)> {
        let begun = Instant::now();
        // A broker that hangs takes its part of the time only, so that what the others say is told.
        let part = |percent: u32| begun + by.saturating_duration_since(begun) * percent / 100;
        let names: BTreeSet<Arc<str>> = questions.keys().flat_map(|question| question.topics.iter().cloned()).collect();
        let groups: BTreeSet<Arc<str>> =
            questions.keys().filter_map(|question| question.progress.group().cloned()).collect();
        let topics = match self.client.topics(&names, part(35)).await {
            Ok(topics) => topics,
            Err(error) => return questions.keys().map(|one| (one.clone(), Err(error.clone()))).collect(),
        };
        self.follow_topics(&topics);
        let lost = self.find_coordinators(&groups, part(45)).await;
        let (asked, mut answers) = split(questions, &topics, &lost);
        let mut wanted = Wanted::new();
        let mut leaders: BTreeMap<Isolation, BTreeMap<Partition, i32>> = BTreeMap::new();
        let mut all = BTreeMap::new();
        for (question, partitions) in &asked {
            if let Some(group) = question.progress.group() {
                wanted.entry(group.clone()).or_default().extend(partitions.keys().cloned());
            }
            leaders.entry(question.isolation).or_default().extend(partitions.clone());
            all.extend(partitions.clone());
        }
        let committed = self.client.committed(&wanted, &self.coordinators, part(60)).await;
        let mut latest = BTreeMap::new();
        for (isolation, partitions) in leaders {
            latest.insert(isolation, self.client.offsets(At::Latest(isolation), &partitions, part(75)).await);
        }
        let earliest = self.client.offsets(At::Earliest, &all, part(85)).await;
        for (group, answer) in &committed {
            // It says that another coordinates the group, or says nothing: others take over what a broker that is down coordinated.
            if answer.as_ref().is_err_and(|error| error.code.is_none_or(|code| code.has_moved())) {
                self.coordinators.remove(group);
            }
        }
        let mut found = Vec::new();
        for (question, partitions) in asked {
            let committed = match question.progress.group() {
                Some(group) => of_group(group, &committed),
                None => stored::of_partitions(questions.get(&question), &partitions),
            };
            let all = committed
                .and_then(|committed| assemble(&question, &partitions, committed, &self.ids, (&latest, &earliest)));
            match all {
                Ok(offsets) => found.push((question, offsets)),
                Err(error) => answers.push((question, Err(error))),
            }
        }
        self.pass_open_transactions(&mut found, &all, part(90)).await;
        self.look_at_records(&mut found, &all, by).await;
        let there = topics.iter().filter(|(_, topic)| topic.is_ok()).map(|(name, _)| name.clone()).collect();
        self.ask_policies(&there, by).await;
        answers.extend(found.into_iter().map(|(question, offsets)| (question, Ok(offsets))));
        answers
    }

    /// Finds the coordinators that are not known; returns why some are not found. Groups whose coordinator is known are not asked for, and lose nothing.
    async fn find_coordinators(&mut self, groups: &BTreeSet<Arc<str>>, by: Instant) -> BTreeMap<Arc<str>, KafkaError> {
        let unknown: BTreeSet<Arc<str>> =
            groups.iter().filter(|group| !self.coordinators.contains_key(*group)).cloned().collect();
        let mut lost = BTreeMap::new();
        if unknown.is_empty() {
            return lost;
        }
        let all = match self.client.coordinators(&unknown, by).await {
            Ok(all) => all,
            Err(error) => return unknown.into_iter().map(|group| (group, error.clone())).collect(),
        };
        for (group, found) in all {
            match found {
                Ok(id) => drop(self.coordinators.insert(group, id)),
                Err(error) => drop(lost.insert(group, error)),
            }
        }
        lost
    }

    /// A group that reads what is not committed may stand beyond the first open transaction: it waits for nothing then.
    async fn pass_open_transactions(
        &mut self,
        found: &mut [(Question, Found)],
        leaders: &BTreeMap<Partition, i32>,
        by: Instant,
    ) {
        let beyond = |offsets: &Offsets| offsets.committed.is_some_and(|committed| committed > offsets.latest);
        let transactional = |question: &Question| question.isolation == Isolation::ReadCommitted;
        let doubtful: BTreeMap<Partition, i32> = found
            .iter()
            .filter(|(question, _)| transactional(question))
            .flat_map(|(_, offsets)| offsets.iter().filter(|(_, one)| beyond(one)))
            .filter_map(|(partition, _)| Some((partition.clone(), *leaders.get(partition)?)))
            .collect();
        if doubtful.is_empty() {
            return;
        }
        let ends = self.client.offsets(At::Latest(Isolation::ReadUncommitted), &doubtful, by).await;
        for (partition, offsets) in found.iter_mut().filter(|(one, _)| transactional(one)).flat_map(|(_, all)| all) {
            let end = ends.get(partition).and_then(|end| end.as_ref().ok());
            if let (Some(committed), Some(end)) = (offsets.committed, end)
                && committed > offsets.latest
            {
                offsets.latest = committed.min(end.offset).max(offsets.latest);
            }
        }
    }

    /// Looks at the records that groups read next, as far as that is not known from an earlier look.
    async fn look_at_records(
        &mut self,
        found: &mut [(Question, Found)],
        leaders: &BTreeMap<Partition, i32>,
        by: Instant,
    ) {
        let now = Instant::now();
        self.unreadable.retain(|_, until| *until > now);
        // Groups at the same place share a look; those at different places in one partition are asked in turn.
        let mut rounds: Vec<BTreeMap<(Isolation, Partition), i64>> = Vec::new();
        self.turn = self.turn.wrapping_add(1);
        let first = self.turn % found.len().max(1);
        for (question, offsets) in found[first..].iter().chain(&found[..first]) {
            for (partition, one) in offsets {
                let from = one.from(question.reset_to_earliest).unwrap_or(one.earliest);
                if from >= one.latest || self.unreadable.contains_key(&partition.0) {
                    continue;
                }
                let key = (question.isolation, question.progress.clone(), partition.clone());
                let stays = self.compacted.get(&partition.0) == Some(&false);
                let holds = |look: &KnownRecord| {
                    look.holds(from, one.latest) && (stays || now.duration_since(look.at) < COMPACTED_HOLDS)
                };
                if self.looks.get(&key).is_some_and(holds) {
                    continue;
                }
                let place = (question.isolation, partition.clone());
                let round = rounds.iter().position(|round| round.get(&place).is_none_or(|offset| *offset == from));
                match round {
                    Some(round) => drop(rounds[round].insert(place, from)),
                    None if rounds.len() < MOST_PLACES => rounds.push(BTreeMap::from([(place, from)])),
                    None => {}
                }
            }
        }
        let mut looked: HashMap<(Isolation, Partition, i64), FirstRecord> = HashMap::new();
        'rounds: for round in rounds {
            for isolation in [Isolation::ReadCommitted, Isolation::ReadUncommitted] {
                let asked: BTreeMap<Partition, (i32, i64)> = round
                    .iter()
                    .filter(|((one, _), _)| *one == isolation)
                    .filter_map(|((_, partition), offset)| {
                        Some((partition.clone(), (*leaders.get(partition)?, *offset)))
                    })
                    .collect();
                if asked.is_empty() {
                    continue;
                }
                if Instant::now() >= by {
                    break 'rounds;
                }
                for (partition, first) in self.client.first_records(isolation, &asked, by).await {
                    match first {
                        Ok(first) => drop(looked.insert((isolation, partition.clone(), asked[&partition].1), first)),
                        Err(error) if error.code.is_some_and(|code| code.is_forbidden()) => {
                            self.unreadable.insert(partition.0, now + TRY_RIGHTS_EVERY);
                        }
                        // What stays unknown is told as unknown, and looked at again with the next poll.
                        Err(_) => {}
                    }
                }
            }
        }
        for (question, offsets) in found.iter_mut() {
            for (partition, one) in offsets.iter_mut() {
                let from = one.from(question.reset_to_earliest).unwrap_or(one.earliest);
                let key = (question.isolation, question.progress.clone(), partition.clone());
                if let Some(first) = looked.get(&(question.isolation, partition.clone(), from)) {
                    // Where there is no record, there are markers.
                    if matches!(first, FirstRecord::Nothing | FirstRecord::Batch { transactional: true, .. }) {
                        self.transactional.insert(partition.0.clone());
                    }
                    self.looks
                        .insert(key.clone(), KnownRecord { offset: from, latest: one.latest, first: *first, at: now });
                }
                one.first = self.looks.get(&key).filter(|look| look.holds(from, one.latest)).map(|look| look.first);
            }
        }
    }

    async fn ask_policies(&mut self, names: &BTreeSet<Arc<str>>, by: Instant) {
        let all_known = names.iter().all(|name| self.compacted.contains_key(name));
        let every = if all_known { POLICIES_EVERY } else { TRY_RIGHTS_EVERY };
        let fresh =
            self.policies_asked.as_ref().is_some_and(|(at, asked)| at.elapsed() < every && names.is_subset(asked));
        if fresh || names.is_empty() {
            return;
        }
        // What is not told stays as it was.
        if let Ok(found) = self.client.compacted(names, by).await {
            self.compacted.extend(found);
            self.policies_asked = Some((Instant::now(), names.clone()));
        }
    }
}

impl KnownRecord {
    /// A record stays where it is, unless the topic is compacted; that there is none may change with the end of the log.
    fn holds(&self, offset: i64, latest: i64) -> bool {
        self.offset == offset && (self.first != FirstRecord::Nothing || self.latest == latest)
    }
}

type Answers = Vec<(Question, Result<Found, KafkaError>)>;
/// Questions with the leaders of their partitions.
type Asked = Vec<(Question, BTreeMap<Partition, i32>)>;

/// The questions whose partitions, leaders and coordinator are known, with partitions and leaders; and why the others cannot be answered.
fn split(
    questions: &BTreeMap<Question, Committed>,
    topics: &BTreeMap<Arc<str>, Result<Topic, KafkaError>>,
    lost: &BTreeMap<Arc<str>, KafkaError>,
) -> (Asked, Answers) {
    let (mut asked, mut answers) = (Vec::new(), Answers::new());
    for question in questions.keys() {
        let partitions = match question.progress.group().and_then(|group| lost.get(group)) {
            Some(error) => Err(error.clone()),
            None => partitions(question, topics),
        };
        match partitions {
            Ok(partitions) => asked.push((question.clone(), partitions)),
            Err(error) => answers.push((question.clone(), Err(error))),
        }
    }
    (asked, answers)
}

fn partitions(
    question: &Question,
    topics: &BTreeMap<Arc<str>, Result<Topic, KafkaError>>,
) -> Result<BTreeMap<Partition, i32>, KafkaError> {
    let mut all = BTreeMap::new();
    for name in question.topics.iter() {
        let topic = match topics.get(name) {
            Some(Ok(topic)) => topic,
            Some(Err(error)) => return Err(error.clone()),
            None => return Err(KafkaError::not_told(&format!("topic {name}"))),
        };
        for (number, leader) in &topic.leaders {
            let leader = leader.ok_or_else(|| KafkaError::no_leader(name, *number))?;
            all.insert((name.clone(), *number), leader);
        }
    }
    Ok(all)
}

/// What this group has committed.
fn of_group<'a>(
    group: &Arc<str>,
    committed: &'a BTreeMap<Arc<str>, Result<Committed, KafkaError>>,
) -> Result<&'a Committed, KafkaError> {
    match committed.get(group) {
        Some(Ok(committed)) => Ok(committed),
        Some(Err(error)) => Err(error.clone()),
        None => Err(KafkaError::not_told(&format!("group {group}"))),
    }
}

fn assemble(
    question: &Question,
    partitions: &BTreeMap<Partition, i32>,
    committed: &Committed,
    ids: &HashMap<Arc<str>, TopicId>,
    (latest, earliest): (&BTreeMap<Isolation, Ends>, &Ends),
) -> Result<Found, KafkaError> {
    let offset = |ends: Option<&Ends>, partition: &Partition| match ends.and_then(|ends| ends.get(partition)) {
        Some(Ok(found)) => Ok(found.offset.max(0)),
        Some(Err(error)) => Err(error.clone()),
        None => Err(KafkaError::not_told(&format!("partition {} of topic {}", partition.1, partition.0))),
    };
    let one = |partition: &Partition| -> Result<(Partition, Offsets), KafkaError> {
        let offsets = Offsets {
            topic: ids.get(&partition.0).copied().unwrap_or_default(),
            committed: committed.get(partition).copied().flatten(),
            earliest: offset(Some(earliest), partition)?,
            latest: offset(latest.get(&question.isolation), partition)?,
            first: None,
        };
        Ok((partition.clone(), offsets))
    };
    partitions.keys().map(one).collect()
}
