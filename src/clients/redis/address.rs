//! Where servers listen, each with the name that its certificate must be for. Pure.

use std::fmt;

use crate::clients::address::{self, host_and_port};

/// Where a node listens.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(super) struct Address {
    pub(super) host: String,
    pub(super) port: u16,
    /// The name that its certificate must be for, where it announces one and is reached by its address.
    pub(super) name: Option<String>,
}

impl Address {
    pub(super) fn new(host: &str, port: u16) -> Self {
        Self { host: host.to_owned(), port, name: None }
    }

    /// Whether both are the same host and port.
    pub(super) fn is_at(&self, other: &Self) -> bool {
        (&self.host, self.port) == (&other.host, other.port)
    }
}

impl From<address::Address> for Address {
    fn from(address::Address { host, port }: address::Address) -> Self {
        Self { host, port, name: None }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&host_and_port(&self.host, self.port))
    }
}
