//! What a Secret says about a Kafka cluster.

use std::fmt;

use crate::clients::{address::host_and_port, tls::ClientCertificate};

/// The connection data cannot be read. Holds no secret.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct SettingsError(pub String);

/// How the user shows who it is.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Mechanism {
    /// The password goes over the connection: only within TLS is it secret.
    Plain,
    /// The password is proven and never sent.
    ScramSha256,
    /// The password is proven and never sent.
    ScramSha512,
    /// A token that a token service made goes over the connection (RFC 7628): only within TLS is it secret.
    OauthBearer,
}

impl Mechanism {
    /// The name in the protocol.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
            Self::OauthBearer => "OAUTHBEARER",
        }
    }

    /// What is secret is sent as it is, so that TLS must hide it.
    fn sends_the_secret(self) -> bool {
        matches!(self, Self::Plain | Self::OauthBearer)
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Plain, Self::ScramSha256, Self::ScramSha512, Self::OauthBearer]
            .into_iter()
            .find(|one| one.as_str().eq_ignore_ascii_case(text))
    }
}

/// Who we are, and how that is shown.
#[derive(Clone, Eq, Hash, PartialEq)]
pub(super) struct Sasl {
    pub mechanism: Mechanism,
    /// Empty for `OAUTHBEARER`, whose token names the user.
    pub username: String,
    /// The password, or the token.
    pub secret: String,
}

/// Everything that a connection to the cluster needs. `Display` and `Debug` name the bootstrap servers and nothing secret. Equal for all that may share
/// connections: another password makes other settings.
#[derive(Clone, Eq, Hash, PartialEq)]
pub struct Settings {
    pub(super) bootstrap: Vec<(String, u16)>,
    pub(super) tls: bool,
    pub(super) sasl: Option<Sasl>,
    pub(super) ca: Option<Vec<u8>>,
    pub(super) client: Option<ClientCertificate>,
}

/// The keys that are looked for, beside Kafka's own names of properties.
pub const KEYS: [&[&str]; 6] = [
    &["bootstrapServers", "bootstrap.servers", "bootstrap-servers", "bootstrap_servers", "brokers"],
    &["securityProtocol", "security.protocol", "security-protocol", "security_protocol"],
    &["saslMechanism", "sasl.mechanism", "sasl-mechanism", "sasl_mechanism", "mechanism"],
    &["username", "user", "sasl.username"],
    &["password", "sasl.password"],
    &["token", "access_token"],
];

/// More servers than this are a mistake.
const MOST_SERVERS: usize = 32;

impl Settings {
    /// Reads what `value` gives for [`KEYS`]. Only the servers are required. With a user, the mechanism is `SCRAM-SHA-512` where none is
    /// given, with a token alone `OAUTHBEARER`; without a security protocol, TLS is used where a certificate authority or client certificate is given.
    ///
    /// # Errors
    /// What is missing or cannot be read, with the key's name.
    pub fn from_keys<'a>(value: impl Fn(&str) -> Option<&'a str>) -> Result<Self, SettingsError> {
        let wrong = |why: String| SettingsError(why);
        let given = |keys: &[&str]| {
            keys.iter().find_map(|key| value(key).map(|text| (text.trim_end_matches(['\r', '\n']), (*key).to_owned())))
        };
        let given = |keys: &[&str]| given(keys).filter(|(text, _)| !text.is_empty());
        let [servers, protocol, mechanism, username, password, token] = KEYS;
        let Some((list, key)) = given(servers) else {
            return Err(wrong(format!(
                "key {} is missing, with the brokers to begin with as host:port,host:port",
                servers.join(" or ")
            )));
        };
        let mut bootstrap = Vec::new();
        for one in list.split(',').map(str::trim).filter(|one| !one.is_empty()) {
            bootstrap.push(server(one).map_err(|why| wrong(format!("key {key}: {why}")))?);
        }
        if bootstrap.is_empty() || bootstrap.len() > MOST_SERVERS {
            return Err(wrong(format!("key {key} must name 1 to {MOST_SERVERS} servers as host:port,host:port")));
        }
        let (tls, wants_sasl) = match given(protocol) {
            None => (None, None),
            Some((text, key)) => match text.trim().to_ascii_uppercase().as_str() {
                "PLAINTEXT" => (Some(false), Some(false)),
                "SSL" => (Some(true), Some(false)),
                "SASL_PLAINTEXT" => (Some(false), Some(true)),
                "SASL_SSL" => (Some(true), Some(true)),
                _ => {
                    return Err(wrong(format!("key {key} must be PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL")));
                }
            },
        };
        let user = given(username).map(|(text, _)| text.to_owned());
        let password = given(password).map(|(text, _)| text.to_owned());
        let token = given(token).map(|(text, _)| text.trim().to_owned());
        let mechanism = match given(mechanism) {
            None if token.is_some() && user.is_none() => Mechanism::OauthBearer,
            None => Mechanism::ScramSha512,
            Some((text, key)) => Mechanism::parse(text.trim()).ok_or_else(|| {
                wrong(format!(
                    "key {key} must be PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER: other mechanisms are not supported"
                ))
            })?,
        };
        let sasl = match (wants_sasl, user, password, token) {
            (Some(false), ..) => None,
            (.., token) if mechanism == Mechanism::OauthBearer => Some(bearer(token).map_err(wrong)?),
            (None, None, None, None) => None,
            (_, Some(username), Some(password), _) => {
                if username.contains('\0') || password.contains('\0') {
                    return Err(wrong("username and password must not hold a NUL byte".to_owned()));
                }
                Some(Sasl { mechanism, username, secret: password })
            }
            (_, None, ..) => return Err(wrong("key username is missing, which SASL needs".to_owned())),
            (_, _, None, _) => return Err(wrong("key password is missing, which SASL needs".to_owned())),
        };
        Ok(Self { bootstrap, tls: tls.unwrap_or(false), sasl, ca: None, client: None }.decide_tls(tls))
    }

    /// Whether the Secret names this address itself, and no broker announced it.
    pub(super) fn names(&self, (host, port): (&str, u16)) -> bool {
        self.bootstrap.iter().any(|(named, at)| named.eq_ignore_ascii_case(host) && *at == port)
    }

    fn decide_tls(mut self, asked: Option<bool>) -> Self {
        // Without a word on TLS, no password and no token is ever sent in the clear.
        let sent = self.sasl.as_ref().is_some_and(|sasl| sasl.mechanism.sends_the_secret());
        self.tls = asked.unwrap_or(sent);
        self
    }

    /// With a certificate authority (PEM) that alone is trusted; TLS is used from now on, whatever the protocol says.
    #[must_use]
    pub fn with_ca(mut self, pem: Vec<u8>) -> Self {
        self.ca = Some(pem);
        self.tls = true;
        self
    }

    /// With a certificate and its key (PEM) that show who we are; TLS is used from now on, whatever the protocol says.
    #[must_use]
    pub fn with_client_certificate(mut self, certificate: Vec<u8>, key: Vec<u8>) -> Self {
        self.client = Some(ClientCertificate { certificate, key });
        self.tls = true;
        self
    }
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("kafka://")?;
        for (index, (host, port)) in self.bootstrap.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{}", host_and_port(host, *port))?;
        }
        Ok(())
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self} (tls: {}, sasl: {:?})", self.tls, self.sasl.as_ref().map(|sasl| sasl.mechanism))
    }
}

/// The user that a token stands for. RFC 6750 says of which characters a token is.
fn bearer(token: Option<String>) -> Result<Sasl, String> {
    let token = token.ok_or_else(|| "key token is missing, which OAUTHBEARER needs".to_owned())?;
    if token.is_empty() || !token.chars().all(|c| c.is_ascii_alphanumeric() || "-._~+/=".contains(c)) {
        return Err(
            "key token must be the access token alone, as the token service gives it: letters, digits and -._~+/="
                .to_owned(),
        );
    }
    Ok(Sasl { mechanism: Mechanism::OauthBearer, username: String::new(), secret: token })
}

fn server(text: &str) -> Result<(String, u16), String> {
    // Spring and others write the protocol in front.
    let text = text.rsplit_once("://").map_or(text, |(_, rest)| rest);
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, "")) => (host, None),
        Some((host, rest)) => (host, rest.strip_prefix(':')),
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    let port = match port {
        None => 9092,
        Some(port) => port
            .parse::<u16>()
            .ok()
            .filter(|port| *port > 0)
            .ok_or_else(|| "a server's port must be a number from 1 to 65535".to_owned())?,
    };
    let fits = !host.is_empty()
        && host.len() <= 253
        && !host.chars().any(|c| c.is_whitespace() || c.is_control() || c == '@' || c == '/');
    if fits { Ok((host.to_owned(), port)) } else { Err("a server must be host:port".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &'static str)]) -> Result<Settings, SettingsError> {
        Settings::from_keys(|key| pairs.iter().find(|(name, _)| *name == key).map(|(_, text)| *text))
    }

    #[test]
    fn servers_protocol_and_user_are_read_by_the_names_that_clients_use() {
        let settings = read(&[
            ("bootstrap.servers", "a:9093, SASL_SSL://b , [::1]:7"),
            ("security.protocol", "SASL_SSL"),
            ("sasl.mechanism", "SCRAM-SHA-256"),
            ("username", "u"),
            ("password", "secret-canary\n"),
        ])
        .unwrap();
        assert_eq!(settings.bootstrap, [("a".to_owned(), 9093), ("b".to_owned(), 9092), ("::1".to_owned(), 7)]);
        assert!(settings.tls);
        let sasl = settings.sasl.as_ref().unwrap();
        assert_eq!((sasl.mechanism, sasl.secret.as_str()), (Mechanism::ScramSha256, "secret-canary"));
        assert_eq!(settings.to_string(), "kafka://a:9093,b:9092,[::1]:7");
        assert!(!format!("{settings:?} {settings}").contains("canary"));
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        for (pairs, word) in [
            (&[][..], "bootstrapServers"),
            (&[("bootstrapServers", "a:b")][..], "key bootstrapServers: a server's port"),
            (&[("bootstrapServers", "user:secret@a:1")][..], "port must be a number"),
            (&[("bootstrapServers", "a:1"), ("securityProtocol", "TLS")][..], "SASL_SSL"),
            (&[("bootstrapServers", "a:1"), ("mechanism", "GSSAPI")][..], "SCRAM-SHA-512"),
            (&[("bootstrapServers", "a:1"), ("username", "u")][..], "password is missing"),
            (&[("bootstrapServers", "a:1"), ("mechanism", "OAUTHBEARER")][..], "token is missing"),
            (&[("bootstrapServers", "a:1"), ("token", "Bearer secret")][..], "the access token alone"),
            (&[("bootstrapServers", "a:1"), ("securityProtocol", "SASL_SSL")][..], "username is missing"),
        ] {
            let error = read(pairs).unwrap_err().to_string();
            assert!(error.contains(word) && !error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn a_password_is_never_sent_in_the_clear_unless_asked_to() {
        let plain = [("bootstrapServers", "a:1"), ("mechanism", "PLAIN"), ("username", "u"), ("password", "p")];
        assert!(read(&plain).unwrap().tls);
        let mut asked = plain.to_vec();
        asked.push(("securityProtocol", "SASL_PLAINTEXT"));
        assert!(!read(&asked).unwrap().tls);
    }

    #[test]
    fn a_token_alone_is_shown_as_such_and_within_tls() {
        let token = [("bootstrapServers", "a:1"), ("token", "e30.e30.\n")];
        let settings = read(&token).unwrap();
        let sasl = settings.sasl.as_ref().unwrap();
        assert_eq!((sasl.mechanism, sasl.secret.as_str(), settings.tls), (Mechanism::OauthBearer, "e30.e30.", true));
        assert_ne!(settings, read(&[("bootstrapServers", "a:1"), ("token", "e30.e31.")]).unwrap());
    }

    #[test]
    fn another_password_makes_other_settings() {
        let with = |password| read(&[("bootstrapServers", "a:1"), ("username", "u"), ("password", password)]).unwrap();
        assert_eq!(with("one"), with("one"));
        assert_ne!(with("one"), with("two"));
    }
}
