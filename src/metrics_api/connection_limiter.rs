//! How many connections there may be at once, in all and from one address, and which of them are closed when there are too many.
//!
//! A connection passes through these stages:
//!
//! 1. *Handshaking*: accepted, and its TLS handshake has not ended. What it is worth is not known yet.
//! 2. *Unidentified*: the handshake has ended, and no request on it had an identity so far.
//! 3. *Identified*: a request on it had an identity. It is never closed for another one.
//!
//! A connection that showed a valid certificate of the front proxy is *vouched for*: it is the aggregator's, it counts against no limit of an
//! address, and it is never closed for another one. So connections that open and send nothing, even from the address of the API server itself, keep
//! no read out.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::watch;

/// Connections at once that no front proxy vouches for.
const MAX_CONNECTIONS: usize = 512;
/// The share of [`MAX_CONNECTIONS`] that one address may have, handshakes included. A burst of new connections of the aggregator is handshaking
/// first, and must fit.
const MAX_CONNECTIONS_PER_ADDRESS: usize = 384;
/// The share that one address may have once the handshake has ended.
const MAX_ESTABLISHED_PER_ADDRESS: usize = 128;
/// The most connections that a front proxy vouches for. A healthy API server does not reach this limit.
const MAX_VOUCHED_FOR: usize = 4_096;

/// Counts connections and hands out permits for them.
#[derive(Debug, Default)]
pub(super) struct ConnectionLimiter(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    addresses: HashMap<IpAddr, OfAddress>,
    vouched_for: usize,
    next_id: u64,
}

/// The connections of one address that no front proxy vouches for.
#[derive(Debug, Default)]
struct OfAddress {
    /// The oldest first.
    handshaking: VecDeque<Evictable>,
    /// The oldest first.
    unidentified: VecDeque<Evictable>,
    identified: usize,
}

/// A connection that may be closed in favour of another.
#[derive(Debug)]
struct Evictable {
    id: u64,
    evict: watch::Sender<bool>,
}

/// The right to one connection, given back when dropped.
#[derive(Debug)]
pub(super) struct Permit {
    limiter: Arc<ConnectionLimiter>,
    address: IpAddr,
    id: u64,
    vouched_for: AtomicBool,
    identified: AtomicBool,
    evicted: watch::Receiver<bool>,
}

impl ConnectionLimiter {
    /// A permit for a new connection from `address`, or `None` when the connection must be closed. May evict another connection, first one
    /// of the same address where that has reached its share, else the oldest of the address with the most that are not identified, unless that
    /// address has no more of them than this one.
    pub(super) fn accept(self: &Arc<Self>, address: IpAddr) -> Option<Permit> {
        let address = address.to_canonical();
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (all, evictable) = state.addresses.get(&address).map_or((0, 0), |own| (own.all(), own.evictable()));
        if all >= MAX_CONNECTIONS_PER_ADDRESS {
            state.addresses.get_mut(&address)?.evict()?;
        } else if state.addresses.values().map(OfAddress::all).sum::<usize>() >= MAX_CONNECTIONS {
            let largest = state.addresses.values_mut().max_by_key(|other| other.evictable())?;
            if largest.evictable() <= evictable + 1 {
                return None;
            }
            largest.evict()?;
        }
        let (evict, evicted) = watch::channel(false);
        let id = state.next_id;
        state.next_id += 1;
        state.addresses.entry(address).or_default().handshaking.push_back(Evictable { id, evict });
        drop(state);
        let (vouched_for, identified) = (AtomicBool::new(false), AtomicBool::new(false));
        Some(Permit { limiter: Arc::clone(self), address, id, vouched_for, identified, evicted })
    }
}

impl State {
    /// Changes what is known of an address, and forgets the address with its last connection.
    fn change<T>(&mut self, address: IpAddr, change: impl FnOnce(&mut OfAddress) -> T) -> T {
        let own = self.addresses.entry(address).or_default();
        let result = change(own);
        if own.all() == 0 {
            self.addresses.remove(&address);
        }
        result
    }
}

impl OfAddress {
    fn evictable(&self) -> usize {
        self.handshaking.len() + self.unidentified.len()
    }

    fn established(&self) -> usize {
        self.unidentified.len() + self.identified
    }

    fn all(&self) -> usize {
        self.evictable() + self.identified
    }

    /// Evicts the oldest connection that has ended its handshake and is idle; else the oldest handshake. It no longer counts from now on.
    fn evict(&mut self) -> Option<()> {
        let Evictable { evict, .. } = self.unidentified.pop_front().or_else(|| self.handshaking.pop_front())?;
        evict.send_replace(true);
        Some(())
    }

    fn take_out(&mut self, id: u64) -> Option<Evictable> {
        let take = |from: &mut VecDeque<Evictable>| {
            let at = from.iter().position(|other| other.id == id)?;
            from.remove(at)
        };
        take(&mut self.handshaking).or_else(|| take(&mut self.unidentified))
    }
}

impl Permit {
    /// Notes the end of the handshake. `vouched_for`: the client showed a valid certificate of the front proxy. False when the connection must be
    /// closed.
    pub(super) fn established(&self, vouched_for: bool) -> bool {
        let mut state = self.limiter.0.lock().unwrap_or_else(PoisonError::into_inner);
        if vouched_for {
            if state.vouched_for >= MAX_VOUCHED_FOR {
                return false;
            }
            state.change(self.address, |own| own.take_out(self.id));
            state.vouched_for += 1;
            self.vouched_for.store(true, Ordering::Relaxed);
            return true;
        }
        state.change(self.address, |own| {
            let Some(this) = own.take_out(self.id) else { return false };
            if own.established() >= MAX_ESTABLISHED_PER_ADDRESS {
                let Some(Evictable { evict, .. }) = own.unidentified.pop_front() else { return false };
                evict.send_replace(true);
            }
            own.unidentified.push_back(this);
            true
        })
    }

    /// Notes that a request on this connection had an identity.
    pub(super) fn identified(&self) {
        if self.identified.swap(true, Ordering::Relaxed) || self.is_vouched_for() {
            return;
        }
        let mut state = self.limiter.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.change(self.address, |own| {
            own.take_out(self.id);
            own.identified += 1;
        });
    }

    /// True once [`Permit::identified`] was called.
    pub(super) fn is_identified(&self) -> bool {
        self.identified.load(Ordering::Relaxed)
    }

    /// True for a connection of the front proxy.
    pub(super) fn is_vouched_for(&self) -> bool {
        self.vouched_for.load(Ordering::Relaxed)
    }

    /// Completes when the connection has to be closed in favour of another one.
    pub(super) async fn evicted(&self) {
        let mut evicted = self.evicted.clone();
        if evicted.wait_for(|evicted| *evicted).await.is_err() || self.is_vouched_for() {
            // Nothing can evict it any more.
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.limiter.0.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_vouched_for() {
            state.vouched_for -= 1;
            return;
        }
        let identified = self.is_identified();
        state.change(self.address, |own| match identified {
            true => own.identified -= 1,
            false => drop(own.take_out(self.id)),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    fn handshaking(limiter: &Arc<ConnectionLimiter>, last: u8, count: usize) -> Vec<Permit> {
        (0..count).map_while(|_| limiter.accept(address(last))).collect()
    }

    fn established(limiter: &Arc<ConnectionLimiter>, last: u8, count: usize) -> Vec<Permit> {
        let permits = handshaking(limiter, last, count);
        permits.iter().for_each(|permit| assert!(permit.established(false)));
        permits
    }

    fn evicted(permits: &[Permit]) -> usize {
        permits.iter().filter(|permit| *permit.evicted.borrow()).count()
    }

    fn is_empty(limiter: &ConnectionLimiter) -> bool {
        let state = limiter.0.lock().unwrap();
        state.addresses.is_empty() && state.vouched_for == 0
    }

    #[test]
    fn one_address_keeps_no_more_than_its_share_and_its_oldest_idle_connections_give_way() {
        let limiter = Arc::new(ConnectionLimiter::default());
        let held = established(&limiter, 1, 200);
        assert_eq!(evicted(&held), 200 - MAX_ESTABLISHED_PER_ADDRESS);
        assert!(*held[0].evicted.borrow() && !*held[199].evicted.borrow(), "the oldest go first");
        let same = limiter.accept("::ffff:10.0.0.1".parse().unwrap()).unwrap();
        assert!(same.established(false));
        assert_eq!(evicted(&held), 201 - MAX_ESTABLISHED_PER_ADDRESS, "the same address in another form");
        drop((held, same));
        assert!(is_empty(&limiter));
    }

    #[test]
    fn connections_of_the_front_proxy_count_against_no_address_and_never_give_way() {
        let limiter = Arc::new(ConnectionLimiter::default());
        let idle = established(&limiter, 1, 200);
        let burst = handshaking(&limiter, 1, 300);
        assert_eq!(burst.len(), 300);
        for read in &burst {
            assert!(read.established(true));
        }
        let more: Vec<Permit> = (0..600).flat_map(|_| established(&limiter, 1, 1)).collect();
        assert_eq!(evicted(&burst), 0);
        assert_eq!(more.len(), 600);
        burst.iter().for_each(Permit::identified);
        drop((idle, burst, more));
        assert!(is_empty(&limiter));
    }

    #[test]
    fn an_evicted_connection_that_ends_its_handshake_meanwhile_is_counted_right() {
        let limiter = Arc::new(ConnectionLimiter::default());
        let first = limiter.accept(address(1)).unwrap();
        let _more = handshaking(&limiter, 1, MAX_CONNECTIONS_PER_ADDRESS);
        assert!(*first.evicted.borrow());
        assert!(first.established(true));
        drop(first);
        assert!(limiter.0.lock().unwrap().vouched_for == 0);
    }

    #[test]
    fn an_address_with_many_silent_connections_gives_them_to_other_addresses() {
        let limiter = Arc::new(ConnectionLimiter::default());
        let held: Vec<Vec<Permit>> = (1..=4).map(|last| established(&limiter, last, 128)).collect();
        assert_eq!(held.iter().map(Vec::len).sum::<usize>(), MAX_CONNECTIONS);
        let other = limiter.accept(address(9)).expect("another address gets a connection");
        assert_eq!(held.iter().map(|held| evicted(held)).sum::<usize>(), 1);
        assert!(!*other.evicted.borrow());
    }

    #[test]
    fn an_identified_connection_is_closed_for_no_other() {
        let limiter = Arc::new(ConnectionLimiter::default());
        let held: Vec<Permit> = (1..=4).flat_map(|last| established(&limiter, last, 128)).collect();
        held.iter().for_each(Permit::identified);
        assert!(limiter.accept(address(9)).is_none());
        assert_eq!(evicted(&held), 0);
        drop(held);
        let held = established(&limiter, 1, 128);
        held.iter().for_each(Permit::identified);
        assert!(!limiter.accept(address(1)).unwrap().established(false), "its share is used up");
    }
}
