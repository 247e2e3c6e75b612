//! Logging and health: log lines, and a plain HTTP port with `/healthz`, `/livez`, `/readyz` and `/metrics`.

use std::net::SocketAddr;

use tokio::net::TcpListener;
use tracing_subscriber::EnvFilter;
use warp::{Filter as _, Reply as _, http::StatusCode};

use crate::{
    cli::{LogArgs, LogFormat},
    metrics::Metrics,
    platform::listen::listen,
    platform::readiness::Readiness,
    platform::shutdown::Shutdown,
};

/// Why logging or the HTTP port could not be started.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The levels cannot be read.
    #[error("--log-level {0:?} is not a filter such as info or info,projectionist::sampler=debug")]
    LogLevel(String),
    /// The address is in use, or not one of this host.
    #[error("telemetry cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
}

/// Starts to write log lines to standard error. `at_most` are levels that no setting raises, such as `library=info`.
///
/// # Errors
/// When the levels cannot be read.
pub fn start_logging(log: &LogArgs, at_most: &[&str]) -> Result<(), TelemetryError> {
    let wrong = || TelemetryError::LogLevel(log.log_level.clone());
    let mut filter = EnvFilter::try_new(&log.log_level).map_err(|_| wrong())?;
    for quiet in quiet_libraries(&log.log_level) {
        filter = filter.add_directive(quiet.parse().map_err(|_| wrong())?);
    }
    for level in at_most {
        filter = filter.add_directive(level.parse().map_err(|_| wrong())?);
    }
    // The audit log does not depend on the level of the other logs.
    let filter = filter.add_directive("audit=info".parse().map_err(|_| wrong())?);
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A second call, as in tests, keeps the first.
    let _ = match log.log_format {
        LogFormat::Text => lines.with_ansi(false).try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
    Ok(())
}

/// The libraries' log lines about failed requests, which have alarming levels and do not name the object. Each of these errors is also returned to
/// its caller, who logs it with the object. Levels in `levels` that name a library take precedence.
fn quiet_libraries(levels: &str) -> impl Iterator<Item = &'static str> {
    let libraries = ["kube_client::client=off", "kube_client::client::tls=warn", "kube_runtime::watcher=off"];
    let named = levels.contains("kube_");
    libraries.into_iter().filter(move |_| !named)
}

/// Binds the port, so that a port that is in use is reported at the start.
///
/// # Errors
/// When it is in use.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, TelemetryError> {
    listen(address).await.map_err(|source| TelemetryError::Listen { address, source })
}

/// Serves until the process ends: also while the rest shuts down, so that probes see a process that is alive and not ready.
pub async fn serve(listener: TcpListener, metrics: Metrics, readiness: Readiness, shutdown: Shutdown) {
    let alive = warp::path!("healthz").or(warp::path!("livez")).unify().map(|| warp::reply::Response::new("ok".into()));
    let ready = warp::path!("readyz").map(move || {
        let missing = readiness.missing();
        let problem = if shutdown.is_asked() {
            "shutting down".to_owned()
        } else if missing.is_empty() {
            return warp::reply::Response::new("ok".into());
        } else {
            format!("not ready: waiting for {}", missing.join(", "))
        };
        warp::reply::with_status(problem, StatusCode::SERVICE_UNAVAILABLE).into_response()
    });
    let page = warp::path!("metrics").map(move || match metrics.page() {
        Ok(page) => {
            warp::reply::with_header(page, "content-type", "application/openmetrics-text; version=1.0.0; charset=utf-8")
                .into_response()
        }
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    });
    let routes = alive.or(ready).unify().or(page).unify();
    warp::serve(warp::get().and(routes).boxed()).incoming(listener).run().await;
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kube::runtime::reflector;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
        sync::watch,
    };

    use super::*;
    use crate::{
        metrics::ControllerMetrics, metrics_api::ApiMetrics, sampler::SamplerMetrics, snapshot::SharedSnapshot,
    };

    async fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn who_knows_nothing_of_the_cluster_is_alive_and_not_ready() {
        let mut readiness = Readiness::default();
        let first_round = readiness.condition("the first round of samples");
        let (ask, asked) = watch::channel(false);
        let (projections, _writer) = reflector::store();
        let metrics = Metrics::new(
            &ControllerMetrics::default(),
            &ApiMetrics::default(),
            Arc::new(SamplerMetrics::default()),
            SharedSnapshot::default(),
            projections,
        );
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, metrics, readiness, Shutdown::following(asked)));

        let refused = get(address, "/readyz").await;
        assert!(refused.starts_with("HTTP/1.1 503") && refused.contains("the first round of samples"), "{refused}");
        first_round.send_replace(true);
        assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 200"));
        ask.send_replace(true);
        assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 503"));
        // None of that is a reason for a restart.
        for path in ["/livez", "/healthz"] {
            assert!(get(address, path).await.starts_with("HTTP/1.1 200"));
        }
    }
}
