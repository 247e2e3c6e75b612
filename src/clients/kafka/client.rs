//! A Kafka cluster: which brokers there are, who leads a partition, who coordinates a group, and the connections to them.
//!
//! Brokers are reached as the cluster's metadata names them (`advertised.listeners`), with the same TLS and user as the bootstrap servers. These addresses
//! are judged, since brokers could name any.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use futures::future::join_all;
use kacrab_protocol::generated::{FindCoordinatorRequestData, MetadataRequestData, MetadataRequestTopic};
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use super::{
    Settings,
    connection::{Connection, MOST_REPLY_BYTES, text},
    error::{Code, KafkaError},
    sasl, tls,
};
use crate::{addresses::AddressRules, api::Reason, clients::address::host_and_port};

/// A topic as the metadata tells it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Topic {
    /// Tells a topic from one of the same name that was created later. Zero where the brokers are older than Kafka 2.8.
    pub id: [u8; 16],
    /// The leader of each partition, by the partition's number; absent while there is none. At least one partition.
    pub leaders: BTreeMap<i32, Option<i32>>,
}

/// A conversation with one broker.
pub(super) trait Talk: Sync {
    /// What the broker is asked.
    type Work: Clone + Send + Sync;
    /// What comes of it.
    type Answer: Send;

    /// Asks.
    fn talk(
        &self,
        broker: &mut Connection,
        work: Self::Work,
    ) -> impl Future<Output = Result<Self::Answer, KafkaError>> + Send;
}

/// Who connects, and to which addresses.
struct Access {
    settings: Settings,
    tls: Option<TlsConnector>,
    /// Which addresses may be asked.
    rules: Arc<AddressRules>,
    most_reply_bytes: usize,
}

/// The connections to one cluster with one user.
pub struct Client {
    access: Access,
    brokers: HashMap<i32, (String, u16)>,
    connections: HashMap<i32, Connection>,
    /// The connection that metadata is asked on, where it is not known to be one of `connections`.
    any: Option<Connection>,
    /// The broker that metadata was last told by: it does not hang.
    answered: Option<i32>,
    /// What tells the cluster from others, by its last metadata.
    cluster: Option<String>,
    requests: u64,
}

impl Client {
    /// Connects to nothing yet. `rules` say which addresses are connected to, in the settings and as brokers announce them.
    ///
    /// # Errors
    /// The authority or the client certificate cannot be read.
    pub fn new(settings: Settings, rules: Arc<AddressRules>) -> Result<Self, KafkaError> {
        let tls = tls::connector(&settings)?;
        let access = Access { settings, tls, rules, most_reply_bytes: MOST_REPLY_BYTES };
        let (brokers, connections) = (HashMap::new(), HashMap::new());
        Ok(Self { access, brokers, connections, any: None, answered: None, cluster: None, requests: 0 })
    }

    /// Reads answers of so many bytes, in place of the usual limit.
    #[must_use]
    pub fn with_replies_of(mut self, bytes: usize) -> Self {
        self.access.most_reply_bytes = bytes;
        self
    }

    /// What tells the cluster from others; absent before it was asked for topics, and where brokers do not tell.
    pub fn cluster(&self) -> Option<&str> {
        self.cluster.as_deref()
    }

    /// Requests made since this client was made, those of handshakes included.
    pub fn requests(&self) -> u64 {
        let open = self.connections.values().chain(&self.any);
        self.requests + open.map(|connection| connection.requests).sum::<u64>()
    }

    /// Connections that are open.
    pub fn connections(&self) -> usize {
        self.connections.len() + usize::from(self.any.is_some())
    }

    /// The servers that were given, for messages.
    pub fn place(&self) -> String {
        self.access.settings.to_string()
    }

    /// What the cluster knows of these topics; asking never creates one.
    ///
    /// # Errors
    /// No broker answered by `by`: the last one's reason. Within: why a topic is not known.
    pub async fn topics(
        &mut self,
        names: &BTreeSet<Arc<str>>,
        by: Instant,
    ) -> Result<BTreeMap<Arc<str>, Result<Topic, KafkaError>>, KafkaError> {
        let topics: Vec<_> =
            names.iter().map(|name| MetadataRequestTopic { name: Some(text(name)), ..Default::default() }).collect();
        let request =
            MetadataRequestData { topics: Some(topics), allow_auto_topic_creation: false, ..Default::default() };
        let (reply, at) = loop {
            let (mut connection, fresh) = self.any_connection(by).await?;
            // Where it has hung or was closed since it was last used, another is asked in the time that is left.
            let now = Instant::now();
            let until = if fresh { by } else { now + by.saturating_duration_since(now) / 2 };
            let reply = connection.call(request.clone(), until).await;
            let at = connection.place.clone();
            self.keep_any(connection);
            match reply {
                Err(error) if !fresh && [Reason::ConnectionRefused, Reason::TimedOut].contains(&error.reason) => {}
                reply => break (reply?, at),
            }
        };
        self.cluster = reply.cluster_id.as_ref().map(|id| id.as_str().to_owned());
        let named = |broker: &kacrab_protocol::generated::MetadataResponseBroker| {
            let port = u16::try_from(broker.port).ok().filter(|port| *port > 0)?;
            Some((broker.node_id, (broker.host.as_str().to_owned(), port)))
        };
        let brokers: HashMap<_, _> = reply.brokers.iter().filter_map(named).collect();
        // A broker that moved is another one.
        let moved: Vec<i32> =
            self.connections.keys().filter(|id| brokers.get(id) != self.brokers.get(id)).copied().collect();
        for id in moved {
            if let Some(gone) = self.connections.remove(&id) {
                self.close(&gone);
            }
        }
        self.brokers = brokers;
        self.adopt_any();
        let mut found: BTreeMap<Arc<str>, Result<Topic, KafkaError>> = BTreeMap::new();
        for topic in &reply.topics {
            let Some(name) = topic.name.as_ref().and_then(|name| names.get(name.as_str())) else { continue };
            let answer = match Code::from_wire(topic.error_code) {
                Some(code) => Err(KafkaError::of(code, &at, &format!("topic {name}"))),
                None if topic.partitions.is_empty() => Err(KafkaError::no_partitions(&at, name)),
                None => Ok(Topic {
                    id: topic.topic_id.to_bytes(),
                    leaders: topic
                        .partitions
                        .iter()
                        .map(|one| (one.partition_index, (one.leader_id >= 0).then_some(one.leader_id)))
                        .collect(),
                }),
            };
            found.insert(name.clone(), answer);
        }
        for name in names {
            found.entry(name.clone()).or_insert_with(|| {
                Err(KafkaError::invalid(&at, &format!("the answer to Metadata leaves out topic {name}")))
            });
        }
        Ok(found)
    }

    /// The broker that coordinates each group.
    ///
    /// # Errors
    /// No broker answered by `by`. Within: why a group has no coordinator, such as a missing right.
    pub async fn coordinators(
        &mut self,
        groups: &BTreeSet<Arc<str>>,
        by: Instant,
    ) -> Result<BTreeMap<Arc<str>, Result<i32, KafkaError>>, KafkaError> {
        let (mut connection, _) = self.any_connection(by).await?;
        let found = find_coordinators(&mut connection, groups, by).await;
        self.keep_any(connection);
        self.adopt_any();
        let mut answer = BTreeMap::new();
        for (group, found) in found? {
            answer.insert(
                group,
                found.map(|(id, broker)| {
                    self.brokers.entry(id).or_insert(broker);
                    id
                }),
            );
        }
        Ok(answer)
    }

    /// Runs one conversation with each broker, all at the same time; a broker that hangs does not hold up the others.
    pub(super) async fn with_brokers<T: Talk>(
        &mut self,
        work: impl IntoIterator<Item = (i32, T::Work)>,
        by: Instant,
        talk: T,
    ) -> Vec<Result<T::Answer, (T::Work, KafkaError)>> {
        let taken: Vec<_> = work.into_iter().map(|(id, work)| (id, work, self.connections.remove(&id))).collect();
        let (access, brokers, talk) = (&self.access, &self.brokers, &talk);
        let each = taken.into_iter().map(|(id, work, open)| async move {
            let mut lost = 0;
            if let Some(mut open) = open {
                match talk.talk(&mut open, work.clone()).await {
                    // The broker may have closed it while it was idle.
                    Err(error) if error.reason == Reason::ConnectionRefused => lost = open.requests,
                    answer => return (id, Some(open), lost, answer.map_err(|error| (work, error))),
                }
            }
            let opened = match brokers.get(&id) {
                None => Err(KafkaError::new(
                    Reason::SourceFailed,
                    format!(
                        "{}: broker {id} is not in the cluster's metadata: it is down or has just left",
                        access.settings
                    ),
                )),
                Some((host, port)) => access.connect((host, *port), by).await,
            };
            match opened {
                Err(error) => (id, None, lost, Err((work, error))),
                Ok(mut connection) => {
                    let answer = talk.talk(&mut connection, work.clone()).await;
                    (id, Some(connection), lost, answer.map_err(|error| (work, error)))
                }
            }
        });
        let answers = join_all(each).await;
        let mut all = Vec::with_capacity(answers.len());
        for (id, connection, lost, answer) in answers {
            self.requests += lost;
            match connection {
                Some(connection) if connection.is_usable() => drop(self.connections.insert(id, connection)),
                Some(connection) => self.close(&connection),
                None => {}
            }
            all.push(answer);
        }
        all
    }

    /// A connection to any broker: one that is open, else the first that opens. Each that is tried leaves time for the others.
    /// True where it was opened just now: the broker may have closed one that was idle.
    pub(super) async fn any_connection(&mut self, by: Instant) -> Result<(Connection, bool), KafkaError> {
        if let Some(open) = self.any.take() {
            return Ok((open, false));
        }
        let answered = self.answered.filter(|id| self.connections.contains_key(id));
        if let Some(id) = answered.or_else(|| self.connections.keys().next().copied())
            && let Some(open) = self.connections.remove(&id)
        {
            return Ok((open, false));
        }
        let settings = &self.access.settings;
        let mut servers = settings.bootstrap.clone();
        servers.extend(self.brokers.values().filter(|known| !settings.bootstrap.contains(known)).cloned());
        let mut failed = None;
        for (index, (host, port)) in servers.iter().enumerate() {
            let left = by.saturating_duration_since(Instant::now());
            let share = u32::try_from(servers.len() - index).unwrap_or(u32::MAX);
            let until = Instant::now() + left / share;
            match self.access.connect((host, *port), until).await {
                Ok(open) => return Ok((open, true)),
                // A refused user is refused by all of them; more tries may lock it out.
                Err(error) if error.reason == Reason::AuthenticationFailed => return Err(error),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        Err(failed.unwrap_or_else(|| KafkaError::timed_out(&settings.to_string(), "connecting")))
    }

    pub(super) fn keep_any(&mut self, connection: Connection) {
        if connection.is_usable() {
            self.any = Some(connection);
        } else {
            self.close(&connection);
        }
    }

    /// Where the connection for metadata leads to a broker that the metadata names, it serves as that broker's.
    pub(super) fn adopt_any(&mut self) {
        let Some(any) = &self.any else { return };
        let named =
            self.brokers.iter().find(|(_, (host, port))| host_and_port(host, *port) == any.place).map(|(id, _)| *id);
        if let Some(id) = named
            && !self.connections.contains_key(&id)
            && let Some(any) = self.any.take()
        {
            self.connections.insert(id, any);
            self.answered = Some(id);
        }
    }

    fn close(&mut self, connection: &Connection) {
        self.requests += connection.requests;
    }
}

impl Access {
    /// A connection to one broker, which knows then who we are.
    async fn connect(&self, server: (&str, u16), by: Instant) -> Result<Connection, KafkaError> {
        let connected = Connection::connect(self.tls.as_ref(), server, &self.rules, by).await;
        let mut connection = connected.map_err(|error| match error.reason {
            Reason::AddressRefused if !self.settings.names(server) => error.of_announced(),
            _ => error,
        })?;
        connection.allow_replies_of(self.most_reply_bytes);
        if let Some(user) = &self.settings.sasl {
            sasl::authenticate(&mut connection, user, by).await?;
        }
        Ok(connection)
    }
}

type Found = BTreeMap<Arc<str>, Result<(i32, (String, u16)), KafkaError>>;

async fn find_coordinators(
    connection: &mut Connection,
    groups: &BTreeSet<Arc<str>>,
    by: Instant,
) -> Result<Found, KafkaError> {
    let mut found = Found::new();
    let at = connection.place.clone();
    let broker = |code: i16, group: &str, id: i32, host: &str, port: i32| match Code::from_wire(code) {
        Some(code) => Err(KafkaError::of(code, &at, &format!("group {group}"))),
        None => match u16::try_from(port) {
            Ok(port) if port > 0 => Ok((id, (host.to_owned(), port))),
            _ => Err(KafkaError::invalid(&at, "a coordinator has no port")),
        },
    };
    if connection.version::<FindCoordinatorRequestData>()? >= 4 {
        let keys = groups.iter().map(|group| text(group)).collect();
        let request = FindCoordinatorRequestData { coordinator_keys: keys, ..Default::default() };
        for one in connection.call(request, by).await?.coordinators {
            if let Some(group) = groups.get(one.key.as_str()) {
                let answer = broker(one.error_code, group, one.node_id, one.host.as_str(), one.port);
                found.insert(group.clone(), answer);
            }
        }
    } else {
        for group in groups {
            let request = FindCoordinatorRequestData { key: text(group), ..Default::default() };
            let one = connection.call(request, by).await?;
            let answer = broker(one.error_code, group, one.node_id, one.host.as_str(), one.port);
            found.insert(group.clone(), answer);
        }
    }
    for group in groups {
        found.entry(group.clone()).or_insert_with(|| {
            Err(KafkaError::invalid(&at, &format!("the answer to FindCoordinator leaves out group {group}")))
        });
    }
    Ok(found)
}
