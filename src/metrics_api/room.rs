//! Places for connections: so many in all, so many for each address, and when all are taken the one who hoards them gives one back.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::watch;

/// Connections at once; the aggregator needs one or two.
const MOST_CONNECTIONS: usize = 512;
/// Of which one address may have so many.
const MOST_CONNECTIONS_OF_ONE: usize = 128;

/// Who is connected.
#[derive(Debug, Default)]
pub(super) struct Room(Mutex<HashMap<IpAddr, Tenants>>);

/// The connections of one address.
#[derive(Debug, Default)]
struct Tenants {
    all: usize,
    /// Those on which nobody has said yet who he is, the oldest first, and how they are told to go.
    strangers: VecDeque<(u64, watch::Sender<bool>)>,
    next: u64,
}

/// Given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    room: Arc<Room>,
    address: IpAddr,
    number: u64,
    known: AtomicBool,
    given_away: watch::Receiver<bool>,
}

impl Room {
    /// A place for a connection from this address, if it may have one. Where all are taken, the address with the most strangers loses its
    /// oldest, unless that is no worse off: a few that open connections and say nothing do not keep the others out.
    pub(super) fn take(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let address = address.to_canonical();
        let mut tenants = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = tenants.get(&address).map_or((0, 0), |mine| (mine.all, mine.strangers.len()));
        if mine.0 >= MOST_CONNECTIONS_OF_ONE {
            return None;
        }
        if tenants.values().map(|tenants| tenants.all).sum::<usize>() >= MOST_CONNECTIONS {
            let hoarder = tenants.values_mut().max_by_key(|tenants| tenants.strangers.len());
            let (_, oldest) = hoarder.filter(|hoarder| hoarder.strangers.len() > mine.1 + 1)?.strangers.pop_front()?;
            oldest.send_replace(true);
        }
        let (tell, given_away) = watch::channel(false);
        let mine = tenants.entry(address).or_default();
        let number = mine.next;
        mine.next += 1;
        mine.all += 1;
        mine.strangers.push_back((number, tell));
        Some(Place { room: self.clone(), address, number, known: AtomicBool::new(false), given_away })
    }
}

impl Tenants {
    fn forget_stranger(&mut self, number: u64) {
        self.strangers.retain(|(other, _)| *other != number);
    }
}

impl Place {
    /// Somebody who is known speaks there: nobody else gets it.
    pub(super) fn identified(&self) {
        if self.known.swap(true, Ordering::Relaxed) {
            return;
        }
        let mut tenants = self.room.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mine) = tenants.get_mut(&self.address) {
            mine.forget_stranger(self.number);
        }
    }

    /// True once [`Place::identified`].
    pub(super) fn is_known(&self) -> bool {
        self.known.load(Ordering::Relaxed)
    }

    /// Ready when another one needs it more.
    pub(super) async fn given_away(&self) {
        let mut given_away = self.given_away.clone();
        if given_away.wait_for(|given_away| *given_away).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut tenants = self.room.0.lock().unwrap_or_else(PoisonError::into_inner);
        match tenants.get_mut(&self.address) {
            Some(mine) if mine.all > 1 => {
                mine.all -= 1;
                mine.forget_stranger(self.number);
            }
            _ => {
                tenants.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_of(room: &Arc<Room>, last: u8) -> Vec<Place> {
        std::iter::from_fn(|| room.take(IpAddr::from([10, 0, 0, last]))).take(MOST_CONNECTIONS).collect()
    }

    fn gone(places: &[Place]) -> usize {
        places.iter().filter(|place| *place.given_away.borrow()).count()
    }

    #[test]
    fn no_address_gets_all_the_room_and_places_come_back() {
        let room = Arc::new(Room::default());
        let held = all_of(&room, 1);
        assert_eq!(held.len(), MOST_CONNECTIONS_OF_ONE);
        assert!(room.take("::ffff:10.0.0.1".parse().unwrap()).is_none(), "the same address in another form");
        drop(held);
        assert!(room.0.lock().unwrap().is_empty());
        assert!(room.take(IpAddr::from([10, 0, 0, 1])).is_some());
    }

    #[test]
    fn who_hoards_places_and_says_nothing_gives_them_to_others() {
        let room = Arc::new(Room::default());
        let held: Vec<Vec<Place>> = (1..=4).map(|last| all_of(&room, last)).collect();
        assert_eq!(held.iter().map(Vec::len).sum::<usize>(), MOST_CONNECTIONS);
        let other = room.take(IpAddr::from([10, 0, 0, 9])).expect("there is room for another");
        assert_eq!(held.iter().map(|held| gone(held)).sum::<usize>(), 1);
        assert!(!*other.given_away.borrow());
    }

    #[test]
    fn the_place_of_who_is_known_is_nobody_elses() {
        let room = Arc::new(Room::default());
        let held: Vec<Place> = (1..=4).flat_map(|last| all_of(&room, last)).collect();
        held.iter().for_each(Place::identified);
        assert!(room.take(IpAddr::from([10, 0, 0, 9])).is_none());
        assert_eq!(gone(&held), 0);
    }
}
