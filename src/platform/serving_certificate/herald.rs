//! Publishes Events about APIServices: the leader reports those that do not lead to this operator, and each replica reports those that it took over.
//!
//! The Events are about the operator's own Service, to which the APIServices should lead. An APIService is in no namespace, and Events about it would
//! need permissions in `default`.

use k8s_openapi::{
    api::core::v1::{ObjectReference, Service},
    kube_aggregator::pkg::apis::apiregistration::v1::APIService,
};
use kube::{
    Api, Client, Resource as _,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tokio::sync::{mpsc, watch};

use super::{CertificateSettings, Taken};
use crate::{api::Reason, names, platform::errors::in_words, platform::registration::Unserved};

/// Until `shutdown`, publishes an Event for each change of `unserved` while `leading`, and for each of `taken`. `identity` names this replica in the
/// Events.
pub async fn tell(
    client: Client,
    settings: CertificateSettings,
    identity: String,
    mut unserved: watch::Receiver<Option<Unserved>>,
    mut leading: watch::Receiver<bool>,
    mut taken: mpsc::UnboundedReceiver<Taken>,
    shutdown: impl Future<Output = ()>,
) {
    let reporter = Reporter { controller: names::FIELD_MANAGER.to_owned(), instance: Some(identity) };
    let recorder = Recorder::new(client.clone(), reporter);
    let mut told = Unserved::new();
    tokio::pin!(shutdown);
    loop {
        let now = unserved.borrow_and_update().clone().filter(|_| *leading.borrow_and_update());
        // APIServices that were switched off on purpose are not reported.
        let now: Option<Unserved> =
            now.map(|now| now.into_iter().filter(|(name, _)| settings.api_services.contains(name)).collect());
        // The next leader reports every problem itself, so a replica that stops leading forgets what it has reported.
        let news = now.as_ref().map(|now| news(&told, now)).unwrap_or_default();
        told = now.unwrap_or_default();
        if !news.is_empty()
            && let Err(error) = publish(&client, &settings, &recorder, news).await
        {
            tracing::warn!("an Event about an APIService could not be published: {}", in_words(&error));
        }
        tokio::select! {
            () = &mut shutdown => return,
            changed = unserved.changed() => if changed.is_err() { return },
            Some(Taken { name, note }) = taken.recv() => {
                let news = vec![(name, Reason::ApiServiceTakenOver, note)];
                if let Err(error) = publish(&client, &settings, &recorder, news).await {
                    tracing::warn!("an Event about an APIService could not be published: {}", in_words(&error));
                }
            }
            changed = leading.changed() => if changed.is_err() { return },
        }
    }
}

/// The name of an APIService, the reason of the Event, and its message.
type News = (String, Reason, String);

fn news(told: &Unserved, now: &Unserved) -> Vec<News> {
    let bad = now.iter().filter(|(name, complaint)| told.get(*name) != Some(complaint));
    let good = told.keys().filter(|name| !now.contains_key(*name));
    let bad = bad.map(|(name, complaint)| (name.clone(), Reason::MetricsNotServed, complaint.clone()));
    let good =
        good.map(|name| (name.clone(), Reason::MetricsServed, format!("the APIService {name} leads here again")));
    bad.chain(good).collect()
}

async fn publish(
    client: &Client,
    settings: &CertificateSettings,
    recorder: &Recorder,
    news: Vec<News>,
) -> kube::Result<()> {
    let services: Api<Service> = Api::namespaced(client.clone(), &settings.namespace);
    let service = services.get(&settings.service).await?.object_ref(&());
    for (name, reason, note) in news {
        let event = Event {
            type_: if reason == Reason::MetricsNotServed { EventType::Warning } else { EventType::Normal },
            reason: reason.as_str().to_owned(),
            note: Some(note),
            // Tells apart Events with the same reason.
            action: format!("Observe:{name}"),
            secondary: Some(ObjectReference {
                api_version: Some(APIService::api_version(&()).into_owned()),
                kind: Some(APIService::kind(&()).into_owned()),
                name: Some(name),
                ..ObjectReference::default()
            }),
        };
        recorder.publish(&event, &service).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unserved(all: &[(&str, &str)]) -> Unserved {
        all.iter().map(|(name, complaint)| ((*name).to_owned(), (*complaint).to_owned())).collect()
    }

    #[test]
    fn each_change_is_told_once_and_so_is_its_end() {
        let told = |before: &[(&str, &str)], now: &[(&str, &str)]| -> Vec<(String, Reason)> {
            news(&unserved(before), &unserved(now)).into_iter().map(|(name, reason, _)| (name, reason)).collect()
        };
        assert!(told(&[], &[]).is_empty());
        assert_eq!(told(&[], &[("a", "keda")]), [("a".to_owned(), Reason::MetricsNotServed)]);
        assert!(told(&[("a", "keda")], &[("a", "keda")]).is_empty());
        assert_eq!(told(&[("a", "keda")], &[("a", "other")]), [("a".to_owned(), Reason::MetricsNotServed)]);
        assert_eq!(told(&[("a", "keda"), ("b", "keda")], &[("b", "keda")]), [("a".to_owned(), Reason::MetricsServed)]);
    }
}
