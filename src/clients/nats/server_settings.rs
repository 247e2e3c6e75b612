//! What a Secret says about a NATS server, as the sampler reads it for every kind of server.

use super::ConnectionSettings;
use crate::{
    clients::{Endpoint, ServerSettings},
    measure::MeasureError,
    names::secret_key::NATS,
};

impl ServerSettings for ConnectionSettings {
    fn keys() -> Vec<&'static str> {
        NATS.to_vec()
    }

    fn from_keys<'a>(value: impl Fn(&str) -> Option<&'a str>) -> Result<Self, MeasureError> {
        Self::from_keys(value)
    }

    fn trusting(self, authority: &[u8]) -> Result<Self, &'static str> {
        Ok(self.with_ca(authority))
    }

    fn showing(self, certificate: &[u8], key: &[u8]) -> Result<Self, &'static str> {
        Ok(self.with_client_certificate(certificate, key))
    }

    fn servers(&self) -> Vec<String> {
        self.servers.iter().map(ToString::to_string).collect()
    }

    fn endpoint(&self) -> Endpoint {
        Endpoint::Nats(self.identity())
    }
}
