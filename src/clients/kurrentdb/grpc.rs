//! gRPC over HTTP/2 as far as reading takes it: one message asks, messages of bounded size answer, a status ends. No compression is offered.

use bytes::{Buf as _, Bytes, BytesMut};
use http::{HeaderMap, Request, header};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2::SendRequest;
use prost::Message;
use tokio::time::Instant;

use super::{
    connection::{RequestHead, broken},
    words::{Trouble, by_http, by_status, not_the_api, refused},
};
use crate::api::Reason;

/// Before each message: a byte that says whether it is compressed, and its length.
const PREFIX: usize = 5;
/// An answer is given up after so many bytes, also of messages that are passed over.
const LONGEST_ANSWER: u64 = 64 << 20;

/// A message of an answer.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Frame {
    Message(Bytes),
    /// It was larger than what is kept, and is passed over.
    TooLarge,
}

/// What the reader of an answer wants.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Flow {
    Continue,
    /// Enough: the rest is not wanted, nor how it ends.
    Stop,
}

/// A message that no server sends.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Compressed;

/// Cuts an answer into its messages; keeps no more than one of them.
pub(super) struct Deframer {
    kept: BytesMut,
    /// Bytes of a message that are passed over.
    skipping: usize,
    /// Of a larger message nothing is kept.
    most: usize,
}

impl Deframer {
    pub(super) fn new(most: usize) -> Self {
        Self { kept: BytesMut::new(), skipping: 0, most }
    }

    pub(super) fn push(&mut self, data: &[u8]) {
        let passed = data.len().min(self.skipping);
        self.skipping -= passed;
        self.kept.extend_from_slice(&data[passed..]);
    }

    /// The next message, where it has come whole.
    pub(super) fn next(&mut self) -> Result<Option<Frame>, Compressed> {
        let Some(prefix) = self.kept.first_chunk::<PREFIX>() else { return Ok(None) };
        let [compressed, length @ ..] = *prefix;
        if compressed != 0 {
            return Err(Compressed);
        }
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        let there = self.kept.len() - PREFIX;
        if length > self.most {
            let passed = there.min(length);
            self.kept.advance(PREFIX + passed);
            self.skipping = length - passed;
            return Ok(Some(Frame::TooLarge));
        }
        if there < length {
            return Ok(None);
        }
        self.kept.advance(PREFIX);
        Ok(Some(Frame::Message(self.kept.split_to(length).freeze())))
    }

    /// No message was begun that has not come whole.
    pub(super) fn is_between(&self) -> bool {
        self.kept.is_empty() && self.skipping == 0
    }
}

/// One request.
pub(super) struct Call<'a> {
    pub(super) target: &'a RequestHead,
    /// Such as `/event_store.client.streams.Streams/Read`.
    pub(super) path: &'a str,
    /// Larger messages of the answer are passed over.
    pub(super) largest: usize,
    pub(super) by: Instant,
}

impl Call<'_> {
    /// Asks, and hands each message of the answer to `take`. Returns the server's time in whole seconds, where it tells it.
    pub(super) async fn ask(
        &self,
        mut requests: SendRequest<Full<Bytes>>,
        message: &impl Message,
        take: &mut (dyn FnMut(Frame) -> Result<Flow, Trouble> + Send),
    ) -> Result<Option<jiff::Timestamp>, Trouble> {
        requests.ready().await.map_err(|error| broken(&error, self.target))?;
        let answer = requests.send_request(self.request(message)?).await;
        let (head, mut body) = answer.map_err(|error| broken(&error, self.target))?.into_parts();
        // A server that refuses at once tells so in its headers, whatever else they say.
        if let Some(refusal) = by_status(&head.headers) {
            return Err(refusal);
        }
        if head.status != http::StatusCode::OK {
            return Err(by_http(head.status));
        }
        let kind = head.headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        if !kind.starts_with("application/grpc") {
            return Err(not_the_api("not gRPC"));
        }
        let at = date(&head.headers);
        let ends_at_once = head.headers.contains_key("grpc-status");
        let mut deframer = Deframer::new(self.largest);
        let mut received = 0_u64;
        let mut status = None;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| broken(&error, self.target))?;
            match frame.into_data() {
                Ok(data) => {
                    received = received.saturating_add(u64::try_from(data.len()).unwrap_or(u64::MAX));
                    if received > LONGEST_ANSWER {
                        return Err(too_long());
                    }
                    deframer.push(&data);
                    loop {
                        match deframer.next() {
                            Ok(None) => break,
                            Ok(Some(frame)) => {
                                if take(frame)? == Flow::Stop {
                                    return Ok(at);
                                }
                            }
                            Err(Compressed) => return Err(not_the_api("a compressed message")),
                        }
                    }
                }
                Err(frame) => status = frame.into_trailers().ok(),
            }
        }
        let ends = status.as_ref().is_some_and(|trailers| trailers.contains_key("grpc-status"));
        match status.as_ref().and_then(by_status) {
            Some(refusal) => Err(refusal),
            None if !(ends || ends_at_once) => Err(not_the_api("it ends without a status")),
            None if !deframer.is_between() => Err(not_the_api("it ends in the middle of a message")),
            None => Ok(at),
        }
    }

    fn request(&self, message: &impl Message) -> Result<Request<Full<Bytes>>, Trouble> {
        let failed = |_| refused(Reason::SourceFailed, "the request cannot be written");
        let length = u32::try_from(message.encoded_len()).unwrap_or(u32::MAX);
        let mut body = Vec::with_capacity(PREFIX + message.encoded_len());
        body.push(0);
        body.extend_from_slice(&length.to_be_bytes());
        body.extend_from_slice(&message.encode_to_vec());
        let left = self.by.saturating_duration_since(Instant::now()).as_millis().clamp(1, 99_999_999);
        let scheme = if self.target.tls { "https" } else { "http" };
        let mut request = Request::post(format!("{scheme}://{}{}", self.target.authority, self.path))
            .header(header::CONTENT_TYPE, "application/grpc")
            .header(header::TE, "trailers")
            .header(header::USER_AGENT, format!("{}/{}", self.target.program, env!("CARGO_PKG_VERSION")))
            .header("grpc-timeout", format!("{left}m"))
            .header("connection-name", self.target.program)
            // A follower may be behind.
            .header("requires-leader", "true");
        if let Some(credential) = &self.target.credential {
            request = request.header(header::AUTHORIZATION, credential);
        }
        request.body(Full::new(body.into())).map_err(failed)
    }
}

fn date(headers: &HeaderMap) -> Option<jiff::Timestamp> {
    let date = headers.get(header::DATE)?.to_str().ok()?;
    jiff::fmt::rfc2822::parse(date).ok().map(|date| date.timestamp())
}

fn too_long() -> Trouble {
    refused(Reason::InvalidAnswer, &format!("the answer is larger than {} MiB", LONGEST_ANSWER >> 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(length: u32, body: &[u8]) -> Vec<u8> {
        [&[0], length.to_be_bytes().as_slice(), body].concat()
    }

    #[test]
    fn messages_come_whole_however_they_are_cut_and_large_ones_are_passed_over() {
        let bytes = [message(3, b"abc"), message(0, b""), message(9, b"too large"), message(2, b"de")].concat();
        for piece in 1..=bytes.len() {
            let mut deframer = Deframer::new(4);
            let mut found = Vec::new();
            for data in bytes.chunks(piece) {
                deframer.push(data);
                while let Some(frame) = deframer.next().unwrap() {
                    found.push(frame);
                }
            }
            let whole = |text: &'static [u8]| Frame::Message(Bytes::from_static(text));
            assert_eq!(found, [whole(b"abc"), whole(b""), Frame::TooLarge, whole(b"de")], "{piece}");
            assert!(deframer.is_between());
        }
    }

    #[test]
    fn nothing_is_kept_of_a_message_that_is_announced_as_huge() {
        let mut deframer = Deframer::new(4);
        deframer.push(&message(u32::MAX, b"x"));
        assert_eq!(deframer.next(), Ok(Some(Frame::TooLarge)));
        deframer.push(&vec![b'x'; 1 << 20]);
        assert_eq!((deframer.next(), deframer.kept.len(), deframer.is_between()), (Ok(None), 0, false));
        let mut compressed = Deframer::new(4);
        compressed.push(&[1, 0, 0, 0, 0]);
        assert_eq!(compressed.next(), Err(Compressed));
    }
}
