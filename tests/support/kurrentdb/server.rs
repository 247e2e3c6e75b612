//! A fake of KurrentDB's gRPC API over real HTTP/2. It misbehaves where a test says so.

use std::{
    collections::HashSet,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::{Bytes, BytesMut};
use h2::{Reason as H2Reason, SendStream, server::SendResponse};
use http::{HeaderMap, Request, Response};
use prost::Message;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

use super::{
    database::{Database, Refused},
    protos::{FilterOption, ListReq, ListResp, ReadReq, StreamOption},
};

/// What the server does in place of an answer.
#[derive(Clone, Default)]
pub enum Instead {
    #[default]
    Answers,
    /// Nothing.
    Hangs,
    /// A proper head, and then a byte now and then.
    Drips,
    /// This body, and then a proper end.
    Body(Vec<u8>),
    /// This body, and then nothing.
    BodyThenHangs(Vec<u8>),
    /// This body again and again.
    Endless(Vec<u8>),
    /// A proper answer without a status at its end.
    NoStatus,
    /// A head with these headers and nothing else.
    Head(u16, Vec<(&'static str, &'static str)>),
    /// This body with another content type.
    Html(&'static str),
    /// `RST_STREAM`.
    Resets,
    /// Half an answer, then `RST_STREAM`.
    ResetsHalfWay,
    /// `GOAWAY`, and the connection closes.
    GoesAway,
    /// Half an answer, and the connection is cut.
    Cuts,
}

#[derive(Default)]
struct State {
    database: Database,
    instead: Instead,
    /// Nothing is found in time where a filter is given.
    searches_for_ever: bool,
    /// Streams whose reads hang, whatever else is answered.
    hanging: HashSet<String>,
    /// Bytes of `Authorization`.
    login: Option<String>,
    /// The server follows this one.
    leader: Option<String>,
    /// The server's clock is so far from ours.
    skew: jiff::SignedDuration,
    tells_time: bool,
    requests: Vec<String>,
}

/// The fake server. Ends with the runtime of the test.
#[derive(Clone)]
pub struct Fake {
    pub at: SocketAddr,
    state: Arc<Mutex<State>>,
    connections: Arc<AtomicUsize>,
    sent: Arc<AtomicUsize>,
    under_way: Arc<AtomicUsize>,
    most_under_way: Arc<AtomicUsize>,
    closing: tokio::sync::watch::Sender<u64>,
}

impl Fake {
    pub async fn start() -> Self {
        Self::with_tls(None).await
    }

    pub async fn with_tls(tls: Option<TlsAcceptor>) -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").await.unwrap(), tls)
    }

    pub fn on(listener: TcpListener, tls: Option<TlsAcceptor>) -> Self {
        let state = State { tells_time: true, ..State::default() };
        let fake = Self {
            at: listener.local_addr().unwrap(),
            state: Arc::new(Mutex::new(state)),
            connections: Arc::default(),
            sent: Arc::default(),
            under_way: Arc::default(),
            most_under_way: Arc::default(),
            closing: tokio::sync::watch::channel(0).0,
        };
        let own = fake.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                // As a real server does.
                stream.set_nodelay(true).unwrap();
                own.connections.fetch_add(1, Ordering::Relaxed);
                let (own, tls) = (own.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => own.serve(stream).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                own.serve(stream).await;
                            }
                        }
                    }
                });
            }
        });
        fake
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Changes or reads what the server holds.
    pub fn database<T>(&self, change: impl FnOnce(&mut Database) -> T) -> T {
        change(&mut self.state().database)
    }

    pub fn instead(&self, instead: Instead) {
        self.state().instead = instead;
    }

    pub fn hang_for(&self, stream: &str) {
        self.state().hanging.insert(stream.to_owned());
    }

    pub fn search_for_ever(&self) {
        self.state().searches_for_ever = true;
    }

    pub fn require_login(&self, user: &str, password: &str) {
        self.state().login = Some(format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}"))));
    }

    pub fn follow(&self, leader: Option<&str>) {
        self.state().leader = leader.map(str::to_owned);
    }

    pub fn skew(&self, skew: jiff::SignedDuration) {
        self.state().skew = skew;
    }

    pub fn tell_no_time(&self) {
        self.state().tells_time = false;
    }

    /// Closes the connections that there are.
    pub fn close_connections(&self) {
        self.closing.send_modify(|round| *round += 1);
    }

    /// Paths of the requests since the last call, each with the stream that is read.
    pub fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.state().requests)
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    pub fn sent(&self) -> usize {
        self.sent.load(Ordering::Relaxed)
    }

    pub fn most_under_way(&self) -> usize {
        self.most_under_way.load(Ordering::Relaxed)
    }

    async fn serve(self, stream: impl AsyncRead + AsyncWrite + Unpin) {
        let mut closing = self.closing.subscribe();
        let Ok(mut connection) = h2::server::handshake(stream).await else { return };
        loop {
            tokio::select! {
                _ = closing.changed() => return,
                accepted = connection.accept() => match accepted {
                    Some(Ok((request, respond))) => {
                        let instead = self.state().instead.clone();
                        match instead {
                            Instead::GoesAway => {
                                connection.graceful_shutdown();
                                drop(respond);
                            }
                            Instead::Cuts => {
                                let mut respond = respond;
                                let mut body = respond.send_response(self.head(), false).unwrap();
                                body.send_data(Bytes::from_static(&[0, 0, 0, 0, 9, 1]), false).unwrap();
                                // Written before the connection is dropped.
                                let _ = tokio::time::timeout(Duration::from_millis(50), connection.accept()).await;
                                return;
                            }
                            instead => drop(tokio::spawn(self.clone().answer(request, respond, instead))),
                        }
                    }
                    Some(Err(_)) | None => return,
                },
            }
        }
    }

    fn head(&self) -> Response<()> {
        let state = self.state();
        let mut head = Response::builder().header("content-type", "application/grpc");
        if state.tells_time {
            let now = jiff::Timestamp::now() + state.skew;
            let date = jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&now).unwrap();
            head = head.header("date", date);
        }
        head.body(()).unwrap()
    }

    async fn answer(self, request: Request<h2::RecvStream>, mut respond: SendResponse<Bytes>, instead: Instead) {
        let now = self.under_way.fetch_add(1, Ordering::Relaxed) + 1;
        self.most_under_way.fetch_max(now, Ordering::Relaxed);
        let (parts, mut body) = request.into_parts();
        let mut asked = BytesMut::new();
        while let Some(Ok(data)) = body.data().await {
            asked.extend_from_slice(&data);
            let _ = body.flow_control().release_capacity(data.len());
        }
        match instead {
            Instead::Hangs => std::future::pending().await,
            Instead::Resets => respond.send_reset(H2Reason::INTERNAL_ERROR),
            Instead::Head(status, headers) => {
                let mut head = Response::builder().status(status);
                for (name, value) in headers {
                    head = head.header(name, value);
                }
                drop(respond.send_response(head.body(()).unwrap(), true));
            }
            Instead::Html(text) => {
                let head = Response::builder().header("content-type", "text/html").body(()).unwrap();
                let mut stream = respond.send_response(head, false).unwrap();
                stream.send_data(Bytes::from_static(text.as_bytes()), true).unwrap();
            }
            Instead::Body(bytes) => {
                let mut stream = respond.send_response(self.head(), false).unwrap();
                self.send(&mut stream, bytes.into()).await;
                drop(stream.send_trailers(trailers(0, "")));
            }
            Instead::BodyThenHangs(bytes) => {
                let mut stream = respond.send_response(self.head(), false).unwrap();
                self.send(&mut stream, bytes.into()).await;
                std::future::pending::<()>().await;
            }
            Instead::ResetsHalfWay => {
                let mut stream = respond.send_response(self.head(), false).unwrap();
                self.send(&mut stream, Bytes::from_static(&[0, 0, 0, 0, 9, 1])).await;
                tokio::time::sleep(Duration::from_millis(20)).await;
                stream.send_reset(H2Reason::CANCEL);
            }
            Instead::Drips => {
                let mut stream = respond.send_response(self.head(), false).unwrap();
                self.send(&mut stream, Bytes::from_static(&[0, 0, 1, 0, 0])).await;
                while self.send(&mut stream, Bytes::from_static(&[0])).await {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
            Instead::Endless(bytes) => {
                let (mut stream, bytes) = (respond.send_response(self.head(), false).unwrap(), Bytes::from(bytes));
                while self.send(&mut stream, bytes.clone()).await {}
            }
            Instead::NoStatus | Instead::Answers | Instead::GoesAway | Instead::Cuts => {
                let answer = self.looked_up(&parts.headers, parts.uri.path(), &asked).await;
                let (messages, trailers) = match answer {
                    Ok(messages) => (messages, trailers(0, "")),
                    Err(refused) => (Vec::new(), self.refusal(refused)),
                };
                let mut stream = respond.send_response(self.head(), false).unwrap();
                for message in messages {
                    self.send(&mut stream, message.into()).await;
                }
                if matches!(instead, Instead::NoStatus) {
                    drop(stream.send_data(Bytes::new(), true));
                } else {
                    drop(stream.send_trailers(trailers));
                }
            }
        }
        self.under_way.fetch_sub(1, Ordering::Relaxed);
    }

    fn refusal(&self, (code, exception): Refused) -> HeaderMap {
        let mut trailers = trailers(code, exception);
        let leader = self.state().leader.clone();
        if let (5, Some(leader)) = (code, leader) {
            let (host, port) = leader.rsplit_once(':').unwrap();
            trailers.insert("leader-endpoint-host", host.parse().unwrap());
            trailers.insert("leader-endpoint-port", port.parse().unwrap());
        }
        trailers
    }

    /// The messages of a proper answer, with their prefixes.
    async fn looked_up(&self, headers: &HeaderMap, path: &str, asked: &[u8]) -> Result<Vec<Vec<u8>>, Refused> {
        assert_eq!(headers.get("te").unwrap(), "trailers");
        assert_eq!(headers.get("content-type").unwrap(), "application/grpc");
        assert_eq!(headers.get("requires-leader").unwrap(), "true");
        assert!(headers.get("grpc-timeout").unwrap().to_str().unwrap().ends_with('m'));
        let (prefix, message) = asked.split_at(5);
        assert_eq!((prefix[0], u32::from_be_bytes(prefix[1..].try_into().unwrap()) as usize), (0, message.len()));
        let given = headers.get("authorization").map(|value| value.to_str().unwrap().to_owned());
        {
            let state = self.state();
            if state.login.is_some() && given != state.login {
                return Err(if given.is_some() { (16, "") } else { (7, "access-denied") });
            }
            if state.leader.is_some() {
                return Err((5, "not-leader"));
            }
        }
        match path {
            "/event_store.client.streams.Streams/Read" => {
                let options = ReadReq::decode(message).unwrap().options.unwrap();
                let stream = match options.stream_option.as_ref().unwrap() {
                    StreamOption::All(_) => "$all".to_owned(),
                    StreamOption::Stream(stream) => {
                        let name = stream.stream_identifier.clone().unwrap().stream_name;
                        String::from_utf8(name).unwrap()
                    }
                };
                let searches = matches!(options.filter_option, Some(FilterOption::Filter(_)));
                let hangs = {
                    let state = self.state();
                    state.hanging.contains(&stream) || (searches && state.searches_for_ever)
                };
                self.state().requests.push(format!("read {stream}"));
                if hangs {
                    std::future::pending::<()>().await;
                }
                let answers = self.database(|database| database.read(&options))?;
                Ok(answers.iter().map(|answer| framed(&answer.encode_to_vec())).collect())
            }
            "/event_store.client.persistent_subscriptions.PersistentSubscriptions/List" => {
                assert!(ListReq::decode(message).unwrap().options.unwrap().list_all_subscriptions.is_some());
                self.state().requests.push("list".to_owned());
                let subscriptions = self.database(|database| database.subscriptions());
                Ok(vec![framed(&ListResp { subscriptions }.encode_to_vec())])
            }
            _ => Err((12, "")),
        }
    }

    /// Sends as the reader takes it. False where it takes no more.
    async fn send(&self, stream: &mut SendStream<Bytes>, mut bytes: Bytes) -> bool {
        while !bytes.is_empty() {
            stream.reserve_capacity(bytes.len());
            let capacity = std::future::poll_fn(|context| stream.poll_capacity(context)).await;
            let Some(Ok(capacity)) = capacity else { return false };
            let piece = bytes.split_to(capacity.min(bytes.len()));
            self.sent.fetch_add(piece.len(), Ordering::Relaxed);
            if stream.send_data(piece, false).is_err() {
                return false;
            }
        }
        true
    }
}

fn trailers(code: u32, exception: &str) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", code.into());
    if !exception.is_empty() {
        trailers.insert("exception", exception.parse().unwrap());
    }
    if code == 3 {
        trailers.insert("grpc-message", "Trying to read from an invalid position.".parse().unwrap());
    }
    trailers
}

/// A message with its prefix.
pub fn framed(message: &[u8]) -> Vec<u8> {
    [&[0], u32::try_from(message.len()).unwrap().to_be_bytes().as_slice(), message].concat()
}
