//! One connection to one server: TLS, login, and requests whose answers are told apart by their subjects.

use std::{collections::HashMap, io, sync::Arc, time::Duration};

use rustls::pki_types::ServerName;
use serde::Deserialize;
use serde_json::json;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split},
    time::{Instant, sleep_until, timeout_at},
};
use tokio_rustls::TlsConnector;

use super::{
    ConnectionSettings,
    protocol::{Bounds, Decoder, Incoming, Malformed, Payload, publish},
    settings::Login,
    words::refusal,
};
use crate::{
    addresses::AddressRules,
    api::Reason,
    clients::{
        address::{self, Address},
        tls::verifying,
        words::{by_io, shortened},
    },
    measure::MeasureError,
};

/// Answers come to subjects that begin with this, so that a user may be granted these alone.
const INBOX: &str = "_INBOX.projectionist";
/// Bytes that are read at once.
const PIECE: usize = 16 << 10;
/// Once some were answered, the others are waited for this long after the last: a stream without a leader never answers.
const PATIENCE: Duration = Duration::from_secs(1);

/// A request: a subject and what is sent to it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Request {
    /// The subject, such as `$JS.API.CONSUMER.INFO.orders.list`.
    pub subject: String,
    /// The body, empty or JSON.
    pub body: String,
}

/// The answer to a request.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Reply {
    /// What it says.
    Answered(Payload),
    /// The subject has no listener: there is no JetStream for this account, or none of that domain.
    NoResponder,
}

/// A request's answer, or why there is none.
pub(super) type Answer = Result<Reply, MeasureError>;

trait Stream: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Sync + Unpin> Stream for S {}

/// Who connects, and what it takes of what comes in.
#[derive(Clone, Copy, Debug)]
pub(super) struct ClientKind {
    /// What the server's list of connections shows.
    pub(super) name: &'static str,
    pub(super) bounds: Bounds,
}

/// A connection on which the login was accepted.
pub(super) struct Connection {
    stream: Box<dyn Stream>,
    pub(super) decoder: Decoder,
    /// The subject of answers without its last part.
    inbox: String,
    /// Requests that were ever sent: numbers the answers' subjects, so that a late answer is not taken for another.
    sent: u64,
}

/// What a server says of itself on connecting.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Info {
    tls_required: bool,
    tls_available: bool,
    headers: bool,
    /// What a user with a key of its own has to sign.
    nonce: Option<String>,
}

impl Connection {
    /// Connects, agrees on TLS and logs in.
    pub(super) async fn open(
        settings: &ConnectionSettings,
        address: &Address,
        rules: &AddressRules,
        client: ClientKind,
        by: Instant,
    ) -> Result<Self, MeasureError> {
        let stream = timeout_at(by, address::connect(&address.host, address.port, rules)).await;
        let stream = stream.map_err(|_| timed_out())??;
        let inbox = format!("{INBOX}.{:032x}", rand::random::<u128>());
        let mut connection = Self { stream: Box::new(stream), decoder: Decoder::new(client.bounds), inbox, sent: 0 };
        let info = timeout_at(by, connection.read_info()).await.map_err(|_| timed_out())??;
        if !info.headers {
            return Err(MeasureError {
                reason: Reason::SourceFailed,
                message: "the server knows no headers: NATS 2.9 or newer is needed".to_owned(),
            });
        }
        let tls = settings.tls || info.tls_required;
        if tls {
            if !(info.tls_required || info.tls_available) {
                return Err(MeasureError {
                    reason: Reason::TlsFailed,
                    message: "the server offers no TLS: configure it there, or leave tls:// and the references to certificates out".to_owned(),
                });
            }
            let name = ServerName::try_from(address.host.clone()).map_err(|_| MeasureError {
                reason: Reason::TlsFailed,
                message: "the host is no name that a certificate could be for".to_owned(),
            })?;
            let config = verifying(settings.ca.as_deref(), settings.client.as_deref())
                .map_err(|message| MeasureError { reason: Reason::TlsFailed, message })?;
            let stream = timeout_at(by, TlsConnector::from(Arc::new(config)).connect(name, connection.stream))
                .await
                .map_err(|_| timed_out())?;
            connection.stream = Box::new(stream.map_err(|error| tls_failed(&error))?);
        }
        connection.log_in(settings, (client.name, info.nonce.as_deref()), tls, by).await?;
        Ok(connection)
    }

    /// Reads until the server has introduced itself. Nothing may follow in plain text: with TLS, it would be taken for the server's word.
    async fn read_info(&mut self) -> Result<Info, MeasureError> {
        let mut piece = vec![0; PIECE];
        loop {
            let length = self.stream.read(&mut piece).await.map_err(|error| by_io(&error))?;
            if length == 0 {
                return Err(by_io(&io::Error::from(io::ErrorKind::UnexpectedEof)));
            }
            let mut at = 0;
            while at < length {
                let (used, incoming) = self.decoder.read(&piece[at..length]).map_err(malformed)?;
                at += used;
                match incoming {
                    None => {}
                    Some(Incoming::Info(text)) if at == length => {
                        return serde_json::from_str(&text).map_err(|_| malformed(Malformed::NotNats));
                    }
                    Some(Incoming::Error(error)) => return Err(refusal(&error)),
                    Some(_) => return Err(malformed(Malformed::NotNats)),
                }
            }
        }
    }

    /// Logs in, subscribes to answers, and waits for the server's PONG, before which the server tells what it refuses.
    async fn log_in(
        &mut self,
        settings: &ConnectionSettings,
        (name, nonce): (&str, Option<&str>),
        tls: bool,
        by: Instant,
    ) -> Result<(), MeasureError> {
        let mut connect = json!({
            "verbose": false, "pedantic": false, "tls_required": tls, "name": name, "lang": "rust",
            "version": env!("CARGO_PKG_VERSION"), "protocol": 1, "echo": false, "headers": true, "no_responders": true,
        });
        match &settings.login {
            Login::None => {}
            Login::Password { user, password } => {
                connect["user"] = json!(user);
                connect["pass"] = json!(password);
            }
            Login::Token(token) => connect["auth_token"] = json!(token),
            Login::Key(key) => {
                let nonce = nonce.ok_or_else(|| MeasureError {
                    reason: Reason::AuthenticationFailed,
                    message: "the server asks for no signature: it knows no users with nkeys or JWTs; correct the credentials in the Secret".to_owned(),
                })?;
                let signature = key
                    .sign(nonce)
                    .map_err(|why| MeasureError { reason: Reason::AuthenticationFailed, message: why.to_owned() })?;
                connect["sig"] = json!(signature);
                match key.jwt() {
                    Some(jwt) => connect["jwt"] = json!(jwt),
                    None => connect["nkey"] = json!(key.public()),
                }
            }
        }
        let text = format!("CONNECT {connect}\r\nSUB {}.* 1\r\nPING\r\n", self.inbox);
        let mut pong = false;
        let done = self.exchange(text.into_bytes(), by, |incoming, _| {
            match incoming {
                Incoming::Error(error) => return Err(refusal(&error)),
                Incoming::Pong => pong = true,
                _ => {}
            }
            Ok(pong)
        });
        if done.await? { Ok(()) } else { Err(timed_out()) }
    }

    /// A subject for the answers to one request.
    pub(super) fn next_reply(&mut self) -> String {
        self.sent += 1;
        format!("{}.{}", self.inbox, self.sent)
    }

    /// Sends the requests that have no answer yet, and puts in what is answered.
    ///
    /// # Errors
    /// The connection is of no more use; what was answered before is put in.
    pub(super) async fn ask(
        &mut self,
        requests: &[Request],
        answers: &mut [Option<Answer>],
        by: Instant,
    ) -> Result<(), MeasureError> {
        let mut out = Vec::new();
        let mut places: HashMap<String, usize> = HashMap::new();
        for (place, request) in requests.iter().enumerate().filter(|(place, _)| answers[*place].is_none()) {
            let reply = self.next_reply();
            publish(&request.subject, &reply, &request.body, &mut out);
            places.insert(reply, place);
        }
        if places.is_empty() {
            return Ok(());
        }
        self.decoder.begin();
        let mut answered = false;
        let done = self.exchange(out, by, |incoming, until| {
            match incoming {
                Incoming::Message(message) => {
                    if let Some(place) = places.remove(&message.subject) {
                        let is_no_responder = message.status().is_some_and(|(code, _)| code == 503);
                        let reply = if is_no_responder { Reply::NoResponder } else { Reply::Answered(message.payload) };
                        answers[place] = Some(Ok(reply));
                        answered = true;
                    }
                }
                Incoming::Error(error) => {
                    let subject = refused_subject(&error).ok_or_else(|| refusal(&error))?;
                    places.retain(|_, place| {
                        let refused = requests[*place].subject == subject;
                        if refused {
                            answers[*place] = Some(Err(refusal(&error)));
                            answered = true;
                        }
                        !refused
                    });
                }
                Incoming::Info(_) | Incoming::Ping | Incoming::Pong => {}
            }
            if answered {
                *until = by.min(Instant::now() + PATIENCE);
            }
            Ok(places.is_empty())
        });
        // Those that are left over are told as unanswered. A connection on which nothing was answered is of no more use.
        if done.await? || answered { Ok(()) } else { Err(timed_out()) }
    }

    /// Writes and reads at the same time, so that neither side waits for the other, until `take` returns true. `take` may set another end. False
    /// when the end came before.
    pub(super) async fn exchange(
        &mut self,
        mut out: Vec<u8>,
        mut until: Instant,
        mut take: impl FnMut(Incoming, &mut Instant) -> Result<bool, MeasureError>,
    ) -> Result<bool, MeasureError> {
        let (mut reader, mut writer) = split(&mut self.stream);
        let (mut piece, mut at, mut flushed, mut enough) = (vec![0; PIECE], 0, false, false);
        // What the server said before it hung up may still be read.
        let mut writable = true;
        loop {
            let written = at == out.len();
            if enough && (!writable || (written && flushed)) {
                return Ok(true);
            }
            tokio::select! {
                () = sleep_until(until) => return Ok(false),
                done = write_on(&mut writer, &out[at..]), if writable && !(written && flushed) => match done {
                    Ok(0) => flushed = true,
                    Ok(length) => at += length,
                    Err(_) => writable = false,
                },
                done = reader.read(&mut piece) => {
                    let length = done.map_err(|error| tls_or_io(&error))?;
                    if length == 0 {
                        return Err(by_io(&io::Error::from(io::ErrorKind::UnexpectedEof)));
                    }
                    let mut used_all = 0;
                    while used_all < length {
                        let (used, incoming) = self.decoder.read(&piece[used_all..length]).map_err(malformed)?;
                        used_all += used;
                        match incoming {
                            // A server that asks without end is not answered without end.
                            Some(Incoming::Ping) if out.len() - at < PIECE => {
                                out.extend_from_slice(b"PONG\r\n");
                                flushed = false;
                            }
                            None | Some(Incoming::Ping) => {}
                            Some(incoming) => enough |= take(incoming, &mut until)?,
                        }
                    }
                }
            }
        }
    }
}

/// Writes some of it and returns how much; with nothing left, sees to it that all is sent.
async fn write_on(writer: &mut (impl AsyncWrite + Unpin), rest: &[u8]) -> io::Result<usize> {
    if rest.is_empty() {
        return writer.flush().await.map(|()| 0);
    }
    match writer.write(rest).await? {
        0 => Err(io::Error::from(io::ErrorKind::WriteZero)),
        length => Ok(length),
    }
}

/// The subject in `Permissions Violation for Publish to "…"`.
fn refused_subject(error: &str) -> Option<&str> {
    error.strip_prefix("Permissions Violation for Publish to \"")?.split('"').next()
}

fn malformed(malformed: Malformed) -> MeasureError {
    let message = match malformed {
        Malformed::NotNats => {
            "the answer is not in the protocol of NATS: is the port that of a NATS server for clients (4222 by default), and does it want TLS before anything else (handshake_first), which is not supported?"
        }
        Malformed::TooLarge => "an answer is larger than any that is read (32 MiB; for workers 64 MiB)",
    };
    MeasureError { reason: Reason::InvalidAnswer, message: message.to_owned() }
}

pub(super) fn timed_out() -> MeasureError {
    MeasureError {
        reason: Reason::TimedOut,
        message: "no answer in time: does a firewall or network policy drop packets, or does the server hang? A server that wants TLS before anything else (handshake_first) is not supported"
            .to_owned(),
    }
}

/// After the handshake of TLS 1.3 a server may still refuse the client certificate.
fn tls_or_io(error: &io::Error) -> MeasureError {
    let is_tls = error.get_ref().is_some_and(|cause| cause.is::<rustls::Error>());
    if is_tls { tls_failed(error) } else { by_io(error) }
}

fn tls_failed(error: &io::Error) -> MeasureError {
    MeasureError {
        reason: Reason::TlsFailed,
        message: format!(
            "TLS failed: {}: check the server's certificate, connection.caSecretRef and connection.clientCertificateSecretRef",
            shortened(&error.to_string())
        ),
    }
}
