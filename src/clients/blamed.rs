//! Which places on a server have spoilt the reading of others, so that they are asked for last. Pure.

use std::{collections::HashMap, hash::Hash};

use crate::{api::Reason, measure::MeasureError};

/// Places whose answers ended a connection, were too large or did not come in time, with what was said of each. One of them may be right again at any
/// time, so that they go on being asked: after all others, and among themselves in turn, since each may keep those after it from being read.
#[derive(Debug)]
pub struct Blamed<P> {
    turn: u64,
    places: HashMap<P, (u64, MeasureError)>,
}

impl<P> Default for Blamed<P> {
    fn default() -> Self {
        Self { turn: 0, places: HashMap::new() }
    }
}

impl<P: Clone + Eq + Hash> Blamed<P> {
    /// Forgets what is not in `asked`, and so is not asked for any more. Returns the places that are not blamed, and the others, that which was blamed longest ago first.
    pub fn part<'a>(&mut self, asked: &'a [P]) -> (Vec<&'a P>, Vec<&'a P>) {
        if self.places.is_empty() {
            return (asked.iter().collect(), Vec::new());
        }
        let mut last: Vec<(u64, &P)> =
            asked.iter().filter_map(|place| Some((self.places.get(place)?.0, place))).collect();
        last.sort_by_key(|(turn, _)| *turn);
        let last: Vec<&P> = last.into_iter().map(|(_, place)| place).collect();
        let first = asked.iter().filter(|place| !self.places.contains_key(*place)).collect();
        let kept: Vec<(P, (u64, MeasureError))> =
            last.iter().filter_map(|place| self.places.remove_entry(*place)).collect();
        self.places = kept.into_iter().collect();
        (first, last)
    }

    /// This place has kept others from being read, or may have: it is the last from now on.
    pub fn blame(&mut self, place: &P, why: &MeasureError) {
        self.turn += 1;
        self.places.insert(place.clone(), (self.turn, why.clone()));
    }

    /// This place was read.
    pub fn clear(&mut self, place: &P) {
        self.places.remove(place);
    }

    /// Takes note of what came of each place of one round trip, in the order in which they were asked for: of a place that was not read, why. Those that
    /// ended the connection or came too late are blamed. Returns those that an answer which ended the connection kept from being read, unless they
    /// are to blame themselves.
    pub fn judge<'a, 'e>(
        &mut self,
        outcomes: impl IntoIterator<Item = (&'a P, Result<(), &'e MeasureError>)>,
    ) -> Vec<&'a P> {
        let (mut spoilt, mut ended, mut is_late) = (Vec::new(), false, false);
        for (place, outcome) in outcomes {
            match outcome {
                Ok(()) => self.clear(place),
                Err(error) if error.reason == Reason::InvalidAnswer => {
                    ended = true;
                    self.blame(place, error);
                }
                // The first that is not answered may be what the server or the network could not cope with.
                Err(error) if error.reason == Reason::TimedOut && !is_late => {
                    is_late = true;
                    self.blame(place, error);
                }
                Err(error) if error.reason == Reason::SourceFailed => spoilt.push(place),
                Err(_) => {}
            }
        }
        spoilt.retain(|place| ended && self.why(place).is_none());
        spoilt
    }

    /// Why a place was not read: why it is blamed says more than that another one came before it.
    pub fn explain(&self, place: &P, error: MeasureError) -> MeasureError {
        match self.why(place) {
            Some(why) if error.reason == Reason::SourceFailed => why.clone(),
            _ => error,
        }
    }

    /// Why this place is blamed, where it is.
    pub fn why(&self, place: &P) -> Option<&MeasureError> {
        self.places.get(place).map(|(_, why)| why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blamed_places_come_last_and_in_turn_and_are_forgotten_when_they_were_read_or_are_asked_no_more() {
        let why = |text: &str| MeasureError { reason: Reason::InvalidAnswer, message: text.to_owned() };
        let mut blamed = Blamed::default();
        let asked = ["a", "b", "c", "d"];
        blamed.blame(&"c", &why("large"));
        blamed.blame(&"a", &why("larger"));
        assert_eq!(blamed.part(&asked), (vec![&"b", &"d"], vec![&"c", &"a"]));
        blamed.blame(&"c", &why("still"));
        assert_eq!(blamed.part(&asked).1, [&"a", &"c"]);
        assert_eq!(blamed.why(&"c"), Some(&why("still")));
        blamed.clear(&"a");
        assert_eq!(blamed.part(&asked), (vec![&"a", &"b", &"d"], vec![&"c"]));
        blamed.part(&["a"]);
        assert_eq!(blamed.why(&"c"), None, "not asked for");
    }
}
