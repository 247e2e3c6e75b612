//! The user's own SQL, as far as it can be told whether it only reads: one query, which calls no function of the server's that has effects or waits. It is run in a
//! read-only transaction that is rolled back: what the user's own functions do is theirs.

mod text;

use tokio_postgres::{Client, Error, types::Type};

use super::Query;

/// The server's own functions that have effects, other than those which only tell the time or the server's state.
const EFFECTS: &str = "
select min(p.proname::text) from pg_catalog.pg_proc p
where p.proname::text = any($1::text[]) and p.provolatile = 'v' and p.pronamespace = 'pg_catalog'::regnamespace
  and p.proname::text not in ('clock_timestamp', 'timeofday', 'random', 'gen_random_uuid', 'currval', 'lastval')
  and p.proname::text !~ '^pg_(stat_get|current|last|is|get|relation|table|total|indexes|database|tablespace|column)_'";

/// A query that may be sent.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct UsersQuery {
    /// Without the semicolon at its end. It may end with a comment, so that a line has to end after it.
    pub sql: String,
    called: Vec<String>,
}

impl UsersQuery {
    /// Reads a query.
    ///
    /// # Errors
    /// Why it is not one.
    pub fn read(sql: &str) -> Result<Self, &'static str> {
        let text::Text { sql, called } = text::read(sql)?;
        Ok(Self { sql, called })
    }

    /// Why it does more than read, by the functions that it calls; `None`: it does not.
    ///
    /// # Errors
    /// Those of the server.
    pub async fn effects(&self, client: &Client) -> Result<Option<String>, Error> {
        let row = Query::new(EFFECTS, &[Type::TEXT_ARRAY]).row(client, &[&self.called]).await?;
        let function: Option<String> = row.try_get(0)?;
        Ok(function.map(|name| format!("the function {name} has effects or waits: a query may only read")))
    }
}
