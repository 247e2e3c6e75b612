//! Consumers of a list in Redis, by the client library of that name.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use anyhow::{Context, Result, bail};
use serde_json::json;
use test_cluster::{Redis, redis::Answer};

use crate::consumers::{Setting, Source};
use crate::secrets::CANARY;
use crate::shop::Shop;
use crate::side_by_side::{follows_the_lag, three};

/// A list, whose consumers move an event to another one while they are at work on it.
pub(crate) struct List {
    /// The server that holds both.
    server: Arc<Redis>,
    key: String,
    appended: AtomicUsize,
}

impl List {
    pub(crate) fn new(server: Arc<Redis>, key: &str) -> Self {
        Self { server, key: key.to_owned(), appended: AtomicUsize::new(0) }
    }

    /// The course, with a server that the operator and the workers are told of.
    pub(crate) async fn is_followed(
        &self,
        shop: &Shop<'_>,
        told: &[&Redis],
        rights: [&str; 2],
        environment: &[(&str, Setting<'_>)],
    ) -> Result<()> {
        shop.make_record().await?;
        let (password, busy) = (format!("{CANARY}-redis"), format!("{}:busy", self.key));
        for server in told {
            server.run(&format!("ACL SETUSER projectionist on >{password} ~{} ~{busy} {}", self.key, rights[0]))?;
            server.run(&format!("ACL SETUSER worker on >handles ~{}* {}", self.key, rights[1]))?;
        }
        let first = told.first().context("no server")?;
        shop.secret("orders-source", &[("url", &first.url_as("projectionist", &password))])?;
        shop.secret("wrong", &[("url", &first.url_as("projectionist", &format!("{CANARY}-wrong")))])?;
        shop.secret("workers-redis", &[("url", &first.url_as("worker", "handles"))])?;
        let mut all = vec![
            ("REDIS_URL", Setting::Secret("workers-redis", "url")),
            ("LIST", Setting::Value(&self.key)),
            ("PROCESSING_LIST", Setting::Value(&busy)),
        ];
        all.extend_from_slice(environment);
        let spec = |secret: &str| {
            json!({"redis": {
                "connection": {"secretRef": {"name": secret}},
                "lists": [{"key": self.key, "processingKey": busy}],
            }})
        };
        follows_the_lag(shop, self, &all, spec, &three()).await
    }
}

impl Source for List {
    async fn append(&self, count: usize) -> Result<()> {
        let before = self.appended.fetch_add(count, Ordering::Relaxed);
        let names: Vec<String> = (before..before + count).map(|number| number.to_string()).collect();
        let mut command = vec!["LPUSH", &self.key];
        command.extend(names.iter().map(String::as_str));
        self.server.run_all(&[&command]).map(drop)
    }

    async fn unfinished(&self) -> Result<i64> {
        let mut sum = 0;
        for key in [self.key.clone(), format!("{}:busy", self.key)] {
            match self.server.run(&format!("LLEN {key}"))? {
                Answer::Integer(length) => sum += length,
                other => bail!("LLEN {key}: {other:?}"),
            }
        }
        Ok(sum)
    }

    async fn names(&self) -> Result<BTreeSet<String>> {
        Ok((0..self.appended.load(Ordering::Relaxed)).map(|number| number.to_string()).collect())
    }
}
