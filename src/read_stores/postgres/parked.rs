//! How many events workers of the built-in projector have parked, in the table beside the checkpoint table.

use std::collections::HashMap;

use tokio_postgres::{Client, Error, types::Type};

use crate::{
    api::Reason,
    clients::postgres::{Query, quote_table},
    measure::MeasureError,
    names::{CHECKPOINT_TABLE, PARKED_TABLE},
};

/// What was counted beside one checkpoint table.
#[derive(Debug)]
pub(super) enum Parked {
    /// There is no such table: no event was ever set aside.
    NoTable,
    /// It may not be read.
    Hidden(MeasureError),
    /// By projection, those without any left out.
    Counted(HashMap<String, u64>),
}

impl Parked {
    /// Of one projection; absent where nothing is set aside there.
    pub(super) fn of(&self, projection: &str) -> Option<Result<u64, MeasureError>> {
        match self {
            Self::NoTable => None,
            Self::Hidden(why) => Some(Err(why.clone())),
            Self::Counted(counted) => Some(Ok(counted.get(projection).copied().unwrap_or(0))),
        }
    }
}

/// Counts for all projections of a checkpoint table at once.
///
/// # Errors
/// Those of the server.
pub(super) async fn count(client: &Client, checkpoints: &str, projections: &[String]) -> Result<Parked, Error> {
    let Some(schema) = checkpoints.strip_suffix(CHECKPOINT_TABLE) else { return Ok(Parked::NoTable) };
    let table = format!("{schema}{PARKED_TABLE}");
    let quoted = quote_table(&table);
    let readable = "select t is not null,
         coalesce(pg_catalog.has_column_privilege(t, 'projection', 'select') and pg_catalog.has_column_privilege(t, 'state', 'select'), false),
         coalesce(pg_catalog.row_security_active(t), false) from (select pg_catalog.to_regclass($1::text) as t) s";
    let row = Query::new(readable, &[Type::TEXT]).row(client, &[&quoted]).await?;
    let (is_there, is_readable, has_policies): (bool, bool, bool) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    if !is_there {
        return Ok(Parked::NoTable);
    }
    if !is_readable {
        let message =
            format!("table {table} may not be read: grant select (projection, state) on it to the operator's role");
        return Ok(Parked::Hidden(MeasureError { reason: Reason::PermissionDenied, message }));
    }
    if has_policies {
        let message = format!(
            "row security of table {table} may hide rows from the operator's role: give it a policy for all rows, or the attribute BYPASSRLS"
        );
        return Ok(Parked::Hidden(MeasureError { reason: Reason::PermissionDenied, message }));
    }
    let count = format!(
        "select projection, count(*) from {quoted} where projection = any($1::text[]) and state = 'parked' group by 1"
    );
    let rows = Query::new(count, &[Type::TEXT_ARRAY]).rows(client, &[&projections]).await?;
    let counted = rows.iter().map(|row| {
        let count: i64 = row.try_get(1)?;
        Ok((row.try_get(0)?, u64::try_from(count).unwrap_or_default()))
    });
    counted.collect::<Result<_, Error>>().map(Parked::Counted)
}
