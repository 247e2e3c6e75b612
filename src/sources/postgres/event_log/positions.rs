//! Whether a table's positions can be trusted to name one event each and to begin at 1: what every checkpoint takes for granted.
//!
//! Where two events share a position and a batch ends between them, the checkpoint passes both and the second is never handled; an event
//! below position 1 is passed over by every checkpoint, since they begin at 0. Neither leaves a trace, so the table is refused beforehand.
//!
//! PostgreSQL vouches for a position with a unique index on it alone: one on (tenant, position) allows each tenant the same positions. Over
//! partitions by anything but the position there can be no such index. Event stores are partitioned all the same (Marten by `is_archived`),
//! and what keeps their positions apart is that all come from one sequence. So there the sequence is asked for, beside the strongest index
//! that PostgreSQL allows (the position, then the partition key), and both ends of the table are searched for positions that stand twice.
//! Tables that others inherit from are judged in the same way.

use tokio_postgres::{Client, Error, Row, types::Type};

use crate::{
    api::EventTable,
    clients::postgres::{Query, quote_identifier, quote_table},
};

/// How many of the first and of the last positions are compared where only a sequence keeps them apart. Sequences that count beside each
/// other, such as one for each tenant, collide among the first.
const COMPARED: i64 = 1_000;

/// The catalog's word on the table with its parts: the columns of their partition keys, the unique indexes that vouch for a part, and the sequences that feed the
/// position. An index is taken if it is valid and complete, begins with the position, and goes on with nothing but partition key: an
/// expression has no row in `pg_attribute` and falls out. Attribute numbers may differ from part to part, so columns are known by name.
const FACTS: &str = "
with recursive log(relid) as (
    select cast($1::text as regclass)::oid
    union
    select i.inhrelid from pg_catalog.pg_inherits i join log on i.inhparent = log.relid
), keys(name) as (
    select distinct a.attname
    from log
    join pg_catalog.pg_partitioned_table p on p.partrelid = log.relid
    cross join unnest(p.partattrs::int2[]) k(attnum)
    join pg_catalog.pg_attribute a on a.attrelid = log.relid and a.attnum = k.attnum
), vouching(relid, alone) as (
    select i.indrelid, i.indnkeyatts = 1
    from log
    join pg_catalog.pg_index i on i.indrelid = log.relid and i.indisunique and i.indisvalid and i.indpred is null
    join pg_catalog.pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0] and a.attname = $2::text
    where not exists (
        select from unnest((i.indkey::int2[])[1:i.indnkeyatts - 1]) k(attnum)
        left join pg_catalog.pg_attribute o on o.attrelid = i.indrelid and o.attnum = k.attnum
        where o.attname is null or o.attname not in (select name from keys)
    )
), feeding(seqrelid, cycles) as (
    select q.seqrelid, q.seqcycle
    from log
    join pg_catalog.pg_attribute a on a.attrelid = log.relid and a.attname = $2::text
    join pg_catalog.pg_sequence q on q.seqrelid in (
        select d.objid from pg_catalog.pg_depend d
        where d.refclassid = 'pg_catalog.pg_class'::regclass and d.refobjid = log.relid and d.refobjsubid = a.attnum
            and d.classid = 'pg_catalog.pg_class'::regclass and d.deptype in ('a', 'i')
        union all
        select d.refobjid from pg_catalog.pg_attrdef f
        join pg_catalog.pg_depend d on d.classid = 'pg_catalog.pg_attrdef'::regclass and d.objid = f.oid
            and d.refclassid = 'pg_catalog.pg_class'::regclass
        where f.adrelid = log.relid and f.adnum = a.attnum
    )
)
select (select c.relkind = 'p' from pg_catalog.pg_class c where c.oid = cast($1::text as regclass)),
    (select count(*) from log) > 1,
    exists (select from vouching where relid = cast($1::text as regclass)::oid and alone),
    array(select name::text from keys order by name <> $2::text, name),
    (select min(c.oid::regclass::text) from log join pg_catalog.pg_class c on c.oid = log.relid
     where c.relkind <> 'p' and c.oid not in (select relid from vouching)),
    (select count(distinct seqrelid) = 1 and not bool_or(cycles) from feeding)";

/// What the catalog says about a table and its position.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Facts {
    partitioned: bool,
    /// It has partitions, or tables that inherit from it.
    in_parts: bool,
    /// A unique index on the position alone.
    unique: bool,
    /// The columns of all partition keys, the position first.
    keys: Vec<String>,
    /// A part that no index vouches for.
    unvouched: Option<String>,
    /// One sequence that never starts over feeds the position.
    one_sequence: bool,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum PositionCheck {
    /// The index proves it.
    Proven,
    /// It rests on the sequence.
    Trusted,
    /// What is wrong, and what to do.
    Refused(String),
}

/// What is wrong with the table's positions and what to do about it; `None` when they can be followed.
///
/// # Errors
/// Those of the server.
pub(super) async fn objection(client: &Client, table: &EventTable) -> Result<Option<String>, Error> {
    let facts_of = Query::new(FACTS, &[Type::TEXT, Type::TEXT]);
    let row = facts_of.row(client, &[&quote_table(&table.table), &table.position]).await?;
    match judge(&facts(&row)?, table) {
        PositionCheck::Refused(message) => return Ok(Some(message)),
        PositionCheck::Trusted => {
            if let Some(position) = standing_twice(client, table).await? {
                return Ok(Some(format!(
                    "several events are at position {position}, so that all but one could be passed over unseen: give every event of the table a position of its own from one sequence"
                )));
            }
        }
        PositionCheck::Proven => {}
    }
    out_of_reach(client, table).await
}

fn facts(row: &Row) -> Result<Facts, Error> {
    Ok(Facts {
        partitioned: row.try_get(0)?,
        in_parts: row.try_get(1)?,
        unique: row.try_get(2)?,
        keys: row.try_get(3)?,
        unvouched: row.try_get(4)?,
        one_sequence: row.try_get::<_, Option<bool>>(5)?.unwrap_or(false),
    })
}

fn judge(facts: &Facts, table: &EventTable) -> PositionCheck {
    // An index of a table does not reach into those that inherit from it, one of a partitioned table does.
    if facts.unique && (facts.partitioned || !facts.in_parts) {
        return PositionCheck::Proven;
    }
    let (name, position) = (quote_table(&table.table), quote_identifier(&table.position));
    let danger = "so that of two events at one position the second could be passed over unseen";
    let by_position = facts.keys.iter().all(|key| *key == table.position);
    if !facts.in_parts && !facts.partitioned {
        return PositionCheck::Refused(format!(
            "no valid unique index is on column {position} alone, {danger}: create unique index concurrently on {name} ({position})"
        ));
    }
    if facts.partitioned && by_position && !facts.keys.is_empty() {
        return PositionCheck::Refused(format!(
            "no valid unique index is on column {position} alone, {danger}: create unique index on {name} ({position}); it is valid once each partition has it"
        ));
    }
    if !facts.one_sequence {
        return PositionCheck::Refused(format!(
            "its parts are not divided by position, so that no index can keep column {position} unique, and not all its positions come from one sequence (without cycle) either, {danger}: let one sequence feed the column, and tell PostgreSQL so by a default or with alter sequence … owned by {name}.{position}"
        ));
    }
    match &facts.unvouched {
        None => PositionCheck::Trusted,
        Some(part) => {
            let others = facts.keys.iter().filter(|key| **key != table.position).map(|key| quote_identifier(key));
            let columns = std::iter::once(position).chain(others).collect::<Vec<_>>().join(", ");
            // A key made of expressions keeps PostgreSQL from such an index on the whole.
            let where_ = if facts.keys.is_empty() { "each part".to_owned() } else { name };
            PositionCheck::Refused(format!(
                "no valid unique index keeps apart the positions within its part {part}, {danger}: create unique index on {where_} ({columns})"
            ))
        }
    }
}

async fn standing_twice(client: &Client, table: &EventTable) -> Result<Option<i64>, Error> {
    let (from, position) = (quote_table(&table.table), quote_identifier(&table.position));
    let twice = |order: &str| {
        format!(
            "(select p from (select {position}::bigint as p from {from} order by {position} {order} limit $1::bigint) s
              group by p having count(*) > 1 limit 1)"
        )
    };
    // Both ends may answer, and the same: one answer is enough.
    let either = format!("{} union all {} limit 1", twice("asc"), twice("desc"));
    client.query_typed_opt(&either, &[(&COMPARED, Type::INT8)]).await?.map(|row| row.try_get(0)).transpose()
}

/// One probe of the index for each question.
async fn out_of_reach(client: &Client, table: &EventTable) -> Result<Option<String>, Error> {
    let (from, position) = (quote_table(&table.table), quote_identifier(&table.position));
    let probe = format!(
        "select (select {position}::bigint from {from} where {position} < 1 order by {position} limit 1),
             exists (select from {from} where {position} is null)"
    );
    let row = client.query_typed_one(&probe, &[]).await?;
    let advice = format!(
        "and would never be handled: checkpoints begin at 0, so give every event a position from 1 on, and see that it stays so (alter table {from} add check ({position} > 0), alter column {position} set not null)"
    );
    if let Some(position) = row.try_get::<_, Option<i64>>(0)? {
        return Ok(Some(format!("an event is at position {position} {advice}")));
    }
    Ok(row.try_get::<_, bool>(1)?.then(|| format!("an event has no position {advice}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(facts: &Facts) -> String {
        match judge(facts, &EventTable::default()) {
            PositionCheck::Refused(message) => message,
            check => panic!("{facts:?}: {check:?}"),
        }
    }

    fn keys(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_unique_index_on_the_position_proves_it_but_not_for_tables_that_inherit() {
        let unique = Facts { unique: true, ..Facts::default() };
        assert_eq!(judge(&unique, &EventTable::default()), PositionCheck::Proven);
        let partitioned = Facts { partitioned: true, in_parts: true, keys: keys(&["position"]), ..unique.clone() };
        assert_eq!(judge(&partitioned, &EventTable::default()), PositionCheck::Proven);
        let parent = Facts { in_parts: true, ..unique };
        assert!(refusal(&parent).contains("one sequence"));
    }

    #[test]
    fn the_advice_fits_the_table() {
        let plain = Facts { unvouched: Some("events".to_owned()), one_sequence: true, ..Facts::default() };
        assert!(refusal(&plain).ends_with("create unique index concurrently on \"events\" (\"position\")"));
        let by_position = Facts { partitioned: true, in_parts: true, keys: keys(&["position"]), ..plain };
        assert!(refusal(&by_position).contains("create unique index on \"events\" (\"position\");"));
        let by_time = Facts { keys: keys(&["position", "at"]), ..by_position.clone() };
        assert!(refusal(&by_time).ends_with("create unique index on \"events\" (\"position\", \"at\")"));
        let inherited = Facts { partitioned: false, keys: Vec::new(), ..by_position };
        assert!(refusal(&inherited).ends_with("create unique index on each part (\"position\")"));
    }

    #[test]
    fn over_partitions_by_something_else_it_takes_one_sequence_and_an_index_in_every_part() {
        let by_time = Facts { partitioned: true, in_parts: true, keys: keys(&["at"]), ..Facts::default() };
        assert!(refusal(&by_time).contains("owned by \"events\".\"position\""));
        let fed = Facts { one_sequence: true, ..by_time };
        assert_eq!(judge(&fed, &EventTable::default()), PositionCheck::Trusted);
        let unvouched = Facts { unvouched: Some("events_2".to_owned()), ..fed };
        assert!(refusal(&unvouched).contains("events_2"));
    }
}
