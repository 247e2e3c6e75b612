//! TLS towards brokers: the chain and the host name are always verified.

use std::sync::Arc;

use tokio_rustls::TlsConnector;

use super::{Settings, error::KafkaError};
use crate::{api::Reason, clients::tls::verifying};

/// The connector for these settings; `None` where they ask for no TLS.
///
/// # Errors
/// The authority or the client certificate cannot be read.
pub(super) fn connector(settings: &Settings) -> Result<Option<TlsConnector>, KafkaError> {
    if !settings.tls {
        return Ok(None);
    }
    let config = verifying(settings.ca.as_deref(), settings.client.as_ref())
        .map_err(|why| KafkaError::new(Reason::TlsFailed, format!("{settings}: {why}")))?;
    Ok(Some(TlsConnector::from(Arc::new(config))))
}
