//! Reads several tables of one database, one statement each.

use std::{
    collections::{BTreeSet, HashMap},
    future::Future,
    hash::Hash,
};

use tokio::time::{Instant, timeout_at};

use crate::{
    clients::postgres::{Database, Live},
    measure::MeasureError,
    read_stores::Checkpoint,
};

/// What was read, or why not, for each location asked for.
pub(in crate::read_stores) type Answers<Location> = HashMap<Location, Result<Checkpoint, MeasureError>>;

/// A place in a table that one statement reads together with others.
pub(in crate::read_stores) trait InTable: Clone + Eq + Hash + Send + Sync {
    /// A table and what its columns hold.
    type Table: Eq + Hash + Send + Sync;

    /// The table of this place.
    fn table(&self) -> Self::Table;

    /// Reads the places of one table.
    fn read(
        live: &Live,
        table: &Self::Table,
        asked: &[&Self],
    ) -> impl Future<Output = Result<Answers<Self>, MeasureError>> + Send;
}

/// Reads the checkpoints at `locations`, one statement a table, before `deadline`. A failing table does not affect the others.
pub(in crate::read_stores) async fn read<Location: InTable>(
    database: &Database,
    locations: &BTreeSet<Location>,
    deadline: Instant,
) -> Answers<Location> {
    let mut answers = Answers::new();
    if locations.is_empty() {
        return answers;
    }
    let mut tables: HashMap<Location::Table, Vec<&Location>> = HashMap::new();
    for location in locations {
        tables.entry(location.table()).or_default().push(location);
    }
    let lease = match database.lease(deadline).await {
        Ok(lease) => lease,
        Err(unknown) => return all(locations.iter(), &unknown),
    };
    for (table, asked) in tables {
        match timeout_at(deadline, Location::read(&lease.live, &table, &asked)).await {
            Ok(Ok(found)) => answers.extend(found),
            Ok(Err(unknown)) => {
                let message = format!("{}: {}", database.identity().settings(), unknown.message);
                answers.extend(all(asked.into_iter(), &MeasureError { message, ..unknown }));
            }
            Err(_) => {
                lease.abandon().await;
                let unread = locations.iter().filter(|location| !answers.contains_key(*location)).collect::<Vec<_>>();
                answers.extend(all(unread.into_iter(), &database.timed_out()));
                return answers;
            }
        }
    }
    lease.give_back();
    answers
}

fn all<'a, Location: InTable + 'a>(
    locations: impl Iterator<Item = &'a Location>,
    unknown: &MeasureError,
) -> Answers<Location> {
    locations.map(|location| (location.clone(), Err(unknown.clone()))).collect()
}
