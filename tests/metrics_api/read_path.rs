//! What one read costs, however many Projections there are: the operator's own values behind its own server.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use allocation_counter::AllocationInfo;
use kube::runtime::{reflector, watcher};
use projectionist::{
    api::Projection,
    lag::{Bounds, CheckpointState, Head, Model, Pending, Position, Sample, Workers},
    measure::RunKey,
    metrics::{ServedMetrics, measured_kind},
    metrics_api::{Offer, Rate},
    snapshot::{Measured, Observation, Observations, SharedSnapshot, Snapshot},
};

use crate::harness::{Connection, Server};

const EXTERNAL: &str = "/apis/external.metrics.k8s.io/v1beta1/namespaces/shop/projection_required_workers";
const OBJECTS: &str = "/apis/custom.metrics.k8s.io/v1beta2/namespaces/shop/projections.projectionist.dev";
const READS: usize = 200;

fn observation(uid: &str) -> Arc<Observation> {
    let pending = Pending { events: 9, exact: true };
    let sample = Sample {
        staleness: Some(Duration::from_millis(1_400)),
        ..Sample::new(
            Duration::from_secs(1),
            Head::log(Position(9), Position(9)),
            CheckpointState::Committed(vec![Position(0)]),
            Some(pending),
            9,
        )
    };
    let bounds = Bounds {
        target: Duration::from_secs(10),
        min: 3,
        max: 10,
        shards: None,
        strict: false,
        stuck_after: Duration::from_secs(300),
        idle_for: Duration::from_secs(300),
        catch_up: None,
        given_rate: None,
        connections: None,
        strain: None,
        throttled: None,
        retention: None,
        look_ahead: None,
        value: None,
    };
    let assessment =
        Model::remembering(None, None, None).observe(&sample, Workers::default(), bounds).expect("it tells the lag");
    let valid_until = Instant::now() + Duration::from_secs(3_600);
    Arc::new(Observation {
        uid: uid.into(),
        generation: 1,
        labels: Arc::default(),
        measured: Some(Arc::new(Measured { sample, assessment, valid_until })),
        fallback: None,
        read_store: None,
        failure: None,
    })
}

/// What the operator serves when it knows so many Projections and has measured each.
fn projections(count: usize) -> ServedMetrics {
    let (known, mut writer) = reflector::store::<Projection>();
    writer.apply_watcher_event(&watcher::Event::Init);
    let mut all = Observations::new();
    for index in 0..count {
        // The names are equally long, whatever the count.
        let (name, uid) = (format!("orders-{index:06}"), format!("uid-{index:06}"));
        let object = serde_json::json!({
            "apiVersion": "projectionist.dev/v1alpha1", "kind": "Projection",
            "metadata": {"name": name, "namespace": "shop", "uid": uid},
            "spec": {
                "source": {"postgres": {"connection": {"secretRef": {"name": "db", "key": "url"}}, "eventTable": {}}},
                "readStore": {"postgres": {"connection": {"secretRef": {"name": "db", "key": "url"}}}},
                "lag": {"target": "30s"},
            },
        });
        writer.apply_watcher_event(&watcher::Event::InitApply(serde_json::from_value(object).unwrap()));
        all.insert(RunKey::unversioned("shop", name), observation(&uid));
    }
    writer.apply_watcher_event(&watcher::Event::InitDone);
    let snapshot = SharedSnapshot::default();
    snapshot.publish(Snapshot { namespaces: [("shop".into(), Arc::new(all))].into(), ..Snapshot::default() });
    ServedMetrics::new(snapshot).knowing(known)
}

async fn read(client: &mut Connection, index: usize, count: usize) {
    let name = format!("orders-{:06}", index.wrapping_mul(7_919) % count);
    for path in [format!("{EXTERNAL}?labelSelector=projection%3D{name}"), format!("{OBJECTS}/{name}/required_workers")]
    {
        let (code, body, _) = client.get(&path, &[]).await;
        assert_eq!((code, body["items"][0]["value"].as_str()), (200, Some("3")), "{path}: {body}");
    }
}

/// What client and server allocate, which share this thread, for reads of one Projection each among so many.
fn allocated(count: usize) -> AllocationInfo {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (server, mut client) = runtime.block_on(async {
        let offer = Offer { external: true, objects: Some(measured_kind()) };
        let server =
            Server::serving(projections(count), offer, |options| options.rate = Rate { per_second: 0, burst: 0 }).await;
        let master = server.users.sign("admin", &["system:masters"], rcgen::ExtendedKeyUsagePurpose::ClientAuth);
        let mut client = server.connect(Some(master)).await;
        // What is made once is made now.
        for index in 0..READS {
            read(&mut client, index, count).await;
        }
        (server, client)
    });
    let counted = allocation_counter::measure(|| {
        runtime.block_on(async {
            for index in 0..READS {
                read(&mut client, index, count).await;
            }
        });
    });
    drop(server);
    counted
}

#[test]
fn a_read_allocates_as_much_among_five_thousand_projections_as_among_ten() {
    let [few, many] = [10, 5_000].map(allocated);
    assert!(few.count_total > READS as u64, "nothing was counted: {few:?}");
    // Frames may be cut differently from run to run; five hundred times as many Projections would be seen in any case.
    let bound = |few: u64| few + few / 10;
    assert!(many.count_total <= bound(few.count_total), "among ten: {few:?}, among five thousand: {many:?}");
    assert!(many.bytes_total <= bound(few.bytes_total), "among ten: {few:?}, among five thousand: {many:?}");
    // What is held at once is little, and when a frame goes moves it: a pointer for each Projection would be 40,000 bytes more.
    assert!(many.bytes_max <= few.bytes_max + 16_384, "among ten: {few:?}, among five thousand: {many:?}");
}

/// The counter counts what it is there for: a list of all grows with their number.
#[test]
fn a_list_of_all_is_seen_to_allocate_by_their_number() {
    use projectionist::metrics_api::{MetricValues as _, Selector};
    let cost = |count| {
        let values = projections(count);
        let counted = allocation_counter::measure(|| {
            let all = values.external("shop", "projection_required_workers", &Selector::default());
            assert_eq!(all.map(|all| all.len()), Ok(count));
        });
        counted.bytes_total
    };
    assert!(cost(5_000) > 100 * cost(10));
}
