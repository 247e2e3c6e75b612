//! Whether what feeds a table's position hands out positions in order: what a safe head takes for granted.
//!
//! A checkpoint passes every position below it. A row that is committed later at a lower position is never read, and nothing shows it. A
//! sequence with increment 1 and cache 1 that is drawn from once for each row hands out growing positions; its other settings do not:
//! a larger increment is how an application takes a block of positions to use later, a cache is such a block for each session, a negative
//! increment and `CYCLE` go back by design. So does whatever is computed from a clock or at random, and a subscription commits
//! rows in the publisher's order of commits.
//!
//! What this cannot see: positions that the application or a trigger sets, and explicit positions in `insert`, `copy` or `update`. For those
//! the sampler looks for rows that appear below the safe head (`sources::postgres::audit`).

use tokio_postgres::{Client, Error, Row, types::Type};

use crate::{
    api::EventTable,
    clients::postgres::{Query, quote_identifier, quote_table},
};

/// The table with its parts, and the sequences that feed the position in any of them: by identity, by `owned by`, or by a default.
const PARTS: &str = "
with recursive log(relid) as (
    select cast($1::text as regclass)::oid
    union
    select i.inhrelid from pg_catalog.pg_inherits i join log on i.inhparent = log.relid
), positions(relid, attnum) as (
    select log.relid, a.attnum from log join pg_catalog.pg_attribute a on a.attrelid = log.relid and a.attname = $2::text
), defaults(relid, oid, expression) as (
    select f.adrelid, f.oid, pg_catalog.pg_get_expr(f.adbin, f.adrelid)
    from positions p join pg_catalog.pg_attrdef f on f.adrelid = p.relid and f.adnum = p.attnum
), drawn(attrdef, seqrelid) as (
    select d.objid, d.refobjid from defaults
    join pg_catalog.pg_depend d on d.classid = 'pg_catalog.pg_attrdef'::regclass and d.objid = defaults.oid
        and d.refclassid = 'pg_catalog.pg_class'::regclass
    join pg_catalog.pg_class s on s.oid = d.refobjid and s.relkind = 'S'
)";

/// One row for each sequence that feeds the position.
const SEQUENCES: &str = "
select q.seqrelid::regclass::text, q.seqincrement, q.seqcache, q.seqcycle,
    case when pg_catalog.has_sequence_privilege(q.seqrelid, 'select, usage')
        then coalesce(pg_catalog.pg_sequence_last_value(q.seqrelid) + q.seqincrement, q.seqstart) end
from pg_catalog.pg_sequence q
where q.seqrelid in (
    select d.objid from positions p
    join pg_catalog.pg_depend d on d.refclassid = 'pg_catalog.pg_class'::regclass and d.refobjid = p.relid and d.refobjsubid = p.attnum
        and d.classid = 'pg_catalog.pg_class'::regclass and d.deptype in ('a', 'i')
    union select seqrelid from drawn)
order by 1";

/// The first default of the position that is neither a constant nor a plain draw from a sequence that PostgreSQL knows. One that calls a
/// function of the user's own is let pass: what it does cannot be told.
const ODD_DEFAULT: &str = r"
select expression from defaults
where expression !~ '^\(*''?-?[0-9.]+''?(\)|::[a-z0-9 ]+)*$' and expression !~* '^\(*null'
    and not (expression ~ '^\(*nextval\(''.*''::regclass\)(\)|::[a-z0-9 ]+|\s*[+*]\s*\(?[0-9]+\)?)*$'
        and oid in (select attrdef from drawn))
    and not exists (
        select from pg_catalog.pg_depend d
        where d.classid = 'pg_catalog.pg_attrdef'::regclass and d.objid = defaults.oid and d.refclassid = 'pg_catalog.pg_proc'::regclass)
order by relid limit 1";

/// The subscription that fills the table or a part of it.
const SUBSCRIBED: &str = "
select min(log.relid::regclass::text)
from log join pg_catalog.pg_subscription_rel s on s.srrelid = log.relid";

/// The settings of one sequence.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Sequence {
    /// Its name, ready for SQL.
    name: String,
    increment: i64,
    cache: i64,
    cycles: bool,
    /// The position that it hands out next, at the earliest; `None` where the role may not read the sequence.
    next: Option<i64>,
}

/// What is wrong with the order in which the table's positions are handed out, and what to do about it; `None` where nothing is known to be.
///
/// # Errors
/// Those of the server.
pub(super) async fn objection(client: &Client, table: &EventTable) -> Result<Option<String>, Error> {
    let name = quote_table(&table.table);
    let position = quote_identifier(&table.position);
    let asked = async |question: &str| {
        let query = Query::new(format!("{PARTS} {question}"), &[Type::TEXT, Type::TEXT]);
        query.rows(client, &[&name, &table.position]).await
    };
    let subscribed = asked(SUBSCRIBED).await?;
    if let Some(part) = subscribed.first().map(|row| row.try_get::<_, Option<String>>(0)).transpose()?.flatten() {
        return Ok(Some(format!(
            "a subscription fills {part}, and logical replication applies transactions in the order of their commits, not of their positions, so that an event may appear below positions that were passed: connect to the publisher"
        )));
    }
    let odd = asked(ODD_DEFAULT).await?;
    if let Some(expression) = odd.first().map(|row| row.try_get::<_, String>(0)).transpose()? {
        return Ok(Some(format!(
            "column {position} gets its value from {expression}, which does not have to grow from one transaction to the next, so that a later transaction may append at an earlier position: let one sequence feed the column (alter table {name} alter column {position} set default nextval('…'::regclass))"
        )));
    }
    // Read before the sequences are: whatever is at this position was drawn before they are asked what comes next.
    let highest = client.query_typed_one(&format!("select max({position})::bigint from {name}"), &[]).await?;
    let highest = highest.try_get::<_, Option<i64>>(0)?.unwrap_or(0);
    let sequences = asked(SEQUENCES).await?;
    let sequences = sequences.iter().map(sequence).collect::<Result<Vec<_>, _>>()?;
    if let Some(message) = judge(&sequences, &position) {
        return Ok(Some(message));
    }
    let Some(Sequence { name: sequence, next: Some(next), .. }) = sequences.first() else { return Ok(None) };
    Ok(behind(sequence, *next, highest, &name, &position))
}

fn sequence(row: &Row) -> Result<Sequence, Error> {
    Ok(Sequence {
        name: row.try_get(0)?,
        increment: row.try_get(1)?,
        cache: row.try_get(2)?,
        cycles: row.try_get(3)?,
        next: row.try_get(4)?,
    })
}

fn judge(sequences: &[Sequence], position: &str) -> Option<String> {
    let danger = "so that a later transaction may append at an earlier position, which checkpoints have passed";
    for Sequence { name, increment, cache, cycles, next } in sequences {
        if *increment < 0 {
            return Some(format!(
                "its sequence {name} counts down (INCREMENT {increment}), {danger}: alter sequence {name} increment by 1, and restart it above every position"
            ));
        }
        if *increment != 1 {
            return Some(format!(
                "its sequence {name} counts in steps of {increment} (INCREMENT), as for an application that uses the positions in between by itself, or for several servers that write, {danger}: alter sequence {name} increment by 1, and let every event draw its position from it"
            ));
        }
        if *cache > 1 {
            return Some(format!(
                "its sequence {name} hands {cache} positions at once to each session (CACHE), {danger}: alter sequence {name} cache 1"
            ));
        }
        if *cycles {
            return Some(format!(
                "its sequence {name} begins again at its lowest value after its highest (CYCLE), {danger}: alter sequence {name} no cycle"
            ));
        }
        if let Some(next) = next.filter(|next| *next < 1) {
            return Some(format!(
                "its sequence {name} hands out {next} next, and checkpoints begin at 0, so that an event there would never be handled: alter sequence {name} minvalue 1 start 1 restart 1"
            ));
        }
    }
    let names: Vec<&str> = sequences.iter().map(|sequence| sequence.name.as_str()).collect();
    (names.len() > 1).then(|| {
        format!(
            "several sequences feed column {position} ({}), and each counts by itself, {danger}: let one sequence feed the column, in every part of the table",
            names.join(", ")
        )
    })
}

/// An import that brought its own positions and did not move the sequence on.
fn behind(sequence: &str, next: i64, highest: i64, table: &str, position: &str) -> Option<String> {
    (next <= highest).then(|| {
        format!(
            "its sequence {sequence} hands out {next} next, although there is an event at position {highest}, so that new events would come below positions that checkpoints have passed: select setval('{}', (select max({position}) from {table}))",
            sequence.replace('\'', "''")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(name: &str) -> Sequence {
        Sequence { name: name.to_owned(), increment: 1, cache: 1, cycles: false, next: Some(1) }
    }

    #[test]
    fn every_setting_that_hands_out_positions_out_of_order_is_refused_with_the_sequence_and_what_to_do() {
        let q = sequence("q");
        for (wrong, what) in [
            (Sequence { increment: 50, ..q.clone() }, "steps of 50 (INCREMENT)"),
            (Sequence { increment: -1, ..q.clone() }, "counts down (INCREMENT -1)"),
            (Sequence { cache: 20, ..q.clone() }, "20 positions at once"),
            (Sequence { cycles: true, ..q.clone() }, "alter sequence q no cycle"),
            (Sequence { next: Some(0), ..q.clone() }, "hands out 0 next"),
        ] {
            let message = judge(&[wrong], "\"position\"").unwrap();
            assert!(message.contains(what) && message.contains("alter sequence q "), "{message}");
        }
        assert_eq!(judge(&[], "\"position\""), None);
        assert_eq!(judge(&[Sequence { next: None, ..q.clone() }], "\"position\""), None);
        let several = judge(&[q, sequence("r")], "\"position\"").unwrap();
        assert!(several.contains("\"position\" (q, r)"), "{several}");
    }

    #[test]
    fn a_sequence_that_an_import_has_overtaken_is_refused() {
        let message = behind("store.\"it's\"", 7, 7, "\"events\"", "\"position\"").unwrap();
        assert!(message.contains("setval('store.\"it''s\"', (select max(\"position\") from \"events\"))"), "{message}");
        assert_eq!(behind("q", 8, 7, "\"events\"", "\"position\""), None);
    }
}
