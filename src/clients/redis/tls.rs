//! TLS towards the server: `rediss://` always verifies who signed its certificate and that it is for the host.

use std::sync::Arc;

use tokio_rustls::TlsConnector;

use super::ConnectionSettings;
use crate::{api::Reason, clients::tls::verifying, measure::MeasureError};

/// The connector for these settings.
///
/// # Errors
/// The authority or the client certificate cannot be read.
pub(super) fn connector(settings: &ConnectionSettings) -> Result<TlsConnector, MeasureError> {
    let config = verifying(settings.ca.as_deref(), settings.client.as_deref())
        .map_err(|message| MeasureError { reason: Reason::TlsFailed, message })?;
    Ok(TlsConnector::from(Arc::new(config)))
}
