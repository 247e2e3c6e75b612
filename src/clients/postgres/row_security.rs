//! Whether row-level security may hide rows of a table from the role that reads it. A table that hides its rows looks like an empty one.

use tokio_postgres::{Client, Error, types::Type};

use super::Query;

/// What the role sees of the table.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Visibility {
    /// Every row: there is no row security, it does not bind the role, or a policy shows the role all.
    All,
    /// Those that policies show.
    Filtered(Advice),
    /// None: no policy shows the role anything.
    Nothing(Advice),
}

/// Which role a policy should let read which table.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Advice {
    role: String,
    table: String,
}

impl Advice {
    /// The sentence for rows that are hidden, or may be.
    pub(crate) fn hidden(&self, what: &str) -> String {
        let Self { role, table } = self;
        format!(
            "{what} from role {role}: alter role {role} bypassrls, or create policy projectionist on {table} for select to {role} using (true)"
        )
    }
}

/// Policies bind as a whole: one that shows all is of use only where no restrictive one takes rows away again.
const VISIBILITY: &str = "
with policies(permissive, shows_all) as (
    select p.polpermissive, coalesce(pg_catalog.pg_get_expr(p.polqual, p.polrelid), 'true') = 'true'
    from pg_catalog.pg_policy p
    where p.polrelid = cast($1::text as regclass) and p.polcmd in ('r', '*') and exists (
        select from unnest(p.polroles) r
        where case when r = 0 then true else pg_catalog.pg_has_role(r, 'usage') end)
)
select pg_catalog.row_security_active(cast($1::text as regclass)), pg_catalog.quote_ident(current_user),
    exists (select from policies where permissive),
    exists (select from policies where permissive and shows_all) and not exists (select from policies where not permissive and not shows_all)";

/// What the role of this connection sees of the table, whose name is ready for SQL.
///
/// # Errors
/// Those of the server.
pub(crate) async fn visibility(client: &Client, quoted_table: &str) -> Result<Visibility, Error> {
    let row = Query::new(VISIBILITY, &[Type::TEXT]).row(client, &[&quoted_table]).await?;
    let (active, some, all): (bool, bool, bool) = (row.try_get(0)?, row.try_get(2)?, row.try_get(3)?);
    let advice = Advice { role: row.try_get(1)?, table: quoted_table.to_owned() };
    Ok(match (active, some, all) {
        (false, ..) | (true, _, true) => Visibility::All,
        (true, true, false) => Visibility::Filtered(advice),
        (true, false, false) => Visibility::Nothing(advice),
    })
}
