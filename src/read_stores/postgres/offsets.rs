//! Offsets of Kafka's partitions in PostgreSQL: those of all projections of one table in one statement.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use tokio_postgres::{Client, Error, types::Type};

use super::{names::NameType, tables::InTable};
use crate::{
    api::{OffsetsLocation, Reason},
    clients::postgres::{
        ColumnType, Live, Query, classify, column_types, quote_identifier, quote_table,
        row_security::{self, Visibility},
    },
    lag::{CheckpointState, Position},
    measure::MeasureError,
    read_stores::Checkpoint,
};

type Answers = super::tables::Answers<OffsetsLocation>;

/// How many partitions of all projections on a table are read at most: first those of the topics that have the fewest.
const MOST_ROWS: i64 = 200_000;

/// A table and what its columns hold.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(in crate::read_stores) struct Table {
    table: String,
    topic_column: String,
    partition_column: String,
    offset_column: String,
    name_column: Option<String>,
}

/// What the table holds for one partition.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Stored {
    partition: Option<i64>,
    /// The lowest that is not NULL.
    offset: Option<i64>,
    rows: i64,
}

/// The rows of one projection, by topic; `None` where they are more than can be read.
type Rows = BTreeMap<String, Option<Vec<Stored>>>;

impl InTable for OffsetsLocation {
    type Table = Table;

    const PURPOSE: &'static str = "offsets of topics";

    fn table(&self) -> Table {
        let OffsetsLocation { table, topic_column, partition_column, offset_column, name, topics: _ } = self;
        Table {
            table: table.clone(),
            topic_column: topic_column.clone(),
            partition_column: partition_column.clone(),
            offset_column: offset_column.clone(),
            name_column: name.as_ref().map(|(column, _)| column.clone()),
        }
    }

    async fn read(live: &Live, table: &Table, asked: &[&Self]) -> Result<Answers, MeasureError> {
        let client = &live.session.client;
        let topics: BTreeSet<&str> = asked.iter().flat_map(|one| one.topics.iter().map(String::as_str)).collect();
        let topics: Vec<&str> = topics.into_iter().collect();
        let outcome = live.reading(async {
            let names = check_types(client, table).await?;
            let wanted: Vec<String> = asked.iter().filter_map(|location| value(location, names.as_ref())).collect();
            let offsets = Query::new(statement(table, names.as_ref()), &[Type::TEXT_ARRAY, Type::TEXT_ARRAY]);
            let rows = offsets.rows(client, &[&wanted, &topics]).await.map_err(|error| refused(table, &error))?;
            let visibility = row_security::visibility(client, &quote_table(&table.table)).await;
            Ok::<_, MeasureError>((names, rows, visibility.map_err(|error| refused(table, &error))?))
        });
        let (names, rows, visibility) = outcome.await.map_err(|error| refused(table, &error))??;
        let mut found: HashMap<String, Rows> = HashMap::new();
        for row in &rows {
            let parts = || -> Result<(String, String, Option<Vec<Stored>>), Error> {
                let (partitions, offsets): (Vec<Option<i64>>, Vec<Option<i64>>) = (row.try_get(2)?, row.try_get(3)?);
                // NULL where they were not read.
                let counts: Option<Vec<i64>> = row.try_get::<_, Vec<Option<i64>>>(4)?.into_iter().collect();
                let stored = counts.map(|counts| {
                    let stored = partitions.into_iter().zip(offsets).zip(counts);
                    stored.map(|((partition, offset), rows)| Stored { partition, offset, rows }).collect()
                });
                Ok((row.try_get(0)?, row.try_get(1)?, stored))
            };
            let (name, topic, stored) = parts().map_err(|error| refused(table, &error))?;
            found.entry(name).or_default().insert(topic, stored);
        }
        let none = Rows::new();
        let rows_of = |location: &OffsetsLocation| {
            value(location, names.as_ref()).and_then(|name| found.get(&name)).unwrap_or(&none)
        };
        let mut answers: Answers =
            asked.iter().map(|location| ((*location).clone(), interpret(table, location, rows_of(location)))).collect();
        if let Visibility::Filtered(advice) | Visibility::Nothing(advice) = visibility {
            let message = format!("{}: {}", shown(table), advice.hidden("row security may hide offsets"));
            let hidden = MeasureError { reason: Reason::PermissionDenied, message };
            // How many partitions there are is not known here, so that one whose row is hidden would count from its first record.
            answers.values_mut().filter(|answer| answer.is_ok()).for_each(|answer| *answer = Err(hidden.clone()));
        }
        Ok(answers)
    }
}

/// The topics are in `$2`, and the names in `$1` where a column tells projections apart.
fn statement(table: &Table, names: Option<&NameType>) -> String {
    let [topic, partition, offset] =
        [&table.topic_column, &table.partition_column, &table.offset_column].map(|column| quote_identifier(column));
    let from = quote_table(&table.table);
    let (name, wanted) = match (&table.name_column, names) {
        (Some(column), Some(names)) => {
            let column = quote_identifier(column);
            (format!("{column}::text"), format!("{column} = any({})", names.parameter()))
        }
        _ => ("''::text".to_owned(), "$1::text[] is not null".to_owned()),
    };
    let asked = format!("{wanted} and {topic}::text = any($2::text[])");
    // Where there are too many, only what fits is sorted and sent.
    format!(
        "with sizes as (
             select {name} as name, {topic}::text as topic, sum(count(*)) over (order by count(*), {name}, {topic}::text) as up_to
             from {from} where {asked} group by 1, 2
         )
         select z.name, z.topic, array_agg(r.part order by r.part), array_agg(r.next order by r.part), array_agg(r.rows order by r.part)
         from sizes z left join (
             select {name} as name, {topic}::text as topic, {partition}::bigint as part, min({offset})::bigint as next, count(*) as rows
             from {from} where {asked} and ({name}, {topic}::text) in (select name, topic from sizes where up_to <= {MOST_ROWS})
             group by 1, 2, 3
         ) r on r.name = z.name and r.topic = z.topic
         group by z.name, z.topic"
    )
}

/// The location's name as the column's text shows it; the empty text where no column tells projections apart, `None` where the column cannot hold the name.
fn value(location: &OffsetsLocation, names: Option<&NameType>) -> Option<String> {
    match (&location.name, names) {
        (Some((_, name)), Some(names)) => names.canonical(name),
        _ => Some(String::new()),
    }
}

/// A checkpoint whose shards are partitions, written as `topic-partition`.
fn interpret(table: &Table, location: &OffsetsLocation, rows: &Rows) -> Result<Checkpoint, MeasureError> {
    let (mut shards, mut positions) = (Vec::new(), Vec::new());
    let column = &table.offset_column;
    for topic in location.topics.iter() {
        let stored = match rows.get(topic) {
            Some(None) => {
                return Err(invalid(
                    table,
                    &format!(
                        "it has more than {MOST_ROWS} rows for the Projections that name it, and those of topic {topic}, which are many, are left out: is spec.checkpoint.kafkaOffsets.partitionColumn the right one? Else keep them in another table"
                    ),
                ));
            }
            Some(Some(stored)) => stored.as_slice(),
            None => &[],
        };
        for Stored { partition, offset, rows } in stored {
            let place = match &location.name {
                Some((name_column, name)) => format!("where {name_column} is {name:?} and the topic is {topic}"),
                None => format!("where the topic is {topic}"),
            };
            let Some(partition) = partition else {
                let column = &table.partition_column;
                return Err(invalid(
                    table,
                    &format!("column {column} is NULL {place}: each row belongs to a partition"),
                ));
            };
            let place = format!("{place} and the partition is {partition}");
            if *partition < 0 {
                let column = &table.partition_column;
                return Err(invalid(table, &format!("column {column} is negative {place}: partitions begin at 0")));
            }
            if *rows > 1 {
                return Err(invalid(
                    table,
                    &format!(
                        "there are several rows {place}, and which of them counts is not known: keep one row for each partition, and name the column that tells projections apart in spec.checkpoint.kafkaOffsets.nameColumn"
                    ),
                ));
            }
            match offset {
                Some(offset) if *offset >= 0 => {
                    shards.push(format!("{topic}-{partition}").into());
                    positions.push(Position(*offset));
                }
                Some(_) => {
                    return Err(invalid(
                        table,
                        &format!(
                            "column {column} is negative {place}, and no offset: delete the row of a partition of which nothing was handled"
                        ),
                    ));
                }
                None => {
                    return Err(invalid(
                        table,
                        &format!(
                            "column {column} is NULL {place}: store an offset, or delete the row of a partition of which nothing was handled"
                        ),
                    ));
                }
            }
        }
    }
    if positions.is_empty() {
        return Ok(Checkpoint::plain(CheckpointState::NeverCommitted));
    }
    let state = CheckpointState::Committed(positions);
    Ok(Checkpoint { shards: Some(shards.into()), ..Checkpoint::plain(state) })
}

/// Checks the columns, and returns how names are compared where a column tells projections apart.
async fn check_types(client: &Client, table: &Table) -> Result<Option<NameType>, MeasureError> {
    let mut columns = vec![table.topic_column.as_str(), table.partition_column.as_str(), table.offset_column.as_str()];
    columns.extend(table.name_column.as_deref());
    let types = column_types(client, &quote_table(&table.table), &columns).await;
    let types = types.map_err(|error| refused(table, &error))?;
    let unsuitable = |column: &str, wanted: &str, found: &ColumnType| MeasureError {
        reason: Reason::ColumnTypeUnsuitable,
        message: format!("{}: column {column} must be {wanted}, not {}", shown(table), found.sql),
    };
    let [topic, partition, offset, names @ ..] = &types[..] else {
        return Err(invalid(table, "the server told of other columns than it was asked for"));
    };
    if !topic.is_text() {
        return Err(unsuitable(&table.topic_column, "text", topic));
    }
    for (column, found) in [(&table.partition_column, partition), (&table.offset_column, offset)] {
        if !found.is_integer() {
            return Err(unsuitable(column, "smallint, integer or bigint", found));
        }
    }
    let (Some(column), Some(found)) = (&table.name_column, names.first()) else { return Ok(None) };
    let names = NameType::of(found).ok_or_else(|| unsuitable(column, "text, uuid, an integer or an enum", found))?;
    Ok(Some(names))
}

fn shown(table: &Table) -> String {
    format!("table of offsets {}", table.table)
}

fn invalid(table: &Table, why: &str) -> MeasureError {
    MeasureError { reason: Reason::InvalidAnswer, message: format!("{}: {why}", shown(table)) }
}

fn refused(table: &Table, error: &Error) -> MeasureError {
    let (reason, message) = classify(error);
    MeasureError { reason, message: format!("{}: {message}", shown(table)) }
}
