//! One connection to one server: opened when it is needed, asked many commands at once, closed as soon as an answer makes no sense.

use std::io;

use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split},
    net::TcpStream,
    time::{Instant, timeout_at},
};

use super::{
    ConnectionSettings, Reply,
    protocol::{Decoder, Malformed, encode},
    settings::{Sentinels, is_host},
    tls,
    words::refusal,
};
use crate::{
    api::Reason,
    clients::words::{by_io, shortened},
    measure::MeasureError,
};

/// What `CLIENT LIST` shows.
const CLIENT_NAME: &str = "projectionist-sampler";
/// Bytes that are read at once.
const PIECE: usize = 16 << 10;

/// A command and its arguments.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Command(Vec<Vec<u8>>);

impl Command {
    /// From its words, such as `["XINFO", "GROUPS", key]`.
    pub fn new<'a>(words: impl IntoIterator<Item = &'a str>) -> Self {
        Self(words.into_iter().map(|word| word.as_bytes().to_vec()).collect())
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Sync + Unpin> Stream for S {}

type Connection = Box<dyn Stream>;

/// Asks one server. Keeps its connection from call to call; one that broke is opened again by the next call.
pub struct Client {
    settings: ConnectionSettings,
    connection: Option<Connection>,
}

/// What a round trip came to: the replies that arrived, and why there are no more.
struct Answers {
    replies: Vec<Reply>,
    broken: Option<MeasureError>,
}

impl Client {
    /// Not connected yet.
    pub fn new(settings: ConnectionSettings) -> Self {
        Self { settings, connection: None }
    }

    /// Where it asks.
    pub fn settings(&self) -> &ConnectionSettings {
        &self.settings
    }

    /// Sends all the commands at once and returns the reply to each, in their order. A reply may itself be the server's refusal ([`Reply::Error`]).
    /// Where the connection ends early, the replies that came before are returned all the same.
    ///
    /// # Errors
    /// Why there are no replies from that command on. Holds no secret and does not say where.
    pub async fn ask(&mut self, commands: &[Command], by: Instant) -> Vec<Result<Reply, MeasureError>> {
        let mut bytes = Vec::new();
        commands.iter().for_each(|command| encode(&command.0, &mut bytes));
        let mut answers = Answers { replies: Vec::new(), broken: None };
        // A server may have closed a connection that was idle: then nothing was answered, and a new one is tried once.
        for fresh in [self.connection.is_none(), true] {
            answers = self.try_once(&bytes, commands.len(), by).await;
            let stale = !fresh && answers.replies.is_empty();
            let closed = answers.broken.as_ref().is_some_and(|broken| broken.reason == Reason::SourceFailed);
            if !(stale && closed) {
                break;
            }
        }
        let Answers { replies, broken } = answers;
        let broken = broken.unwrap_or_else(timed_out);
        let mut all: Vec<_> = replies.into_iter().map(Ok).collect();
        if all.len() < commands.len() {
            all.push(Err(broken.clone()));
        }
        // Only one command is to blame for an answer that cannot be read.
        let rest = match broken.reason {
            Reason::InvalidAnswer => MeasureError {
                reason: Reason::SourceFailed,
                message: format!(
                    "the connection was closed after the answer to an earlier question: {}",
                    broken.message
                ),
            },
            _ => broken,
        };
        all.resize_with(commands.len(), || Err(rest.clone()));
        all
    }

    async fn try_once(&mut self, bytes: &[u8], count: usize, by: Instant) -> Answers {
        // Taken out, so that a call that is given up half-way leaves no connection with answers to come.
        let connection = match self.connection.take() {
            Some(connection) => Ok(connection),
            None => self.open(by).await,
        };
        let mut connection = match connection {
            Ok(connection) => connection,
            Err(broken) => return Answers { replies: Vec::new(), broken: Some(broken) },
        };
        let answers = self.exchange(&mut connection, bytes, count, by).await;
        if answers.broken.is_none() {
            self.connection = Some(connection);
        }
        answers
    }

    /// Closes the connection, if there is one: the next call opens another, and asks Sentinels anew where the server is.
    pub fn disconnect(&mut self) {
        self.connection = None;
    }

    /// Connects to the server, and asks Sentinels where it is where they are named.
    async fn open(&self, by: Instant) -> Result<Connection, MeasureError> {
        match &self.settings.sentinels {
            None => self.log_in_at(&self.settings.host, self.settings.port, by).await,
            Some(sentinels) => {
                let (host, port) = self.primary(sentinels, by).await?;
                let found = self.log_in_at(&host, port, by).await;
                found.map_err(|unknown| MeasureError {
                    reason: unknown.reason,
                    message: format!("{host}:{port}, which is the primary as a Sentinel says: {}", unknown.message),
                })
            }
        }
    }

    /// Where the primary is, as the first Sentinel says that answers.
    async fn primary(&self, sentinels: &Sentinels, by: Instant) -> Result<(String, u16), MeasureError> {
        let mut unknown = timed_out();
        for (turn, (host, port)) in sentinels.addresses.iter().enumerate() {
            let left = by.saturating_duration_since(Instant::now());
            let share = u32::try_from(sentinels.addresses.len() - turn + 1).unwrap_or(2);
            match self.ask_sentinel(host, *port, &sentinels.primary, Instant::now() + left / share).await {
                Ok(found) => return Ok(found),
                Err(why) => {
                    unknown = MeasureError {
                        reason: why.reason,
                        message: format!("the Sentinel at {host}:{port}: {}", why.message),
                    };
                }
            }
        }
        Err(unknown)
    }

    /// Asks one Sentinel. No credential is sent to it.
    async fn ask_sentinel(
        &self,
        host: &str,
        port: u16,
        primary: &str,
        by: Instant,
    ) -> Result<(String, u16), MeasureError> {
        let mut connection = self.connect(host, port, by).await?;
        let command = Command::new(["SENTINEL", "GET-MASTER-ADDR-BY-NAME", primary]);
        let mut bytes = Vec::new();
        encode(&command.0, &mut bytes);
        let Answers { mut replies, broken } = self.exchange(&mut connection, &bytes, 1, by).await;
        let unknown = |reason, message: &str| MeasureError { reason, message: message.to_owned() };
        match replies.pop() {
            Some(Reply::Array(parts)) => {
                let parts: Vec<&str> = parts.iter().filter_map(Reply::as_str).collect();
                let found = match parts.as_slice() {
                    [host, port] if is_host(host) => port.parse().ok().map(|port| ((*host).to_owned(), port)),
                    _ => None,
                };
                found.ok_or_else(|| unknown(Reason::InvalidAnswer, "the answer is no address"))
            }
            Some(Reply::Nil) => Err(unknown(
                Reason::ConnectionStringInvalid,
                "it watches no primary of that name: correct the name at the end of the URL in the Secret",
            )),
            Some(Reply::Error(error)) if error.starts_with("NOAUTH") => Err(unknown(
                Reason::AuthenticationFailed,
                "it wants a password, which is not supported: user and password in the Secret are those of the servers that it watches",
            )),
            Some(Reply::Error(error)) if error.contains("nknown command") => Err(unknown(
                Reason::SourceFailed,
                "it is no Sentinel: name its port (26379 by default), or write redis://",
            )),
            Some(Reply::Error(error)) => Err(refusal(&error)),
            Some(_) => Err(unknown(Reason::InvalidAnswer, "the answer is no address")),
            None => Err(broken.unwrap_or_else(timed_out)),
        }
    }

    /// Connects and agrees on TLS.
    async fn connect(&self, host: &str, port: u16, by: Instant) -> Result<Connection, MeasureError> {
        let settings = &self.settings;
        let stream = timeout_at(by, TcpStream::connect((host, port))).await;
        let stream = stream.map_err(|_| timed_out())?.map_err(|error| by_io(&error))?;
        stream.set_nodelay(true).map_err(|error| by_io(&error))?;
        let connection: Connection = if settings.tls {
            let name = ServerName::try_from(host.to_owned()).map_err(|_| MeasureError {
                reason: Reason::TlsFailed,
                message: "the host is no name that a certificate could be for".to_owned(),
            })?;
            let stream = timeout_at(by, tls::connector(settings)?.connect(name, stream)).await;
            // Redis without TLS takes the handshake for a command without an end, and waits.
            let stream = stream.map_err(|_| MeasureError {
                reason: Reason::TimedOut,
                message: "no TLS within the time for an answer: does the server speak TLS at this port (redis:// where it does not), or does it hang?".to_owned(),
            })?;
            Box::new(stream.map_err(|error| tls_failed(&error))?)
        } else {
            Box::new(stream)
        };
        Ok(connection)
    }

    /// Connects, logs in and chooses the database.
    async fn log_in_at(&self, host: &str, port: u16, by: Instant) -> Result<Connection, MeasureError> {
        let settings = &self.settings;
        let mut connection = self.connect(host, port, by).await?;
        let mut commands = vec![self.hello()];
        if settings.database > 0 {
            commands.push(Command::new(["SELECT", &settings.database.to_string()]));
        }
        let mut bytes = Vec::new();
        commands.iter().for_each(|command| encode(&command.0, &mut bytes));
        let Answers { replies, broken } = self.exchange(&mut connection, &bytes, commands.len(), by).await;
        // A refusal says more than the end of the connection that follows it.
        for reply in &replies {
            if let Reply::Error(error) = reply {
                return Err(refusal(error));
            }
        }
        match broken {
            // A server that wants TLS, or ends TLS 1.3 for want of a client certificate, only hangs up.
            Some(broken) if broken.reason == Reason::SourceFailed && !settings.tls => Err(MeasureError {
                message: format!("{} at once: does the server want TLS (rediss://)?", broken.message),
                ..broken
            }),
            Some(broken) => Err(broken),
            None => Ok(connection),
        }
    }

    /// Tells the protocol's version, the name for `CLIENT LIST` and who we are: the one command that takes no rights.
    fn hello(&self) -> Command {
        let mut words = vec!["HELLO", "2"];
        if let Some(password) = &self.settings.password {
            words.extend(["AUTH", self.settings.user.as_deref().unwrap_or("default"), password]);
        }
        words.extend(["SETNAME", CLIENT_NAME]);
        Command::new(words)
    }

    /// Writes everything and reads `count` replies at the same time, so that neither side waits for the other.
    async fn exchange(&self, connection: &mut Connection, bytes: &[u8], count: usize, by: Instant) -> Answers {
        let mut replies = Vec::new();
        let (mut reader, mut writer) = split(connection);
        let write = async {
            writer.write_all(bytes).await?;
            writer.flush().await
        };
        let read = read(&mut reader, count, &mut replies);
        let both = async {
            let mut write = std::pin::pin!(write);
            let mut read = std::pin::pin!(read);
            let mut written = false;
            loop {
                tokio::select! {
                    done = &mut write, if !written => match done {
                        Ok(()) => written = true,
                        // What the server said before it hung up may still be read.
                        Err(_) => return (&mut read).await,
                    },
                    done = &mut read => return done,
                }
            }
        };
        let ended = timeout_at(by, both).await.unwrap_or_else(|_| Err(timed_out()));
        for reply in &mut replies {
            self.mask(reply);
        }
        Answers { replies, broken: ended.err() }
    }

    /// A server that repeats our password in an error is not quoted.
    fn mask(&self, reply: &mut Reply) {
        if let (Reply::Error(error), Some(password)) = (reply, &self.settings.password)
            && error.contains(password.as_str())
        {
            *error = error.replace(password.as_str(), "…");
        }
    }
}

async fn read(
    reader: &mut (impl AsyncRead + Unpin),
    count: usize,
    replies: &mut Vec<Reply>,
) -> Result<(), MeasureError> {
    let mut decoder = Decoder::default();
    let mut piece = vec![0; PIECE];
    while replies.len() < count {
        let length = reader.read(&mut piece).await.map_err(|error| tls_or_io(&error))?;
        if length == 0 {
            return Err(by_io(&io::Error::from(io::ErrorKind::UnexpectedEof)));
        }
        let mut at = 0;
        while at < length {
            let (used, reply) = decoder.read(&piece[at..length]).map_err(malformed)?;
            at += used;
            replies.extend(reply);
        }
        if replies.len() > count {
            return Err(malformed(Malformed::NotRedis));
        }
    }
    Ok(())
}

fn malformed(malformed: Malformed) -> MeasureError {
    let message = match malformed {
        Malformed::NotRedis => {
            "the answer is not in the protocol of Redis: is the port that of a Redis server, and does it want TLS (rediss://)?"
        }
        Malformed::TooLarge => "the answer is larger than 32 MiB",
    };
    MeasureError { reason: Reason::InvalidAnswer, message: message.to_owned() }
}

fn timed_out() -> MeasureError {
    MeasureError {
        reason: Reason::TimedOut,
        message: "no answer in time: does a firewall or network policy drop packets, or does the server hang?"
            .to_owned(),
    }
}

/// After the handshake of TLS 1.3 a server may still refuse our certificate.
fn tls_or_io(error: &io::Error) -> MeasureError {
    let is_tls = error.get_ref().is_some_and(|cause| cause.is::<rustls::Error>());
    if is_tls { tls_failed(error) } else { by_io(error) }
}

fn tls_failed(error: &io::Error) -> MeasureError {
    let no_tls = error.kind() == io::ErrorKind::UnexpectedEof
        || matches!(
            error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>()),
            Some(rustls::Error::InvalidMessage(_))
        );
    let advice = if no_tls {
        "does the server speak TLS at this port? Write redis:// where it does not"
    } else {
        "check the server's certificate, connection.caSecretRef and connection.clientCertificateSecretRef"
    };
    MeasureError {
        reason: Reason::TlsFailed,
        message: format!("TLS failed: {}: {advice}", shortened(&error.to_string())),
    }
}
