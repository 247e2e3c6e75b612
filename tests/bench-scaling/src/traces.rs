//! The traces: made here, the same each time. Loads are in events per second, for workers that handle [`PER_WORKER`] of them each.

use std::time::Duration;

use projectionist::simulate::{Backlog, Point, Trace};

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
}

/// Whether an event always costs the same.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Cost {
    /// It does.
    Known,
    /// From the middle on it costs twice as much, and nobody is told.
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
    })
    .collect();
    if cost == Cost::Known {
        cases.push(Case {
            name: "backlog of 1.5 million",
            trace: trace(2_000, cost, &mut noise, |_| 100.0),
            backlog: Backlog { events: 1_500_000.0, age: Duration::from_secs(36_000) },
            shards: vec![1.0; 24],
            hopeless: true,
        });
        // One shard gets 30 % of the events, which for five minutes is more than a worker can do.
        let mut shards = vec![0.7 / 23.0; 24];
        shards[0] = 0.3;
        let trace =
            trace(SECONDS, cost, &mut noise, |second| if (400.0..700.0).contains(&second) { 190.0 } else { 90.0 });
        cases.push(Case { name: "one hot shard", trace, backlog: Backlog::default(), shards, hopeless: true });
    }
    cases
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
