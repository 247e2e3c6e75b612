//! TLS towards brokers: the chain and the host name are always verified.

use std::sync::Arc;

use tokio_rustls::TlsConnector;

use super::{Settings, error::KafkaError};
use crate::{
    api::Reason,
    clients::tls::{Shown, verifying},
};

/// The connector for these settings; `None` where they ask for no TLS.
///
/// # Errors
/// The authority or the client certificate cannot be read.
pub(super) fn connector(settings: &Settings) -> Result<Option<TlsConnector>, KafkaError> {
    if !settings.tls {
        return Ok(None);
    }
    let shown = settings.client.as_ref().map(|client| Shown { certificate: &client.certificate, key: &client.key });
    let config = verifying(settings.ca.as_deref(), shown)
        .map_err(|why| KafkaError::new(Reason::TlsFailed, format!("{settings}: {why}")))?;
    Ok(Some(TlsConnector::from(Arc::new(config))))
}
