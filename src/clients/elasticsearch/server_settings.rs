//! What a Secret says about Elasticsearch, as the sampler reads it for every kind of server.

use super::ConnectionSettings;
use crate::{
    clients::{Endpoint, ServerSettings},
    measure::MeasureError,
    names::secret_key::ELASTICSEARCH,
};

const NO_TLS: &str = "these settings use no TLS: write https:// or tls=true";

impl ServerSettings for ConnectionSettings {
    fn keys() -> Vec<&'static str> {
        ELASTICSEARCH.to_vec()
    }

    fn from_keys<'a>(value: impl Fn(&str) -> Option<&'a str>) -> Result<Self, MeasureError> {
        Self::from_keys(value)
    }

    fn trusting(self, authority: &[u8]) -> Result<Self, &'static str> {
        if self.uses_tls() { Ok(self.with_ca(authority)) } else { Err(NO_TLS) }
    }

    fn showing(self, certificate: &[u8], key: &[u8]) -> Result<Self, &'static str> {
        if self.uses_tls() { Ok(self.with_client_certificate(certificate, key)) } else { Err(NO_TLS) }
    }

    fn servers(&self) -> Vec<String> {
        vec![self.server.authority()]
    }

    fn endpoint(&self) -> Endpoint {
        Endpoint::Elasticsearch(self.identity())
    }
}
