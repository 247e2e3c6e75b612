//! Versions in Elasticsearch and OpenSearch: an index a version, and an alias that readers name.

use std::sync::Arc;

use http::{Method, StatusCode};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{SwitchError, Switched, VersionSwitch, judge};
use crate::{
    api::Reason,
    clients::elasticsearch::{error_type, refusal},
    read_stores::ElasticsearchStore,
};

/// The alias of one read model.
#[derive(Debug)]
pub struct AliasSwitch {
    store: Arc<ElasticsearchStore>,
    alias: String,
}

impl AliasSwitch {
    /// Of the read model whose readers name this alias.
    pub fn new(store: Arc<ElasticsearchStore>, alias: &str) -> Self {
        Self { store, alias: alias.to_owned() }
    }

    /// The index that the alias leads to.
    async fn target(&self, by: Instant) -> Result<Option<String>, SwitchError> {
        let path = format!("/_alias/{}", utf8_percent_encode(&self.alias, NON_ALPHANUMERIC));
        let (status, answer) = self.store.ask(Method::GET, path, None, by).await.map_err(SwitchError::Failed)?;
        if status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let indices: Vec<&String> = answer
            .as_object()
            .filter(|_| status == StatusCode::OK)
            .into_iter()
            .flatten()
            .map(|(name, _)| name)
            .collect();
        match indices[..] {
            [index] => Ok(Some(index.clone())),
            [] => Err(SwitchError::Failed(self.store.at(&refusal(status, &answer)))),
            _ => Err(SwitchError::NotOurs(format!(
                "alias {} leads to {} indices, and not to the one of a version: it was not made by a switch; name another alias",
                self.alias,
                indices.len()
            ))),
        }
    }
}

impl VersionSwitch for AliasSwitch {
    async fn switch(&self, from: Option<&str>, to: &str, by: Instant) -> Result<Switched, SwitchError> {
        if let Some(done) = judge(self.target(by).await?.as_deref(), from, to)? {
            return Ok(done);
        }
        // In one call, which is refused as a whole where the alias has left `from` meanwhile. An alias has one write index at most, so that of two who
        // lead it to a first version at once one is refused.
        let mut actions: Vec<Value> = Vec::new();
        actions
            .extend(from.map(|from| json!({ "remove": { "index": from, "alias": self.alias, "must_exist": true } })));
        actions.push(json!({ "add": { "index": to, "alias": self.alias, "is_write_index": true } }));
        let body = json!({ "actions": actions });
        let asked = self.store.ask(Method::POST, "/_aliases".to_owned(), Some(&body), by).await;
        let (status, answer) = asked.map_err(SwitchError::Failed)?;
        match (status, error_type(&answer)) {
            (StatusCode::OK, _)
                if answer.get("acknowledged") == Some(&json!(true)) && answer.get("errors") != Some(&json!(true)) =>
            {
                Ok(Switched::Now)
            }
            (_, Some("index_not_found_exception")) => {
                Err(SwitchError::Unsuitable(format!("there is no index {to}: make it before readers are led to it")))
            }
            (_, Some("invalid_alias_name_exception")) => Err(SwitchError::NotOurs(format!(
                "{} is the name of an index, and no alias: it was not made by a switch; name another alias",
                self.alias
            ))),
            (_, Some("aliases_not_found_exception" | "illegal_state_exception")) => {
                let found = self.target(by).await?;
                // One that was sent twice finds its own work done.
                judge(found.as_deref(), from, to)?.ok_or_else(|| {
                    SwitchError::Failed(crate::measure::MeasureError {
                        reason: Reason::SourceFailed,
                        message: format!("alias {} is moved by others at the same time: repeat the switch", self.alias),
                    })
                })
            }
            _ => Err(SwitchError::Failed(self.store.at(&refusal(status, &answer)))),
        }
    }
}
