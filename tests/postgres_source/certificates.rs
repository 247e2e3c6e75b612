//! Which servers are believed in which `sslmode`: the same as psql believes, with certificates as people make them.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use projectionist::clients::postgres::{ConnectionSettings, connect};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};
use test_cluster::Postgres;
use tokio_postgres::Client;

/// A server's certificate with its key, and the authority that is given to clients.
struct Case {
    name: &'static str,
    certificate: String,
    key: String,
    ca: String,
}

fn openssl(directory: &Path, arguments: &str) {
    let done = Command::new("openssl").args(arguments.split_whitespace()).current_dir(directory).output().unwrap();
    assert!(done.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&done.stderr));
}

/// What `openssl` makes by the commands that are found in instructions.
fn by_openssl(directory: &Path) -> Vec<Case> {
    let read = |name: &str| std::fs::read_to_string(directory.join(name)).unwrap();
    let authority = |kind: &str| {
        openssl(directory, &format!("req -x509 -nodes -days 30 -subj /CN=authority {kind} -keyout ca.key -out ca.crt"));
    };
    let request = |kind: &str| {
        openssl(directory, &format!("req -nodes -subj /CN=localhost {kind} -keyout server.key -out server.csr"));
    };
    let sign = |extensions: &str| {
        openssl(
            directory,
            &format!(
                "x509 -req -days 30 -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out server.crt {extensions}"
            ),
        );
    };
    let case = |name, ca: &str| Case { name, certificate: read("server.crt"), key: read("server.key"), ca: read(ca) };
    std::fs::write(directory.join("san"), "subjectAltName=DNS:localhost,IP:127.0.0.1\n").unwrap();
    std::fs::write(directory.join("other"), "subjectAltName=DNS:elsewhere.example\n").unwrap();
    std::fs::write(directory.join("plain"), "basicConstraints=CA:FALSE\n").unwrap();
    std::fs::write(directory.join("client"), "extendedKeyUsage=clientAuth\nsubjectAltName=DNS:localhost\n").unwrap();
    std::fs::write(directory.join("ca"), "basicConstraints=critical,CA:TRUE\nsubjectAltName=DNS:localhost\n").unwrap();
    let (rsa, p521) = ("-newkey rsa:2048", "-newkey ec -pkeyopt ec_paramgen_curve:secp521r1");
    authority(rsa);
    request(rsa);
    let mut cases = Vec::new();
    for (name, extensions) in [
        ("version 1", ""),
        ("with names", "-extfile san"),
        ("common name alone", "-extfile plain"),
        ("another's names", "-extfile other"),
        ("for clients", "-extfile client"),
        ("an authority's own", "-extfile ca"),
    ] {
        sign(extensions);
        cases.push(case(name, "ca.crt"));
    }
    // Given itself, though another has signed it.
    cases.push(case("given without its authority", "server.crt"));
    request(p521);
    sign("-extfile san -sha256");
    cases.push(case("P-521 below RSA", "ca.crt"));
    authority(p521);
    request(p521);
    sign("-extfile san -sha512");
    cases.push(case("P-521", "ca.crt"));
    sign("-sha384");
    cases.push(case("P-521, version 1", "ca.crt"));
    for (name, extra) in
        [("signed by itself", "-addext subjectAltName=DNS:localhost"), ("signed by itself, common name alone", "")]
    {
        openssl(
            directory,
            &format!("req -x509 -nodes -days 30 -subj /CN=localhost {rsa} {extra} -keyout server.key -out server.crt"),
        );
        cases.push(case(name, "server.crt"));
    }
    cases
}

fn authority(expired: bool) -> CertifiedIssuer<'static, KeyPair> {
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    if expired {
        authority.not_after = date_time_ymd(2020, 1, 1);
    }
    CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap()
}

fn out_of_date() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, authority_expired, expired) in [("expired", false, true), ("of an expired authority", true, false)] {
        let (authority, key) = (authority(authority_expired), KeyPair::generate().unwrap());
        let mut leaf = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        if expired {
            leaf.not_after = date_time_ymd(2020, 1, 1);
        }
        let certificate = leaf.signed_by(&key, &authority).unwrap().pem();
        cases.push(Case { name, certificate, key: key.serialize_pem(), ca: authority.pem() });
    }
    cases
}

/// Whether there is a connection, and if so whether it is encrypted, as psql sees it.
fn psql(pairs: &str) -> Result<bool, String> {
    let output = Command::new("psql")
        .args(["--no-psqlrc", "--tuples-only", "--no-align", "--command"])
        .args(["select ssl from pg_stat_ssl where pid = pg_backend_pid()", pairs])
        // Where it would look for authorities and certificates.
        .env("HOME", "/nonexistent")
        .output()
        .unwrap();
    match (output.status.success(), String::from_utf8_lossy(&output.stdout).trim()) {
        (true, answer) => Ok(answer == "t"),
        (false, _) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
    }
}

/// The same, as we see it.
async fn ours(settings: &ConnectionSettings) -> Result<bool, String> {
    let session = connect(settings, "test", Duration::from_secs(60)).await.map_err(|error| error.to_string())?;
    let query = "select ssl from pg_stat_ssl where pid = pg_backend_pid()";
    Ok(session.client.query_one(query, &[]).await.unwrap().get(0))
}

const MODES: [&str; 6] = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"];

struct Table {
    wrong: Vec<String>,
    seen: usize,
}

impl Table {
    async fn compare(
        &mut self,
        what: &str,
        server: &Postgres,
        host: &str,
        mode: Option<&str>,
        ca: Option<(&Path, &str)>,
    ) {
        let address = format!(
            "host={host} port={} user=postgres password=projectionist dbname=postgres",
            server.address().port()
        );
        let pairs = mode.map_or(address.clone(), |mode| format!("{address} sslmode={mode}"));
        let (theirs, settings) = match ca {
            Some((path, pem)) => {
                let theirs = psql(&format!("{pairs} sslrootcert={}", path.display()));
                (theirs, ConnectionSettings::parse(&pairs).unwrap().with_ca(pem.as_bytes()))
            }
            None => (psql(&pairs), ConnectionSettings::parse(&pairs).unwrap()),
        };
        let ours = ours(&settings).await;
        self.seen += 1;
        if theirs.as_ref().ok() != ours.as_ref().ok() {
            self.wrong.push(format!("{what}, {host}, sslmode {mode:?}: psql {theirs:?}, ours {ours:?}"));
        }
    }
}

async fn as_superuser(server: &Postgres) -> Client {
    server.connect("postgres").await.unwrap()
}

/// Writes a file where the server keeps its own, by the server.
pub async fn write(client: &Client, setting: &str, file: &str, text: &str) -> PathBuf {
    let row = client.query_one("select current_setting('data_directory')", &[]).await.unwrap();
    let path = Path::new(row.get::<_, &str>(0)).join(file);
    let lines = text.lines().collect::<Vec<_>>().join("\n");
    let copy = format!("copy (select unnest(string_to_array('{lines}', E'\\n'))) to '{}'", path.display());
    client.batch_execute(&copy).await.unwrap();
    if !setting.is_empty() {
        client.batch_execute(&format!("alter system set {setting} = '{}'", path.display())).await.unwrap();
    }
    path
}

#[tokio::test]
async fn certificates_are_believed_where_psql_believes_them() {
    let directory = tempfile::tempdir().unwrap();
    let server = Postgres::on_loopback().unwrap();
    let mut table = Table { wrong: Vec::new(), seen: 0 };
    for mode in MODES {
        table.compare("no TLS", &server, "localhost", Some(mode), None).await;
    }
    table.compare("no TLS", &server, "localhost", None, None).await;
    let mut cases = by_openssl(directory.path());
    cases.extend(out_of_date());
    for Case { name, certificate, key, ca } in cases {
        server.offer_tls(&certificate, &key).unwrap();
        server.stop().unwrap();
        server.start().unwrap();
        let given = directory.path().join("given.crt");
        std::fs::write(&given, &ca).unwrap();
        table.compare(name, &server, "localhost", None, None).await;
        table.compare(name, &server, "localhost", Some("require"), None).await;
        for host in ["localhost", "127.0.0.1"] {
            for mode in ["require", "verify-ca", "verify-full"] {
                table.compare(name, &server, host, Some(mode), Some((&given, &ca))).await;
            }
        }
    }
    assert!(table.seen > 100, "{}", table.seen);
    assert!(table.wrong.is_empty(), "{} of {} differ:\n{}", table.wrong.len(), table.seen, table.wrong.join("\n"));
}

#[tokio::test]
async fn rules_of_the_server_for_or_against_tls_end_as_with_psql() {
    let server = Postgres::on_loopback().unwrap();
    let (authority, key) = (authority(false), KeyPair::generate().unwrap());
    let certificate =
        CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, &authority).unwrap();
    server.offer_tls(&certificate.pem(), &key.serialize_pem()).unwrap();
    server.stop().unwrap();
    server.start().unwrap();
    let mut table = Table { wrong: Vec::new(), seen: 0 };
    for rule in ["host", "hostssl", "hostnossl"] {
        // Over a connection that every rule allows.
        let anyway = ConnectionSettings::parse(&server.url("postgres")).unwrap();
        let session = connect(&anyway, "test", Duration::from_secs(60)).await.unwrap();
        write(&session.client, "", "pg_hba.conf", &format!("{rule} all all all scram-sha-256")).await;
        server.stop().unwrap();
        server.start().unwrap();
        for mode in [None, Some("disable"), Some("allow"), Some("prefer"), Some("require")] {
            table.compare(rule, &server, "localhost", mode, None).await;
        }
    }
    assert!(table.wrong.is_empty(), "{}", table.wrong.join("\n"));
}

#[tokio::test]
async fn a_client_certificate_is_shown_to_a_server_that_asks_for_one() {
    let server = Postgres::on_loopback().unwrap();
    let (ours_is_good, key) = (authority(false), KeyPair::generate().unwrap());
    let certificate =
        CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, &ours_is_good).unwrap();
    server.offer_tls(&certificate.pem(), &key.serialize_pem()).unwrap();
    let client = as_superuser(&server).await;
    write(&client, "ssl_ca_file", "clients.crt", &ours_is_good.pem()).await;
    write(&client, "", "pg_hba.conf", "hostssl all all all cert").await;
    server.stop().unwrap();
    server.start().unwrap();
    let url = format!("postgres://postgres@localhost:{}/postgres?sslmode=verify-full", server.address().port());
    let settings = ConnectionSettings::parse(&url).unwrap().with_ca(ours_is_good.pem().as_bytes());
    let without = ours(&settings).await.unwrap_err();
    assert!(without.contains("certificate"), "{without}");
    let signed = |by: &CertifiedIssuer<'static, KeyPair>, name: &str| {
        let (key, mut params) = (KeyPair::generate().unwrap(), CertificateParams::default());
        params.distinguished_name.push(DnType::CommonName, name);
        (params.signed_by(&key, by).unwrap().pem(), key.serialize_pem())
    };
    let me = |name: &str| signed(&ours_is_good, name);
    let (certificate, key) = me("postgres");
    assert_eq!(ours(&settings.clone().with_client_certificate(certificate.as_bytes(), key.as_bytes())).await, Ok(true));
    let (other, other_key) = me("another");
    let wrong =
        ours(&settings.clone().with_client_certificate(other.as_bytes(), other_key.as_bytes())).await.unwrap_err();
    assert!(wrong.contains("certificate authentication failed"), "{wrong}");
    let (foreign, foreign_key) = signed(&authority(false), "postgres");
    let foreign = settings.clone().with_client_certificate(foreign.as_bytes(), foreign_key.as_bytes());
    let refused = ours(&foreign).await.unwrap_err();
    assert!(refused.contains("TLS failed") && refused.contains("clientCertificateSecretRef"), "{refused}");
    let mixed =
        ours(&settings.with_client_certificate(certificate.as_bytes(), other_key.as_bytes())).await.unwrap_err();
    assert!(mixed.contains("tls.crt, tls.key"), "{mixed}");
}
