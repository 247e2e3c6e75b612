//! A real Prometheus for all tests, the page that it scrapes, fake servers, and probes that ask them.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener},
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use projectionist::{
    clients::{ServerSettings, http_settings::HttpSettings},
    lag::{Pending, Sample},
    measure::MeasureError,
    resolve::Numbers,
    sources::prometheus::{PrometheusProbe, Question},
};
use test_cluster::Prometheus;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::Instant,
};

pub const DEADLINE: Duration = Duration::from_secs(60);

/// What the server scrapes: a line for each series.
fn page() -> &'static Mutex<BTreeMap<String, String>> {
    static PAGE: OnceLock<Mutex<BTreeMap<String, String>>> = OnceLock::new();
    PAGE.get_or_init(Mutex::default)
}

/// Lets a series have this value from now on; none: no longer.
pub fn set(series: &str, value: Option<&str>) {
    let mut page = page().lock().unwrap();
    match value {
        Some(value) => drop(page.insert(series.to_owned(), value.to_owned())),
        None => drop(page.remove(series)),
    }
}

fn exporter() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            std::thread::spawn(move || {
                let mut stream = stream.unwrap();
                let mut request = [0; 4_096];
                while matches!(stream.read(&mut request), Ok(1..)) {
                    let body: String =
                        page().lock().unwrap().iter().map(|(series, value)| format!("{series} {value}\n")).collect();
                    let answer = format!(
                        "HTTP/1.1 200 OK\r\ncontent-type: text/plain; version=0.0.4\r\ncontent-length: {}\r\n\r\n{body}",
                        body.len()
                    );
                    if stream.write_all(answer.as_bytes()).is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

/// Where the shared page is.
pub fn target() -> SocketAddr {
    static TARGET: OnceLock<SocketAddr> = OnceLock::new();
    *TARGET.get_or_init(exporter)
}

pub fn server() -> &'static Prometheus {
    static SERVER: OnceLock<Prometheus> = OnceLock::new();
    SERVER.get_or_init(|| Prometheus::scraping(target()).unwrap())
}

pub fn settings(pairs: &[(&str, &str)]) -> HttpSettings {
    HttpSettings::from_keys(|key| pairs.iter().find(|(name, _)| *name == key).map(|(_, value)| *value)).unwrap()
}

pub fn probe_with(settings: &HttpSettings) -> PrometheusProbe {
    PrometheusProbe::new(settings, &crate::sampler::loopback(), std::time::Instant::now())
}

pub fn probe(url: &str) -> PrometheusProbe {
    probe_with(&settings(&[("url", url)]))
}

pub fn pending(query: &str) -> Question {
    Question { tenant: None, queries: Numbers::Lag { pending: query.into(), staleness: None, arrived: None } }
}

pub fn lag(pending: &str, staleness: Option<&str>, arrived: Option<&str>) -> Question {
    let queries = Numbers::Lag {
        pending: pending.into(),
        staleness: staleness.map(Into::into),
        arrived: arrived.map(Into::into),
    };
    Question { tenant: None, queries }
}

pub fn value(query: &str) -> Question {
    Question { tenant: None, queries: Numbers::Value(query.into()) }
}

pub async fn ask_within(
    probe: &mut PrometheusProbe,
    question: &Question,
    time: Duration,
) -> Result<Sample, MeasureError> {
    let mut answers = probe.answer(&[question], Instant::now() + time).await;
    assert_eq!(answers.len(), 1);
    answers.pop().unwrap()
}

pub async fn ask(probe: &mut PrometheusProbe, question: &Question) -> Result<Sample, MeasureError> {
    ask_within(probe, question, DEADLINE).await
}

/// Asks until a scrape tells this.
pub async fn until(
    probe: &mut PrometheusProbe,
    question: &Question,
    what: &str,
    holds: impl Fn(&Result<Sample, MeasureError>) -> bool,
) -> Result<Sample, MeasureError> {
    let end = Instant::now() + DEADLINE;
    loop {
        let found = ask(probe, question).await;
        if holds(&found) {
            return found;
        }
        assert!(Instant::now() < end, "{question:?}: {what}: last seen {found:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

pub async fn until_pending(probe: &mut PrometheusProbe, question: &Question, events: u64) -> Sample {
    let holds = |found: &Result<Sample, MeasureError>| found.as_ref().is_ok_and(|it| it.pending == exactly(events));
    until(probe, question, &format!("{events} pending"), holds).await.unwrap()
}

pub fn exactly(events: u64) -> Option<Pending> {
    Some(Pending { events, exact: true })
}

/// What a fake server says to each request.
#[derive(Clone)]
pub enum Says {
    Nothing,
    Once(Vec<u8>),
    AndHangsUp(Vec<u8>),
    ForEver(Vec<u8>),
    /// A byte now and then.
    Dripping(Vec<u8>),
    /// After so long.
    After(Duration, Vec<u8>),
    /// Nothing where the request holds this, the answer otherwise.
    HangsFor(&'static str, Vec<u8>),
}

/// What a fake server has seen and sent.
#[derive(Default)]
pub struct Counts {
    pub connections: AtomicUsize,
    pub requests: AtomicUsize,
    pub bytes: AtomicUsize,
    pub last: Mutex<String>,
}

/// A fake server at this URL.
pub async fn fake(says: Says) -> (String, Arc<Counts>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let counts = Arc::new(Counts::default());
    let counter = Arc::clone(&counts);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let (says, counter) = (says.clone(), Arc::clone(&counter));
            counter.connections.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(async move {
                let mut request = vec![0; 64 << 10];
                while let Ok(length @ 1..) = stream.read(&mut request).await {
                    counter.requests.fetch_add(1, Ordering::Relaxed);
                    let text = String::from_utf8_lossy(&request[..length]).into_owned();
                    let hangs = matches!(&says, Says::HangsFor(what, _) if text.contains(what));
                    *counter.last.lock().unwrap() = text;
                    match &says {
                        Says::Nothing => {}
                        Says::HangsFor(..) if hangs => {}
                        Says::Once(bytes) | Says::HangsFor(_, bytes) => {
                            let _ = stream.write_all(bytes).await;
                        }
                        Says::After(pause, bytes) => {
                            tokio::time::sleep(*pause).await;
                            let _ = stream.write_all(bytes).await;
                        }
                        Says::AndHangsUp(bytes) => {
                            let _ = stream.write_all(bytes).await;
                            return;
                        }
                        Says::ForEver(bytes) => {
                            while stream.write_all(bytes).await.is_ok() {
                                counter.bytes.fetch_add(bytes.len(), Ordering::Relaxed);
                            }
                        }
                        Says::Dripping(bytes) => {
                            for byte in bytes.iter().cycle() {
                                if stream.write_all(&[*byte]).await.is_err() {
                                    return;
                                }
                                tokio::time::sleep(Duration::from_millis(20)).await;
                            }
                        }
                    }
                }
            });
        }
    });
    (url, counts)
}

/// An answer in HTTP.
pub fn http(status: &str, kind: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// The answer that holds this number.
pub fn number(number: &str) -> Vec<u8> {
    let body = format!(r#"{{"status":"success","data":{{"resultType":"scalar","result":[1.0,"{number}"]}}}}"#);
    http("200 OK", "application/json", &body)
}
