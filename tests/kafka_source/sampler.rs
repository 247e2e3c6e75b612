//! A running sampler whose Projections read Kafka.

use std::ops::{Deref, DerefMut};

use projectionist::{lag::Pending, snapshot::Measured};
use serde_json::{Value, json};
use std::sync::Arc;
use test_cluster::kafka::Listener;

use crate::{harness::broker, running};

pub struct Running(running::Running);

impl Deref for Running {
    type Target = running::Running;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl DerefMut for Running {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

impl Running {
    /// The Secret `open` leads to the shared broker, without a user.
    pub fn start() -> Self {
        let running = running::Running::start();
        running.secret("open", &json!({ "bootstrapServers": broker().address(Listener::Plaintext).to_string() }));
        Self(running)
    }

    /// Declares a Projection; `change` edits `spec.source.kafka`.
    pub fn declare(&mut self, name: &str, topics: &[&str], group: &str, change: impl FnOnce(&mut Value)) {
        let mut kafka = json!({ "connection": { "secretRef": { "name": "open" } }, "topics": topics, "group": group });
        change(&mut kafka);
        self.0.declare(name, &json!({ "kafka": kafka }));
    }

    pub async fn wait_pending(&self, name: &str, pending: Pending) -> Arc<Measured> {
        self.wait_measured(&format!("{pending:?}"), name, |m| m.sample.pending == Some(pending)).await
    }
}
