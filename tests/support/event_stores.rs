//! Event stores as their libraries make them in PostgreSQL.

#![allow(dead_code)] // Each test binary uses a part of it.

/// What Marten 8 makes in a schema; `partitioned` is with `UseArchivedStreamPartitioning`.
pub fn marten_ddl(schema: &str, partitioned: bool) -> String {
    let (key, parts, default) = if partitioned {
        (
            "primary key (seq_id, is_archived)) partition by list (is_archived)",
            format!(
                "create table {schema}.mt_events_default partition of {schema}.mt_events default;
                 create table {schema}.mt_events_archived partition of {schema}.mt_events for values in (true);"
            ),
            "not null default false",
        )
    } else {
        ("primary key (seq_id))", String::new(), "null default false")
    };
    format!(
        "create table {schema}.mt_events (
             seq_id bigint not null, id uuid not null, stream_id uuid null, version bigint not null, data jsonb not null,
             type varchar(500) not null, timestamp timestamp with time zone not null default (now()),
             tenant_id varchar null default '*DEFAULT*', mt_dotnet_type varchar null, is_archived bool {default},
             constraint pkey_mt_events_seq_id {key};
         {parts}
         create sequence {schema}.mt_events_sequence;
         alter sequence {schema}.mt_events_sequence owned by {schema}.mt_events.seq_id;
         create table {schema}.mt_event_progression (
             name varchar not null, last_seq_id bigint null, last_updated timestamp with time zone null default (transaction_timestamp()),
             constraint pk_mt_event_progression primary key (name));
         create function {schema}.mt_mark_event_progression(name varchar, last_encountered bigint) returns void language plpgsql as $function$
         begin
             insert into {schema}.mt_event_progression (name, last_seq_id, last_updated) values (name, last_encountered, transaction_timestamp())
             on conflict on constraint pk_mt_event_progression do update set last_seq_id = last_encountered, last_updated = transaction_timestamp();
         end; $function$;"
    )
}

/// Appends as `mt_quick_append_events` does: each position is drawn in the transaction that inserts. `data` is SQL that makes a body from `n`.
pub fn marten_appended(schema: &str, count: i64, tenant: &str, data: &str) -> String {
    format!(
        "insert into {schema}.mt_events (seq_id, id, stream_id, version, data, type, tenant_id, is_archived)
         select nextval('{schema}.mt_events_sequence'), gen_random_uuid(), gen_random_uuid(), 1, {data}, 'ordered', '{tenant}', false
         from generate_series(1, {count}) n"
    )
}

/// Where Marten sets events aside that failed.
pub const MARTEN_DEAD_LETTERS: &str = "create table public.mt_doc_deadletterevent (
    id uuid not null, data jsonb not null, mt_last_modified timestamp with time zone null default (transaction_timestamp()),
    mt_version uuid not null default (md5(random()::text || clock_timestamp()::text)::uuid), mt_dotnet_type varchar null,
    constraint pkey_mt_doc_deadletterevent_id primary key (id))";

/// What Message DB 1.3 makes: the table, and the functions and indexes that reading and appending touch.
pub const MESSAGE_DB: &str = "
    create schema message_store;
    create table message_store.messages (
        global_position bigserial not null, position bigint not null, id uuid not null default gen_random_uuid(),
        time timestamp without time zone default (now() at time zone 'utc') not null, stream_name text not null, type text not null,
        data jsonb, metadata jsonb);
    alter table message_store.messages add primary key (global_position) not deferrable initially immediate;
    create function message_store.category(stream_name varchar) returns varchar as $$
    begin return split_part(category.stream_name, '-', 1); end; $$ language plpgsql immutable;
    create function message_store.hash_64(value varchar) returns bigint as $$
    begin return ('x' || substr(md5(hash_64.value), 1, 16))::bit(64)::bigint; end; $$ language plpgsql immutable;
    create function message_store.id(stream_name varchar) returns varchar as $$
    declare _id_separator_position integer;
    begin
        _id_separator_position := strpos(id.stream_name, '-');
        if _id_separator_position = 0 then return null; end if;
        return substring(id.stream_name, _id_separator_position + 1);
    end; $$ language plpgsql immutable;
    create function message_store.cardinal_id(stream_name varchar) returns varchar as $$
    declare _id varchar;
    begin
        _id := id(cardinal_id.stream_name);
        if _id is null then return null; end if;
        return split_part(_id, '+', 1);
    end; $$ language plpgsql immutable;
    set search_path to message_store;
    create index messages_category on messages (
        category(stream_name), global_position, category(metadata->>'correlationStreamName'));
    create unique index messages_id on messages (id);
    create unique index messages_stream on messages (stream_name, position);
    reset search_path;";

/// Writes messages to a stream as `write_message` does: the category is locked first. `data` is SQL that makes a body from `n`.
pub fn message_db_written(stream: &str, count: i64, data: &str) -> String {
    format!(
        "select pg_advisory_xact_lock(message_store.hash_64(message_store.category('{stream}')));
         insert into message_store.messages (stream_name, position, type, data)
         select '{stream}', coalesce((select max(position) from message_store.messages where stream_name = '{stream}'), -1) + n, 'Written', {data}
         from generate_series(1, {count}) n"
    )
}

/// What EventStore for Elixir 1.4 makes (schema version 1.3.2): tables, indexes and triggers that reading and appending touch.
pub const COMMANDED: &str = "
    create table streams (stream_id bigserial primary key not null, stream_uuid text not null, stream_version bigint default 0 not null,
        created_at timestamp with time zone default now() not null, deleted_at timestamp with time zone);
    create unique index ix_streams_stream_uuid on streams (stream_uuid);
    create table events (event_id uuid primary key not null, event_type text not null, causation_id uuid null, correlation_id uuid null,
        data bytea not null, metadata bytea null, created_at timestamp with time zone default now() not null);
    create table stream_events (event_id uuid not null references events (event_id), stream_id bigint not null references streams (stream_id),
        stream_version bigint not null, original_stream_id bigint references streams (stream_id), original_stream_version bigint,
        primary key (event_id, stream_id));
    create unique index ix_stream_events on stream_events (stream_id, stream_version);
    create function notify_events() returns trigger as $$
    declare old_stream_version bigint;
    begin
        if tg_op = 'UPDATE' then old_stream_version := old.stream_version + 1; else old_stream_version := 1; end if;
        perform pg_notify(tg_table_schema || '.events',
            new.stream_uuid || ',' || new.stream_id || ',' || old_stream_version || ',' || new.stream_version);
        return null;
    end; $$ language plpgsql;
    insert into streams (stream_id, stream_uuid, stream_version) values (0, '$all', 0);
    create trigger event_notification after insert or update on streams for each row execute procedure notify_events();
    create table subscriptions (subscription_id bigserial primary key not null, stream_uuid text not null, subscription_name text not null,
        last_seen bigint null, created_at timestamp with time zone default now() not null);
    create unique index ix_subscriptions_stream_uuid_subscription_name on subscriptions (stream_uuid, subscription_name);";

/// Appends to a stream in one statement, as the store does. `data` and `created`, which is the application's time, are SQL, the former made from `n`.
pub fn commanded_appended(schema: &str, stream: &str, events: i64, type_: &str, data: &str, created: &str) -> String {
    format!(
        "with new_events as materialized (select gen_random_uuid() as event_id, n as index from generate_series(1, {events}) n),
         inserted as (insert into {schema}.events (event_id, event_type, data, created_at) select event_id, '{type_}', {data}, {created} from
             (select event_id, index as n from new_events) made),
         stream as (insert into {schema}.streams (stream_uuid, stream_version) values ('{stream}', {events})
             on conflict (stream_uuid) do update set stream_version = streams.stream_version + {events}
             returning stream_id, stream_version - {events} as initial),
         source as (insert into {schema}.stream_events select n.event_id, s.stream_id, s.initial + n.index, s.stream_id, s.initial + n.index
             from new_events n, stream s),
         linked as (update {schema}.streams set stream_version = stream_version + {events} where stream_id = 0
             returning stream_version - {events} as initial)
         insert into {schema}.stream_events select n.event_id, 0, l.initial + n.index, s.stream_id, s.initial + n.index
         from new_events n, linked l, stream s"
    )
}

/// What emmett-postgresql 0.42 makes: tables, partitions and the sequence that reading and appending touch.
pub const EMMETT: &str = "
    create sequence emt_global_message_position;
    create table emt_messages (stream_position bigint not null, global_position bigint default nextval('emt_global_message_position'),
        transaction_id xid8 not null, created timestamptz not null default now(), is_archived boolean not null default false,
        message_kind varchar(1) not null default 'E', stream_id text not null, partition text not null default 'emt:default',
        message_schema_version text not null, message_id text not null, message_type text not null, message_data jsonb not null,
        message_metadata jsonb not null, primary key (stream_id, stream_position, partition, is_archived)) partition by list (partition);
    create table emt_processors (last_processed_transaction_id xid8 not null, version int not null default 1, processor_id text not null,
        partition text not null default 'emt:default', status text not null default 'stopped', last_processed_checkpoint text not null,
        processor_instance_id text default 'emt:unknown', created_at timestamptz not null default now(),
        last_updated timestamptz not null default now(), primary key (processor_id, partition, version)) partition by list (partition);
    create table emt_messages_emt_default partition of emt_messages for values in ('emt:default') partition by list (is_archived);
    create table emt_messages_emt_default_active partition of emt_messages_emt_default for values in (false);
    create table emt_messages_emt_default_archived partition of emt_messages_emt_default for values in (true);
    create table emt_processors_emt_default partition of emt_processors for values in ('emt:default');
    create table emt_messages_other partition of emt_messages for values in ('other') partition by list (is_archived);
    create table emt_messages_other_active partition of emt_messages_other for values in (false);";

/// Adds messages to a stream as `emt_append_to_stream` writes them. `kept` is the values of partition and `is_archived`, and `data` SQL that makes a body
/// from `n`.
pub fn emmett_appended(schema: &str, stream: &str, messages: i64, kept: &str, data: &str) -> String {
    format!(
        "insert into {schema}.emt_messages (stream_id, stream_position, partition, is_archived, message_data, message_metadata, message_schema_version,
             message_type, message_id, transaction_id)
         select '{stream}', coalesce((select max(stream_position) from {schema}.emt_messages where stream_id = '{stream}'), 0) + n, {kept},
             {data}, '{{}}', '1', 'Counted', gen_random_uuid()::text, pg_current_xact_id()
         from generate_series(1, {messages}) n"
    )
}

/// What the scripts of akka-persistence-r2dbc 1.2 and akka-projection-r2dbc 1.5 make: tables and indexes that measuring, appending and storing offsets touch.
pub const AKKA: &str = "
    create table event_journal (slice int not null, entity_type varchar(255) not null, persistence_id varchar(255) not null, seq_nr bigint not null,
        db_timestamp timestamp with time zone not null, event_ser_id integer not null, event_ser_manifest varchar(255) not null,
        event_payload bytea not null, deleted boolean default false not null, writer varchar(255) not null, adapter_manifest varchar(255),
        tags text array, meta_ser_id integer, meta_ser_manifest varchar(255), meta_payload bytea, primary key (persistence_id, seq_nr));
    create index event_journal_slice_idx on event_journal (slice, entity_type, db_timestamp, seq_nr);
    create table akka_projection_timestamp_offset_store (projection_name varchar(255) not null, projection_key varchar(255) not null,
        slice int not null, persistence_id varchar(255) not null, seq_nr bigint not null, timestamp_offset timestamp with time zone not null,
        timestamp_consumed timestamp with time zone not null,
        primary key (slice, projection_name, timestamp_offset, persistence_id, seq_nr));";

/// The slice of a persistence id: Java's hash of it, by the number of slices.
pub fn akka_slice(id: &str) -> i32 {
    let hash = id.encode_utf16().fold(0_i32, |hash, unit| hash.wrapping_mul(31).wrapping_add(i32::from(unit)));
    (hash % 1024).abs()
}

/// A persistence id of `Cart` in this range of slices.
pub fn akka_cart_in(slices: std::ops::RangeInclusive<i32>, nth: usize) -> String {
    (0..).map(|n| format!("Cart|{n}")).filter(|id| slices.contains(&akka_slice(id))).nth(nth).unwrap()
}

/// Appends events of one persistence id in a transaction that began at this time, as the journal does. `payload` is SQL that makes a body from `n`.
pub fn akka_appended(id: &str, events: i64, began: &str, payload: &str) -> String {
    let (entity, _) = id.split_once('|').unwrap();
    let slice = akka_slice(id);
    format!(
        "insert into event_journal (slice, entity_type, persistence_id, seq_nr, writer, adapter_manifest, event_ser_id, event_ser_manifest,
             event_payload, db_timestamp)
         select {slice}, '{entity}', '{id}', p.seq_nr + n, 'w', '', 4, 'Happened', {payload},
             greatest({began}, (select db_timestamp + '1 microsecond'::interval from event_journal where persistence_id = '{id}' and seq_nr = p.seq_nr))
         from (select coalesce(max(seq_nr), 0) as seq_nr from event_journal where persistence_id = '{id}') p, generate_series(1, {events}) n"
    )
}
