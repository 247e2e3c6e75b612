//! One broker for all tests, and shorthands for what they ask of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, OnceLock},
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use projectionist::clients::kafka::{Client, Partition, Settings};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use test_cluster::{
    Kafka,
    kafka::{Certificates, Listener},
};
use tokio::time::Instant;

use crate::running::loopback;

/// Certificates for the broker, for a client, and the authorities that signed them.
pub struct Pki {
    pub broker: Certificates,
    pub broker_ca: String,
    pub client: (String, String),
}

fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

pub fn pki() -> &'static Pki {
    static PKI: OnceLock<Pki> = OnceLock::new();
    PKI.get_or_init(|| {
        let (brokers, clients) = (authority("brokers"), authority("clients"));
        let issue = |issuer: &CertifiedIssuer<'static, KeyPair>, names: &[&str], subject: &str| {
            let key = KeyPair::generate().unwrap();
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let mut params = CertificateParams::new(names).unwrap();
            params.distinguished_name = rcgen::DistinguishedName::new();
            params.distinguished_name.push(DnType::CommonName, subject);
            (params.signed_by(&key, issuer).unwrap().pem(), key.serialize_pem())
        };
        let (certificate, key) = issue(&brokers, &["127.0.0.1"], "broker");
        let client = issue(&clients, &["client.example"], "projectionist");
        let broker = Certificates { certificate, key, client_ca: clients.pem() };
        Pki { broker, broker_ca: brokers.pem(), client }
    })
}

pub fn broker() -> &'static Kafka {
    static BROKER: OnceLock<Result<Kafka, String>> = OnceLock::new();
    let broker = BROKER.get_or_init(|| Kafka::on_loopback(&pki().broker).map_err(|error| format!("{error:#}")));
    broker.as_ref().unwrap_or_else(|error| panic!("{error}"))
}

pub fn ask(command: &[&str]) -> String {
    broker().ask(command).unwrap()
}

/// A topic with so many partitions; `config` as `name=value,name=value`.
pub fn topic(name: &str, partitions: i32, config: &str) {
    ask(&["create", name, &partitions.to_string(), config]);
}

/// Appends records that are `age` old.
pub fn produce(topic: &str, partition: i32, count: u32, age: Duration) {
    ask(&["produce", topic, &partition.to_string(), &count.to_string(), &age.as_millis().to_string(), ""]);
}

pub fn commit(group: &str, topic: &str, partition: i32, offset: i64) {
    let until = std::time::Instant::now() + Duration::from_secs(60);
    // The group's coordinator learns of a new topic a little later.
    while let Err(error) = broker().ask(&["commit", group, topic, &partition.to_string(), &offset.to_string()]) {
        let unknown = error.to_string().contains("UnknownTopicOrPartition");
        assert!(unknown && std::time::Instant::now() < until, "{error}");
    }
}

pub fn settings(address: &impl ToString, more: &[(&str, &str)]) -> Settings {
    let address = address.to_string();
    let value = |key: &str| match key {
        "bootstrapServers" => Some(address.as_str()),
        _ => more.iter().find(|(name, _)| *name == key).map(|(_, text)| *text),
    };
    Settings::from_keys(value).unwrap()
}

pub fn client(listener: Listener, more: &[(&str, &str)]) -> Client {
    Client::new(settings(&broker().address(listener), more), loopback()).unwrap()
}

pub fn open() -> Client {
    client(Listener::Plaintext, &[])
}

pub fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

pub fn set(names: &[&str]) -> BTreeSet<Arc<str>> {
    names.iter().map(|name| Arc::from(*name)).collect()
}

pub fn partition(topic: &str, number: i32) -> Partition {
    (Arc::from(topic), number)
}

/// A token that nothing signs, for this user and for so many seconds from now on.
pub fn token(user: &str, seconds: i64) -> String {
    let part = |json: String| BASE64_URL_SAFE_NO_PAD.encode(json);
    let now = jiff::Timestamp::now().as_second();
    let claims = format!(r#"{{"sub":"{user}","iat":{},"exp":{}}}"#, now - 3_600, now + seconds);
    format!("{}.{}.", part(r#"{"alg":"none"}"#.to_owned()), part(claims))
}

/// What a group has committed for some partitions of one topic, by the client.
pub async fn committed(client: &mut Client, group: &str, topic: &str, partitions: i32) -> Vec<Option<i64>> {
    client.topics(&set(&[topic]), soon()).await.unwrap();
    let groups = set(&[group]);
    let asked: BTreeSet<_> = (0..partitions).map(|number| partition(topic, number)).collect();
    let wanted = BTreeMap::from([(Arc::from(group), asked)]);
    let mut found = loop {
        let coordinators = client.coordinators(&groups, soon()).await.unwrap();
        let coordinator = coordinators[group].clone();
        let Ok(id) = coordinator else {
            // The first group ever asked for makes the cluster create the topic that groups are kept in.
            assert!(coordinator.unwrap_err().code.unwrap().has_moved());
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        break client.committed(&wanted, &BTreeMap::from([(Arc::from(group), id)]), soon()).await;
    };
    found.remove(group).unwrap().unwrap().into_values().collect()
}
