//! The pods of the workload, as far as the algorithm looks at them.

use std::time::Duration;

/// One pod.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Pod {
    /// `status.phase`.
    pub phase: Phase,
    /// It is being terminated.
    pub terminating: bool,
    /// Its condition Ready is true.
    pub ready: bool,
    /// When readiness changed last; for a pod that was never ready, when it was started.
    pub ready_since: Duration,
    /// `status.startTime`.
    pub started: Option<Duration>,
    /// The CPU that its containers request, in thousandths of a core.
    pub cpu_request: i64,
    /// What it used, where the metrics server knows it.
    pub cpu: Option<CpuUse>,
}

/// A pod's phase.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Phase {
    /// Not on a node yet, or its containers not started.
    Pending,
    /// Running.
    Running,
    /// Failed for good.
    Failed,
}

/// What the metrics server says of one pod.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CpuUse {
    /// Thousandths of a core.
    pub milli: i64,
    /// When the measurement ended.
    pub at: Duration,
    /// How long it took.
    pub window: Duration,
}

/// What the calculation of a resource does with a pod.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Group {
    /// Counts with what it uses.
    Ready(i64),
    /// Its use says nothing yet.
    Unready,
    /// Its use is not known.
    Missing,
    /// Does not count.
    Ignored,
}

/// How long the controller mistrusts young pods.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Youth {
    /// After its start a pod's use counts only when it is ready and was so for the whole measurement.
    pub(super) initialization: Duration,
    /// A pod that became unready within this time after its start was never ready.
    pub(super) readiness_delay: Duration,
}

impl Pod {
    /// A pod that has been running and ready since `at`.
    pub fn ready(at: Duration) -> Self {
        Self {
            phase: Phase::Running,
            terminating: false,
            ready: true,
            ready_since: at,
            started: Some(at),
            cpu_request: 0,
            cpu: None,
        }
    }

    /// A pod that was started at `at` and is not ready yet.
    pub fn starting(at: Duration) -> Self {
        Self { ready: false, ..Self::ready(at) }
    }

    /// Counts for targets of the kind Value. Terminating pods do as long as they are ready.
    pub(super) fn counts_as_ready(&self) -> bool {
        self.phase == Phase::Running && self.ready
    }

    pub(super) fn group(&self, youth: Youth, now: Duration) -> Group {
        if self.terminating || self.phase == Phase::Failed {
            return Group::Ignored;
        }
        if self.phase == Phase::Pending {
            return Group::Unready;
        }
        let Some(cpu) = self.cpu else { return Group::Missing };
        let Some(started) = self.started else { return Group::Unready };
        let unready = if started + youth.initialization > now {
            !self.ready || cpu.at < self.ready_since + cpu.window
        } else {
            !self.ready && started + youth.readiness_delay > self.ready_since
        };
        if unready { Group::Unready } else { Group::Ready(cpu.milli) }
    }
}
