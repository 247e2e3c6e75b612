//! Which topics the broker compacts.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use kacrab_protocol::generated::{DescribeConfigsRequestData, DescribeConfigsResource};
use tokio::time::Instant;

use super::{
    Client,
    connection::text,
    error::{Code, KafkaError},
};

const TOPIC: i8 = 2;

impl Client {
    /// Whether each topic's `cleanup.policy` compacts it. Needs the right to DESCRIBE_CONFIGS of the topic; topics without it are left out.
    ///
    /// # Errors
    /// No broker answered by `by`.
    pub async fn compacted(
        &mut self,
        names: &BTreeSet<Arc<str>>,
        by: Instant,
    ) -> Result<BTreeMap<Arc<str>, bool>, KafkaError> {
        let (mut connection, _) = self.any_connection(by).await?;
        let resources = names.iter().map(|name| DescribeConfigsResource {
            resource_type: TOPIC,
            resource_name: text(name),
            configuration_keys: Some(vec![text("cleanup.policy")]),
            ..Default::default()
        });
        let request = DescribeConfigsRequestData { resources: resources.collect(), ..Default::default() };
        let reply = connection.call(request, by).await;
        self.keep_any(connection);
        self.adopt_any();
        let mut found = BTreeMap::new();
        for topic in reply?.results {
            let Some(name) = names.get(topic.resource_name.as_str()) else { continue };
            if Code::from_wire(topic.error_code).is_some() {
                continue;
            }
            let policy = topic.configs.iter().find(|one| one.name.as_str() == "cleanup.policy");
            if let Some(policy) = policy.and_then(|one| one.value.as_ref()) {
                found.insert(name.clone(), policy.as_str().split(',').any(|word| word.trim() == "compact"));
            }
        }
        Ok(found)
    }
}
