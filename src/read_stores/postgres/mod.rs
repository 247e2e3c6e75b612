//! Checkpoints in PostgreSQL: all projections of one table in one statement.

mod inbox;
mod names;
mod offsets;
mod parked;
mod tables;
mod uncalled;

use std::{collections::HashMap, sync::Arc};

use tokio_postgres::{Client, Error, types::Type};

pub(super) use self::tables::read;
use self::{names::NameType, parked::Parked, tables::InTable};
use super::Checkpoint;
use crate::{
    api::{CheckpointRows, Reason, TableLocation},
    clients::postgres::{
        Live, Query, classify, column_types, quote_identifier, quote_table,
        row_security::{self, Visibility},
    },
    lag::{CheckpointState, FailedEvent, Position},
    measure::MeasureError,
};

type Answers = tables::Answers<TableLocation>;

/// So many failed events are read for each projection.
const MOST_FAILED: u32 = 8;
/// More characters of a worker's words are not read.
const LONGEST_FAILURE: u32 = 500;

#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(in crate::read_stores) struct Table {
    table: String,
    name_column: String,
    position_column: String,
    rows: Rows,
}

/// Which rows of a table are asked for.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
enum Rows {
    One,
    LastMessage,
    Numbered,
    /// By this column, or one that is to be found.
    Keyed(Option<String>),
    /// The built-in projector's, with the name of a part in the column `part`.
    Parts,
}

impl Rows {
    fn are_of_workers(&self) -> bool {
        matches!(self, Self::Numbered | Self::Parts)
    }
}

impl InTable for TableLocation {
    type Table = Table;

    const PURPOSE: &'static str = "positions";

    fn table(&self) -> Table {
        Table {
            table: self.table.clone(),
            name_column: self.name_column.clone(),
            position_column: self.position_column.clone(),
            rows: match &self.rows {
                CheckpointRows::One => Rows::One,
                CheckpointRows::LastMessage => Rows::LastMessage,
                CheckpointRows::Numbered(_) => Rows::Numbered,
                CheckpointRows::Keyed { column, .. } => Rows::Keyed(column.clone()),
                CheckpointRows::Parts => Rows::Parts,
            },
        }
    }

    async fn read(live: &Live, table: &Table, asked: &[&Self]) -> Result<Answers, MeasureError> {
        let client = &live.session.client;
        let outcome = live.reading(async {
            let names = check_types(client, table).await?;
            let column = shard_column(client, table).await.map_err(|error| refused(table, &error))?;
            let wanted: Vec<String> = asked.iter().filter_map(|location| names.canonical(&location.name)).collect();
            let checkpoints = Query::new(statement(table, column.as_deref(), &names), &[Type::TEXT_ARRAY]);
            let rows = checkpoints.rows(client, &[&wanted]).await.map_err(|error| refused(table, &error))?;
            let visibility = row_security::visibility(client, &quote_table(&table.table)).await;
            let visibility = visibility.map_err(|error| refused(table, &error))?;
            let (mut failed, mut parked, mut uncalled) = (HashMap::new(), Parked::NoTable, HashMap::new());
            if table.rows.are_of_workers() {
                failed = failed_events(client, table, &wanted).await.map_err(|error| refused(table, &error))?;
                // One of the last questions: that it cannot be answered leaves the others' answers.
                parked = match parked::count(client, &table.table, &wanted).await {
                    Err(error) if !client.is_closed() => Parked::Hidden(refused(table, &error)),
                    counted => counted.map_err(|error| refused(table, &error))?,
                };
                uncalled = match uncalled::read(client, (&table.table, &table.name_column), &wanted).await {
                    // A mere hint: without it, nothing else is unknown.
                    Err(_) if !client.is_closed() => HashMap::new(),
                    read => read.map_err(|error| refused(table, &error))?,
                };
            }
            Ok::<_, MeasureError>((column.is_some(), names, rows, visibility, failed, parked, uncalled))
        });
        let (keyed, names, rows, visibility, mut failed, parked, mut uncalled) =
            match outcome.await.map_err(|error| refused(table, &error))? {
                Ok(answer) => answer,
                // The builtin projector makes its table when it starts: until then it has committed nothing.
                Err(unknown) if table.rows.are_of_workers() && unknown.reason == Reason::TableNotFound => {
                    let never = asked.iter().map(|location| ((*location).clone(), interpret(location, None)));
                    return Ok(never.collect());
                }
                Err(unknown) => return Err(unknown),
            };
        let mut found: HashMap<String, Row> = HashMap::new();
        for row in &rows {
            let (name, row) = row_of(table, keyed, row).map_err(|error| refused(table, &error))?;
            found.insert(name, row);
        }
        let row = |location: &TableLocation| names.canonical(&location.name).and_then(|name| found.get(&name));
        let mut answers: Answers =
            asked.iter().map(|location| ((*location).clone(), interpret(location, row(location)))).collect();
        for (location, answer) in &mut answers {
            if let Ok(checkpoint) = answer {
                checkpoint.failed = failed.remove(&location.name).unwrap_or_default();
                checkpoint.parked = parked.of(&location.name);
                checkpoint.uncalled = uncalled.remove(&location.name).unwrap_or_default();
            }
        }
        if let Visibility::Filtered(advice) | Visibility::Nothing(advice) = visibility {
            let hidden = MeasureError {
                reason: Reason::PermissionDenied,
                message: format!(
                    "checkpoint table {}: {}",
                    table.table,
                    advice.hidden("row security may hide the checkpoint")
                ),
            };
            answers
                .values_mut()
                .filter(|answer| seems_missing(answer))
                .for_each(|answer| *answer = Err(hidden.clone()));
        }
        Ok(answers)
    }
}

/// The checkpoint at one place, as a transaction sees it that has begun. Nothing is read of events that failed or were parked.
pub(super) async fn checkpoint(client: &Client, location: &TableLocation) -> Result<Checkpoint, MeasureError> {
    let table = &location.table();
    let names = check_types(client, table).await?;
    let column = shard_column(client, table).await.map_err(|error| refused(table, &error))?;
    let wanted: Vec<String> = names.canonical(&location.name).into_iter().collect();
    let rows = Query::new(statement(table, column.as_deref(), &names), &[Type::TEXT_ARRAY]);
    let rows = rows.rows(client, &[&wanted]).await.map_err(|error| refused(table, &error))?;
    let row = rows.first().map(|row| row_of(table, column.is_some(), row)).transpose();
    let row = row.map_err(|error| refused(table, &error))?;
    interpret(location, row.as_ref().map(|(_, row)| row))
}

/// The name and what there is of it. `keyed`: a column tells its shards apart.
fn row_of(table: &Table, keyed: bool, row: &tokio_postgres::Row) -> Result<(String, Row), Error> {
    let positions: Vec<Option<i64>> = row.try_get(1)?;
    Ok(match table.rows {
        Rows::Numbered => (row.try_get(0)?, Row::Numbered { positions, shards: row.try_get(2)? }),
        _ if keyed => (row.try_get(0)?, keyed_row(positions, row.try_get(2)?, row.try_get(3)?)),
        _ => (row.try_get(0)?, Row::Plain { positions, count: row.try_get(2)? }),
    })
}

/// How many rows of all projections on a table are read shard by shard at most: first those of the projections that have the fewest.
const MOST_ROWS: i64 = 200_000;

/// `column` is the one with the shard, where each row is asked for.
fn statement(table: &Table, column: Option<&str>, names: &NameType) -> String {
    let wanted = names.parameter();
    let (name, position) = (quote_identifier(&table.name_column), quote_identifier(&table.position_column));
    let from = quote_table(&table.table);
    match (&table.rows, column.map(quote_identifier)) {
        (Rows::Numbered, _) => format!(
            "select {name}::text, array_agg({position}::bigint order by shard), array_agg(shard::int order by shard)
             from {from} where {name} = any({wanted}) group by {name}"
        ),
        // Of several rows of a shard the one that has come least far counts. Where there are too many, only what fits is sent; it is sorted here.
        (Rows::Keyed(_) | Rows::Parts, Some(shard)) => format!(
            "with sizes as (
                 select {name}::text as name, count(*) as rows, sum(count(*)) over (order by count(*), {name}::text) as up_to
                 from {from} where {name} = any({wanted}) and {position} is not null group by 1
             )
             select z.name, array_agg(r.position), array_agg(r.shard), z.rows
             from sizes z left join (
                 select {name}::text as name, coalesce({shard}::text, '') as shard, min({position})::bigint as position
                 from {from} where {name} = any({wanted}) and {position} is not null
                     and {name}::text in (select name from sizes where up_to <= {MOST_ROWS})
                 group by 1, 2
             ) r on r.name = z.name
             group by z.name, z.rows"
        ),
        // What is no number is no position: then it is not known how far the consumer has come.
        (Rows::LastMessage, _) => format!(
            "select w.name, array[m.p, m.p], 1::bigint
             from unnest({wanted}) w(name)
             cross join lateral (
                 select case when data->>'position' ~ '^[0-9]{{1,18}}$' then (data->>'position')::bigint end as p
                 from {from} where {name} = w.name order by {position} desc limit 1
             ) m"
        ),
        // A few aggregates rather than the rows: a wrong name column must not fetch a million of them.
        _ => format!(
            "select {name}::text, array[min({position})::bigint, max({position})::bigint], count(*)
             from {from} where {name} = any({wanted}) group by {name}"
        ),
    }
}

/// The other column of a unique index that consists of the name column and one more, where there is just one such column.
const SHARD_COLUMN: &str = "
select array_agg(distinct a.attname::text)
from pg_catalog.pg_index i
cross join lateral unnest((i.indkey::int2[])[0:i.indnkeyatts - 1]) k(attnum)
join pg_catalog.pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
where i.indrelid = cast($1::text as regclass) and i.indisunique and i.indisvalid and i.indpred is null and i.indnkeyatts = 2
    and a.attname <> $2::text and exists (
        select from pg_catalog.pg_attribute n
        where n.attrelid = i.indrelid and n.attname = $2::text and n.attnum = any((i.indkey::int2[])[0:i.indnkeyatts - 1])
    )";

async fn shard_column(client: &Client, table: &Table) -> Result<Option<String>, Error> {
    match &table.rows {
        Rows::One | Rows::LastMessage | Rows::Numbered => Ok(None),
        Rows::Keyed(Some(column)) => Ok(Some(column.clone())),
        Rows::Parts => Ok(Some("part".to_owned())),
        Rows::Keyed(None) => {
            let found = Query::new(SHARD_COLUMN, &[Type::TEXT, Type::TEXT]);
            let row = found.row(client, &[&quote_table(&table.table), &table.name_column]).await?;
            let columns: Option<Vec<String>> = row.try_get(0)?;
            Ok(columns.filter(|columns| columns.len() == 1).and_then(|mut columns| columns.pop()))
        }
    }
}

/// What the workers of built-in projectors have written down of events that they cannot handle, by projection. A few of each are enough to name.
async fn failed_events(
    client: &Client,
    table: &Table,
    names: &[String],
) -> Result<HashMap<String, Vec<FailedEvent>>, Error> {
    let (name, from) = (quote_identifier(&table.name_column), quote_table(&table.table));
    let part = if table.rows == Rows::Parts { "part" } else { "null::text" };
    let sql = format!(
        "select f.name, f.shard, f.failed_position, f.failure, f.part
         from (select {name}::text as name, {part} as part, shard::int as shard, failed_position, left(failure, {LONGEST_FAILURE}) as failure,
                   row_number() over (partition by {name} order by failed_position) as n
               from {from} where {name} = any($1::text[]) and failed_position is not null) f
         where f.n <= {MOST_FAILED} order by f.name, f.failed_position"
    );
    let mut failed: HashMap<String, Vec<FailedEvent>> = HashMap::new();
    for row in Query::new(sql, &[Type::TEXT_ARRAY]).rows(client, &[&names]).await? {
        failed.entry(row.try_get(0)?).or_default().push(FailedEvent {
            shard: u32::try_from(row.try_get::<_, i32>(1)?).unwrap_or_default(),
            part: row.try_get::<_, Option<String>>(4)?.map(Arc::from),
            position: Some(Position(row.try_get(2)?)),
            why: row.try_get::<_, Option<String>>(3)?.unwrap_or_default(),
        });
    }
    Ok(failed)
}

/// A row was not found, or not all of them.
fn seems_missing(answer: &Result<Checkpoint, MeasureError>) -> bool {
    match answer {
        Ok(checkpoint) => checkpoint.state == CheckpointState::NeverCommitted,
        Err(unknown) => unknown.reason == Reason::InvalidAnswer,
    }
}

/// What the server answered for one name.
#[derive(Clone, Debug)]
enum Row {
    Plain {
        positions: Vec<Option<i64>>,
        count: i64,
    },
    Numbered {
        positions: Vec<Option<i64>>,
        shards: Vec<i32>,
    },
    Keyed {
        positions: Vec<Option<i64>>,
        shards: Vec<String>,
    },
    /// More than can be read, or more than the others leave.
    TooMany {
        alone: bool,
    },
}

/// A projection's rows, of which there are `rows`; the shards are NULL where they were not read.
fn keyed_row(positions: Vec<Option<i64>>, shards: Vec<Option<String>>, rows: i64) -> Row {
    let shards: Option<Vec<String>> = shards.into_iter().collect();
    let Some(shards) = shards else { return Row::TooMany { alone: rows > MOST_ROWS } };
    let mut pairs: Vec<(String, Option<i64>)> = shards.into_iter().zip(positions).collect();
    pairs.sort_unstable();
    let (shards, positions) = pairs.into_iter().unzip();
    Row::Keyed { positions, shards }
}

fn interpret(location: &TableLocation, row: Option<&Row>) -> Result<Checkpoint, MeasureError> {
    let never = Ok(Checkpoint::plain(CheckpointState::NeverCommitted));
    match row {
        None => never,
        Some(Row::Plain { positions, count }) => match positions[..] {
            [Some(lowest), _] if *count == 1 => {
                Ok(Checkpoint::plain(CheckpointState::Committed(vec![Position(lowest)])))
            }
            [Some(lowest), Some(highest)] => Ok(Checkpoint {
                state: CheckpointState::Committed(vec![Position(lowest), Position(highest)]),
                shards: None,
                bound: Some(why_bound(location).into()),
                failed: Vec::new(),
                parked: None,
                uncalled: Vec::new(),
            }),
            _ => never,
        },
        Some(Row::Keyed { positions, shards }) => {
            let positions: Vec<Position> = positions.iter().flatten().copied().map(Position).collect();
            if positions.len() != shards.len() || shards.is_empty() {
                return never;
            }
            Ok(Checkpoint {
                state: CheckpointState::Committed(positions),
                shards: Some(shards.iter().map(|shard| shard.as_str().into()).collect()),
                bound: None,
                failed: Vec::new(),
                parked: None,
                uncalled: Vec::new(),
            })
        }
        Some(Row::TooMany { alone }) => {
            let TableLocation { table, name, .. } = location;
            let why = if *alone {
                format!(
                    "it has more than {MOST_ROWS} rows for {name:?}: is spec.checkpoint.readStore.nameColumn the right one?"
                )
            } else {
                format!(
                    "it has more than {MOST_ROWS} rows for the Projections that name it, and those of {name:?}, which are many, are left out: keep them in another table"
                )
            };
            Err(MeasureError { reason: Reason::InvalidAnswer, message: format!("checkpoint table {table}: {why}") })
        }
        Some(Row::Numbered { positions, shards }) => {
            let expected = match location.rows {
                CheckpointRows::Numbered(expected) => expected,
                CheckpointRows::One
                | CheckpointRows::LastMessage
                | CheckpointRows::Keyed { .. }
                | CheckpointRows::Parts => 1,
            };
            let complete = shards.iter().copied().eq(0..i32::try_from(expected).unwrap_or(i32::MAX));
            let positions: Option<Vec<Position>> = positions.iter().map(|position| position.map(Position)).collect();
            match positions {
                Some(positions) if complete => Ok(Checkpoint {
                    state: CheckpointState::Committed(positions),
                    shards: Some(shards.iter().map(|shard| shard.to_string().into()).collect()),
                    bound: None,
                    failed: Vec::new(),
                    parked: None,
                    uncalled: Vec::new(),
                }),
                _ => Err(MeasureError {
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

/// Of several rows only the lowest is told: what to add so that each is counted. The number of rows is not in it, since it may change often.
fn why_bound(location: &TableLocation) -> String {
    let TableLocation { table, name_column, name, rows, .. } = location;
    let add = match rows {
        CheckpointRows::Keyed { .. } => format!(
            "which of its columns holds the shard is not to be seen, since there is not just one unique index on {name_column} and one other column: name it in spec.checkpoint.readStore.shardColumn"
        ),
        CheckpointRows::One | CheckpointRows::LastMessage | CheckpointRows::Numbered(_) | CheckpointRows::Parts => {
            "name the column with an event's shard in spec.source.postgres.eventTable.shard, and each shard is counted beyond its own row".to_owned()
        }
    };
    format!(
        "checkpoint table {table} has several rows for {name:?}, and the lowest stands for all, so that what the others have done counts as waiting: {add}"
    )
}

/// Checks both columns, and returns how names are compared.
async fn check_types(client: &Client, table: &Table) -> Result<NameType, MeasureError> {
    let columns = [table.name_column.as_str(), table.position_column.as_str()];
    let types = column_types(client, &quote_table(&table.table), &columns).await;
    let types = types.map_err(|error| refused(table, &error))?;
    let unsuitable = |column: &str, wanted: &str, found: &str| MeasureError {
        reason: Reason::ColumnTypeUnsuitable,
        message: format!("checkpoint table {}: column {column} must be {wanted}, not {found}", table.table),
    };
    let [name, position] = &types[..] else {
        return Err(MeasureError {
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

fn refused(table: &Table, error: &Error) -> MeasureError {
    let (reason, message) = classify(error);
    MeasureError { reason, message: format!("checkpoint table {}: {message}", table.table) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn location(rows: CheckpointRows) -> TableLocation {
        TableLocation {
            table: "checkpoints".to_owned(),
            name_column: "projection".to_owned(),
            position_column: "position".to_owned(),
            name: "orders".to_owned(),
            rows,
        }
    }

    #[test]
    fn no_row_and_a_row_without_a_position_are_never_committed_and_not_zero() {
        for row in [None, Some(Row::Plain { positions: vec![None, None], count: 1 })] {
            let checkpoint = interpret(&location(CheckpointRows::One), row.as_ref()).unwrap();
            assert_eq!(checkpoint.state, CheckpointState::NeverCommitted);
        }
    }

    #[test]
    fn several_rows_of_one_name_tell_only_a_bound() {
        let row = Row::Plain { positions: vec![Some(3), Some(9)], count: 4 };
        let checkpoint = interpret(&location(CheckpointRows::One), Some(&row)).unwrap();
        assert_eq!(checkpoint.state.lowest(), Some(Position(3)));
        assert!(checkpoint.bound.unwrap().contains("spec.source.postgres.eventTable.shard"));
    }

    #[test]
    fn shards_must_be_complete() {
        let row = |shards: Vec<i32>| Row::Numbered { positions: vec![Some(5); shards.len()], shards };
        assert_eq!(
            interpret(&location(CheckpointRows::Numbered(3)), Some(&row(vec![0, 1, 2]))).unwrap().state,
            CheckpointState::Committed(vec![Position(5); 3])
        );
        for wrong in [vec![0, 1], vec![0, 1, 3], vec![0, 1, 2, 3]] {
            let unknown = interpret(&location(CheckpointRows::Numbered(3)), Some(&row(wrong))).unwrap_err();
            assert_eq!(unknown.reason, Reason::InvalidAnswer);
        }
    }
}
