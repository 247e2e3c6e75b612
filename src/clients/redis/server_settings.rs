//! What a Secret says about a Redis server, as the sampler reads it for every kind of server.

use super::ConnectionSettings;
use crate::{
    clients::{Endpoint, ServerSettings},
    measure::MeasureError,
    names::secret_key::REDIS,
};

impl ServerSettings for ConnectionSettings {
    fn keys() -> Vec<&'static str> {
        REDIS.to_vec()
    }

    fn from_keys<'a>(value: impl Fn(&str) -> Option<&'a str>) -> Result<Self, MeasureError> {
        Self::from_keys(value)
    }

    fn trusting(self, authority: &[u8]) -> Result<Self, &'static str> {
        if self.uses_tls() {
            Ok(self.with_ca(authority))
        } else {
            Err("these settings use no TLS: write rediss:// or tls=true")
        }
    }

    fn showing(self, certificate: &[u8], key: &[u8]) -> Result<Self, &'static str> {
        if self.uses_tls() {
            Ok(self.with_client_certificate(certificate, key))
        } else {
            Err("these settings use no TLS: write rediss:// or tls=true")
        }
    }

    fn servers(&self) -> Vec<String> {
        self.addresses()
    }

    fn endpoint(&self) -> Endpoint {
        Endpoint::Redis(self.identity())
    }
}
