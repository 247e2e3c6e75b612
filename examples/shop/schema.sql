-- The write side of the shop: one database, so that one transaction commits an event together with all that must not be lost when it is.

-- The event store. Projections read it by position.
create table events (
    -- From a sequence: it may have gaps, and a later position may be committed before an earlier one. Projectionist handles both.
    position    bigint generated always as identity primary key,
    stream      text        not null,
    -- 1, 2, 3, … in each stream. Two writers that saw the same stream try the same version, and one of them loses.
    version     bigint      not null check (version > 0),
    type        text        not null,
    data        jsonb       not null,
    recorded_at timestamptz not null default now(),
    unique (stream, version)
);

-- Tells the operator at once that there is something new. Without it the operator looks every few seconds.
create function announce() returns trigger language plpgsql as $$
begin
    perform pg_notify(tg_argv[0], '');
    return null;
end $$;

create trigger announce after insert on events for each statement execute function announce('events');

-- What a request with this key was answered.
create table idempotency_keys (
    key     text        primary key,
    request jsonb       not null,
    -- NULL only inside of the transaction that answers the request.
    answer  jsonb,
    made_at timestamptz not null default now()
);

create index on idempotency_keys (made_at);

-- Messages that are still to be sent, and those that were.
create table outbox (
    id          bigint generated always as identity primary key,
    message_id  text        not null unique,
    destination text        not null check (destination in ('kafka', 'rabbitmq')),
    -- The topic or the queue.
    address     text        not null,
    -- Messages of one key stay in order.
    key         text        not null,
    type        text        not null,
    body        jsonb       not null,
    created_at  timestamptz not null default now(),
    sent_at     timestamptz
);

create index on outbox (id) where sent_at is null;
create trigger announce after insert on outbox for each statement execute function announce('outbox');

-- How far each order has come.
create table sagas (
    order_id   text        primary key,
    -- What is to be done next; NULL once it has ended.
    step       text,
    -- The order, as its first event has it.
    details    jsonb       not null,
    -- Why the order fails, where it does: it is being compensated for.
    reason     text,
    -- When a worker may take it. A worker that has it moves this to the end of its lease.
    due_at     timestamptz not null default now(),
    attempts   int         not null default 0,
    created_at timestamptz not null default now(),
    ended_at   timestamptz,
    check ((step is null) = (ended_at is not null))
);

create index on sagas (due_at) where ended_at is null;
create trigger announce after insert on sagas for each statement execute function announce('sagas');

-- What a payment service and a carrier would keep in databases of their own.
create table charges (
    order_id    text    primary key,
    cents       bigint  not null,
    accepted    boolean not null,
    refunded_at timestamptz
);

create table shipments (
    order_id text    primary key,
    country  text    not null,
    accepted boolean not null
);

-- What customers were told: the key is the message's, so that no message is told twice.
create table notifications (
    message_id text        primary key,
    order_id   text        not null,
    text       text        not null,
    told_by    text        not null,
    told_at    timestamptz not null default clock_timestamp()
);
