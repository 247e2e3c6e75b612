//! Memberships that are kept by looking: one request in so many renews the lease as well.

use std::{future::Future, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use super::{super::error::ProjectorError, Membership, View};

const RENEW_EVERY: Duration = Duration::from_secs(2);
/// How often to look at the others.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// A membership of which one request looks at the others, and renews the lease where that is due.
pub(super) trait Looking: Send {
    /// Looks at the live workers and at the owners of the shards.
    fn look(&mut self, renew: bool) -> impl Future<Output = Result<View, ProjectorError>> + Send;
}

impl<L: Looking> Membership for L {
    async fn keep(mut self, views: &watch::Sender<View>) -> ProjectorError {
        let mut renewed = Instant::now();
        loop {
            let began = Instant::now();
            let renew = renewed.elapsed() >= RENEW_EVERY;
            match self.look(renew).await {
                Ok(view) => drop(views.send_replace(view)),
                Err(error) => return error,
            }
            if renew {
                renewed = began;
            }
            sleep_until(began + LOOK_EVERY.mul_f64(rand::random_range(0.8..1.2))).await;
        }
    }
}
