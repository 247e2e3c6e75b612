//! The read stores that are open, for whoever leads readers from one version to another.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use futures::future::BoxFuture;
use tokio::time::Instant;

use super::{
    CheckpointStore,
    switch::{SwitchError, VersionSwitch as _, ViewSwitch},
};
use crate::{
    api::Reason,
    measure::{MeasureError, RunKey},
    rebuild::{SwitchReaders, ViewError, ViewsOf},
};

/// The read stores of runs that have a version, as they are asked for checkpoints. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct OpenStores(Arc<RwLock<HashMap<RunKey, CheckpointStore>>>);

impl OpenStores {
    /// From now on these are open, and no others.
    pub fn follow(&self, stores: HashMap<RunKey, CheckpointStore>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = stores;
    }

    fn switch_of(&self, of: &ViewsOf) -> Result<ViewSwitch, ViewError> {
        let failed = |reason, message: String| ViewError::Failed(MeasureError { reason, message });
        let store = self.0.read().unwrap_or_else(PoisonError::into_inner).get(&of.run).cloned();
        match store {
            Some(CheckpointStore::Postgres(database)) => {
                let views: Vec<&str> = of.views.views.iter().map(String::as_str).collect();
                Ok(ViewSwitch::new(database, &of.views.schema, &views))
            }
            Some(_) => {
                Err(failed(Reason::InvalidSpec, "spec.rollout.switch needs a read store in PostgreSQL".to_owned()))
            }
            None => Err(failed(
                Reason::NotMeasuredYet,
                format!(
                    "the read store of {} is not known yet: its Secret, or that of the source, has not been read",
                    of.run
                ),
            )),
        }
    }
}

impl SwitchReaders for OpenStores {
    fn shown<'a>(&'a self, of: &'a ViewsOf, within: Duration) -> BoxFuture<'a, Result<Option<String>, ViewError>> {
        Box::pin(async move { self.switch_of(of)?.shown(Instant::now() + within).await.map_err(in_words) })
    }

    fn switch<'a>(
        &'a self,
        of: &'a ViewsOf,
        from: Option<&'a str>,
        to: &'a str,
        within: Duration,
    ) -> BoxFuture<'a, Result<(), ViewError>> {
        Box::pin(async move {
            let switched = self.switch_of(of)?.switch(from, to, Instant::now() + within).await;
            switched.map(drop).map_err(in_words)
        })
    }
}

fn in_words(error: SwitchError) -> ViewError {
    match error {
        SwitchError::Failed(why) => ViewError::Failed(why),
        refused => ViewError::Refused(refused.to_string()),
    }
}
