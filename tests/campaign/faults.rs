//! What can go wrong at one write of the operator.

use std::fmt;
use std::time::Duration;

/// How long a late answer is held back.
pub(crate) const LATE: Duration = Duration::from_secs(12);
/// How long watches lag or lose events.
pub(crate) const WATCH_TROUBLE: Duration = Duration::from_secs(4);

/// One fault, at one write.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Fault {
    /// The operator is killed before the write reaches the API server.
    CrashBefore,
    /// It is killed after the write, before the answer.
    CrashAfter,
    /// As before, and it comes back only after the next thing that the user does.
    AwayAfter,
    /// The write is applied and the connection cut.
    AnswerLost,
    /// The write is applied and answered late.
    AnswerLate,
    /// The API server answers with this code and applies nothing.
    Refused(u16),
    /// All watches end.
    WatchesCut,
    /// Watches lag behind for a while.
    WatchesLag,
    /// Events are lost for a while; then the watches end with 410 Gone, and everything is listed.
    WatchesLose,
}

impl Fault {
    pub(crate) const ALL: [Self; 12] = [
        Self::CrashBefore,
        Self::CrashAfter,
        Self::AwayAfter,
        Self::AnswerLost,
        Self::AnswerLate,
        Self::Refused(409),
        Self::Refused(429),
        Self::Refused(500),
        Self::Refused(503),
        Self::WatchesCut,
        Self::WatchesLag,
        Self::WatchesLose,
    ];
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CrashBefore => f.write_str("crash before"),
            Self::CrashAfter => f.write_str("crash after"),
            Self::AwayAfter => f.write_str("crash after, back later"),
            Self::AnswerLost => f.write_str("answer lost"),
            Self::AnswerLate => write!(f, "answer {} s late", LATE.as_secs()),
            Self::Refused(code) => write!(f, "answered {code}"),
            Self::WatchesCut => f.write_str("watches cut"),
            Self::WatchesLag => f.write_str("watches lag"),
            Self::WatchesLose => f.write_str("watches lose events"),
        }
    }
}
