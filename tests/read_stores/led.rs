//! Readers are led through the read store that the sampler has open, with the rights that the documentation lists.

use std::{sync::Arc, time::Duration};

use projectionist::{
    api::Reason,
    clients::redis,
    measure::RunKey,
    read_stores::{
        OpenStores, RedisStore,
        switch::{AliasSwitch, PointerSwitch, SwitchError, Switched, VersionSwitch as _},
    },
    rebuild::{LeadError, ReadersOf, SwitchReaders as _},
    resolve::{LedAlias, LedBy},
};
use serde_json::{Value, json};
use test_cluster::elasticsearch::Distribution;
use tokio::time::Instant;

use crate::{
    elasticsearch::search_store,
    harness::{declare, events, redis_server, sampler_with, search_server},
    sampler::{Running, loopback},
};

const WITHIN: Duration = Duration::from_secs(60);

fn of(version: &str, by: LedBy) -> ReadersOf {
    ReadersOf { run: RunKey { version: Some(version.into()), ..RunKey::unversioned("shop", "orders") }, by }
}

/// What readers see, once the store of this version is open.
async fn opened(stores: &OpenStores, of: &ReadersOf) -> Result<Option<String>, LeadError> {
    while stores.shown(of, WITHIN).await.is_err() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    stores.shown(of, WITHIN).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_are_led_through_the_read_store_that_the_sampler_has_open() {
    let (url, client) = events("led").await;
    let made = "create schema shown; create schema orders_v1; create table orders_v1.summary as select 'v1'::text as version; create schema orders_v2; create table orders_v2.summary as select 'v2'::text as version";
    client.batch_execute(made).await.unwrap();
    let mut sampler = sampler_with(&[("events", &url)]);
    let version = |version: &str| {
        json!({
            "readStore": {"postgres": {"connection": {"secretRef": {"name": "events"}}, "schema": "orders_{version}"}},
            "projector": {"builtin": {"handlers": {"Placed": "select 1"}}},
            "version": version,
            "rollout": {"strategy": "BlueGreen", "switch": {"postgresView": {"schema": "shown", "views": ["summary"]}}},
        })
    };
    let of =
        |version: &str| of(version, LedBy::Views { schema: "shown".to_owned(), views: vec!["summary".to_owned()] });
    let within = WITHIN;
    let stores = sampler.read_stores().clone();
    let unknown = stores.shown(&of("v1"), within).await.unwrap_err();
    assert!(matches!(&unknown, LeadError::Failed(why) if why.reason == Reason::NotMeasuredYet), "{unknown:?}");
    declare(&mut sampler, "orders", &version("v1"));
    let opened = async |version: &str| opened(&stores, &of(version)).await;
    assert_eq!(opened("v1").await, Ok(None));
    stores.switch(&of("v1"), None, "orders_v1", within).await.unwrap();
    declare(&mut sampler, "orders", &version("v2"));
    assert_eq!(opened("v2").await, Ok(Some("orders_v1".to_owned())));
    let late = stores.switch(&of("v2"), None, "orders_v2", within).await.unwrap_err();
    assert!(matches!(late, LeadError::Refused(_)), "{late:?}");
    stores.switch(&of("v2"), Some("orders_v1"), "orders_v2", within).await.unwrap();
    stores.switch(&of("v2"), Some("orders_v1"), "orders_v2", within).await.expect("done before");
    let seen: String = client.query_one("select version from shown.summary", &[]).await.unwrap().get(0);
    assert_eq!(seen, "v2");
    client.batch_execute("drop view shown.summary; create table shown.summary (version text)").await.unwrap();
    let taken = stores.shown(&of("v2"), within).await.unwrap_err();
    assert!(matches!(&taken, LeadError::Refused(why) if why.contains("no view that a switch made")), "{taken:?}");
}

/// The first version is shown, then the second, and of one that is late nothing comes; what another kind of store would have to lead is refused.
async fn led(sampler: &mut Running, spec: impl Fn(&str) -> Value, by: &LedBy) {
    let stores = sampler.read_stores().clone();
    declare(sampler, "orders", &spec("v1"));
    let (first, second) = (of("v1", by.clone()), of("v2", by.clone()));
    assert_eq!(opened(&stores, &first).await, Ok(None));
    stores.switch(&first, None, "v1", WITHIN).await.unwrap();
    declare(sampler, "orders", &spec("v2"));
    assert_eq!(opened(&stores, &second).await, Ok(Some("v1".to_owned())));
    let late = stores.switch(&second, None, "v2", WITHIN).await.unwrap_err();
    assert!(matches!(late, LeadError::Refused(_)), "{late:?}");
    stores.switch(&second, Some("v1"), "v2", WITHIN).await.unwrap();
    stores.switch(&second, Some("v1"), "v2", WITHIN).await.expect("done before");
    assert_eq!(stores.shown(&second, WITHIN).await, Ok(Some("v2".to_owned())));
    let views = LedBy::Views { schema: "shown".to_owned(), views: vec!["summary".to_owned()] };
    let other = stores.shown(&of("v2", views), WITHIN).await.unwrap_err();
    let needs = "spec.rollout.switch.postgresView needs a read store in PostgreSQL";
    assert!(
        matches!(&other, LeadError::Failed(why) if why.reason == Reason::InvalidSpec && why.message == needs),
        "{other:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_are_led_by_a_key_in_redis_and_by_aliases_in_elasticsearch() {
    let (url, _client) = events("led_elsewhere").await;
    let search = search_server(Distribution::OpenSearch);
    let mut sampler = sampler_with(&[("events", &url), ("redis", &redis_server().url()), ("search", &search.url())]);
    let spec = |version: &str, store: &str, builtin: Value, switch: Value| {
        json!({
            "readStore": {store: {"connection": {"secretRef": {"name": if store == "redis" { "redis" } else { "search" }}}}},
            "projector": {"builtin": builtin}, "version": version,
            "rollout": {"strategy": "BlueGreen", "switch": switch},
        })
    };
    let in_redis = |version: &str| {
        let handlers = json!({"redis": {"handlers": {"Placed": [["SET", "led:{version}:{stream}", "1"]]}}});
        spec(version, "redis", handlers, json!({"redisPointer": {"key": "led:current"}}))
    };
    led(&mut sampler, in_redis, &LedBy::Pointer { key: "led:current".to_owned() }).await;
    assert_eq!(redis_server().run("GET led:current").unwrap().text(), "v2");
    for version in ["v1", "v2"] {
        search.run("PUT", &format!("/led-{version}/_doc/1"), &json!({})).unwrap();
    }
    let in_search = |version: &str| {
        let operation = json!({"index": {"index": "led-{version}", "id": "{stream}", "document": {}}});
        let handlers = json!({"elasticsearch": {"handlers": {"Placed": [operation]}}});
        spec(
            version,
            "elasticsearch",
            handlers,
            json!({"elasticsearchAliases": [{"alias": "led", "index": "led-{version}"}]}),
        )
    };
    let alias = LedAlias { alias: "led".to_owned(), index: "led-{version}".to_owned() };
    led(&mut sampler, in_search, &LedBy::Aliases(vec![alias])).await;
    assert!(search.run("GET", "/_alias/led", &json!(null)).unwrap()["led-v2"].is_object());
}

const REBUILDS: &str = include_str!("../../docs/rebuilds.md");

#[tokio::test]
async fn the_rights_on_a_pointer_in_the_documentation_suffice_and_each_of_them_is_needed() {
    let rights = ["+eval", "+type", "+get", "+set"];
    let documented = format!("~orders:current {}", rights.join(" "));
    assert!(REBUILDS.contains(&documented), "the page lists them: {documented}");
    let server = redis_server();
    let user = |keys: &str, rights: &[&str]| {
        server.run("DEL orders:current").unwrap();
        server
            .run(&format!("ACL SETUSER leader on >hunter2 resetkeys nocommands {keys} {}", rights.join(" ")))
            .unwrap();
        let url = server.url_as("leader", "hunter2");
        let settings = redis::ConnectionSettings::from_keys(|key| (key == "url").then_some(url.as_str())).unwrap();
        PointerSwitch::new(Arc::new(RedisStore::new(settings.identity(), loopback())), "orders:current")
    };
    let soon = || Instant::now() + WITHIN;
    let enough = user("~orders:current", &rights);
    assert_eq!(enough.switch(None, "v1", soon()).await, Ok(Switched::Now));
    assert_eq!(enough.switch(Some("v1"), "v2", soon()).await, Ok(Switched::Now));
    assert_eq!(enough.shown(soon()).await, Ok(Some("v2".to_owned())));
    let all = rights.map(|missing| ("~orders:current", rights.into_iter().filter(|right| *right != missing).collect()));
    for (keys, rights) in all.into_iter().chain([("~orders:other", rights.to_vec())]) {
        let refused = user(keys, &rights).switch(None, "v1", soon()).await.unwrap_err();
        assert!(
            matches!(&refused, SwitchError::Failed(why) if why.reason == Reason::PermissionDenied && why.message.contains(&documented)),
            "{keys} {rights:?}: {refused:?}"
        );
        assert_eq!(server.run("EXISTS orders:current").unwrap(), test_cluster::redis::Answer::Integer(0));
    }
}

#[tokio::test]
async fn the_role_for_aliases_in_the_documentation_suffices_and_is_needed() {
    let server = search_server(Distribution::Elasticsearch);
    for version in ["v1", "v2"] {
        server.run("PUT", &format!("/ruled-{version}/_doc/1"), &json!({})).unwrap();
    }
    let alias = [LedAlias { alias: "ruled".to_owned(), index: "ruled-{version}".to_owned() }];
    let switch = |user: &str| AliasSwitch::new(search_store(&server.url_as(user)), &alias);
    let soon = || Instant::now() + WITHIN;
    for user in ["reader", "monitor", "elsewhere"] {
        let refused = switch(user).switch(None, "v1", soon()).await.unwrap_err();
        assert!(
            matches!(&refused, SwitchError::Failed(why) if why.reason == Reason::PermissionDenied),
            "{user}: {refused:?}"
        );
    }
    let leader = switch("leader");
    assert_eq!(leader.shown(soon()).await, Ok(None));
    assert_eq!(leader.switch(None, "v1", soon()).await, Ok(Switched::Now));
    assert_eq!(leader.switch(Some("v1"), "v2", soon()).await, Ok(Switched::Now));
    assert_eq!(leader.shown(soon()).await, Ok(Some("v2".to_owned())));
}
