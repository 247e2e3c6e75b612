//! Kafka's settings as the sampler reads them from Secrets.

use super::{Settings, settings::KEYS};
use crate::{
    api::Reason,
    clients::{Endpoint, ServerSettings, address::host_and_port},
    measure::MeasureError,
};

impl ServerSettings for Settings {
    fn keys() -> Vec<&'static str> {
        KEYS.into_iter().flatten().copied().collect()
    }

    fn from_keys<'a>(value: impl Fn(&str) -> Option<&'a str>) -> Result<Self, MeasureError> {
        Self::from_keys(value).map_err(|error| {
            let missing = error.0.contains("is missing");
            let reason = if missing { Reason::SecretKeyMissing } else { Reason::ConnectionStringInvalid };
            MeasureError { reason, message: error.0 }
        })
    }

    fn trusting(self, authority: &[u8]) -> Result<Self, &'static str> {
        Ok(self.with_ca(authority.to_vec()))
    }

    fn showing(self, certificate: &[u8], key: &[u8]) -> Result<Self, &'static str> {
        Ok(self.with_client_certificate(certificate.to_vec(), key.to_vec()))
    }

    fn servers(&self) -> Vec<String> {
        self.bootstrap.iter().map(|(host, port)| host_and_port(host, *port)).collect()
    }

    fn endpoint(&self) -> Endpoint {
        Endpoint::Kafka(self.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_are_given_every_key_that_is_looked_for() {
        assert_eq!(<Settings as ServerSettings>::keys(), crate::names::secret_key::KAFKA);
    }
}
