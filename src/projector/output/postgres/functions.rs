//! The functions beside the workers' tables: what applications and people on call ask of the read store in SQL.
//!
//! They are an extra of the read store. A worker that may not make one goes on without it.

use tokio_postgres::{Client, Error};

use crate::clients::postgres::quote_identifier;

/// Encloses a function's body.
const QUOTE: &str = "$projectionist$";

/// A function about one of the workers' tables, in the schema of that table. It runs with the rights of its owner, so that its callers need none on the table. Who may call
/// it must be granted that.
pub(super) struct Function {
    /// Its name.
    pub(super) name: &'static str,
    /// The types of its parameters.
    pub(super) types: &'static str,
    /// Its parameters with their types, in brackets, and what it returns.
    pub(super) signature: &'static str,
    /// What it does, in PL/pgSQL, with the table of this name (ready for SQL).
    pub(super) body: fn(&str) -> String,
    /// Who misses it where it cannot be made.
    pub(super) missed_by: &'static str,
}

impl Function {
    /// Makes the function in the schema of the table (a name ready for SQL), or replaces it by the one of this version. To be called within a transaction.
    ///
    /// # Errors
    /// Those of the server, but for what this role may not do.
    pub(super) async fn make(&self, client: &Client, table: &str) -> Result<(), Error> {
        let Self { name, types, missed_by, .. } = self;
        let find = "select n.nspname::text, c.relname::text, pg_catalog.has_schema_privilege(n.oid, 'CREATE')
             from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
             where c.oid = pg_catalog.to_regclass($1::text)";
        let Some(row) = client.query_opt(find, &[&table]).await? else { return Ok(()) };
        let (schema, table, may_create): (String, String, bool) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        let body = (self.body)(&format!("{}.{}", quote_identifier(&schema), quote_identifier(&table)));
        let function = format!("{}.{name}", quote_identifier(&schema));
        let there = "select p.prosrc, pg_catalog.pg_has_role(p.proowner, 'USAGE') from pg_catalog.pg_proc p
             where p.oid = pg_catalog.to_regprocedure($1::text)";
        let there = client.query_opt(there, &[&format!("{function}({types})")]).await?;
        let owned = match &there {
            Some(row) if row.try_get::<_, &str>(0)? == body => return Ok(()),
            Some(row) => row.try_get(1)?,
            None => true,
        };
        if !may_create || !owned || body.contains(QUOTE) {
            tracing::info!(
                schema,
                "the function {name} was not made in the read store, which only {missed_by} miss: this role may not create or replace it there"
            );
            return Ok(());
        }
        // Whatever keeps it from being made keeps no worker from its work.
        client.batch_execute("savepoint making_function").await?;
        match client.batch_execute(&self.definition(&function, &body)).await {
            Ok(()) => client.batch_execute("release savepoint making_function").await,
            Err(error) if error.as_db_error().is_some() => {
                let code = error.code().map(|code| code.code().to_owned());
                tracing::warn!(
                    schema,
                    code,
                    "the function {name} could not be made in the read store: {missed_by} miss it"
                );
                client.batch_execute("rollback to savepoint making_function").await
            }
            Err(error) => Err(error),
        }
    }

    fn definition(&self, function: &str, body: &str) -> String {
        let Self { types, signature, .. } = self;
        format!(
            "create or replace function {function}{signature} language plpgsql volatile security definer
                 set search_path = pg_catalog, pg_temp as {QUOTE}{body}{QUOTE};
             revoke all on function {function}({types}) from public"
        )
    }
}
