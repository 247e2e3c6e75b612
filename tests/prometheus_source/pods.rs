//! The pages of a workload's own pods: summed, and unknown where one that works cannot be read. The pods are servers of this test at several loopback
//! addresses, and what the watch would show of them is told by the test.

use std::{net::IpAddr, sync::Arc, time::Duration};

use projectionist::{
    api::{Aggregate, Reason},
    clients::scrape::PodPages,
    lag::{CheckpointState, Sample},
    measure::{MeasureError, RunKey},
    resolve::{AskedMetric, Numbers},
    sources::{
        BatchProbe as _,
        scrape::{LARGEST_POD_PAGE, PodsProbe, Question},
    },
    worker_pods::{PodStage, SeenPods, UnwatchedPods, WorkerPod, Workload},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    sync::watch,
    time::Instant,
};

use crate::{
    harness::{DEADLINE, exactly, http},
    sampler::loopback,
};

/// A pod whose page, or whatever else it answers, can be changed; empty: it hangs.
struct Pod {
    listener: Option<TcpListener>,
    says: watch::Sender<Vec<u8>>,
    seen: WorkerPod,
}

impl Pod {
    /// At `127.0.0.number` and this port; 0: any, which the others then share.
    async fn start(number: u8, port: u16) -> (Self, u16) {
        let address: IpAddr = [127, 0, 0, number].into();
        let listener = TcpListener::bind((address, port)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let name: Arc<str> = format!("worker-{number}").into();
        let seen = WorkerPod { name: Arc::clone(&name), uid: name, address: Some(address), stage: PodStage::Working };
        let (says, _) = watch::channel(Vec::new());
        (Self { listener: Some(listener), says, seen }, port)
    }

    fn serve(&mut self) {
        let (listener, says) = (self.listener.take().unwrap(), self.says.subscribe());
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let says = says.clone();
                tokio::spawn(async move {
                    let mut request = [0; 4_096];
                    while let Ok(1..) = stream.read(&mut request).await {
                        let answer = says.borrow().clone();
                        if answer.is_empty() {
                            std::future::pending::<()>().await;
                        }
                        let _ = stream.write_all(&answer).await;
                    }
                });
            }
        });
    }

    fn page(&self, text: &str) {
        self.says.send_replace(http("200 OK", "text/plain", text));
    }

    fn at(&self, stage: PodStage) -> WorkerPod {
        WorkerPod { stage, ..self.seen.clone() }
    }
}

fn metric(name: &str, aggregate: Aggregate) -> AskedMetric {
    AskedMetric { name: name.to_owned(), labels: std::collections::BTreeMap::new(), single: true, aggregate }
}

async fn ask(probe: &mut PodsProbe, question: &Question) -> Result<Sample, MeasureError> {
    probe.answer(&[question], Instant::now() + DEADLINE).await.pop().unwrap()
}

fn show(told: &watch::Sender<SeenPods>, pods: &[WorkerPod]) {
    drop(told.send_replace(Ok(pods.into())));
}

#[tokio::test]
async fn pods_are_summed_and_one_that_works_and_cannot_be_read_makes_the_sum_unknown() {
    use PodStage::{Ending, Starting, Working};
    let (mut a, port) = Pod::start(2, 0).await;
    let (mut b, _) = Pod::start(3, port).await;
    a.serve();
    b.serve();
    a.page("waiting 3\nage 9\ncame_total 100\n");
    b.page("waiting 4\nage 2.5\ncame_total 7\n");
    let workload = Workload { run: RunKey::unversioned("shop", "orders"), existing: None };
    let pages = PodPages { workload, port, path: "/metrics".to_owned() };
    let (told, seen) = watch::channel(Err(UnwatchedPods::not_yet()));
    let mut probe = PodsProbe::new(pages.clone(), seen, loopback(), std::time::Instant::now());
    let question = Numbers::Lag {
        pending: metric("waiting", Aggregate::Sum),
        staleness: Some(metric("age", Aggregate::Max)),
        arrived: Some(metric("came_total", Aggregate::Sum)),
    };
    assert_eq!(ask(&mut probe, &question).await.unwrap_err().reason, Reason::NotMeasuredYet);
    show(&told, &[]);
    let none = ask(&mut probe, &question).await.unwrap_err();
    assert_eq!(none.reason, Reason::NoWorkerReady, "no pod is not zero: {}", none.message);
    assert!(
        none.message.starts_with(&format!("pods of shop/orders, port {port}, path /metrics: ")),
        "{}",
        none.message
    );

    show(&told, &[a.at(Working), b.at(Working)]);
    let both = ask(&mut probe, &question).await.unwrap();
    assert_eq!((both.pending, both.staleness), (exactly(7), Some(Duration::from_secs(9))));
    // One scales in, and what it counted goes with it: nothing came, and nothing is taken back.
    b.page("waiting 1\nage 2.5\ncame_total 10\n");
    show(&told, &[b.at(Working)]);
    let one = ask(&mut probe, &question).await.unwrap();
    assert_eq!((one.pending, one.arrived), (exactly(1), 3));
    assert!(matches!(one.checkpoint, CheckpointState::Handled(9)), "{:?}", one.checkpoint);

    let value = Numbers::Value(metric("waiting", Aggregate::Average));
    show(&told, &[a.at(Working), b.at(Working)]);
    assert_eq!(ask(&mut probe, &value).await.unwrap().value, Some(2.0), "the mean over the pods");

    // What is no page concerns the sum where the pod works, and not where it starts or ends.
    let mut huge = b"HTTP/1.1 200 OK\r\n\r\n".to_vec();
    huge.resize(LARGEST_POD_PAGE + 100, b'\n');
    for (what, says) in [
        ("hangs", Vec::new()),
        ("another page", http("200 OK", "text/plain", "other 1\n")),
        ("HTML", http("200 OK", "text/html", "<html>hunter2")),
        ("garbage", http("200 OK", "text/plain", "waiting hunter2\n")),
        ("not a number", http("200 OK", "text/plain", "waiting NaN\n")),
        ("wants a login", http("401 Unauthorized", "text/plain", "hunter2")),
        ("redirects", b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n".to_vec()),
        ("huge", huge),
    ] {
        a.says.send_replace(says);
        show(&told, &[a.at(Working), b.at(Working)]);
        let unknown = ask(&mut probe, &value).await.expect_err(what);
        assert!(unknown.message.contains("value: pod worker-2: "), "{what}: {}", unknown.message);
        assert!(!unknown.message.contains("hunter2"), "{what}: {}", unknown.message);
        for stage in [Starting, Ending] {
            show(&told, &[a.at(stage), b.at(Working)]);
            assert_eq!(ask(&mut probe, &value).await.unwrap().value, Some(1.0), "{what}, {stage:?}");
        }
    }
    a.page("waiting 5\n");
    let sum = Numbers::Value(metric("waiting", Aggregate::Sum));
    show(&told, &[a.at(Ending), b.at(Working)]);
    assert_eq!(ask(&mut probe, &sum).await.unwrap().value, Some(6.0), "it works off what it holds");
    let unreachable = WorkerPod { address: None, ..a.at(Working) };
    show(&told, &[unreachable, b.at(Working)]);
    assert_eq!(ask(&mut probe, &sum).await.unwrap_err().reason, Reason::HostNotFound);

    // The addresses come from pods, and are judged all the same.
    let (told, seen) = watch::channel(Err(UnwatchedPods::not_yet()));
    let mut guarded = PodsProbe::new(pages, seen, Arc::default(), std::time::Instant::now());
    for address in ["127.0.0.2", "169.254.169.254", "::1"] {
        show(&told, &[WorkerPod { address: Some(address.parse().unwrap()), ..a.at(Working) }]);
        let refused = ask(&mut guarded, &sum).await.unwrap_err();
        assert_eq!(refused.reason, Reason::AddressRefused, "{address}: {}", refused.message);
    }
}
