//! The one number that series say of a metric. What is missing, not finite, dated long ago or told twice is unknown, never zero. Pure.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
};

use crate::{
    api::{Aggregate, Reason},
    clients::scrape::{MOST_SERIES, Series},
    measure::MeasureError,
    resolve::AskedMetric,
};

/// A series that its page dates further back says nothing about now.
const OLDEST_MILLISECONDS: i64 = 60_000;

/// What the series of one page, or of several, say.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Told {
    sum: f64,
    max: f64,
    series: f64,
}

/// The series of one page, which is gone through once and not for each metric that is asked for.
#[derive(Debug)]
pub(super) struct SeriesByName<'a>(HashMap<&'a str, Vec<&'a Series>>);

impl<'a> SeriesByName<'a> {
    /// In the order of the page.
    pub(super) fn of(page: &'a [Series]) -> Self {
        let mut by_name: HashMap<&str, Vec<&Series>> = HashMap::new();
        for one in page {
            by_name.entry(&*one.name).or_default().push(one);
        }
        Self(by_name)
    }
}

impl Told {
    /// What one page says of a metric. `now`: milliseconds since 1970.
    ///
    /// # Errors
    /// `InvalidAnswer` with what to do about it. Repeats nothing of the page.
    pub(super) fn by_page(asked: &AskedMetric, page: &SeriesByName<'_>, now: i64) -> Result<Self, MeasureError> {
        let AskedMetric { name, labels, single, aggregate: _ } = asked;
        let unknown = |message: String| MeasureError { reason: Reason::InvalidAnswer, message };
        let has_labels = |one: &&Series| labels.iter().all(|(name, value)| one.labels.get(name) == Some(value));
        let named = page.0.get(&**name).map(Vec::as_slice).unwrap_or_default();
        if named.len() > MOST_SERIES {
            return Err(unknown(format!(
                "the page has more than {MOST_SERIES} series of {name}, which are not read: name a metric with fewer"
            )));
        }
        let found: Vec<&Series> = named.iter().copied().filter(has_labels).collect();
        let which = Which(asked);
        for one in &found {
            if !one.value.is_finite() {
                let what = if one.value.is_nan() { "NaN" } else { "infinite" };
                return Err(unknown(format!("{which} is {what}, which says nothing: it is unknown, not zero")));
            }
            if one.timestamp.is_some_and(|dated| now.saturating_sub(dated) > OLDEST_MILLISECONDS) {
                return Err(unknown(format!(
                    "{which} is dated more than 60 s ago: does the page show what was collected earlier?"
                )));
            }
        }
        let different: BTreeSet<_> = found.iter().map(|one| &one.labels).collect();
        if different.len() < found.len() {
            return Err(unknown(format!("the page has a series of {which} twice: correct what makes the page")));
        }
        let count = found.len();
        match (count, single) {
            (0, _) => Err(unknown(format!(
                "the page has no series of {which}, which is unknown and not zero: are the name and the labels right? A page may show a metric only after its first event: let it begin with 0"
            ))),
            (2.., true) => Err(unknown(format!(
                "the page has {count} series of {which}, and one number is needed: choose one by its labels, or combine them with aggregate: Sum, Max or Average"
            ))),
            _ => Ok(found.iter().map(|one| Self::by_series(one.value)).fold(Self::NOTHING, Self::with)),
        }
    }

    const NOTHING: Self = Self { sum: 0.0, max: f64::NEG_INFINITY, series: 0.0 };

    fn by_series(value: f64) -> Self {
        Self { sum: value, max: value, series: 1.0 }
    }

    /// Both together.
    pub(super) fn with(self, other: Self) -> Self {
        Self { sum: self.sum + other.sum, max: self.max.max(other.max), series: self.series + other.series }
    }

    /// The one number, which is finite.
    ///
    /// # Errors
    /// `InvalidAnswer` where the sum is larger than a number can be.
    pub(super) fn number(self, aggregate: Aggregate) -> Result<f64, MeasureError> {
        let number = match aggregate {
            Aggregate::Sum => self.sum,
            Aggregate::Max => self.max,
            Aggregate::Average => self.sum / self.series,
        };
        if number.is_finite() {
            return Ok(number);
        }
        Err(MeasureError {
            reason: Reason::InvalidAnswer,
            message: "the sum of the series is larger than a number can be: it is unknown".to_owned(),
        })
    }
}

/// A metric as a spec names it.
struct Which<'a>(&'a AskedMetric);

impl fmt::Display for Which<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let AskedMetric { name, labels, .. } = self.0;
        f.write_str(name)?;
        if labels.is_empty() {
            return Ok(());
        }
        let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}={value:?}")).collect();
        write!(f, "{{{}}}", labels.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clients::scrape::parse;

    fn told(page: &str, labels: &[(&str, &str)], aggregate: Option<Aggregate>) -> Result<f64, MeasureError> {
        let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let single = aggregate.is_none();
        let aggregate = aggregate.unwrap_or(Aggregate::Sum);
        let asked = AskedMetric { name: "orders".to_owned(), labels, single, aggregate };
        let page = parse(page, |name| name == "orders").unwrap();
        Told::by_page(&asked, &SeriesByName::of(&page), 100_000).and_then(|told| told.number(aggregate))
    }

    #[test]
    fn one_series_is_a_number_and_several_are_combined_as_the_spec_says() {
        let page = "orders{q=\"a\"} 3\norders{q=\"b\",z=\"\"} 4\norders_total 7\n";
        assert_eq!(told(page, &[("q", "a")], None), Ok(3.0));
        assert_eq!(told(page, &[("q", "b")], Some(Aggregate::Max)), Ok(4.0));
        assert_eq!(told(page, &[], Some(Aggregate::Sum)), Ok(7.0));
        assert_eq!(told(page, &[], Some(Aggregate::Max)), Ok(4.0));
        assert_eq!(told(page, &[], Some(Aggregate::Average)), Ok(3.5));
        assert_eq!(told("orders -2\n", &[], Some(Aggregate::Max)), Ok(-2.0), "no zero comes in");
        assert_eq!(told("orders 1 40000\n", &[], None), Ok(1.0), "dated within the last minute");
    }

    #[test]
    fn what_is_missing_not_finite_old_or_there_twice_is_unknown() {
        const SUM: Option<Aggregate> = Some(Aggregate::Sum);
        for (page, labels, aggregate, words) in [
            ("orders_total 1\n", &[][..], None, "no series of orders,"),
            ("", &[], SUM, "no series of orders,"),
            ("orders{q=\"a\"} 1\n", &[("q", "b")], SUM, "no series of orders{q=\"b\"},"),
            ("orders{q=\"a\"} 1\norders{q=\"hunter2\"} 2\n", &[], None, "2 series of orders, and one number is needed"),
            ("orders{q=\"a\"} 1\norders{q=\"b\"} NaN\n", &[], SUM, "NaN"),
            ("orders +Inf\n", &[], SUM, "infinite"),
            ("orders{q=\"a\"} 1e308\norders{q=\"b\"} 1e308\n", &[], SUM, "larger than a number can be"),
            ("orders{q=\"a\"} -1e308\norders{q=\"b\"} -1e308\n", &[], SUM, "larger than a number can be"),
            ("orders 1 39999\n", &[], None, "60 s ago"),
            ("orders{q=\"hunter2\"} 1\norders{q=\"hunter2\"} 1\n", &[], SUM, "twice"),
        ] {
            let unknown = told(page, labels, aggregate).unwrap_err();
            assert_eq!(unknown.reason, Reason::InvalidAnswer, "{page}");
            assert!(unknown.message.contains(words) && !unknown.message.contains("hunter2"), "{}", unknown.message);
        }
        let many: String = (0..=MOST_SERIES).map(|index| format!("orders{{q=\"{index}\"}} 1\n")).collect();
        let unknown = told(&many, &[("q", "1")], None).unwrap_err();
        assert!(unknown.message.contains("more than 10000 series"), "a cut list is not summed: {}", unknown.message);
    }
}
