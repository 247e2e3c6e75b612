//! The read stores that are open, for what leads readers from one version to another.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use futures::future::BoxFuture;
use tokio::{
    sync::Mutex,
    time::{Instant, timeout_at},
};

use super::{
    CheckpointStore, compare,
    switch::{AliasSwitch, PointerSwitch, SwitchError, Switched, VersionSwitch as _, ViewSwitch},
};
use crate::{
    api::Reason,
    clients::postgres::Database,
    measure::{MeasureError, RunKey},
    rebuild::{Compared, Comparison, LeadError, ReadersOf, SwitchReaders},
    resolve::LedBy,
};

/// The read stores of runs that have a version, as they are asked for checkpoints. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct OpenStores {
    stores: Arc<RwLock<HashMap<RunKey, CheckpointStore>>>,
    /// One comparison at a time: it may look at much.
    comparing: Arc<Mutex<()>>,
}

impl OpenStores {
    /// From now on these are open, and no others.
    pub fn follow(&self, stores: HashMap<RunKey, CheckpointStore>) {
        *self.stores.write().unwrap_or_else(PoisonError::into_inner) = stores;
    }

    fn store_of(&self, run: &RunKey) -> Result<CheckpointStore, MeasureError> {
        let store = self.stores.read().unwrap_or_else(PoisonError::into_inner).get(run).cloned();
        store.ok_or_else(|| MeasureError {
            reason: Reason::NotMeasuredYet,
            message: format!(
                "the read store of {run} is not known yet: its Secret, or that of the source, has not been read"
            ),
        })
    }

    fn database_of(&self, run: &RunKey) -> Result<Arc<Database>, MeasureError> {
        match self.store_of(run)? {
            CheckpointStore::Postgres(database) => Ok(database),
            _ => Err(other_store("spec.rollout.promote.parity", "PostgreSQL")),
        }
    }

    fn switch_of(&self, of: &ReadersOf) -> Result<OpenSwitch, LeadError> {
        match (&of.by, self.store_of(&of.run).map_err(LeadError::Failed)?) {
            (LedBy::Views { schema, views }, CheckpointStore::Postgres(database)) => {
                let views: Vec<&str> = views.iter().map(String::as_str).collect();
                Ok(OpenSwitch::Views(ViewSwitch::new(database, schema, &views)))
            }
            (LedBy::Pointer { key }, CheckpointStore::Redis(store)) => {
                Ok(OpenSwitch::Pointer(PointerSwitch::new(store, key)))
            }
            (LedBy::Aliases(aliases), CheckpointStore::Elasticsearch(store)) => {
                Ok(OpenSwitch::Aliases(AliasSwitch::new(store, aliases)))
            }
            (by, _) => Err(LeadError::Failed(match by {
                LedBy::Views { .. } => other_store("spec.rollout.switch.postgresView", "PostgreSQL"),
                LedBy::Pointer { .. } => other_store("spec.rollout.switch.redisPointer", "Redis"),
                LedBy::Aliases(_) => other_store("spec.rollout.switch.elasticsearchAliases", "Elasticsearch"),
            })),
        }
    }
}

fn other_store(field: &str, store: &str) -> MeasureError {
    MeasureError { reason: Reason::InvalidSpec, message: format!("{field} needs a read store in {store}") }
}

/// What leads readers, in a store that is open.
enum OpenSwitch {
    Views(ViewSwitch),
    Pointer(PointerSwitch),
    Aliases(AliasSwitch),
}

impl OpenSwitch {
    async fn shown(&self, by: Instant) -> Result<Option<String>, SwitchError> {
        match self {
            Self::Views(switch) => switch.shown(by).await,
            Self::Pointer(switch) => switch.shown(by).await,
            Self::Aliases(switch) => switch.shown(by).await,
        }
    }

    async fn switch(&self, from: Option<&str>, to: &str, by: Instant) -> Result<Switched, SwitchError> {
        match self {
            Self::Views(switch) => switch.switch(from, to, by).await,
            Self::Pointer(switch) => switch.switch(from, to, by).await,
            Self::Aliases(switch) => switch.switch(from, to, by).await,
        }
    }
}

impl SwitchReaders for OpenStores {
    fn shown<'a>(&'a self, of: &'a ReadersOf, within: Duration) -> BoxFuture<'a, Result<Option<String>, LeadError>> {
        Box::pin(async move { self.switch_of(of)?.shown(Instant::now() + within).await.map_err(in_words) })
    }

    fn switch<'a>(
        &'a self,
        of: &'a ReadersOf,
        from: Option<&'a str>,
        to: &'a str,
        within: Duration,
    ) -> BoxFuture<'a, Result<(), LeadError>> {
        Box::pin(async move {
            let switched = self.switch_of(of)?.switch(from, to, Instant::now() + within).await;
            switched.map(drop).map_err(in_words)
        })
    }

    fn compare(&self, of: Arc<Comparison>, within: Duration) -> BoxFuture<'static, Result<Compared, MeasureError>> {
        let (database, comparing, by) =
            (self.database_of(&of.store), Arc::clone(&self.comparing), Instant::now() + within);
        Box::pin(async move {
            // Measuring goes on meanwhile.
            let database = database?.apart();
            match timeout_at(by, comparing.lock()).await {
                Ok(_alone) => compare::compare(&database, &of, by).await,
                Err(_) => Ok(Compared::NeverAtOnePosition("other versions were compared all the time".to_owned())),
            }
        })
    }
}

fn in_words(error: SwitchError) -> LeadError {
    match error {
        SwitchError::Failed(why) => LeadError::Failed(why),
        refused => LeadError::Refused(refused.to_string()),
    }
}
