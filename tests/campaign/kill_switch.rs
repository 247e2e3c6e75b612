//! No fault: the kill switch that examples/shop has for applications suspends and resumes Projections by label, with the rights that it says it needs.

use anyhow::{Context as _, Result, ensure};
use kube::{Client, config::KubeConfigOptions, config::Kubeconfig};
use projectionist::api::{Phase, Projection};
use serde_json::json;
use shop::kill_switch::{KillSwitch, Switched};

use crate::{
    api_proxy::Rules,
    bed::{Bed, PATIENCE, bed},
    shop::{NAME, Shop},
};

/// What a ServiceAccount's pod would have.
async fn client_of(bed: &Bed, namespace: &str, account: &str) -> Result<Client> {
    let token = bed.cluster.kubectl(&["create", "token", account, "-n", namespace])?;
    let mut config = Kubeconfig::read_from(bed.cluster.instance().kubeconfig())?;
    let user = config.auth_infos.first_mut().context("a kubeconfig without a user")?;
    user.auth_info = Some(serde_json::from_value(json!({"token": token.trim()}))?);
    let config = kube::Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

#[test]
fn the_kill_switch_suspends_those_with_the_label_and_releases_them() {
    let bed = bed();
    bed.play(async {
        let mut shop = Shop::open(bed, Rules::default()).await?;
        let namespace = shop.namespace.clone();
        let kubectl = |arguments: &[&str]| bed.cluster.kubectl(&[arguments, &["-n", &namespace]].concat());
        for account in ["kill-switch", "stranger"] {
            kubectl(&["create", "serviceaccount", account])?;
        }
        let resource = "--resource=projections.projectionist.dev";
        kubectl(&["create", "role", "kill-switch", "--verb=list,patch", resource])?;
        let account = format!("--serviceaccount={namespace}:kill-switch");
        kubectl(&["create", "rolebinding", "kill-switch", "--role=kill-switch", &account])?;

        let first = shop.apply(&json!({"metadata": {"labels": {"team": "orders"}}})).await?;
        for (name, team) in [("second", "orders"), ("third", "payments")] {
            let mut other = first.clone();
            other.metadata = serde_json::from_value(json!({"name": name, "labels": {"team": team}}))?;
            shop.projections().create(&kube::api::PostParams::default(), &other).await?;
        }
        let switch = KillSwitch::new(client_of(bed, &namespace, "kill-switch").await?, &namespace);
        let both = |mut switched: Switched| {
            switched.done.sort();
            ensure!(switched.failed.is_empty() && switched.done == [NAME, "second"], "{switched:?}");
            Ok(())
        };
        for suspend in [true, false] {
            both(if suspend { switch.throw("team=orders").await? } else { switch.release("team=orders").await? })?;
            shop.until(PATIENCE, async |shop| {
                for (name, expected) in [(NAME, suspend), ("second", suspend), ("third", false)] {
                    let Projection { spec, status, .. } = shop.projections().get(name).await?;
                    let phase = status.and_then(|status| status.phase);
                    if spec.suspend != expected || (phase == Some(Phase::Suspended)) != expected {
                        return Ok(Err(format!("{name} has suspend {} and is {phase:?}", spec.suspend)));
                    }
                }
                Ok(Ok(()))
            })
            .await?;
        }
        let stranger = KillSwitch::new(client_of(bed, &namespace, "stranger").await?, &namespace);
        let refused = stranger.throw("team=orders").await;
        ensure!(matches!(&refused, Err(kube::Error::Api(status)) if status.code == 403), "{refused:?}");
        Ok(())
    });
}
