//! The traces: made here, the same each time. Loads are in events per second, for workers that handle [`PER_WORKER`] of them each.

use std::time::Duration;

use projectionist::simulate::{Backlog, Checkpoints, Commits, Point, Trace, WorkerKind};

/// What one busy worker handles per second.
pub const PER_WORKER: f64 = 50.0;
/// All traces but that of the backlog last so long.
const SECONDS: u32 = 1_500;

/// A load.
pub struct Case {
    /// For the table.
    pub name: &'static str,
    /// What arrives.
    pub trace: Trace,
    /// What waits at the beginning.
    pub backlog: Backlog,
    /// Each shard's part.
    pub shards: Vec<f64>,
    /// The most that all workers together can do is too little, so that everybody is late: such a case is judged apart.
    pub hopeless: bool,
    /// How its workers commit, and whether one is slow.
    pub kind: WorkerKind,
    /// From a worker's creation until it is ready.
    pub start_up: Duration,
}

/// What ideal workers need to start.
const START_UP: Duration = Duration::from_secs(2);

/// Workers that are not ideal, each kind by name.
pub fn kinds() -> Vec<(&'static str, Vec<Case>)> {
    let of = |commits, checkpoints| WorkerKind { commits, checkpoints, slowest: 1.0 };
    let half = Commits::Every(Duration::from_millis(500));
    let ideal = WorkerKind::default();
    let uneven: Vec<f64> = (0..24).map(|shard| 0.5 + f64::from(shard) / 23.0).collect();
    let kinds: [(&'static str, WorkerKind, Duration, Option<Vec<f64>>); 10] = [
        ("ideal", ideal, START_UP, None),
        ("a row a shard, each event", of(Commits::EachEvent, Checkpoints::Shard), START_UP, None),
        ("a row a shard, every 0.5 s", of(half, Checkpoints::Shard), START_UP, None),
        ("a row a shard, every 5 s", of(Commits::Every(Duration::from_secs(5)), Checkpoints::Shard), START_UP, None),
        ("a row a shard, every 1,000 events", of(Commits::EveryEvents(1_000), Checkpoints::Shard), START_UP, None),
        ("the lowest of those rows, every 0.5 s", of(half, Checkpoints::ShardUnknown), START_UP, None),
        ("one row, every 0.5 s", of(half, Checkpoints::One), START_UP, None),
        ("slow start of 30 s", ideal, Duration::from_secs(30), None),
        ("one worker three times slower", WorkerKind { slowest: 3.0, ..ideal }, START_UP, None),
        ("uneven shards, 1 to 3", ideal, START_UP, Some(uneven)),
    ];
    let cases = |kind: WorkerKind, start_up: Duration, shards: Option<Vec<f64>>| {
        let fair = all(Cost::Known).into_iter().filter(|case| !case.hopeless);
        fair.map(|case| Case { kind, start_up, shards: shards.clone().unwrap_or(case.shards), ..case }).collect()
    };
    kinds.into_iter().map(|(name, kind, start_up, shards)| (name, cases(kind, start_up, shards))).collect()
}

/// Whether an event always costs the same.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Cost {
    /// It does.
    Known,
    /// From the middle on it costs twice as much, and no part is told.
    Doubles,
}

/// All of them.
pub fn all(cost: Cost) -> Vec<Case> {
    let mut noise = Noise(0x5eed_0fca_f001_d00d);
    let mut cases: Vec<Case> = [
        ("steady", steady as fn(f64) -> f64),
        ("diurnal", diurnal),
        ("burst", burst),
        ("ramp", ramp),
        ("spike after silence", spike),
    ]
    .into_iter()
    .map(|(name, load)| Case {
        name,
        trace: trace(SECONDS, cost, &mut noise, load),
        backlog: Backlog::default(),
        shards: vec![1.0; 24],
        hopeless: false,
        kind: WorkerKind::default(),
        start_up: START_UP,
    })
    .collect();
    if cost == Cost::Known {
        cases.push(Case {
            name: "backlog of 1.5 million",
            trace: trace(2_000, cost, &mut noise, |_| 100.0),
            backlog: Backlog { events: 1_500_000.0, age: Duration::from_secs(36_000) },
            shards: vec![1.0; 24],
            hopeless: true,
            kind: WorkerKind::default(),
            start_up: START_UP,
        });
        // One shard gets 30 % of the events, which for five minutes is more than a worker can do.
        let mut shards = vec![0.7 / 23.0; 24];
        shards[0] = 0.3;
        let trace =
            trace(SECONDS, cost, &mut noise, |second| if (400.0..700.0).contains(&second) { 190.0 } else { 90.0 });
        let kind = WorkerKind::default();
        let (backlog, hopeless) = (Backlog::default(), true);
        cases.push(Case { name: "one hot shard", trace, backlog, shards, hopeless, kind, start_up: START_UP });
    }
    cases
}

/// The same noisy load for 40 minutes.
pub fn always(load: f64, seed: u64) -> Case {
    let trace = trace(2_400, Cost::Known, &mut Noise(seed), |_| load);
    let (backlog, shards, kind) = (Backlog::default(), vec![1.0; 24], WorkerKind::default());
    Case { name: "steady", trace, backlog, shards, hopeless: false, kind, start_up: START_UP }
}

fn steady(_: f64) -> f64 {
    230.0
}

/// A day in 12 minutes.
fn diurnal(second: f64) -> f64 {
    270.0 - 220.0 * (second / 720.0 * std::f64::consts::TAU).cos()
}

/// Half a minute at five times the load, at odd times.
fn burst(second: f64) -> f64 {
    let begins = [120.0, 333.0, 541.0, 760.0, 1_010.0, 1_222.0];
    if begins.iter().any(|begin| (*begin..begin + 30.0).contains(&second)) { 450.0 } else { 90.0 }
}

/// Ten minutes up, five minutes at the top, and at once down again.
fn ramp(second: f64) -> f64 {
    match second {
        ..120.0 => 50.0,
        ..720.0 => 50.0 + (second - 120.0) / 600.0 * 450.0,
        ..1_020.0 => 500.0,
        _ => 50.0,
    }
}

/// Nothing at all, and then everything.
fn spike(second: f64) -> f64 {
    let within = |from: f64, to: f64| (from..to).contains(&second);
    if within(300.0, 390.0) || within(700.0, 760.0) || within(1_100.0, 1_190.0) { 500.0 } else { 0.0 }
}

fn trace(seconds: u32, cost: Cost, noise: &mut Noise, load: impl Fn(f64) -> f64) -> Trace {
    let point = |second: u32| {
        let mean = load(f64::from(second));
        let doubled = cost == Cost::Doubles && second >= seconds / 2;
        // As many independent writers make it.
        let arriving = (mean + mean.sqrt() * noise.normal()).max(0.0);
        Point { arriving, per_worker: Some(if doubled { PER_WORKER / 2.0 } else { PER_WORKER }) }
    };
    let points = (0..seconds).map(point).collect();
    Trace::new(Duration::from_secs(1), points).unwrap_or_else(|| unreachable!("there are points"))
}

/// Numbers that look random and are the same each time (xorshift64*).
struct Noise(u64);

impl Noise {
    fn uniform(&mut self) -> f64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let bits = u32::try_from(self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32).unwrap_or(0);
        f64::from(bits) / f64::from(u32::MAX)
    }

    /// Normally distributed, nearly: the sum of twelve.
    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.uniform()).sum::<f64>() - 6.0
    }
}

/// A trace in real time, for workers on a cluster: as short as shows what it is about, and no more load than a few machines bear.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Brief {
    /// Six minutes with a burst of half a minute and one of a minute.
    Burst,
    /// Four minutes up, a minute and a half at the top, and at once down again.
    Ramp,
    /// Five minutes of the same.
    Steady,
    /// Silence, then everything, twice.
    Spike,
    /// A day in half an hour, whose load wanders by a quarter.
    Day,
}

impl Brief {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Burst, Self::Ramp, Self::Steady, Self::Spike, Self::Day];

    /// How long it lasts, in seconds.
    pub fn seconds(self) -> u32 {
        match self {
            Self::Burst | Self::Spike => 360,
            Self::Ramp => 480,
            Self::Steady => 300,
            Self::Day => 1_800,
        }
    }

    /// Events per second, on average, at this second.
    fn load(self, second: f64) -> f64 {
        let within = |from: f64, to: f64| (from..to).contains(&second);
        match self {
            Self::Burst if within(60.0, 90.0) || within(200.0, 260.0) => 400.0,
            Self::Burst => 90.0,
            Self::Ramp if within(60.0, 300.0) => 50.0 + (second - 60.0) / 240.0 * 350.0,
            Self::Ramp if within(300.0, 390.0) => 400.0,
            Self::Ramp => 50.0,
            Self::Steady => 230.0,
            Self::Spike if within(120.0, 180.0) || within(300.0, 330.0) => 400.0,
            Self::Spike => 0.0,
            Self::Day => {
                let day = 190.0 - 150.0 * (second / 1_500.0 * std::f64::consts::TAU).cos();
                let wanders = 0.7 * (second / 97.0).sin() + 0.3 * (second / 31.0).sin();
                day * (1.0 + 0.25 * wanders)
            }
        }
    }

    /// The trace, the same each time.
    pub fn trace(self, cost: Cost) -> Trace {
        trace(self.seconds(), cost, &mut Noise(0x00dd_ba11_5eed + u64::from(self.seconds())), |second| {
            self.load(second)
        })
    }
}
