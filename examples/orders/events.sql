-- The write side: an append-only table of events. Projectionist needs a growing position and the time of the append; the built-in
-- projector reads stream, type and data, too. Other names are fine: spec.source.postgres.eventTable says them.
create table events (
    -- From a sequence: it may have gaps, and a later position may be committed before an earlier one. Both are handled.
    position    bigint generated always as identity primary key,
    -- What must stay in order: one order's events.
    stream      text        not null,
    type        text        not null,
    data        jsonb       not null,
    recorded_at timestamptz not null default now()
);

-- Optional: tell at once that there is something new. Without it the operator looks every few seconds.
create function announce_events() returns trigger language plpgsql as $$
begin
    perform pg_notify('events', '');
    return null;
end $$;

create trigger announce_events after insert on events for each statement execute function announce_events();
