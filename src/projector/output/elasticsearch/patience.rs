//! How a server that has too much to do is asked again: after growing pauses, and not for ever.

use std::time::Duration;

use tokio::time::Instant;

use crate::backoff::Backoff;

/// So long it is asked again.
const LONGEST: Duration = Duration::from_secs(15);
const PAUSES: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));

/// For one request, until it is answered. Its time begins with the first refusal.
#[derive(Default)]
pub(super) struct Patience {
    since: Option<Instant>,
    tries: u32,
}

impl Patience {
    /// Its time begins now.
    pub(super) fn from_now() -> Self {
        Self { since: Some(Instant::now()), tries: 0 }
    }

    /// How long to wait after a refusal; `None` where it is over.
    pub(super) fn pause(&mut self) -> Option<Duration> {
        if self.since.get_or_insert_with(Instant::now).elapsed() > LONGEST {
            return None;
        }
        let pause = PAUSES.jittered(self.tries, rand::random());
        self.tries += 1;
        Some(pause)
    }
}
