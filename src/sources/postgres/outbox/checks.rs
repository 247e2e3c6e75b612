//! Whether a table can serve as an outbox, and how its rows are told apart, as SQL. Checked before any row is counted, so that the message names the
//! column or the field.

use tokio_postgres::{Client, Error, error::SqlState, types::Type};

use super::refused;
use crate::{
    api::{Outbox as Spec, Reason},
    clients::postgres::{
        Query, classify, column_types, quote_identifier, quote_table,
        row_security::{self, Visibility},
    },
    measure::MeasureError,
    sources::postgres::{
        event_log::{event_time, is_known_zone},
        expression::{ExpressionError, check_expression},
    },
};

/// What was found of a table.
#[derive(Clone, Debug)]
pub(crate) struct Checked {
    /// Its name, quoted.
    pub(crate) table: String,
    /// When a row was written, as SQL; NULL where no age can be told.
    pub(crate) time: String,
    /// Which rows wait, as an SQL condition.
    pub(crate) waits: String,
    /// Which rows are meant, sent or not.
    pub(crate) mine: String,
}

/// Looks at the table, the types of its columns and the conditions. Reads no row.
///
/// # Errors
/// What does not serve, and what to do.
pub(crate) async fn check(client: &Client, spec: &Spec) -> Result<Checked, MeasureError> {
    let failed = |error: Error| {
        let (reason, message) = classify(&error);
        refused(spec, reason, &message)
    };
    let table = quote_table(&spec.table);
    let kind = "select c.relkind::text, pg_catalog.pg_is_in_recovery() from pg_catalog.pg_class c where c.oid = cast($1::text as regclass)";
    let row = Query::new(kind, &[Type::TEXT]).row(client, &[&table]).await.map_err(failed)?;
    let (kind, replica): (String, bool) = (row.try_get(0).map_err(failed)?, row.try_get(1).map_err(failed)?);
    if replica {
        return Err(refused(
            spec,
            Reason::SourceIsReplica,
            "the server is a standby, which shows rows as waiting that were sent long ago: name the primary in the Secret",
        ));
    }
    if !["r", "p"].contains(&kind.as_str()) {
        let message = "it must be a table, and is a view, a foreign table or the like: for those write the SQL yourself, in spec.source.postgres.query";
        return Err(refused(spec, Reason::InvalidSpec, message));
    }
    let time = check_columns(client, spec, &table).await?;
    let waits = match (&spec.sent_at, &spec.unsent) {
        (Some(sent_at), _) => format!("{} is null", quote_identifier(sent_at)),
        (None, Some(unsent)) => condition(client, spec, "unsent", unsent, &table).await?,
        (None, None) => "true".to_owned(),
    };
    let mine = match &spec.filter {
        Some(filter) => condition(client, spec, "where", filter, &table).await?,
        None => "true".to_owned(),
    };
    Ok(Checked { table, time, waits, mine })
}

/// Refuses a table whose rows row-level security may hide. An outbox is empty most of the time, which cannot be told from rows that are hidden.
///
/// # Errors
/// Which policy is missing.
pub(crate) async fn check_visible(client: &Client, spec: &Spec, table: &str) -> Result<(), MeasureError> {
    let visibility = row_security::visibility(client, table).await.map_err(|error| {
        let (reason, message) = classify(&error);
        refused(spec, reason, &message)
    })?;
    match visibility {
        Visibility::All => Ok(()),
        Visibility::Filtered(advice) | Visibility::Nothing(advice) => {
            Err(refused(spec, Reason::PermissionDenied, &advice.hidden("row security may hide rows")))
        }
    }
}

/// The types of the columns. Returns how the time of a row is read.
async fn check_columns(client: &Client, spec: &Spec, table: &str) -> Result<String, MeasureError> {
    let failed = |error: Error| {
        let (reason, message) = classify(&error);
        refused(spec, reason, &message)
    };
    let mut columns = vec![spec.created_at.as_str()];
    columns.extend(spec.position.as_deref());
    columns.extend(spec.sent_at.as_deref());
    let types = column_types(client, table, &columns).await.map_err(failed)?;
    let Some(created_at) = types.first() else {
        return Err(refused(spec, Reason::InvalidAnswer, "the server told no types of its columns"));
    };
    let unsuitable = |message: String| Err(refused(spec, Reason::ColumnTypeUnsuitable, &message));
    let zone = match (created_at.sql.as_str(), &spec.time_zone) {
        ("timestamp with time zone", _) => None,
        ("timestamp without time zone", Some(zone)) => {
            if !is_known_zone(client, zone).await.map_err(failed)? {
                return Err(refused(
                    spec,
                    Reason::InvalidSpec,
                    &format!(
                        "spec.source.postgres.outbox.timeZone: the server knows no time zone {zone}: name one of pg_timezone_names, such as UTC or Europe/Berlin"
                    ),
                ));
            }
            Some(zone.as_str())
        }
        ("timestamp without time zone", None) => {
            return unsuitable(format!(
                "column {} is a timestamp without time zone: set spec.source.postgres.outbox.timeZone to the zone that its times are written in, such as UTC",
                spec.created_at
            ));
        }
        (other, _) => {
            return unsuitable(format!("column {} must be timestamptz or timestamp, not {other}", spec.created_at));
        }
    };
    if let (Some(position), Some(found)) = (&spec.position, types.get(1))
        && !found.is_integer()
    {
        return unsuitable(format!("column {position} must be smallint, integer or bigint, not {}", found.sql));
    }
    Ok(event_time(&spec.created_at, zone).measurable)
}

/// A condition of the spec, if it is one over a single row.
async fn condition(client: &Client, spec: &Spec, field: &str, text: &str, table: &str) -> Result<String, MeasureError> {
    let refused =
        |reason, message: &str| refused(spec, reason, &format!("spec.source.postgres.outbox.{field}: {message}"));
    match check_expression(client, table, text).await {
        Ok(()) => {}
        Err(ExpressionError::Unsuitable(why)) => return Err(refused(Reason::InvalidSpec, &why)),
        Err(ExpressionError::Postgres(error)) => {
            let (reason, message) = classify(&error);
            return Err(refused(reason, &message));
        }
    }
    // Over no row: only whether it can stand there.
    let probe = format!("select from {table} where ({text}) limit 0");
    match client.query_typed(&probe, &[]).await {
        Ok(_) => Ok(format!("({text})")),
        Err(error) if error.code() == Some(&SqlState::DATATYPE_MISMATCH) => {
            Err(refused(Reason::ColumnTypeUnsuitable, "it must be a condition, such as status = 'pending'"))
        }
        Err(error) => {
            let (reason, message) = classify(&error);
            Err(refused(reason, &message))
        }
    }
}
