//! PostgreSQL's settings as the sampler reads them from Secrets.

use super::ConnectionSettings;
use crate::{
    api::Reason,
    clients::{Endpoint, ServerSettings, address::host_and_port},
    measure::MeasureError,
    names::secret_key,
};

impl ServerSettings for ConnectionSettings {
    fn keys() -> Vec<&'static str> {
        secret_key::all().collect()
    }

    fn from_keys<'a>(value: impl Fn(&str) -> Option<&'a str>) -> Result<Self, MeasureError> {
        Self::from_keys(value).map_err(|error| {
            let message = error.to_string();
            let missing = message.contains("is missing");
            MeasureError { reason: if missing { Reason::SecretKeyMissing } else { error.reason() }, message }
        })
    }

    fn trusting(self, authority: &[u8]) -> Result<Self, &'static str> {
        if self.verifies_certificate() {
            Ok(self.with_ca(authority))
        } else {
            Err("this sslmode verifies nothing: add sslmode=verify-full")
        }
    }

    fn showing(self, certificate: &[u8], key: &[u8]) -> Result<Self, &'static str> {
        if self.may_use_tls() {
            Ok(self.with_client_certificate(certificate, key))
        } else {
            Err("sslmode=disable never shows it: use sslmode=require or better")
        }
    }

    fn servers(&self) -> Vec<String> {
        self.hosts.iter().map(|(host, _, port)| host_and_port(host, *port)).collect()
    }

    fn endpoint(&self) -> Endpoint {
        Endpoint::Postgres(self.identity())
    }
}
