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
