//! The function `projectionist_await` beside the checkpoint table: applications that read the read model wait with it for what they wrote.
//!
//! It is an extra of the read store. A worker that may not make it goes on without it.

use tokio_postgres::{Client, Error};

use crate::clients::postgres::quote_identifier;

/// The function's name.
const NAME: &str = "projectionist_await";
/// Encloses the function's body.
const QUOTE: &str = "$projectionist_await$";

/// Makes the function in the schema of the checkpoint table `checkpoints` (a name ready for SQL), or replaces it by the one of this version. To be called within a transaction.
///
/// # Errors
/// Those of the server, but for what this role may not do.
pub(super) async fn create(client: &Client, checkpoints: &str) -> Result<(), Error> {
    let find = "select n.nspname::text, c.relname::text, pg_catalog.has_schema_privilege(n.oid, 'CREATE')
         from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
         where c.oid = pg_catalog.to_regclass($1::text)";
    let Some(row) = client.query_opt(find, &[&checkpoints]).await? else { return Ok(()) };
    let (schema, table, may_create): (String, String, bool) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    let body = body(&format!("{}.{}", quote_identifier(&schema), quote_identifier(&table)));
    let function = format!("{}.{NAME}", quote_identifier(&schema));
    let there = "select p.prosrc, pg_catalog.pg_has_role(p.proowner, 'USAGE') from pg_catalog.pg_proc p
         where p.oid = pg_catalog.to_regprocedure($1::text)";
    let there = client.query_opt(there, &[&format!("{function}(text, bigint, interval)")]).await?;
    let owned = match &there {
        Some(row) if row.try_get::<_, &str>(0)? == body => return Ok(()),
        Some(row) => row.try_get(1)?,
        None => true,
    };
    if !may_create || !owned || body.contains(QUOTE) {
        tracing::info!(
            schema,
            "the function {NAME} was not made in the read store, which only those miss who wait with it for what they wrote: this role may not create or replace it there"
        );
        return Ok(());
    }
    // Whatever keeps it from being made keeps no worker from its work.
    client.batch_execute("savepoint awaiting").await?;
    match client.batch_execute(&definition(&function, &body)).await {
        Ok(()) => client.batch_execute("release savepoint awaiting").await,
        Err(error) if error.as_db_error().is_some() => {
            let code = error.code().map(|code| code.code().to_owned());
            tracing::warn!(
                schema,
                code,
                "the function {NAME} could not be made in the read store: no application can wait with it"
            );
            client.batch_execute("rollback to savepoint awaiting").await
        }
        Err(error) => Err(error),
    }
}

/// It runs with the rights of its owner, so that its callers need none on the checkpoint table, and tells them no more than whether a position is reached. Who
/// may call it must be granted that.
fn definition(function: &str, body: &str) -> String {
    format!(
        "create or replace function {function}(projection text, \"position\" bigint, timeout interval default interval '5 seconds')
             returns boolean language plpgsql volatile security definer
             set search_path = pg_catalog, pg_temp as {QUOTE}{body}{QUOTE};
         revoke all on function {function}(text, bigint, interval) from public"
    )
}

/// Each statement of a volatile function sees what was committed before it began, unless the transaction keeps to one snapshot.
fn body(checkpoints: &str) -> String {
    format!(
        "
declare
    deadline timestamptz := clock_timestamp() + least($3, interval '60 seconds');
    lowest bigint;
    complete boolean;
    has_parts boolean;
begin
    if $1 is null or $2 is null or $3 is null then
        raise exception '{NAME}: projection, position and timeout must not be null' using errcode = 'null_value_not_allowed';
    end if;
    if current_setting('transaction_isolation') not in ('read committed', 'read uncommitted') then
        raise exception '{NAME}: a transaction that is % does not see what is committed later', current_setting('transaction_isolation')
            using errcode = 'active_sql_transaction', hint = 'Call it before the transaction, or in one that is read committed.';
    end if;
    loop
        select min(c.position), count(*) = max(c.shards), bool_or(c.part is not null) into lowest, complete, has_parts
            from {checkpoints} c where c.projection = $1;
        if complete is null then
            raise exception '{NAME}: no projection % has checkpoints here', $1
                using errcode = 'undefined_object', hint = 'Name it as namespace/name.';
        end if;
        if has_parts then
            raise exception '{NAME}: the positions of % are offsets, each of its own partition, and no single one tells how far the read model is', $1
                using errcode = 'feature_not_supported';
        end if;
        if complete and lowest >= $2 then
            return true;
        end if;
        if clock_timestamp() >= deadline then
            return false;
        end if;
        perform pg_sleep(0.005);
    end loop;
end
"
    )
}
