//! The audit log: a line for each request that was denied, with its caller, where it came from, what it asked for and why it was denied.
//!
//! Contains no headers, bodies and queries: these may contain tokens.

use std::net::SocketAddr;

use http::{Method, StatusCode};

/// The name of a caller that is not identified.
pub(super) const UNKNOWN_CALLER: &str = "";

/// A request that is denied.
#[derive(Clone, Copy, Debug)]
pub(super) struct Denied<'a> {
    /// Where its connection came from: the front proxy, for callers that it passes on.
    pub(super) from: SocketAddr,
    /// The caller's name; [`UNKNOWN_CALLER`] where it is not known.
    pub(super) user: &'a str,
    pub(super) method: &'a Method,
    /// As it was sent, without the query. Bounded, and written with escapes.
    pub(super) path: &'a str,
}

impl Denied<'_> {
    /// Writes the line.
    pub(super) fn tell(self, code: StatusCode, why: &str) {
        let Self { from, user, method, path } = self;
        tracing::info!(target: "audit", %from, user, %method, path, code = code.as_u16(), why, "denied");
    }
}
