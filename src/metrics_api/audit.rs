//! A line for whoever audits: each request that was denied, whose it was, where it came from, what it asked and why it got nothing.
//!
//! Says nothing of headers, bodies and queries: tokens are there.

use std::net::SocketAddr;

use http::{Method, StatusCode};

/// Of a caller who showed nothing that says who he is.
pub(super) const NOBODY: &str = "";

/// A request that is denied.
#[derive(Clone, Copy, Debug)]
pub(super) struct Denied<'a> {
    /// Where its connection came from: the front proxy, for whom it passes on.
    pub(super) from: SocketAddr,
    /// Whose it is; [`NOBODY`] where that is not known.
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
