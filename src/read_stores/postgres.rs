//! Checkpoints in PostgreSQL: all projections of one table in one statement.

use std::collections::{BTreeSet, HashMap};

use tokio::time::{Instant, timeout_at};
use tokio_postgres::{Client, Error, types::Type};

use super::names::NameType;
use crate::{
    api::{CheckpointLocation, Reason},
    lag::{CheckpointState, FailedEvent, Position},
    postgres::{
        Database, Live, Query, classify,
        columns::column_types,
        quote_identifier, quote_table,
        row_security::{self, Visibility},
    },
    snapshot::Unknown,
};

/// One projection's checkpoint, and whether it tells what was done exactly.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Checkpoint {
    /// The positions.
    pub state: CheckpointState,
    /// False when there were several rows for one name: then the state holds the lowest and the highest of them, and what has been done between
    /// the two is not known.
    pub exact: bool,
    /// Events that workers of the built-in projector cannot handle, the lowest position first.
    pub failed: Vec<FailedEvent>,
}

/// So many failed events are read for each projection.
const MOST_FAILED: u32 = 8;
/// More characters of a worker's words are not read.
const LONGEST_FAILURE: u32 = 500;

/// What was read, or why not, for each location asked for.
pub type Checkpoints = HashMap<CheckpointLocation, Result<Checkpoint, Unknown>>;

#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
struct Table {
    table: String,
    name_column: String,
    position_column: String,
    sharded: bool,
}

/// Reads the checkpoints at `locations`, one statement a table, before `deadline`. A failing table does not affect the others.
pub async fn read(database: &Database, locations: &BTreeSet<CheckpointLocation>, deadline: Instant) -> Checkpoints {
    let mut answers = Checkpoints::new();
    let mut tables: HashMap<Table, Vec<&CheckpointLocation>> = HashMap::new();
    for location in locations {
        tables.entry(table_of(location)).or_default().push(location);
    }
    let lease = match database.lease(deadline).await {
        Ok(lease) => lease,
        Err(unknown) => return all(locations.iter(), &unknown),
    };
    for (table, asked) in tables {
        match timeout_at(deadline, read_table(&lease.live, &table, &asked)).await {
            Ok(Ok(found)) => answers.extend(found),
            Ok(Err(unknown)) => {
                let message = format!("{}: {}", database.identity().settings(), unknown.message);
                answers.extend(all(asked.into_iter(), &Unknown { message, ..unknown }));
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

fn all<'a>(locations: impl Iterator<Item = &'a CheckpointLocation>, unknown: &Unknown) -> Checkpoints {
    locations.map(|location| (location.clone(), Err(unknown.clone()))).collect()
}

fn table_of(location: &CheckpointLocation) -> Table {
    Table {
        table: location.table.clone(),
        name_column: location.name_column.clone(),
        position_column: location.position_column.clone(),
        sharded: location.shards.is_some(),
    }
}

fn statement(table: &Table, names: &NameType) -> String {
    let wanted = names.parameter();
    let (name, position) = (quote_identifier(&table.name_column), quote_identifier(&table.position_column));
    let from = quote_table(&table.table);
    if table.sharded {
        format!(
            "select {name}::text, array_agg({position}::bigint order by shard), array_agg(shard::int order by shard)
             from {from} where {name} = any({wanted}) group by {name}"
        )
    } else {
        // A few aggregates rather than the rows: a wrong name column must not fetch a million of them.
        format!(
            "select {name}::text, array[min({position})::bigint, max({position})::bigint], count(*)
             from {from} where {name} = any({wanted}) group by {name}"
        )
    }
}

async fn read_table(live: &Live, table: &Table, asked: &[&CheckpointLocation]) -> Result<Checkpoints, Unknown> {
    let client = &live.session.client;
    let outcome = live.reading(async {
        let names = check_types(client, table).await?;
        let wanted: Vec<String> = asked.iter().filter_map(|location| names.canonical(&location.name)).collect();
        let checkpoints = Query::new(statement(table, &names), &[Type::TEXT_ARRAY]);
        let rows = checkpoints.rows(client, &[&wanted]).await.map_err(|error| refused(table, &error))?;
        let visibility = row_security::visibility(client, &quote_table(&table.table)).await;
        let visibility = visibility.map_err(|error| refused(table, &error))?;
        let failed = if table.sharded { failed_events(client, table, &wanted).await } else { Ok(HashMap::new()) };
        Ok::<_, Unknown>((names, rows, visibility, failed.map_err(|error| refused(table, &error))?))
    });
    let (names, rows, visibility, mut failed) = match outcome.await.map_err(|error| refused(table, &error))? {
        Ok(answer) => answer,
        // The builtin projector makes its table when it starts: until then it has committed nothing.
        Err(unknown) if table.sharded && unknown.reason == Reason::TableNotFound => {
            let never = asked.iter().map(|location| ((*location).clone(), interpret(location, None)));
            return Ok(never.collect());
        }
        Err(unknown) => return Err(unknown),
    };
    let mut found: HashMap<String, Row> = HashMap::new();
    for row in &rows {
        let read = || -> Result<(String, Row), Error> {
            let positions: Vec<Option<i64>> = row.try_get(1)?;
            Ok(if table.sharded {
                (row.try_get(0)?, Row::Sharded { positions, shards: row.try_get(2)? })
            } else {
                (row.try_get(0)?, Row::Plain { positions, count: row.try_get(2)? })
            })
        };
        let (name, row) = read().map_err(|error| refused(table, &error))?;
        found.insert(name, row);
    }
    let row = |location: &CheckpointLocation| names.canonical(&location.name).and_then(|name| found.get(&name));
    let mut answers: Checkpoints =
        asked.iter().map(|location| ((*location).clone(), interpret(location, row(location)))).collect();
    for (location, answer) in &mut answers {
        if let (Ok(checkpoint), Some(events)) = (answer, failed.remove(&location.name)) {
            checkpoint.failed = events;
        }
    }
    if let Visibility::Filtered(advice) | Visibility::Nothing(advice) = visibility {
        let hidden = Unknown {
            reason: Reason::PermissionDenied,
            message: format!(
                "checkpoint table {}: {}",
                table.table,
                advice.hidden("row security may hide the checkpoint")
            ),
        };
        answers.values_mut().filter(|answer| seems_missing(answer)).for_each(|answer| *answer = Err(hidden.clone()));
    }
    Ok(answers)
}

/// What the workers of built-in projectors have written down of events that they cannot handle, by projection. A few of each are enough to name.
async fn failed_events(
    client: &Client,
    table: &Table,
    names: &[String],
) -> Result<HashMap<String, Vec<FailedEvent>>, Error> {
    let (name, from) = (quote_identifier(&table.name_column), quote_table(&table.table));
    let sql = format!(
        "select f.name, f.shard, f.failed_position, f.failure
         from (select {name}::text as name, shard::int as shard, failed_position, left(failure, {LONGEST_FAILURE}) as failure,
                   row_number() over (partition by {name} order by failed_position) as n
               from {from} where {name} = any($1::text[]) and failed_position is not null) f
         where f.n <= {MOST_FAILED} order by f.name, f.failed_position"
    );
    let mut failed: HashMap<String, Vec<FailedEvent>> = HashMap::new();
    for row in Query::new(sql, &[Type::TEXT_ARRAY]).rows(client, &[&names]).await? {
        failed.entry(row.try_get(0)?).or_default().push(FailedEvent {
            shard: u32::try_from(row.try_get::<_, i32>(1)?).unwrap_or_default(),
            position: Position(row.try_get(2)?),
            why: row.try_get::<_, Option<String>>(3)?.unwrap_or_default(),
        });
    }
    Ok(failed)
}

/// A row was not found, or not all of them.
fn seems_missing(answer: &Result<Checkpoint, Unknown>) -> bool {
    match answer {
        Ok(checkpoint) => checkpoint.state == CheckpointState::NeverCommitted,
        Err(unknown) => unknown.reason == Reason::InvalidAnswer,
    }
}

/// What the server answered for one name.
#[derive(Clone, Debug)]
enum Row {
    Plain { positions: Vec<Option<i64>>, count: i64 },
    Sharded { positions: Vec<Option<i64>>, shards: Vec<i32> },
}

fn interpret(location: &CheckpointLocation, row: Option<&Row>) -> Result<Checkpoint, Unknown> {
    let never = Ok(Checkpoint { state: CheckpointState::NeverCommitted, exact: true, failed: Vec::new() });
    match row {
        None => never,
        Some(Row::Plain { positions, count }) => match positions[..] {
            [Some(lowest), _] if *count == 1 => Ok(Checkpoint {
                state: CheckpointState::Committed(vec![Position(lowest)]),
                exact: true,
                failed: Vec::new(),
            }),
            [Some(lowest), Some(highest)] => Ok(Checkpoint {
                state: CheckpointState::Committed(vec![Position(lowest), Position(highest)]),
                exact: false,
                failed: Vec::new(),
            }),
            _ => never,
        },
        Some(Row::Sharded { positions, shards }) => {
            let expected = location.shards.unwrap_or(1);
            let complete = shards.iter().copied().eq(0..i32::try_from(expected).unwrap_or(i32::MAX));
            let positions: Option<Vec<Position>> = positions.iter().map(|position| position.map(Position)).collect();
            match positions {
                Some(positions) if complete => {
                    Ok(Checkpoint { state: CheckpointState::Committed(positions), exact: true, failed: Vec::new() })
                }
                _ => Err(Unknown {
                    reason: Reason::InvalidAnswer,
                    message: format!(
                        "checkpoint table {}: {} has {} shards where {expected} are expected: was it made with another spec.scaling.shards?",
                        location.table,
                        location.name,
                        shards.len()
                    ),
                }),
            }
        }
    }
}

/// Checks both columns, and returns how names are compared.
async fn check_types(client: &Client, table: &Table) -> Result<NameType, Unknown> {
    let columns = [table.name_column.as_str(), table.position_column.as_str()];
    let types = column_types(client, &quote_table(&table.table), &columns).await;
    let types = types.map_err(|error| refused(table, &error))?;
    let unsuitable = |column: &str, wanted: &str, found: &str| Unknown {
        reason: Reason::ColumnTypeUnsuitable,
        message: format!("checkpoint table {}: column {column} must be {wanted}, not {found}", table.table),
    };
    let [name, position] = &types[..] else {
        return Err(Unknown {
            reason: Reason::InvalidAnswer,
            message: format!(
                "checkpoint table {}: the server told of other columns than it was asked for",
                table.table
            ),
        });
    };
    if !position.is_integer() {
        return Err(unsuitable(&table.position_column, "smallint, integer or bigint", &position.sql));
    }
    NameType::of(name).ok_or_else(|| unsuitable(&table.name_column, "text, uuid, an integer or an enum", &name.sql))
}

fn refused(table: &Table, error: &Error) -> Unknown {
    let (reason, message) = classify(error);
    Unknown { reason, message: format!("checkpoint table {}: {message}", table.table) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn location(shards: Option<u32>) -> CheckpointLocation {
        CheckpointLocation {
            table: "checkpoints".to_owned(),
            name_column: "projection".to_owned(),
            position_column: "position".to_owned(),
            name: "orders".to_owned(),
            shards,
        }
    }

    #[test]
    fn no_row_and_a_row_without_a_position_are_never_committed_and_not_zero() {
        for row in [None, Some(Row::Plain { positions: vec![None, None], count: 1 })] {
            let checkpoint = interpret(&location(None), row.as_ref()).unwrap();
            assert_eq!(checkpoint.state, CheckpointState::NeverCommitted);
        }
    }

    #[test]
    fn several_rows_of_one_name_tell_only_a_bound() {
        let row = Row::Plain { positions: vec![Some(3), Some(9)], count: 4 };
        let checkpoint = interpret(&location(None), Some(&row)).unwrap();
        assert_eq!(checkpoint.state.lowest(), Some(Position(3)));
        assert!(!checkpoint.exact);
    }

    #[test]
    fn shards_must_be_complete() {
        let row = |shards: Vec<i32>| Row::Sharded { positions: vec![Some(5); shards.len()], shards };
        assert_eq!(
            interpret(&location(Some(3)), Some(&row(vec![0, 1, 2]))).unwrap().state,
            CheckpointState::Committed(vec![Position(5); 3])
        );
        for wrong in [vec![0, 1], vec![0, 1, 3], vec![0, 1, 2, 3]] {
            let unknown = interpret(&location(Some(3)), Some(&row(wrong))).unwrap_err();
            assert_eq!(unknown.reason, Reason::InvalidAnswer);
        }
    }
}
