//! Reads several tables of one database, one statement each.

use std::{
    collections::{BTreeSet, HashMap},
    fmt::Debug,
    future::Future,
    hash::Hash,
    time::Duration,
};

use tokio::time::{Instant, timeout_at};

use crate::{
    api::Reason,
    clients::postgres::{Database, Live},
    measure::MeasureError,
    read_stores::Checkpoint,
};

/// See [`read`]. A lock is waited for as long.
const SPENT_ON_SLOW: Duration = Duration::from_millis(900);

/// What was read, or why not, for each location asked for.
pub(in crate::read_stores) type Answers<Location> = HashMap<Location, Result<Checkpoint, MeasureError>>;

/// A place in a table that one statement reads together with others.
pub(in crate::read_stores) trait InTable: Clone + Eq + Hash + Send + Sync {
    /// A table and what its columns hold.
    type Table: Debug + Eq + Hash + Send + Sync;

    /// What is read of such tables.
    const PURPOSE: &'static str;

    /// The table of this place.
    fn table(&self) -> Self::Table;

    /// Reads the places of one table.
    fn read(
        live: &Live,
        table: &Self::Table,
        asked: &[&Self],
    ) -> impl Future<Output = Result<Answers<Self>, MeasureError>> + Send;
}

/// Reads the checkpoints at `locations`, one statement a table, before `deadline`. A failing table does not affect the others: one that did not answer in time is
/// read after all others from then on, and in turn with its like: once [`SPENT_ON_SLOW`] has gone by with such tables, the others of them wait for the next poll,
/// since the connection has more to do.
pub(in crate::read_stores) async fn read<Location: InTable>(
    database: &Database,
    locations: &BTreeSet<Location>,
    deadline: Instant,
) -> Answers<Location> {
    let mut answers = Answers::new();
    if locations.is_empty() {
        return answers;
    }
    let mut by_table: HashMap<Location::Table, Vec<&Location>> = HashMap::new();
    for location in locations {
        by_table.entry(location.table()).or_default().push(location);
    }
    let tables: HashMap<String, _> =
        by_table.into_iter().map(|(table, asked)| (format!("{table:?}"), (table, asked))).collect();
    let names: Vec<String> = tables.keys().cloned().collect();
    let (first, last) = database.slow_tables(Location::PURPOSE, |slow| slow.part(&names));
    let lease = match database.lease(deadline).await {
        Ok(lease) => lease,
        Err(unknown) => return all(locations.iter(), &unknown),
    };
    let mut spent = None;
    for (place, name) in first.iter().chain(&last).copied().enumerate() {
        let Some((table, asked)) = tables.get(name) else { continue };
        if place >= first.len() && spent.get_or_insert_with(Instant::now).elapsed() > SPENT_ON_SLOW {
            let why = database.slow_tables(Location::PURPOSE, |slow| slow.why(name).cloned());
            let why = why.unwrap_or_else(|| database.timed_out());
            answers.extend(all(asked.iter().copied(), &named(database, &why)));
            continue;
        }
        let Ok(outcome) = timeout_at(deadline, Location::read(&lease.live, table, asked)).await else {
            database.slow_tables(Location::PURPOSE, |slow| slow.blame(name, &database.timed_out()));
            lease.abandon().await;
            let unread: Vec<&Location> = locations.iter().filter(|location| !answers.contains_key(*location)).collect();
            answers.extend(all(unread.into_iter(), &database.timed_out()));
            return answers;
        };
        database.slow_tables(Location::PURPOSE, |slow| match &outcome {
            Err(unknown) if unknown.reason == Reason::TimedOut => slow.blame(name, unknown),
            _ => slow.clear(name),
        });
        match outcome {
            Ok(found) => answers.extend(found),
            Err(unknown) => answers.extend(all(asked.iter().copied(), &named(database, &unknown))),
        }
    }
    lease.give_back();
    answers
}

fn named(database: &Database, unknown: &MeasureError) -> MeasureError {
    unknown.about(database.identity().settings())
}

fn all<'a, Location: InTable + 'a>(
    locations: impl Iterator<Item = &'a Location>,
    unknown: &MeasureError,
) -> Answers<Location> {
    locations.map(|location| (location.clone(), Err(unknown.clone()))).collect()
}
