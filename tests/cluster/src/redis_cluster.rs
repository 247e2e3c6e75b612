//! A real Redis Cluster of a test's own, on loopback or in a cluster's network.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::redis::{Answer, Redis};

const SLOTS: usize = 16_384;

/// Nodes of one cluster: the masters, which share the slots evenly, then the replicas.
#[derive(Debug)]
pub struct RedisCluster {
    /// The nodes.
    pub nodes: Vec<Redis>,
    masters: usize,
}

impl RedisCluster {
    /// Starts so many masters and replicas on 127.0.0.1, the first replica being one of the first master, and so on. `configuration`: further lines for each.
    /// A node that is away takes only its own slots with it.
    ///
    /// # Errors
    /// When a node does not start, or the cluster does not come up in time.
    pub fn start(masters: usize, replicas: usize, configuration: &str) -> Result<Self> {
        Self::create(None, "127.0.0.1", masters, replicas, configuration)
    }

    /// So many masters at `host` inside a network namespace, open to all that is in it.
    ///
    /// # Errors
    /// As [`RedisCluster::start`].
    pub(crate) fn in_network(network: &Path, host: &str, masters: usize) -> Result<Self> {
        Self::create(Some(network), host, masters, 0, "protected-mode no")
    }

    fn create(
        network: Option<&Path>,
        host: &str,
        masters: usize,
        replicas: usize,
        configuration: &str,
    ) -> Result<Self> {
        let configuration = format!("cluster-require-full-coverage no\nrepl-diskless-sync-delay 0\n{configuration}");
        let started = (0..masters + replicas).map(|_| Redis::node(network, host, &configuration));
        let started: Vec<(Redis, u16)> = started.collect::<Result<_>>()?;
        for (place, (node, _)) in started.iter().enumerate().take(masters) {
            let (first, last) = (place * SLOTS / masters, (place + 1) * SLOTS / masters - 1);
            node.run(&format!("CLUSTER ADDSLOTSRANGE {first} {last}"))?;
            node.run(&format!("CLUSTER SET-CONFIG-EPOCH {}", place + 1))?;
        }
        for (node, bus) in &started[1..] {
            started[0].0.run(&format!("CLUSTER MEET {host} {} {bus}", node.address().port()))?;
        }
        let cluster = Self { nodes: started.into_iter().map(|(node, _)| node).collect(), masters };
        let all = cluster.nodes.len();
        cluster.wait("all nodes know each other", |node| {
            let known = node.run("CLUSTER NODES")?.text().lines().filter(|line| !line.contains("handshake")).count();
            // A node that is known at last has not always said which slots it has.
            let info = node.run("CLUSTER INFO")?;
            let has = |line: &str| info.text().lines().any(|one| one == line);
            Ok(known == all && has("cluster_state:ok") && has(&format!("cluster_slots_ok:{SLOTS}")))
        })?;
        for (place, replica) in cluster.nodes[masters..].iter().enumerate() {
            replica.run(&format!("CLUSTER REPLICATE {}", cluster.id(place % masters)?))?;
        }
        cluster.wait("the replicas are known", |node| {
            let listed = node.run("CLUSTER NODES")?;
            let copied = node.run("INFO replication")?;
            let linked = !copied.text().contains("role:slave") || copied.text().contains("master_link_status:up");
            Ok(linked && listed.text().lines().filter(|line| line.contains("slave")).count() == all - masters)
        })?;
        Ok(cluster)
    }

    fn wait(&self, what: &str, is: impl Fn(&Redis) -> Result<bool>) -> Result<()> {
        let until = Instant::now() + Duration::from_secs(60);
        for node in &self.nodes {
            while !is(node)? {
                if Instant::now() > until {
                    bail!("not so after a minute: {what}: {}", node.run("CLUSTER NODES")?.text());
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        Ok(())
    }

    /// How the cluster calls a node.
    ///
    /// # Errors
    /// When the node is away.
    pub fn id(&self, place: usize) -> Result<String> {
        Ok(self.nodes[place].run("CLUSTER MYID")?.text().to_owned())
    }

    /// A key that begins with this and had its slot on this master when the cluster was made.
    ///
    /// # Errors
    /// When the first node is away.
    pub fn key_on(&self, place: usize, prefix: &str) -> Result<String> {
        for number in 0..1_000 {
            let key = format!("{prefix}{number}");
            if self.slot(&key)? * self.masters / SLOTS == place {
                return Ok(key);
            }
        }
        bail!("no key with {prefix} has its slot there")
    }

    /// The slot of a key.
    ///
    /// # Errors
    /// When all nodes are away.
    pub fn slot(&self, key: &str) -> Result<usize> {
        let answer = self.nodes.iter().find_map(|node| node.run(&format!("CLUSTER KEYSLOT {key}")).ok());
        match answer.context("no node answers")? {
            Answer::Integer(slot) => Ok(usize::try_from(slot)?),
            other => bail!("no slot: {other:?}"),
        }
    }
}
