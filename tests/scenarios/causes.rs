//! What only the cluster or the database can know becomes a condition and an Event that names the cause, and no secret.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use test_cluster::eventually;

use crate::shop::Shop;
use crate::stage::{PATIENCE, play, together};

const CANARY: &str = "canary-password-7731";

#[test]
fn each_failure_has_its_own_reason_in_condition_and_event() {
    let _turn = together();
    play(|stage| async move {
        let shop = Shop::open(stage, "causes").await?;
        shop.commit("any", 0).await?;
        let setup = "create table strange (position text primary key, recorded_at timestamptz)";
        shop.events.client().batch_execute(setup).await?;
        let role = format!("reader_{}", shop.database);
        shop.server.create_role(&role, CANARY).await?;
        let good = shop.server.url(&shop.database);
        let as_role = shop.server.url_as(&role, CANARY, &shop.database);
        let wrong = shop.server.url_as(&role, "wrong-canary-password-7731", &shop.database);
        let address = shop.server.address().to_string();
        for (name, url) in [
            ("as-role", as_role),
            ("wrong-password", wrong),
            ("refused", format!("postgres://user:{CANARY}@10.250.0.1:1/none")),
            ("no-host", format!("postgres://user:{CANARY}@no-such-host.example.invalid:5432/none")),
            ("no-database", format!("{good}_missing")),
            ("garbled", format!("postgres//user:{CANARY}@{address}")),
        ] {
            let literal = format!("--from-literal=url={url}");
            shop.stage.cluster.kubectl(&["create", "secret", "generic", name, "-n", &shop.namespace, &literal])?;
        }
        let secret = |name: &str| json!({"source": {"postgres": {"connection": {"secretRef": {"name": name}}}}});
        let cases: [(&str, Value, &str, &str); 12] = [
            ("no-secret", secret("missing"), "SecretNotFound", "missing"),
            (
                "no-key",
                json!({"source": {"postgres": {"connection": {"secretRef": {"key": "dsn"}}}}}),
                "SecretKeyMissing",
                "dsn",
            ),
            (
                "no-table",
                json!({"source": {"postgres": {"eventTable": {"table": "nothing"}}}}),
                "TableNotFound",
                "nothing",
            ),
            (
                "no-column",
                json!({"source": {"postgres": {"eventTable": {"position": "nowhere"}}}}),
                "ColumnNotFound",
                "nowhere",
            ),
            (
                "odd-column",
                json!({"source": {"postgres": {"eventTable": {"table": "strange"}}}}),
                "ColumnTypeUnsuitable",
                "position",
            ),
            (
                "no-checkpoints",
                json!({"checkpoint": {"readStore": {"table": "nochecks"}}}),
                "TableNotFound",
                "nochecks",
            ),
            ("forbidden", secret("as-role"), "PermissionDenied", "events"),
            ("wrong-password", secret("wrong-password"), "AuthenticationFailed", &role),
            ("refused", secret("refused"), "ConnectionRefused", "10.250.0.1"),
            ("no-host", secret("no-host"), "HostNotFound", "no-such-host"),
            ("no-database", secret("no-database"), "DatabaseNotFound", "_missing"),
            ("garbled", secret("garbled"), "ConnectionStringInvalid", "garbled"),
        ];
        for (name, change, _, _) in &cases {
            shop.apply(&shop.measured(name, &json!({"spec": change})))?;
        }
        for (name, _, reason, mentioned) in &cases {
            let message = shop.condition_is(name, "SourceReachable", "False", reason).await?;
            ensure!(message.contains(mentioned), "{name}: {message:?} does not mention {mentioned}");
            shop.condition_is(name, "Ready", "False", reason).await?;
            let what = format!("an Event tells {reason} of {name}");
            let event = eventually(PATIENCE, &what, || async {
                Ok::<_, anyhow::Error>(shop.events_about(name)?.remove(*reason))
            });
            ensure!(event.await?.contains(mentioned), "{name}'s Event does not mention {mentioned}");
        }
        no_canary(&shop)
    });
}

/// The password is in no status, no Event and no log line of the operator.
fn no_canary(shop: &Shop<'_>) -> Result<()> {
    let cluster = &shop.stage.cluster;
    let everything = [
        cluster.kubectl(&["get", "prj,events,deployments,configmaps", "-n", &shop.namespace, "-o", "yaml"])?,
        cluster.kubectl(&[
            "logs",
            "-n",
            crate::stage::SYSTEM,
            "-l",
            "app.kubernetes.io/name=projectionist",
            "--tail=-1",
        ])?,
    ];
    for text in everything {
        ensure!(!text.is_empty());
        if let Some(line) = text.lines().find(|line| line.contains(CANARY)) {
            anyhow::bail!("a password is in {line:?}");
        }
    }
    Ok(())
}
