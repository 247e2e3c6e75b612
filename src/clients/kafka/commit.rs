//! Commits offsets for a consumer group that has no members, so that tools which look at groups see how far a projector has come.

use std::{collections::BTreeMap, sync::Arc};

use kacrab_protocol::generated::{OffsetCommitRequestData, OffsetCommitRequestPartition, OffsetCommitRequestTopic};
use tokio::time::Instant;

use super::{
    Client,
    client::Talk,
    connection::{Connection, text},
    error::{Code, KafkaError},
    offsets::Partition,
};

impl Client {
    /// Commits the offsets that are read next, through the broker that coordinates the group. Needs the rights to READ the group and its topics.
    ///
    /// # Errors
    /// The coordinator cannot be asked, or refuses one of them, as where the group has members of its own.
    pub async fn commit(
        &mut self,
        group: &Arc<str>,
        coordinator: i32,
        offsets: &BTreeMap<Partition, i64>,
        by: Instant,
    ) -> Result<(), KafkaError> {
        let work = [(coordinator, offsets.clone())];
        let answers = self.with_brokers(work, by, Commit { group: Arc::clone(group), by }).await;
        answers.into_iter().try_for_each(|answer| answer.map_err(|(_, error)| error))
    }
}

struct Commit {
    group: Arc<str>,
    by: Instant,
}

impl Talk for Commit {
    type Work = BTreeMap<Partition, i64>;
    type Answer = ();

    async fn talk(&self, broker: &mut Connection, work: Self::Work) -> Result<(), KafkaError> {
        let mut topics: BTreeMap<&Arc<str>, Vec<OffsetCommitRequestPartition>> = BTreeMap::new();
        for ((topic, partition_index), committed_offset) in &work {
            topics.entry(topic).or_default().push(OffsetCommitRequestPartition {
                partition_index: *partition_index,
                committed_offset: *committed_offset,
                committed_leader_epoch: -1,
                committed_metadata: Some(text("")),
                ..Default::default()
            });
        }
        let topics = topics.into_iter().map(|(topic, partitions)| OffsetCommitRequestTopic {
            name: text(topic),
            partitions,
            ..Default::default()
        });
        let request = OffsetCommitRequestData {
            group_id: text(&self.group),
            generation_id_or_member_epoch: -1,
            retention_time_ms: -1,
            topics: topics.collect(),
            ..Default::default()
        };
        let reply = broker.call(request, self.by).await?;
        for topic in &reply.topics {
            for one in &topic.partitions {
                if let Some(code) = Code::from_wire(one.error_code) {
                    let name = topic.name.as_str();
                    let what = format!("group {}, partition {} of topic {name}", self.group, one.partition_index);
                    return Err(KafkaError::of(code, &broker.place, &what));
                }
            }
        }
        Ok(())
    }
}
