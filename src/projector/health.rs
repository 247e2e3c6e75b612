//! `/healthz` and `/readyz` of a worker, by plain HTTP.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use warp::{Filter, http::StatusCode};

use super::error::ProjectorError;
use crate::platform::listen::listen;

/// What the worker last reported about itself. Clones share it.
#[derive(Clone, Debug)]
pub struct Health(Arc<Mutex<Result<(), String>>>);

impl Default for Health {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Err("starting".to_owned()))))
    }
}

impl Health {
    /// Connected, set up, holding or waiting for shards. Returns true when that is news.
    pub(super) fn ready(&self) -> bool {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *state, Ok(())).is_err()
    }

    /// Not able to work, and why.
    pub(super) fn unready(&self, why: String) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Err(why);
    }

    /// Why the worker is not ready.
    pub fn state(&self) -> Result<(), String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Serves until dropped.
///
/// # Errors
/// When the process cannot listen on the address.
pub(super) async fn serve(
    address: SocketAddr,
    health: Health,
) -> Result<impl Future<Output = ()> + Send, ProjectorError> {
    let listener = listen(address).await.map_err(|source| ProjectorError::Health { address, source })?;
    let alive =
        warp::path!("healthz").map(|| "ok\n".to_owned()).map(|body| warp::reply::with_status(body, StatusCode::OK));
    let ready = warp::path!("readyz").map(move || match health.state() {
        Ok(()) => warp::reply::with_status("ok\n".to_owned(), StatusCode::OK),
        Err(why) => warp::reply::with_status(format!("{why}\n"), StatusCode::SERVICE_UNAVAILABLE),
    });
    Ok(warp::serve(alive.or(ready)).incoming(listener).run())
}
