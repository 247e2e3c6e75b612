//! The claims of all Projections to indices: one document of the state's index.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{
    super::{
        super::error::ProjectorError,
        claims::{KeptClaims, Step, Unnamed, Words, step},
    },
    handlers::Documents,
    kept::json,
    requests::Condition,
    state::State,
};
use crate::{clients::elasticsearch::ConnectionSettings, names::search_state};

const DOING: &str = "read store: claiming the indices";

/// The document. A Projection whose claims were removed is `null`, as the update of a part of a document leaves it.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Document {
    claims: BTreeMap<String, Option<Box<RawValue>>>,
}

/// Claims the indices that the handlers of a Projection name, on a connection of its own. All of them or none.
///
/// # Errors
/// Where another Projection has some of them, or may have.
pub(in crate::projector) async fn claim(
    settings: &ConnectionSettings,
    projection: &str,
    documents: &Documents,
    unnamed: Unnamed,
) -> Result<(), ProjectorError> {
    let wanted = documents.wanted(projection);
    let mut state = State::new(settings, documents.state_index(), projection);
    let index = state.index().to_owned();
    let words = Words {
        at: state.at(),
        key: format!("index {index}, document {}", search_state::CLAIMS),
        names: ("index", "indices"),
        shared: "spec.projector.builtin.elasticsearch.shared",
        remove: &|owner| {
            let part = serde_json::json!({ "doc": { "claims": { owner: null } } });
            format!("POST /{index}/_update/{} {part}", search_state::CLAIMS)
        },
    };
    loop {
        let (condition, document) = match state.one(DOING, search_state::CLAIMS).await? {
            None => (Condition::New, Document { claims: BTreeMap::new() }),
            Some((cas, source)) => {
                let remove = || format!("DELETE /{index}/_doc/{}", search_state::CLAIMS);
                let document = serde_json::from_str(&source).map_err(|_| words.unreadable("", remove()))?;
                (Condition::Unchanged(cas), document)
            }
        };
        let kept = document
            .claims
            .iter()
            .filter_map(|(owner, claims)| Some((owner.clone(), claims.as_ref()?.get().to_owned())));
        let kept: KeptClaims = kept.collect();
        let mut claims = document.claims;
        match step(&kept, &wanted, unnamed, Timestamp::now())
            .map_err(|refusal| words.error(&wanted.projection, refusal))?
        {
            Step::Nothing => return Ok(()),
            Step::Write(json) => drop(claims.insert(wanted.projection.clone(), RawValue::from_string(json).ok())),
            Step::Remove => drop(claims.remove(&wanted.projection)),
        }
        claims.retain(|_, claims| claims.is_some());
        let after = (search_state::CLAIMS.to_owned(), condition, json(&Document { claims }));
        if state.write(DOING, &[after]).await?.first().is_some_and(Option::is_some) {
            return Ok(());
        }
    }
}
