//! The function `projectionist_await` beside the checkpoint table: applications that read the read model wait with it for what they wrote.

use super::functions::Function;

/// The function's name.
const NAME: &str = "projectionist_await";

/// The function. It tells its callers no more than whether a position is reached.
pub(super) const AWAIT: Function = Function {
    name: NAME,
    types: "text, bigint, interval",
    signature: "(projection text, \"position\" bigint, timeout interval default interval '5 seconds') returns boolean",
    body,
    missed_by: "applications that wait with it for what they wrote",
};

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
