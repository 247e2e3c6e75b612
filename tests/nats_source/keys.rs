//! Users with keys of their own: static nkeys, and credentials files with JWTs as `nsc` writes them.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use data_encoding::BASE32_NOPAD;
use projectionist::{api::Reason, clients::nats::ConnectionSettings, measure::MeasureError, sources::nats::NatsProbe};
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde_json::{Value, json};
use test_cluster::Nats;

use crate::harness::{ask, durable, exactly, jetstream, publish, stream};
use crate::sampler::loopback;

const OPERATOR: u8 = 14 << 3;
const ACCOUNT: u8 = 0;
const USER: u8 = 20 << 3;

/// A key with the texts by which NATS knows it.
struct Key {
    pair: Ed25519KeyPair,
    seed: String,
    public: String,
}

impl Key {
    fn new(kind: u8) -> Self {
        let secret: [u8; 32] = rand::random();
        let pair = Ed25519KeyPair::from_seed_unchecked(&secret).unwrap();
        let seed = written(&[&[18 << 3 | kind >> 5, kind << 3], secret.as_slice()].concat());
        let public = written(&[&[kind], pair.public_key().as_ref()].concat());
        Self { pair, seed, public }
    }

    /// Claims about the holder of another key, signed by this one.
    fn jwt(&self, subject: &str, claims: &Value, expires: Option<i64>) -> String {
        let encoded = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
        let now = jiff::Timestamp::now().as_second();
        let mut payload =
            json!({ "jti": "test", "iat": now, "iss": self.public, "sub": subject, "name": "test", "nats": claims });
        if let Some(expires) = expires {
            payload["exp"] = json!(now + expires);
        }
        let text = format!("{}.{}", encoded(&json!({ "typ": "JWT", "alg": "ed25519-nkey" })), encoded(&payload));
        let signature = BASE64_URL_SAFE_NO_PAD.encode(self.pair.sign(text.as_bytes()));
        format!("{text}.{signature}")
    }
}

/// Bytes with their checksum (CRC-16/XMODEM), in base32.
fn written(bytes: &[u8]) -> String {
    let mut checksum = 0_u16;
    for byte in bytes {
        checksum ^= u16::from(*byte) << 8;
        for _ in 0..8 {
            checksum = if checksum & 0x8000 == 0 { checksum << 1 } else { checksum << 1 ^ 0x1021 };
        }
    }
    BASE32_NOPAD.encode(&[bytes, &checksum.to_le_bytes()].concat())
}

fn settings(own: &Nats, key: &str, value: &str) -> Result<ConnectionSettings, MeasureError> {
    let url = own.url();
    ConnectionSettings::from_keys(|name| match name {
        "url" => Some(url.as_str()),
        name if name == key => Some(value),
        _ => None,
    })
}

fn probe(own: &Nats, key: &str, value: &str) -> NatsProbe {
    NatsProbe::new(settings(own, key, value).unwrap(), loopback(), std::time::Instant::now())
}

#[tokio::test]
async fn a_user_with_an_nkey_signs_the_challenge_and_its_rights_are_those_of_the_page() {
    let (known, stranger) = (Key::new(USER), Key::new(USER));
    let own = Nats::with(&format!(
        "jetstream: {{store_dir: {{root}}/jetstream}}\nauthorization: {{users: [\n  {{user: admin, password: admin}}\n  {{nkey: {}, permissions: {{publish: [\"$JS.API.CONSUMER.INFO.orders.list\", \"$JS.API.STREAM.MSG.GET.orders\"], subscribe: [\"_INBOX.projectionist.>\"]}}}}\n]}}",
        known.public
    ))
    .unwrap();
    let context = jetstream(&own.url_as("admin", "admin")).await;
    stream(&context, "orders").await.create_consumer(durable("list")).await.unwrap();
    publish(&context, "orders.made", 2).await;
    let mut allowed = probe(&own, "nkey", &known.seed);
    let measured = ask(&mut allowed, &["orders/list"]).await.unwrap();
    assert_eq!(measured.pending, exactly(2));
    assert!(measured.staleness.is_some());
    let refused = ask(&mut probe(&own, "nkey", &stranger.seed), &["orders/list"]).await.unwrap_err();
    assert_eq!(refused.reason, Reason::AuthenticationFailed, "{}", refused.message);
    assert!(
        refused.message.contains(&format!("as {}", stranger.public)),
        "the public key is shown: {}",
        refused.message
    );
    assert!(!refused.message.contains(&stranger.seed), "{}", refused.message);
    let (one, other) = (settings(&own, "nkey", &known.seed).unwrap(), settings(&own, "nkey", &stranger.seed).unwrap());
    assert_ne!(one.identity(), other.identity(), "a rotated key is another connection");
    assert!(!format!("{one:?}").contains(&known.seed));
    let account = settings(&own, "nkey", &Key::new(ACCOUNT).seed).unwrap_err();
    assert!(account.message.contains("seed of an account"), "{}", account.message);
}

/// A credentials file as `nsc` writes it.
fn credentials(jwt: &str, seed: &str) -> String {
    format!(
        "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n************************* IMPORTANT *************************\nNKEY Seed printed below can be used to sign and prove identity.\nNKEYs are sensitive and should be treated as secrets.\n\n-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n\n*************************************************************\n"
    )
}

#[tokio::test]
async fn a_credentials_file_logs_in_where_the_server_knows_accounts_alone() {
    let (operator, system, shop, stranger) =
        (Key::new(OPERATOR), Key::new(ACCOUNT), Key::new(ACCOUNT), Key::new(ACCOUNT));
    let account = |key: &Key| {
        let claims = json!({
            "type": "account", "version": 2, "default_permissions": {"pub": {}, "sub": {}},
            "limits": {"subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": -1,
                "mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1},
        });
        operator.jwt(&key.public, &claims, None)
    };
    let of_operator = operator.jwt(&operator.public, &json!({"type": "operator", "version": 2}), None);
    let mut of_system = json!({
        "type": "account", "version": 2, "default_permissions": {"pub": {}, "sub": {}},
        "limits": {"subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": -1},
    });
    of_system["description"] = json!("system");
    let own = Nats::with(&format!(
        "jetstream: {{store_dir: {{root}}/jetstream}}\noperator: {of_operator}\nsystem_account: {}\nresolver: MEMORY\nresolver_preload: {{\n  {}: {}\n  {}: {}\n}}",
        system.public,
        system.public,
        operator.jwt(&system.public, &of_system, None),
        shop.public,
        account(&shop),
    ))
    .unwrap();
    let claims = json!({"type": "user", "version": 2, "pub": {}, "sub": {}, "subs": -1, "data": -1, "payload": -1});
    let user = Key::new(USER);
    let good = credentials(&shop.jwt(&user.public, &claims, None), &user.seed);
    let answered = ask(&mut probe(&own, "creds", &good), &["orders/list"]).await.unwrap_err();
    assert_eq!(answered.reason, Reason::StreamNotFound, "the account's JetStream answers: {}", answered.message);
    for (what, file) in [
        ("of another account", credentials(&stranger.jwt(&user.public, &claims, None), &user.seed)),
        ("another's seed", credentials(&shop.jwt(&user.public, &claims, None), &Key::new(USER).seed)),
        ("expired", credentials(&shop.jwt(&user.public, &claims, Some(-60)), &user.seed)),
    ] {
        let refused = ask(&mut probe(&own, "creds", &file), &["orders/list"]).await.unwrap_err();
        assert_eq!(refused.reason, Reason::AuthenticationFailed, "{what}: {}", refused.message);
        assert!(
            !refused.message.contains(&user.seed) && !refused.message.contains("eyJ"),
            "{what}: {}",
            refused.message
        );
    }
    let unsigned = Nats::on_loopback().unwrap();
    let none = ask(&mut probe(&unsigned, "creds", &good), &["orders/list"]).await.unwrap_err();
    assert_eq!(none.reason, Reason::AuthenticationFailed, "{}", none.message);
    assert!(none.message.contains("asks for no signature"), "{}", none.message);
}
