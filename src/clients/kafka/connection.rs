//! One connection to one broker: one request at a time, each with a deadline, each reply with a limit.

use std::{collections::HashMap, io};

use bytes::{Buf, Bytes, BytesMut};
use kacrab_protocol::{
    KafkaString,
    frame::{RequestFrameSpec, decode_response_envelope, encode_request_frame},
    generated::ApiVersionsRequestData,
};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout_at},
};
use tokio_rustls::TlsConnector;

use super::{
    calls::Call,
    error::{Code, KafkaError},
};
use crate::{
    addresses::AddressRules,
    api::Reason,
    clients::address::{host_and_port, look_up},
};

/// What brokers show for us in their logs and quotas.
pub(super) const CLIENT_ID: &str = "projectionist";
/// A longer reply is refused before it is read. 1,000 groups with 50 partitions each make a reply of 1 MiB.
pub(super) const MOST_REPLY_BYTES: usize = 8 << 20;

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// An open, authenticated connection.
pub(super) struct Connection {
    stream: Box<dyn Stream>,
    /// `host:port`, for messages.
    pub place: String,
    tls: bool,
    versions: HashMap<i16, (i16, i16)>,
    most_reply_bytes: usize,
    correlation: i32,
    /// A request was cut short, so that what comes next belongs to nothing.
    broken: bool,
    /// Requests made, those of the handshake included.
    pub requests: u64,
}

impl Connection {
    /// Connects, agrees on TLS, and asks for the broker's versions. `rules` say which addresses may be asked.
    ///
    /// # Errors
    /// Whatever the broker or the way to it refuses, `AddressRefused` by the rules, and `TimedOut` at `by`.
    pub async fn connect(
        tls: Option<&TlsConnector>,
        (host, port): (&str, u16),
        rules: &AddressRules,
        by: Instant,
    ) -> Result<Self, KafkaError> {
        let place = host_and_port(host, port);
        let opened = timeout_at(by, Self::open_stream(tls, (host, port), rules, &place)).await;
        let stream = opened.map_err(|_| KafkaError::timed_out(&place, "connecting"))??;
        let mut connection = Self {
            stream,
            place,
            tls: tls.is_some(),
            versions: HashMap::new(),
            most_reply_bytes: MOST_REPLY_BYTES,
            correlation: 0,
            broken: false,
            requests: 0,
        };
        let versions = connection.call(ApiVersionsRequestData::default(), by).await?;
        if let Some(code) = Code::from_wire(versions.error_code) {
            return Err(KafkaError::of(code, &connection.place, "asking for versions"));
        }
        connection.versions =
            versions.api_keys.iter().map(|one| (one.api_key, (one.min_version, one.max_version))).collect();
        Ok(connection)
    }

    async fn open_stream(
        tls: Option<&TlsConnector>,
        (host, port): (&str, u16),
        rules: &AddressRules,
        place: &str,
    ) -> Result<Box<dyn Stream>, KafkaError> {
        let addresses = look_up(host, port, rules).await.map_err(|unknown| {
            let (reason, message) = match unknown.reason {
                Reason::AddressRefused => (unknown.reason, unknown.message),
                _ => (
                    Reason::HostNotFound,
                    "the host name has no address: correct the bootstrap servers, the brokers' advertised.listeners, or the DNS".to_owned(),
                ),
            };
            KafkaError::new(reason, format!("{place}: {message}"))
        })?;
        let stream =
            TcpStream::connect(addresses.as_slice()).await.map_err(|error| KafkaError::io(place, &error, false))?;
        let _ = stream.set_nodelay(true);
        let Some(tls) = tls else { return Ok(Box::new(stream)) };
        let failed = |why: String| KafkaError::new(Reason::TlsFailed, format!("{place}: {why}"));
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| failed("the host name cannot stand in a certificate".to_owned()))?;
        let secured = tls.connect(name, stream).await.map_err(|error| {
            let inner = error.get_ref().map(ToString::to_string);
            match error.kind() {
                io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
                    failed("the broker closed the connection during the TLS handshake: does this listener expect no TLS?".to_owned())
                }
                _ => failed(format!(
                    "TLS could not be agreed on: {}: check the certificate authority, the host name in the certificate, and that the listener expects TLS",
                    inner.unwrap_or_else(|| error.to_string())
                )),
            }
        })?;
        Ok(Box::new(secured))
    }

    /// Reads answers of so many bytes, in place of the usual limit.
    pub fn allow_replies_of(&mut self, bytes: usize) {
        self.most_reply_bytes = bytes;
    }

    /// No request was cut short on it.
    pub fn is_usable(&self) -> bool {
        !self.broken
    }

    /// The version in which `C` is spoken with this broker.
    ///
    /// # Errors
    /// The broker is too old or too new.
    pub fn version<C: Call>(&self) -> Result<i16, KafkaError> {
        if self.versions.is_empty() {
            return Ok(C::OLDEST);
        }
        let (oldest, newest) = self.versions.get(&(C::KEY as i16)).copied().unwrap_or((0, -1));
        let version = newest.min(C::NEWEST);
        if version < oldest.max(C::OLDEST) {
            return Err(KafkaError::new(
                Reason::SourceFailed,
                format!(
                    "{}: the broker speaks {} in versions {oldest} to {newest}, and {} to {} are needed: Kafka 0.11 or newer is",
                    self.place,
                    C::NAME,
                    C::OLDEST,
                    C::NEWEST
                ),
            ));
        }
        Ok(version)
    }

    /// Asks one question.
    ///
    /// # Errors
    /// The connection ended, the reply is too long or makes no sense, or there was none by `by`. Afterwards the connection is not usable.
    pub async fn call<C: Call>(&mut self, request: C, by: Instant) -> Result<C::Reply, KafkaError> {
        let version = self.version::<C>()?;
        if self.broken {
            return Err(KafkaError::new(Reason::SourceFailed, format!("{}: the connection was given up", self.place)));
        }
        self.broken = true;
        let asked = timeout_at(by, self.exchange(&request, version)).await;
        let reply = asked.map_err(|_| KafkaError::timed_out(&self.place, C::NAME))??;
        self.broken = false;
        Ok(reply)
    }

    async fn exchange<C: Call>(&mut self, request: &C, version: i16) -> Result<C::Reply, KafkaError> {
        self.correlation = self.correlation.wrapping_add(1) & i32::MAX;
        self.requests += 1;
        let spec = RequestFrameSpec {
            api_key: C::KEY,
            api_version: version,
            correlation_id: self.correlation,
            client_id: CLIENT_ID,
            capacity_hint: 512,
        };
        let unreadable = |error| KafkaError::codec(&self.place, &error);
        let frame = encode_request_frame(spec, |buffer| request.write(buffer, version)).map_err(unreadable)?;
        let lost = |error| KafkaError::io(&self.place, &error, self.tls);
        self.stream.write_all(&frame).await.map_err(lost)?;
        self.stream.flush().await.map_err(lost)?;
        let reply = self.frame(C::NAME).await?;
        let unreadable = |error| KafkaError::codec(&self.place, &error);
        let mut envelope = decode_response_envelope(C::KEY, version, reply).map_err(unreadable)?;
        if envelope.correlation_id != self.correlation {
            return Err(KafkaError::invalid(&self.place, "an answer belongs to another question"));
        }
        let reply = C::read(&mut envelope.body, version).map_err(unreadable)?;
        // What is left would be a field that this version does not have.
        if envelope.body.has_remaining() {
            return Err(KafkaError::invalid(
                &self.place,
                &format!("the answer to {} is longer than it may be", C::NAME),
            ));
        }
        Ok(reply)
    }

    /// One reply. Memory grows with what really comes, not with what the length promises.
    async fn frame(&mut self, what: &str) -> Result<Bytes, KafkaError> {
        let lost = |error| KafkaError::io(&self.place, &error, self.tls);
        let promised = self.stream.read_i32().await.map_err(lost)?;
        let length = usize::try_from(promised).ok().filter(|length| *length <= self.most_reply_bytes);
        let Some(length) = length else {
            let message = format!(
                "{}: the answer to {what} says that it has {promised} bytes, of at most {}: is this a Kafka broker, and does its listener expect TLS?",
                self.place, self.most_reply_bytes
            );
            return Err(KafkaError { oversized: true, ..KafkaError::new(Reason::InvalidAnswer, message) });
        };
        let mut reply = BytesMut::with_capacity(length.min(64 << 10));
        let mut body = (&mut self.stream).take(length as u64);
        while reply.len() < length {
            if body.read_buf(&mut reply).await.map_err(lost)? == 0 {
                return Err(lost(io::ErrorKind::UnexpectedEof.into()));
            }
        }
        Ok(reply.freeze())
    }
}

/// Text as the protocol takes it.
pub(super) fn text(text: &str) -> KafkaString {
    KafkaString::from(text.to_owned())
}
