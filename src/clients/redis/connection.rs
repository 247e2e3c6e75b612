//! One connection to one server: connecting, TLS, logging in, and a round trip. Closed as soon as an answer makes no sense.

use std::{io, sync::Arc};

use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split},
    time::{Instant, timeout_at},
};

use super::{
    Command, ConnectionSettings, Reply,
    address::Address,
    protocol::{Bounds, Decoder, Malformed, encode},
    tls,
    words::refusal,
};
use crate::{
    addresses::AddressRules,
    api::Reason,
    clients::{
        address,
        words::{by_io, shortened, without_secrets},
    },
    measure::MeasureError,
};

/// What `CLIENT LIST` shows.
const CLIENT_NAME: &str = "projectionist-sampler";
/// Bytes that are read at once.
const PIECE: usize = 16 << 10;

pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Sync + Unpin> Stream for S {}

pub(super) type Connection = Box<dyn Stream>;

/// What a round trip came to: the replies that arrived, and why there are no more.
pub(super) struct Answers {
    pub(super) replies: Vec<Reply>,
    pub(super) broken: Option<MeasureError>,
}

/// A connection that is logged in.
pub(super) struct LoggedIn {
    pub(super) connection: Connection,
    /// Whether the server is a node of a Redis Cluster, as it says itself.
    pub(super) in_cluster: bool,
}

/// Who connects, and to which addresses.
pub(super) struct Access {
    pub(super) settings: ConnectionSettings,
    /// Which addresses may be asked.
    pub(super) rules: Arc<AddressRules>,
    /// What replies may take.
    pub(super) bounds: Bounds,
}

impl Access {
    /// Connects and agrees on TLS.
    pub(super) async fn connect(&self, at: &Address, by: Instant) -> Result<Connection, MeasureError> {
        let settings = &self.settings;
        let Address { host, port, name } = at;
        let stream = timeout_at(by, address::connect(host, *port, &self.rules)).await.map_err(|_| timed_out())??;
        if !settings.tls {
            return Ok(Box::new(stream));
        }
        let name = ServerName::try_from(name.as_ref().unwrap_or(host).clone()).map_err(|_| MeasureError {
            reason: Reason::TlsFailed,
            message: "the host is no name that a certificate could be for".to_owned(),
        })?;
        let stream = timeout_at(by, tls::connector(settings)?.connect(name, stream)).await;
        // Redis without TLS takes the handshake for a command without an end, and waits.
        let stream = stream.map_err(|_| MeasureError {
            reason: Reason::TimedOut,
            message: "no TLS within the time for an answer: does the server speak TLS at this port (redis:// where it does not), or does it hang?".to_owned(),
        })?;
        Ok(Box::new(stream.map_err(|error| tls_failed(&error))?))
    }

    /// Connects, logs in and chooses the database.
    pub(super) async fn log_in(&self, at: &Address, by: Instant) -> Result<LoggedIn, MeasureError> {
        let settings = &self.settings;
        let mut connection = self.connect(at, by).await?;
        let mut commands = vec![self.hello()];
        if settings.database > 0 {
            commands.push(Command::new(["SELECT", &settings.database.to_string()]));
        }
        let Answers { replies, broken } = self.exchange(&mut connection, &commands, by).await;
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
            None => {
                let mode = replies.first().and_then(|hello| hello.field("mode")).and_then(Reply::as_str);
                Ok(LoggedIn { connection, in_cluster: mode == Some("cluster") })
            }
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

    /// Writes everything and reads the replies at the same time, so that neither side waits for the other.
    pub(super) async fn exchange(&self, connection: &mut Connection, commands: &[Command], by: Instant) -> Answers {
        let mut bytes = Vec::new();
        commands.iter().for_each(|command| encode(command.words(), &mut bytes));
        let mut replies = Vec::new();
        let (mut reader, mut writer) = split(connection);
        let write = async {
            writer.write_all(&bytes).await?;
            writer.flush().await
        };
        let read = read(&mut reader, self.bounds, commands.len(), &mut replies);
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

    /// A server that repeats our password in an error, or a part of it, is not quoted there.
    fn mask(&self, reply: &mut Reply) {
        if let (Reply::Error(error), Some(password)) = (reply, &self.settings.password) {
            *error = without_secrets(error, [password.as_str()]);
        }
    }
}

async fn read(
    reader: &mut (impl AsyncRead + Unpin),
    bounds: Bounds,
    count: usize,
    replies: &mut Vec<Reply>,
) -> Result<(), MeasureError> {
    let mut decoder = Decoder::new(bounds);
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
        Malformed::TooLarge => "the answer is larger than 32 MiB, or what was expected at most",
    };
    MeasureError { reason: Reason::InvalidAnswer, message: message.to_owned() }
}

pub(super) fn timed_out() -> MeasureError {
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
