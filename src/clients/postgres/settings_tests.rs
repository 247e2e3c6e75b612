use std::collections::BTreeMap;

use super::*;

const SECRET: &str = "hunter2";

#[test]
fn reads_each_notation_and_shows_no_password() {
    for text in [
        "postgres://shop:hunter2@db.example:6000/events?sslmode=verify-full&application_name=x",
        "postgresql://shop:hunter2@db.example:6000/events?sslmode=verify-full",
        "  \"postgresql://shop:hunter2@db.example:6000/events?sslmode=verify-full\"\n",
        "'postgresql://shop:hunter2@db.example:6000/events?sslmode=verify-full&schema=public'",
        "jdbc:postgresql://db.example:6000/events?user=shop&password=hunter2&ssl=true",
        "host=db.example port=6000 user=shop password='hunter2' dbname=events sslmode=verify-full",
        "host = db.example  port = 6000 user=shop password=hunter2 dbname=events sslmode = 'verify-full'",
    ] {
        let settings = ConnectionSettings::parse(text).unwrap();
        assert_eq!(settings.to_string(), "database events at db.example:6000 as shop");
        assert_eq!(settings.config.get_password(), Some(SECRET.as_bytes()), "{text}");
        assert_eq!(settings.ssl_mode, SslMode::VerifyFull, "{text}");
        for shown in [format!("{settings:?}"), format!("{:?}", settings.identity())] {
            assert!(!shown.contains(SECRET), "{shown}");
        }
    }
}

#[test]
fn what_libpq_takes_is_taken() {
    for text in [
        "postgres://shop:hunter2@db/events?target_session_attrs=primary",
        "postgres://shop:hunter2@db/events?target_session_attrs=read-write&connect_timeout=10",
        "postgres://shop:hunter2@db/events?gssencmode=disable&channel_binding=prefer",
        "postgres://shop:hunter2@db/events?sslmode=verify-full&sslrootcert=system&sslsni=1",
        "postgres://shop:hunter2@db/events?sslmode=allow&keepalives=1&keepalives_idle=30&keepalives_interval=5&keepalives_count=3",
        "postgres://shop:hunter2@a:5433,b,[::1]:5434/events?load_balance_hosts=random",
        "postgres://shop:p?#hunter2@db/events",
        "postgres://shop:hunter2@db/events?pgbouncer=true&connection_limit=5&statement_cache_size=0",
        "postgresql:///events?host=db&user=shop&password=hunter2",
        "host=a,b port=5433,5434 user=shop password=p\\ hunter2",
        "host=db hostaddr=10.0.0.1 user=shop client_encoding=utf8",
        "jdbc:postgresql://a:1,b:2/events?user=shop&password=hunter2&targetServerType=primary&currentSchema=public",
    ] {
        if let Err(error) = ConnectionSettings::parse(text) {
            panic!("{text}: {error}");
        }
    }
    let several = ConnectionSettings::parse("postgres://shop@a:5433,b,[::1]:5434/events").unwrap();
    let hosts: Vec<String> = several.hosts.iter().map(|(host, _, port)| host_and_port(host, *port)).collect();
    assert_eq!(hosts, ["a:5433", "b:5432", "[::1]:5434"]);
}

#[test]
fn each_parameter_that_cannot_be_honoured_is_refused_by_its_name_and_nothing_else_is_repeated() {
    for (text, named) in [
        ("postgres://shop:hunter2@db/events?sslrootcert=/etc/hunter2", "sslrootcert: names a file"),
        ("postgres://shop:hunter2@db/events?sslcert=/etc/hunter2", "clientCertificateSecretRef"),
        ("postgres://shop:hunter2@db/events?sslmode=hunter2", "sslmode: must be"),
        ("postgres://shop:hunter2@db/events?schema=hunter2", "schema: name the schema"),
        ("postgres://shop:hunter2@db/events?target_session_attrs=standby", "target_session_attrs: a standby"),
        ("postgres://shop:hunter2@db/events?target_session_attrs=hunter2", "target_session_attrs: must be"),
        ("postgres://shop:hunter2@db/events?gssencmode=require", "gssencmode: encryption by Kerberos"),
        (
            "postgres://shop:hunter2@db/events?sslmode=disable&channel_binding=require",
            "channel_binding=require needs TLS",
        ),
        ("postgres://shop:hunter2@db/events?sslnegotiation=direct", "sslnegotiation=direct needs"),
        ("postgres://shop:hunter2@db/events?passfile=/hunter2", "passfile: names a file"),
        ("postgres://shop:hunter2@db/events?keepalives_idle=hunter2", "keepalives_idle: must be a whole number"),
        ("host=db user=shop service=hunter2", "service: names an entry"),
        ("host=/var/run/hunter2 user=shop", "host: must be a name or an address"),
        ("postgres://shop:hunter2@/events?host=/var/run/hunter2", "host: must be a name or an address"),
        ("postgres://shop:hunter2@db/events?hunter2=1", "a parameter that is not known"),
        ("mysql://shop:hunter2@db/events", "something else than PostgreSQL (mysql)"),
        ("jdbc:postgresql:hunter2", "it names no host"),
        ("postgres://db/events", "it names no user"),
        ("postgres://shop:hunter2@/events", "it names no host"),
        ("postgres://shop:hunter2@db:x/events", "port: must be a number"),
        ("postgres://shop:p@hunter2@db/events", "percent-encode an @"),
        ("postgres://shop:p/hunter2@db/events", "percent-encode a /"),
        ("postgres://shop:hunter2%zz@db/events", "a % is not followed by two hexadecimal digits"),
        ("host=db user=shop password=two hunter2", "host=… user=…"),
        ("host=db user=shop password=two hunter2 dbname=x", "put a value that holds blanks into single quotes"),
        ("host=db user=shop password='hunter2", "a quoted value has no end"),
        ("hunter2", "write it as postgres://"),
        ("", "it is empty"),
        (" '' ", "it is empty"),
    ] {
        let error = ConnectionSettings::parse(text).unwrap_err();
        assert_eq!(error.reason(), crate::api::Reason::ConnectionStringInvalid, "{text}");
        assert!(error.to_string().contains(named), "{text}: {error}");
        assert!(!format!("{error} {error:?}").contains(SECRET), "{error}");
    }
}

#[test]
fn percent_encoding_is_advised_only_where_it_is_the_cause() {
    for text in [
        "postgres://shop:hunter2@db/events?sslmode=maybe",
        "postgres://db/events",
        "mysql://db/events",
        "host=db user=a port=99999x",
        "host='d b' user=a",
        "host=db user=a colour=blue",
        "host=db user=a password=x://y port=1z",
    ] {
        let error = ConnectionSettings::parse(text).unwrap_err().to_string();
        assert!(!error.contains("percent-encode"), "{text}: {error}");
    }
    for text in [
        "postgres://shop:12x/34?56@db/events",
        " 'postgres://shop:hunter2@db:5432a/events'",
        "jdbc:postgresql://d%20b/events?user=shop",
        "postgres://shop@db/events?password=a&b",
    ] {
        let error = ConnectionSettings::parse(text).unwrap_err().to_string();
        assert!(error.contains("percent-encode"), "{text}: {error}");
    }
    for keys in [
        [("host", "db"), ("port", "5432a"), ("username", "shop")],
        [("host", "d b"), ("port", "5432"), ("username", "shop")],
    ] {
        let error = of_keys(&keys).unwrap_err().to_string();
        assert!(!error.contains("percent-encode"), "{keys:?}: {error}");
    }
}

#[test]
fn an_unknown_parameter_is_named_unless_it_may_be_a_part_of_a_password() {
    for (text, named) in [
        ("postgres://shop@db/events?ssl_mode=require", "ssl_mode: is a parameter that is not known"),
        ("host=db user=shop sslmod=require", "sslmod: is a parameter that is not known"),
        ("postgres://shop@db/events?password=a&hunter2=x", "it has a parameter that is not known"),
        ("postgres://shop@db/events?password=a&Hunter=x", "it has a parameter that is not known"),
        ("postgres://shop@db/events?password=a&hunter", "it has a parameter that is not known"),
        ("postgres://shop@db/events?=hunter", "it has a parameter that is not known"),
    ] {
        let error = ConnectionSettings::parse(text).unwrap_err().to_string();
        assert!(error.contains(named) && !error.to_ascii_lowercase().contains("hunter"), "{text}: {error}");
    }
}

#[test]
fn the_public_authorities_by_name_go_with_verify_full_only() {
    let read = |parameters: &[&str]| {
        let url = format!("postgres://shop:hunter2@db/events?{}", parameters.join("&"));
        let pairs = format!("host=db user=shop password=hunter2 {}", parameters.join(" "));
        let mode = |text: &str| {
            ConnectionSettings::parse(text).map(|settings| settings.ssl_mode).map_err(|error| error.to_string())
        };
        let (url, pairs) = (mode(&url), mode(&pairs));
        assert_eq!(url, pairs);
        url
    };
    let system = "sslrootcert=system";
    assert_eq!(read(&[]), Ok(SslMode::Prefer));
    assert_eq!(read(&[system]), Ok(SslMode::VerifyFull));
    assert_eq!(read(&[system, "sslmode="]), Ok(SslMode::VerifyFull));
    assert_eq!(read(&[system, "sslmode=verify-full"]), Ok(SslMode::VerifyFull));
    assert_eq!(read(&["sslmode=require", "sslrootcert="]), Ok(SslMode::Require));
    for weak in
        ["sslmode=disable", "sslmode=allow", "sslmode=prefer", "sslmode=require", "sslmode=verify-ca", "requiressl=1"]
    {
        let error = read(&[weak, system]).unwrap_err();
        for part in [weak, system, "use sslmode=verify-full"] {
            assert!(error.contains(part), "{weak}: {error}");
        }
        assert!(!error.contains(SECRET), "{error}");
    }
    let jdbc = "jdbc:postgresql://db/events?user=shop&sslrootcert=system";
    assert_eq!(ConnectionSettings::parse(jdbc).unwrap().ssl_mode, SslMode::VerifyFull);
    // A mode from a key of its own counts as well.
    let url = ("url", "postgres://shop:hunter2@db/events?sslrootcert=system");
    assert!(of_keys(&[url, ("sslmode", "require")]).unwrap_err().to_string().contains(system));
    assert_eq!(of_keys(&[url]).unwrap().ssl_mode, SslMode::VerifyFull);
}

#[test]
fn the_same_database_is_one_and_another_password_another() {
    let identity = |text: &str| ConnectionSettings::parse(text).unwrap().identity();
    let one = identity("postgres://shop:a@db/events");
    assert_eq!(one, identity("host=db user=shop password=a dbname=events port=5432"));
    for other in [
        "postgres://shop:b@db/events",
        "postgres://shop:a@db/other",
        "postgres://shop:a@db:5433/events",
        "postgres://else:a@db/events",
        "postgres://shop:a@db/events?sslmode=require",
        "postgres://shop:a@db/events?sslmode=verify-ca",
    ] {
        assert_ne!(one, identity(other), "{other}");
    }
}

#[test]
fn a_database_defaults_to_the_user() {
    assert_eq!(
        ConnectionSettings::parse("postgres://shop@db").unwrap().to_string(),
        "database shop at db:5432 as shop"
    );
}

fn of_keys(keys: &[(&str, &str)]) -> Result<ConnectionSettings, ConnectError> {
    let keys: BTreeMap<&str, &str> = keys.iter().copied().collect();
    ConnectionSettings::from_keys(|key| keys.get(key).copied())
}

#[test]
fn secrets_are_read_as_operators_of_databases_write_them() {
    // CloudNativePG.
    let cnpg = of_keys(&[
        ("username", "shop"),
        ("user", "shop"),
        ("password", "hunter2"),
        ("dbname", "events"),
        ("host", "db-rw"),
        ("port", "5432"),
        ("uri", "postgresql://shop:hunter2@db-rw.ns:5432/events"),
        ("jdbc-uri", "jdbc:postgresql://db-rw.ns:5432/events?password=hunter2&user=shop"),
        ("pgpass", "db-rw:5432:events:shop:hunter2"),
    ]);
    assert_eq!(cnpg.unwrap().to_string(), "database events at db-rw.ns:5432 as shop");
    // Crossplane.
    let crossplane =
        of_keys(&[("endpoint", "db.example:6000"), ("username", "shop"), ("password", "hunter2\n")]).unwrap();
    assert_eq!(crossplane.to_string(), "database shop at db.example:6000 as shop");
    assert_eq!(crossplane.config.get_password(), Some(SECRET.as_bytes()));
    // A user whose password is kept apart.
    let apart =
        of_keys(&[("jdbc-url", "jdbc:postgresql://db:5432/events"), ("username", "shop"), ("password", "hunter2")]);
    assert_eq!(apart.unwrap().to_string(), "database events at db:5432 as shop");
    // Zalando's names no host.
    let zalando = of_keys(&[("username", "shop"), ("password", "hunter2")]).unwrap_err().to_string();
    assert!(zalando.contains("host or hostname or endpoint is missing") && zalando.contains("url, uri"), "{zalando}");
    for (keys, encode) in [
        (&[("uri", "postgres://shop:hun/ter2@db:5432/events")][..], true),
        (&[("host", "db"), ("port", "5432a"), ("user", "shop"), ("password", "hunter2")], false),
        (&[("uri", "postgres://shop:hunter2@db/events"), ("port", "5432a")], false),
    ] {
        let wrong = of_keys(keys).unwrap_err().to_string();
        assert_eq!(wrong.contains("percent-encode"), encode, "{wrong}");
    }
    let wrong = of_keys(&[("uri", "postgres://shop:hunter2@db/events?service=x")]).unwrap_err().to_string();
    assert!(wrong.contains("key uri: service:") && !wrong.contains(SECRET), "{wrong}");
}
