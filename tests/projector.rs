//! The built-in projector against real servers: nothing lost, nothing twice, everything in order.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

#[path = "projector/awaiting.rs"]
mod awaiting;
#[path = "support/certificates.rs"]
mod certificates;
#[path = "projector/claims.rs"]
mod claims;
#[path = "projector/coalesce.rs"]
mod coalesce;
#[path = "projector/commanded.rs"]
mod commanded;
#[path = "projector/discretion.rs"]
mod discretion;
#[path = "projector/dry_run.rs"]
mod dry_run;
#[path = "projector/dry_run_redis.rs"]
mod dry_run_redis;
#[path = "projector/dry_run_search.rs"]
mod dry_run_search;
#[path = "projector/elasticsearch.rs"]
mod elasticsearch;
#[path = "projector/elasticsearch_refusals.rs"]
mod elasticsearch_refusals;
#[path = "projector/elasticsearch_state.rs"]
mod elasticsearch_state;
#[path = "projector/emmett.rs"]
mod emmett;
#[path = "support/event_stores.rs"]
mod event_stores;
#[path = "projector/faults.rs"]
mod faults;
#[path = "projector/handlers.rs"]
mod handlers;
#[path = "projector/kafka.rs"]
mod kafka;
#[path = "projector/kafka_records.rs"]
mod kafka_records;
#[path = "projector/kafka_search.rs"]
mod kafka_search;
#[path = "projector/killing.rs"]
mod killing;
#[path = "projector/kurrentdb.rs"]
mod kurrentdb;
#[path = "projector/kurrentdb_gone.rs"]
mod kurrentdb_gone;
#[path = "support/kurrentdb/mod.rs"]
mod kurrentdb_server;
#[path = "projector/nats_queues.rs"]
mod nats_queues;
#[path = "projector/outbox.rs"]
mod outbox;
#[path = "projector/pairs/mod.rs"]
mod pairs;
#[path = "projector/parked.rs"]
mod parked;
#[path = "projector/parked_kept.rs"]
mod parked_kept;
#[path = "projector/positions.rs"]
mod positions;
#[path = "projector/queues.rs"]
mod queues;
#[path = "projector/queues_into_redis.rs"]
mod queues_into_redis;
#[path = "projector/queues_into_redis_kept.rs"]
mod queues_into_redis_kept;
#[path = "projector/queues_into_search.rs"]
mod queues_into_search;
#[path = "projector/rabbitmq.rs"]
mod rabbitmq;
#[path = "projector/rebuild.rs"]
mod rebuild;
#[path = "projector/redis.rs"]
mod redis;
#[path = "projector/redis_cluster.rs"]
mod redis_cluster;
#[path = "projector/redis_refusals.rs"]
mod redis_refusals;
#[path = "projector/redis_state.rs"]
mod redis_state;
#[path = "projector/rows.rs"]
mod rows;
#[path = "projector/sharing.rs"]
mod sharing;
#[path = "projector/stores.rs"]
mod stores;
#[path = "projector/uncalled.rs"]
mod uncalled;
#[path = "projector/workshop.rs"]
mod workshop;
