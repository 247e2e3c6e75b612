//! The client of a connection: its certificate, verified again for each new set of authorities and every few seconds.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use rustls::pki_types::{CertificateDer, UnixTime};

use super::{ClientAuthorities, authn::Standing, connection_limiter::Permit};

/// How long a verification counts: a certificate may expire while its connection is open.
const JUDGED_FOR: Duration = Duration::from_secs(5);

/// The client of a connection.
#[derive(Debug)]
pub(super) struct Peer {
    from: SocketAddr,
    chain: Vec<CertificateDer<'static>>,
    judged: Mutex<Option<Judged>>,
    permit: Arc<Permit>,
}

#[derive(Debug)]
struct Judged {
    by: Arc<ClientAuthorities>,
    at: Instant,
    standing: Standing,
}

impl Peer {
    pub(super) fn new(from: SocketAddr, chain: Vec<CertificateDer<'static>>, permit: Arc<Permit>) -> Self {
        Self { from, chain, judged: Mutex::default(), permit }
    }

    /// Its address.
    pub(super) fn from(&self) -> SocketAddr {
        self.from
    }

    /// What the certificate stands for now. New authorities verify it again, so that a rotated one counts at once, on open connections, too.
    pub(super) fn standing(&self, authorities: &Arc<ClientAuthorities>) -> Standing {
        let mut judged = self.judged.lock().unwrap_or_else(PoisonError::into_inner);
        match &*judged {
            Some(last) if Arc::ptr_eq(&last.by, authorities) && last.at.elapsed() < JUDGED_FOR => last.standing.clone(),
            _ => {
                let standing = authorities.judge(&self.chain, UnixTime::now());
                *judged = Some(Judged { by: authorities.clone(), at: Instant::now(), standing: standing.clone() });
                standing
            }
        }
    }

    /// A request on this connection had an identity.
    pub(super) fn identified(&self) {
        self.permit.identified();
    }

    /// True once [`Peer::identified`].
    pub(super) fn is_known(&self) -> bool {
        self.permit.is_identified()
    }
}
