//! What the operator writes to the API server while nothing happens, from the API server's own audit log.

use std::{collections::BTreeMap, fs, path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::fixtures::Fixtures;

const POLICY: &str = r#"apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - level: Metadata
    verbs: [create, update, patch, delete, deletecollection]
    userGroups: ["system:serviceaccounts:projectionist"]
  - level: None
"#;

/// Reviews are questions that the API takes as `create`; the Lease is how leadership works.
const NO_CHANGE: [&str; 3] = ["subjectaccessreviews", "tokenreviews", "leases"];

/// From the last change until its numbers have been written.
pub(crate) const SETTLE: Duration = Duration::from_secs(90);

/// The audit log of a cluster that is about to start.
pub(crate) struct Audit {
    policy: PathBuf,
    log: PathBuf,
}

impl Audit {
    pub(crate) fn prepare() -> Result<Self> {
        let directory = std::env::temp_dir().join(format!("projectionist-bench-{}", std::process::id()));
        fs::create_dir_all(&directory)?;
        let audit = Self { policy: directory.join("policy.yaml"), log: directory.join("audit.log") };
        fs::write(&audit.policy, POLICY)?;
        Ok(audit)
    }

    pub(crate) fn flags(&self) -> Vec<String> {
        vec![
            format!("--audit-policy-file={}", self.policy.display()),
            format!("--audit-log-path={}", self.log.display()),
        ]
    }

    /// A moment, for [`Audit::since`].
    pub(crate) fn mark(&self) -> Result<usize> {
        Ok(self.lines()?.len())
    }

    /// What the operator has written since a moment, by resource.
    pub(crate) fn since(&self, mark: usize) -> Result<String> {
        let mut counts: BTreeMap<String, u32> = BTreeMap::new();
        for line in &self.lines()?[mark..] {
            let event: Value = serde_json::from_str(line)?;
            let text = |part: &str| event["objectRef"][part].as_str();
            let subresource = text("subresource").map(|name| format!("/{name}")).unwrap_or_default();
            *counts.entry(format!("{}{subresource}", text("resource").unwrap_or("?"))).or_default() += 1;
        }
        let leases = counts.get("leases").copied().unwrap_or(0);
        counts.retain(|resource, _| !NO_CHANGE.contains(&resource.as_str()));
        Ok(format!("{} besides {leases} of the Lease: {counts:?}", counts.values().sum::<u32>()))
    }

    fn lines(&self) -> Result<Vec<String>> {
        let text = fs::read_to_string(&self.log).context("reading the audit log")?;
        Ok(text.lines().map(ToOwned::to_owned).collect())
    }
}

impl Drop for Audit {
    fn drop(&mut self) {
        if let Some(directory) = self.log.parent() {
            let _ = fs::remove_dir_all(directory);
        }
    }
}

/// Counts while nothing is appended: first with events that wait in every Projection, so that ages grow, then with none.
pub(crate) async fn at_rest(audit: &Audit, fixtures: &Fixtures<'_>, length: Duration) -> Result<()> {
    println!("\nwrites in {} s, by the API server's audit log", length.as_secs());
    println!("  while events wait and nothing moves: {}", count(audit, length).await?);
    fixtures.catch_up().await?;
    tokio::time::sleep(SETTLE).await;
    println!("  at rest: {} (goal: 0 besides the Lease)", count(audit, length).await?);
    Ok(())
}

async fn count(audit: &Audit, length: Duration) -> Result<String> {
    let before = audit.mark()?;
    tokio::time::sleep(length).await;
    audit.since(before)
}
