//! Versions in Elasticsearch and OpenSearch: indices of each version, and aliases that readers name, all moved in one call.

use std::{collections::BTreeSet, sync::Arc};

use http::{Method, StatusCode};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{SwitchError, Switched, VersionSwitch, judge};
use crate::{
    api::Reason,
    clients::elasticsearch::{error_type, refusal},
    measure::MeasureError,
    read_stores::ElasticsearchStore,
    resolve::LedAlias,
};

/// Names stay short in the first line of a request, which servers take up to 4 KiB.
const IN_PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_');

/// The aliases of one read model.
#[derive(Debug)]
pub struct AliasSwitch {
    store: Arc<ElasticsearchStore>,
    aliases: Vec<LedAlias>,
}

impl AliasSwitch {
    /// Of the read model whose readers name these aliases, none twice.
    pub fn new(store: Arc<ElasticsearchStore>, aliases: &[LedAlias]) -> Self {
        Self { store, aliases: aliases.to_vec() }
    }

    fn names(&self) -> String {
        let names: Vec<&str> = self.aliases.iter().map(|one| one.alias.as_str()).collect();
        names.join(", ")
    }

    /// The indices that the aliases lead to. All are asked for at once, so that they are as they were at one moment.
    async fn ask(&self, by: Instant) -> Result<Vec<(&LedAlias, BTreeSet<String>)>, SwitchError> {
        let names: Vec<String> =
            self.aliases.iter().map(|one| utf8_percent_encode(&one.alias, IN_PATH).to_string()).collect();
        let path = format!("/_alias/{}", names.join(","));
        let (status, answer) = self.store.ask(Method::GET, path, None, by).await.map_err(SwitchError::Failed)?;
        // Where some of several are missing the others are told all the same, beside what is wrong.
        let is_told = [StatusCode::OK, StatusCode::NOT_FOUND].contains(&status);
        let fields = answer.as_object().filter(|_| is_told);
        let fields = fields.ok_or_else(|| SwitchError::Failed(self.store.at(&refusal(status, &answer))))?;
        let leads = |alias: &str| {
            let of_alias = fields.iter().filter(|(_, told)| told["aliases"].get(alias).is_some());
            of_alias.map(|(index, _)| index.clone()).collect()
        };
        Ok(self.aliases.iter().map(|one| (one, leads(&one.alias))).collect())
    }

    /// The version that all aliases lead to.
    async fn found(&self, by: Instant) -> Result<Option<String>, SwitchError> {
        let mut versions = BTreeSet::new();
        for (one, indices) in &self.ask(by).await? {
            let LedAlias { alias, index } = one;
            let version = match (indices.first(), indices.len()) {
                (None, _) => None,
                (Some(found), 1) => Some(one.version_of(found).map(str::to_owned).ok_or_else(|| {
                    SwitchError::NotOurs(format!(
                        "alias {alias} leads to index {found}, which is of no version ({index}): it was not made by a switch; name another alias"
                    ))
                })?),
                (Some(_), count) => {
                    return Err(SwitchError::NotOurs(format!(
                        "alias {alias} leads to {count} indices, and not to the one of a version: it was not made by a switch; name another alias"
                    )));
                }
            };
            versions.insert(version);
        }
        if versions.len() > 1 {
            let shown: Vec<String> =
                versions.into_iter().map(|version| version.unwrap_or_else(|| "none".to_owned())).collect();
            return Err(SwitchError::NotOurs(format!(
                "the aliases {} lead to several versions ({}): readers see a mix. Let all of them lead to one, or delete them, and they are made again",
                self.names(),
                shown.join(", ")
            )));
        }
        Ok(versions.into_iter().next().flatten())
    }

    fn actions(&self, from: Option<&str>, to: &str) -> Value {
        let mut actions: Vec<Value> = Vec::new();
        for one in &self.aliases {
            let LedAlias { alias, .. } = one;
            actions.extend(
                from.map(
                    |from| json!({ "remove": { "index": one.index_of(from), "alias": alias, "must_exist": true } }),
                ),
            );
            actions.push(json!({ "add": { "index": one.index_of(to), "alias": alias, "is_write_index": true } }));
        }
        json!({ "actions": actions })
    }
}

impl VersionSwitch for AliasSwitch {
    async fn shown(&self, by: Instant) -> Result<Option<String>, SwitchError> {
        self.found(by).await
    }

    async fn switch(&self, from: Option<&str>, to: &str, by: Instant) -> Result<Switched, SwitchError> {
        if let Some(done) = judge(self.found(by).await?.as_deref(), from, to)? {
            return Ok(done);
        }
        // In one call, which is refused as a whole where an alias has left `from` meanwhile. An alias has one write index at most, so that of two who
        // lead it to a first version at once one is refused.
        let body = self.actions(from, to);
        let asked = self.store.ask(Method::POST, "/_aliases".to_owned(), Some(&body), by).await;
        let (status, answer) = asked.map_err(SwitchError::Failed)?;
        match (status, error_type(&answer)) {
            (StatusCode::OK, _)
                if answer.get("acknowledged") == Some(&json!(true)) && answer.get("errors") != Some(&json!(true)) =>
            {
                Ok(Switched::Now)
            }
            (_, Some("index_not_found_exception")) => {
                let indices: Vec<String> = self.aliases.iter().map(|one| one.index_of(to)).collect();
                let missing = answer["error"]["index"].as_str().filter(|index| indices.iter().any(|one| one == index));
                Err(SwitchError::Unsuitable(format!(
                    "there is no index {}: make it before readers are led to it",
                    missing.unwrap_or(&indices.join(" or "))
                )))
            }
            (_, Some("invalid_alias_name_exception")) => {
                let why = answer["error"]["reason"].as_str().unwrap_or_default();
                let taken = self.aliases.iter().find(|one| why.contains(&format!("[{}]", one.alias)));
                let taken = taken.map_or_else(|| self.names(), |one| one.alias.clone());
                Err(SwitchError::NotOurs(format!(
                    "{taken} is the name of an index, and no alias: it was not made by a switch; name another alias"
                )))
            }
            (_, Some("aliases_not_found_exception" | "illegal_state_exception")) => {
                let found = self.found(by).await?;
                // One that was sent twice finds its own work done.
                judge(found.as_deref(), from, to)?.ok_or_else(|| {
                    SwitchError::Failed(MeasureError {
                        reason: Reason::SourceFailed,
                        message: format!(
                            "alias {} is moved by others at the same time: repeat the switch",
                            self.names()
                        ),
                    })
                })
            }
            _ => Err(SwitchError::Failed(self.store.at(&refusal(status, &answer)))),
        }
    }
}
