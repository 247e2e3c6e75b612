//! Which Projection writes where in a read store that several of them share: claims, kept in the store, made by workers before they write anything. Pure.
//!
//! The first to claim a place has it. Claims are compared with those of others only when they are made, when the process of a worker begins. After that they hold until
//! the handlers of their Projection have changed or a person removes them: a worker that writes already is never stopped by a Projection that comes later, nor by what has
//! become of its claims.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::super::{
    error::{PlaceOfAnother, ProjectorError},
    template::Template,
};
use crate::names::run_name;

/// Where a handler writes: an index or a key.
#[derive(Clone, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Place {
    /// The one with this name.
    Name(String),
    /// All those whose names begin with this.
    Prefix(String),
}

/// What a Projection claims.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Wanted {
    /// `namespace/name` of the Projection, and `@version` where each version has a run of its own: these claim for themselves.
    pub(super) projection: String,
    /// Where its handlers write.
    pub(super) places: BTreeSet<Place>,
    /// Other Projections that say so as well may write there.
    pub(super) shared: bool,
}

/// What becomes of the places that a Projection has claimed and its handlers no longer name.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::projector) enum Unnamed {
    /// They stay claimed: workers with the handlers of before may still write there.
    Kept,
    /// They are given back.
    GivenBack,
}

/// The claims of all Projections as the store keeps them: for each Projection JSON, which may be no worker's.
pub(super) type KeptClaims = BTreeMap<String, String>;

/// What is kept of a Projection.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
struct Claims {
    shared: bool,
    claims: Vec<Claim>,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
struct Claim {
    place: Place,
    /// When it was made, by the clock of the worker that made it.
    since: Timestamp,
}

/// What is to be done so that a Projection has what it claims.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Step {
    /// It has it.
    Nothing,
    /// Its claims become this JSON, provided that nothing has changed since those of all were read.
    Write(String),
    /// It claims nothing any more.
    Remove,
}

/// Why a Projection gets nothing of what it claims.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Refusal {
    /// Another one has it.
    Owned { place: Place, owner: String, theirs: Place, since: Timestamp },
    /// What is kept of another Projection makes no sense, so that it may be anything that it claims.
    Unreadable { owner: String },
}

impl Place {
    /// Where this is the name; `None` where nothing of the name is the same for all events.
    pub(super) fn of(template: &Template) -> Option<Self> {
        match template.beginning() {
            ("", _) => None,
            (name, true) => Some(Self::Name(name.to_owned())),
            (prefix, false) => Some(Self::Prefix(prefix.to_owned())),
        }
    }

    /// Whether all that is of the other is of this one.
    fn includes(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Name(name), Self::Name(other)) => name == other,
            (Self::Name(_), Self::Prefix(_)) => false,
            (Self::Prefix(prefix), Self::Name(other) | Self::Prefix(other)) => other.starts_with(prefix),
        }
    }

    /// Whether anything may be of both.
    fn overlaps(&self, other: &Self) -> bool {
        self.includes(other) || other.includes(self)
    }
}

/// What is to be done at `now`, where this is kept.
///
/// # Errors
/// Where one of the places is another Projection's, or may be: then none of them is claimed, and what this Projection has had it keeps.
pub(super) fn step(kept: &KeptClaims, wanted: &Wanted, unnamed: Unnamed, now: Timestamp) -> Result<Step, Refusal> {
    let Wanted { projection, places, shared } = wanted;
    // Seconds are fine enough.
    let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
    // Where its own make no sense, it claims what it names as if it were new: the claims of others are not touched.
    let mine = kept.get(projection).map(|json| read(projection, json).unwrap_or_default());
    let before = mine.clone().unwrap_or_default();
    // Claims that were shared may overlap with those of others.
    let still_hold = *shared || !before.shared;
    let is_held = |place: &Place| still_hold && before.claims.iter().any(|claim| claim.place.includes(place));
    let new: Vec<&Place> = places.iter().filter(|place| !is_held(place)).collect();
    let others = kept.iter().filter(|(owner, _)| !new.is_empty() && *owner != projection);
    for (owner, json) in others {
        let theirs = read(owner, json)?;
        // What two versions of a read model share, no reader can tell apart.
        let is_version = run_name::parts(owner).0 == run_name::parts(projection).0;
        if *shared && theirs.shared && !is_version {
            continue;
        }
        for claim in &theirs.claims {
            if let Some(place) = new.iter().find(|place| place.overlaps(&claim.place)) {
                let (place, theirs) = ((*place).clone(), claim.place.clone());
                return Err(Refusal::Owned { place, owner: owner.clone(), theirs, since: claim.since });
            }
        }
    }
    let mut claims: BTreeMap<&Place, Timestamp> = places.iter().map(|place| (place, now)).collect();
    for Claim { place, since } in &before.claims {
        if unnamed == Unnamed::Kept || places.contains(place) {
            claims.insert(place, *since);
        }
    }
    let claims: Vec<Claim> = claims.into_iter().map(|(place, since)| Claim { place: place.clone(), since }).collect();
    let after = Claims { shared: *shared, claims };
    Ok(match (mine, after.claims.is_empty()) {
        (None, true) => Step::Nothing,
        (Some(_), true) => Step::Remove,
        (Some(before), false) if before == after => Step::Nothing,
        // Names and times: nothing that JSON cannot write.
        (_, false) => Step::Write(serde_json::to_string(&after).unwrap_or_default()),
    })
}

fn read(owner: &str, json: &str) -> Result<Claims, Refusal> {
    serde_json::from_str(json).map_err(|_| Refusal::Unreadable { owner: owner.to_owned() })
}

/// How a store tells of claims.
pub(super) struct Words<'a> {
    /// Where the store is.
    pub(super) at: String,
    /// What holds the claims of all.
    pub(super) key: String,
    /// What a name names: one, and several.
    pub(super) names: (&'static str, &'static str),
    /// The field that says that a place is shared.
    pub(super) shared: &'static str,
    /// What removes the claims of a Projection.
    pub(super) remove: &'a (dyn Fn(&str) -> String + Sync),
}

impl Words<'_> {
    /// Why a worker does not write there.
    pub(super) fn error(&self, projection: &str, refusal: Refusal) -> ProjectorError {
        match refusal {
            Refusal::Owned { place, owner, theirs, since } => {
                ProjectorError::PlaceOfAnother(Box::new(PlaceOfAnother {
                    projection: told(projection),
                    at: self.at.clone(),
                    claimed: if theirs == place { String::new() } else { format!(" (with {})", self.shown(&theirs)) },
                    place: self.shown(&place),
                    another: self.names.0,
                    since: since.to_string(),
                    shared: self.shared,
                    remove: (self.remove)(&owner),
                    owner: told(&owner),
                }))
            }
            Refusal::Unreadable { owner } => self.unreadable(&format!(" for {owner:?}"), (self.remove)(&owner)),
        }
    }

    /// What is kept is not what workers write; `remove` removes it.
    pub(super) fn unreadable(&self, of: &str, remove: String) -> ProjectorError {
        ProjectorError::ClaimsUnreadable { at: self.at.clone(), key: self.key.clone(), of: of.to_owned(), remove }
    }

    fn shown(&self, place: &Place) -> String {
        let (one, several) = self.names;
        match place {
            Place::Name(name) => format!("{one} {name}"),
            Place::Prefix(prefix) => format!("{several} that begin with {prefix}"),
        }
    }
}

/// A Projection, with the version where each has a run of its own.
fn told(name: &str) -> String {
    match run_name::parts(name) {
        (projection, Some(version)) => format!("{projection} (version {version})"),
        (projection, None) => projection.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-11-28T12:00:00Z";
    const BEFORE: &str = "2026-11-01T12:00:00Z";

    /// A name, or with a star at its end what names begin with.
    fn place(text: &str) -> Place {
        text.strip_suffix('*').map_or_else(|| Place::Name(text.to_owned()), |prefix| Place::Prefix(prefix.to_owned()))
    }

    fn wanted(projection: &str, places: &[&str], shared: bool) -> Wanted {
        Wanted { projection: projection.to_owned(), places: places.iter().map(|text| place(text)).collect(), shared }
    }

    /// After the step of each of these, at `BEFORE`.
    fn kept(all: &[(&str, &[&str], bool)]) -> KeptClaims {
        let mut kept = KeptClaims::new();
        for (projection, places, shared) in all {
            let wanted = wanted(projection, places, *shared);
            match step(&kept, &wanted, Unnamed::Kept, BEFORE.parse().unwrap()).unwrap() {
                Step::Write(json) => kept.insert((*projection).to_owned(), json),
                other => panic!("{other:?}"),
            };
        }
        kept
    }

    fn next(kept: &KeptClaims, projection: &str, places: &[&str], shared: bool) -> Result<Step, Refusal> {
        step(kept, &wanted(projection, places, shared), Unnamed::GivenBack, NOW.parse().unwrap())
    }

    fn owned(mine: &str, owner: &str, theirs: &str) -> Result<Step, Refusal> {
        let owner = owner.to_owned();
        Err(Refusal::Owned { place: place(mine), owner, theirs: place(theirs), since: BEFORE.parse().unwrap() })
    }

    #[test]
    fn the_first_to_claim_a_place_has_it_and_whatever_overlaps_is_refused() {
        for (first, second) in [
            ("orders", "orders"),
            ("order:*", "order:*"),
            ("order:*", "order:eu:*"),
            ("order:eu:*", "order:*"),
            ("order:*", "order:all"),
            ("order:all", "order:*"),
        ] {
            let kept = kept(&[("shop/first", &["other", first], false)]);
            assert_eq!(next(&kept, "shop/second", &["mine", second], false), owned(second, "shop/first", first));
            assert_eq!(next(&kept, "shop/first", &["other", first], false), Ok(Step::Nothing), "{first}");
        }
        for (first, second) in
            [("orders", "orders-2"), ("order:*", "orders"), ("order:*", "card:*"), ("order:", "order:*x")]
        {
            let kept = kept(&[("shop/first", &[first], false)]);
            assert!(matches!(next(&kept, "shop/second", &[second], false), Ok(Step::Write(_))), "{first} {second}");
        }
    }

    #[test]
    fn what_a_projection_no_longer_writes_to_is_given_back_and_the_rest_keeps_its_time() {
        let mut all = kept(&[("shop/first", &["a", "b"], false)]);
        assert_eq!(next(&all, "shop/second", &["a"], false), owned("a", "shop/first", "a"));
        let Ok(Step::Write(json)) = next(&all, "shop/first", &["b", "c"], false) else { panic!() };
        assert_eq!(
            json,
            format!(
                r#"{{"shared":false,"claims":[{{"place":{{"name":"b"}},"since":"{BEFORE}"}},{{"place":{{"name":"c"}},"since":"{NOW}"}}]}}"#
            )
        );
        all.insert("shop/first".to_owned(), json);
        assert!(matches!(next(&all, "shop/second", &["a"], false), Ok(Step::Write(_))));
        assert_eq!(next(&all, "shop/first", &[], false), Ok(Step::Remove));
        assert_eq!(next(&all, "shop/third", &[], false), Ok(Step::Nothing));
    }

    #[test]
    fn a_worker_with_the_handlers_of_before_takes_nothing_from_one_with_new_ones() {
        let mut all = kept(&[("shop/first", &["a"], false)]);
        // The first worker with new handlers, an old one whose process begins again, and then every worker.
        for places in [["b"], ["a"], ["b"]] {
            match step(&all, &wanted("shop/first", &places, false), Unnamed::Kept, NOW.parse().unwrap()) {
                Ok(Step::Write(json)) => drop(all.insert("shop/first".to_owned(), json)),
                other => assert_eq!(other, Ok(Step::Nothing)),
            }
            for place in ["a", "b"] {
                assert!(matches!(next(&all, "shop/second", &[place], false), Err(Refusal::Owned { .. })), "{place}");
            }
        }
        assert_eq!(
            step(&all, &wanted("shop/first", &[], false), Unnamed::Kept, NOW.parse().unwrap()),
            Ok(Step::Nothing)
        );
        let Ok(Step::Write(json)) = next(&all, "shop/first", &["b"], false) else { panic!() };
        all.insert("shop/first".to_owned(), json);
        assert!(matches!(next(&all, "shop/second", &["a"], false), Ok(Step::Write(_))));
    }

    #[test]
    fn nothing_is_given_back_where_something_is_refused() {
        let all = kept(&[("shop/first", &["a"], false), ("shop/second", &["b"], false)]);
        assert_eq!(next(&all, "shop/first", &["b"], false), owned("b", "shop/second", "b"));
        assert_eq!(next(&all, "shop/second", &["a"], false), owned("a", "shop/first", "a"));
    }

    #[test]
    fn a_place_is_shared_only_where_both_say_so() {
        let alone = kept(&[("shop/first", &["a"], false)]);
        assert_eq!(next(&alone, "shop/second", &["a"], true), owned("a", "shop/first", "a"));
        let shared = kept(&[("shop/first", &["a"], true)]);
        assert_eq!(next(&shared, "shop/second", &["a"], false), owned("a", "shop/first", "a"));
        assert!(matches!(next(&shared, "shop/second", &["a"], true), Ok(Step::Write(_))));
        let both = kept(&[("shop/first", &["a"], true), ("shop/second", &["a"], true)]);
        assert_eq!(next(&both, "shop/first", &["a"], false), owned("a", "shop/second", "a"), "it is not its own yet");
        assert!(matches!(next(&alone, "shop/first", &["a"], true), Ok(Step::Write(_))));
    }

    #[test]
    fn versions_of_one_read_model_claim_places_of_their_own_and_share_none() {
        let first = kept(&[("shop/orders@v1", &["orders:v1:*"], false)]);
        assert!(matches!(next(&first, "shop/orders@v10", &["orders:v10:*"], false), Ok(Step::Write(_))));
        assert_eq!(
            next(&first, "shop/orders@v1-a", &["orders:*"], false),
            owned("orders:*", "shop/orders@v1", "orders:v1:*")
        );
        let shared = kept(&[("shop/orders@v1", &["a"], true)]);
        assert_eq!(next(&shared, "shop/orders@v2", &["a"], true), owned("a", "shop/orders@v1", "a"));
        assert!(matches!(next(&shared, "shop/other@v2", &["a"], true), Ok(Step::Write(_))));
        assert_eq!(
            (told("shop/orders@v1"), told("shop/orders")),
            ("shop/orders (version v1)".into(), "shop/orders".into())
        );
    }

    #[test]
    fn claims_that_make_no_sense_keep_others_from_new_places_and_no_one_from_its_own() {
        for garbage in [
            "",
            "yes",
            "{}",
            r#"{"shared":false,"claims":[{"place":{"name":"b"}}]}"#,
            r#"{"shared":true,"claims":[],"more":1}"#,
        ] {
            let mut all = kept(&[("shop/first", &["a", "b*"], false)]);
            all.insert("shop/zzz".to_owned(), garbage.to_owned());
            let unreadable = |owner: &str| Err(Refusal::Unreadable { owner: owner.to_owned() });
            assert_eq!(next(&all, "shop/second", &["c"], false), unreadable("shop/zzz"), "{garbage}");
            assert!(matches!(next(&all, "shop/zzz", &["c"], false), Ok(Step::Write(_))), "{garbage}");
            assert!(matches!(next(&all, "shop/zzz", &["a"], false), Err(Refusal::Owned { .. })), "{garbage}");
            assert_eq!(next(&all, "shop/first", &["a", "b*"], false), Ok(Step::Nothing), "{garbage}");
            assert!(matches!(next(&all, "shop/first", &["b1"], false), Ok(Step::Write(_))), "{garbage}");
        }
    }

    #[test]
    fn a_place_is_what_all_events_have_of_a_name() {
        for (template, expected) in [
            ("orders", Some("orders")),
            ("{{shop/orders}}:{stream}", Some("{shop/orders}:*")),
            ("a{stream}b{stream}", Some("a*")),
            ("{stream}:a", None),
            ("", None),
        ] {
            assert_eq!(Place::of(&Template::parse(template).unwrap()), expected.map(place), "{template}");
        }
    }
}
