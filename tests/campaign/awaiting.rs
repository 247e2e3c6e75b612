//! No fault: an application waits at the operator for what it wrote. The API server knows it by the token of its ServiceAccount, and the chart's role allows it.

use std::{net::SocketAddr, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, api::PostParams};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use serde_json::{Value, json};
use shop::read_your_writes::{AwaitError, Operator, Shown};
use test_cluster::free_address;

use crate::{
    api_proxy::Rules,
    bed::{Bed, PATIENCE, bed},
    shop::{NAME, Shop},
};

const ROLE: &str = "projectionist-await";
/// The host that the serving certificate is for.
const HOST: &str = "projectionist.system.svc";

/// Asks the operator as an application does. Returns the status and the body.
async fn ask(bed: &'static Bed, address: SocketAddr, ca: &Path, token: &str, path: &str) -> Result<(u16, Value)> {
    let mut curl = bed.cluster.command("curl");
    curl.args(["--silent", "--show-error", "--max-time", "60", "--write-out", "\n%{http_code}", "--cacert"])
        .arg(ca)
        .args(["--resolve", &format!("{HOST}:{}:127.0.0.1", address.port())])
        .arg(format!("-HAuthorization: Bearer {token}"))
        .arg(format!("https://{HOST}:{}{path}", address.port()));
    let output = tokio::task::spawn_blocking(move || curl.output()).await??;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, code) = text.rsplit_once('\n').with_context(|| format!("curl: {output:?}"))?;
    Ok((code.parse()?, serde_json::from_str(body).unwrap_or_default()))
}

#[test]
fn an_application_waits_by_its_own_token_where_its_role_allows_it() {
    let bed = bed();
    bed.play(async {
        let mut shop = Shop::open(bed, Rules::default()).await?;
        let files = tempfile::tempdir()?;
        let mut authority = CertificateParams::default();
        // Otherwise it is called as what it signs, which curl takes for signed by itself.
        authority.distinguished_name.push(DnType::CommonName, "authority");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
        let key = KeyPair::generate()?;
        // By the second name a client reaches it here that knows no other way to a host than DNS.
        let names = vec![HOST.to_owned(), "localhost".to_owned()];
        let certificate = CertificateParams::new(names)?.signed_by(&key, &authority)?;
        let ca = files.path().join("ca.crt");
        std::fs::write(&ca, authority.pem())?;
        let secret = serde_json::from_value(json!({
            "metadata": {"name": "serving"}, "type": "kubernetes.io/tls",
            "stringData": {"tls.crt": certificate.pem(), "tls.key": key.serialize_pem(), "ca.crt": authority.pem()},
        }))?;
        let secrets: Api<Secret> = Api::namespaced(shop.client.clone(), &shop.namespace);
        secrets.create(&PostParams::default(), &secret).await?;
        let address = free_address()?;
        shop.operator.kill().await?;
        shop.operator.serve_metrics_api_at(address);
        shop.operator.resume()?;

        // The role as the chart makes it, bound in this namespace.
        let manifests = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests/install.yaml"))?;
        let named = format!("name: {ROLE}\n");
        let role = manifests.split("\n---\n").find(|one| one.contains(&named)).context("the chart has no such role")?;
        bed.cluster.apply(role)?;
        let namespace = shop.namespace.clone();
        let kubectl = |arguments: &[&str]| bed.cluster.kubectl(&[arguments, &["-n", &namespace]].concat());
        for account in ["checkout", "stranger"] {
            kubectl(&["create", "serviceaccount", account])?;
        }
        let account = format!("--serviceaccount={namespace}:checkout");
        kubectl(&["create", "rolebinding", "checkout-awaits", &format!("--clusterrole={ROLE}"), &account])?;
        let token = |account: &str| kubectl(&["create", "token", account]).map(|token| token.trim().to_owned());
        let (checkout, stranger) = (token("checkout")?, token("stranger")?);

        shop.apply(&json!({})).await?;
        let position = shop.events.append("cart-1", "Counted", &json!({"n": 1})).await?;
        let path = |position: i64, timeout: &str| {
            format!("/v1/namespaces/{namespace}/projections/{NAME}/await?position={position}&timeout={timeout}")
        };
        // The operator reads the certificate, who may sign callers, and the Projection; what it has measured is then told.
        shop.until(PATIENCE, async |_| {
            let answer = ask(bed, address, &ca, &checkout, &path(position, "500ms")).await;
            Ok(match answer {
                Ok((504, body)) if body["details"]["causes"][0]["message"] == "0" => Ok(()),
                other => Err(format!("{other:?}")),
            })
        })
        .await?;
        let waiting = path(position, "10s");
        let waits = ask(bed, address, &ca, &checkout, &waiting);
        let commits = async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            shop.commit_all().await
        };
        let (answer, committed) = tokio::join!(waits, commits);
        committed?;
        let (code, body) = answer?;
        let told = body["position"].as_str();
        ensure!(code == 200 && told == Some(position.to_string().as_str()), "{code} {body}");

        let (code, body) = ask(bed, address, &ca, &stranger, &path(position, "1s")).await?;
        ensure!(code == 403 && body["reason"] == "Forbidden", "{code} {body}");
        ensure!(body["message"].as_str().is_some_and(|why| why.contains("projections/await")), "{body}");
        // The role opens nothing else.
        let elsewhere = format!("/v1/namespaces/default/projections/{NAME}/await?position=1");
        let metric = format!("/apis/external.metrics.k8s.io/v1beta1/namespaces/{namespace}/projection_pending_events");
        for path in [elsewhere, metric] {
            let (code, body) = ask(bed, address, &ca, &checkout, &path).await?;
            ensure!(code == 403, "{path}: {code} {body}");
        }
        let (code, _) = ask(bed, address, &ca, "nonsense", &path(position, "1s")).await?;
        ensure!(code == 401, "{code}");

        // The same by the client that examples/shop has for applications.
        let client = |name: &str, token: &str| {
            let file = files.path().join(name);
            std::fs::write(&file, token)?;
            let url = format!("https://localhost:{}", address.port());
            anyhow::Ok(Operator::new(url, shop::tls::trust(&authority.pem())?, namespace.clone(), file))
        };
        let (checkout, stranger) = (client("checkout", &checkout)?, client("stranger", &stranger)?);
        let second = Duration::from_secs(1);
        ensure!(checkout.shows(NAME, position, second).await? == Shown::Yes);
        let later = shop.events.append("cart-1", "Counted", &json!({"n": 2})).await?;
        ensure!(checkout.shows(NAME, later, second).await? == Shown::NotYet);
        shop.commit_all().await?;
        ensure!(checkout.shows(NAME, later, 10 * second).await? == Shown::Yes);
        let refused = stranger.shows(NAME, position, second).await;
        ensure!(matches!(refused, Err(AwaitError::Refused(status)) if status == 403), "{refused:?}");
        // The server is believed by its authority alone.
        let other = CertifiedIssuer::self_signed(CertificateParams::default(), KeyPair::generate()?)?.pem();
        let url = format!("https://localhost:{}", address.port());
        let other = Operator::new(url, shop::tls::trust(&other)?, namespace.clone(), files.path().join("checkout"));
        ensure!(matches!(other.shows(NAME, position, second).await, Err(AwaitError::Away(_))));
        Ok(())
    });
}
