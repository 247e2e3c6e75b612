//! Values as Kubernetes writes quantities: canonical, exact to the milli.

use std::{fmt, time::Duration};

/// Above this the autoscaler's arithmetic in milli wraps around: `i64::MAX / 1000`.
const LARGEST: i64 = i64::MAX / 1000;

/// A non-negative number in thousandths, at most 9.2e15.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Quantity {
    milli: i64,
}

impl Quantity {
    /// A count. What is too large for the autoscaler becomes the largest that it can take.
    pub fn count(value: u64) -> Self {
        Self { milli: i64::try_from(value).unwrap_or(LARGEST).min(LARGEST) * 1000 }
    }

    /// A time in seconds, rounded up to the next millisecond.
    pub fn seconds(value: Duration) -> Self {
        let milli = i64::try_from(value.as_nanos().div_ceil(1_000_000)).unwrap_or(i64::MAX);
        Self { milli: milli.min(LARGEST * 1000) }
    }

    /// A measured number, rounded up to the next thousandth as Kubernetes does; `None` for what is no number, infinite or negative.
    ///
    /// The number is taken by its shortest decimal form: 0.07 is `70m`, although the binary number of that name is a trifle more.
    #[allow(clippy::cast_precision_loss)]
    pub fn measured(value: f64) -> Option<Self> {
        if !value.is_finite() || value < 0.0 {
            return None;
        }
        if value >= LARGEST as f64 {
            return Some(Self { milli: LARGEST * 1000 });
        }
        let decimal = value.abs().to_string();
        let (whole, fraction) = decimal.split_once('.').unwrap_or((&decimal, ""));
        let (kept, rest) = fraction.split_at(fraction.len().min(3));
        let kept: i64 = format!("{kept:0<3}").parse().ok()?;
        let more = rest.bytes().any(|digit| digit != b'0');
        Some(Self { milli: whole.parse::<i64>().ok()? * 1000 + kept + i64::from(more) })
    }
}

/// The canonical form: a whole mantissa and the largest suffix that keeps it whole.
impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.milli == 0 {
            return f.write_str("0");
        }
        let mut mantissa = self.milli;
        let mut suffixes = ["m", "", "k", "M", "G", "T", "P", "E"].into_iter();
        let mut suffix = suffixes.next().unwrap_or_default();
        while mantissa % 1000 == 0 {
            let Some(next) = suffixes.next() else { break };
            mantissa /= 1000;
            suffix = next;
        }
        write!(f, "{mantissa}{suffix}")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SUFFIXES: [&str; 8] = ["m", "", "k", "M", "G", "T", "P", "E"];

    /// In thousandths.
    fn read(text: &str) -> Option<i128> {
        crate::quantity::Quantity::parse(text).ok().map(|quantity| i128::from(quantity.milli()))
    }

    /// Checks what the API machinery requires of the canonical form, and returns the value in thousandths.
    fn canonical(quantity: Quantity) -> i128 {
        let text = quantity.to_string();
        let mantissa = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        assert!(mantissa.bytes().all(|digit| digit.is_ascii_digit()), "{text}: no sign, no point");
        assert!(text == "0" || !mantissa.starts_with('0'), "{text}: no leading zero");
        assert!(text == "0" || text.ends_with('E') || !mantissa.ends_with("000"), "{text}: the suffix is the largest");
        assert!(mantissa != "0" || text == "0", "{text}: zero has no suffix");
        read(&text).unwrap_or_else(|| panic!("{text} does not follow the grammar"))
    }

    #[test]
    fn writes_the_canonical_form() {
        for (value, text) in [
            (0.0, "0"),
            (-0.0, "0"),
            (1.5, "1500m"),
            (1000.0, "1k"),
            (1234.0, "1234"),
            (0.0004, "1m"),
            (2.0e6, "2M"),
            (0.07, "70m"),
            (1.0e-300, "1m"),
            (99.999_000_1, "100"),
        ] {
            assert_eq!(Quantity::measured(value).unwrap().to_string(), text);
        }
        assert_eq!(Quantity::count(0).to_string(), "0");
        assert_eq!(Quantity::count(1_000).to_string(), "1k");
        assert_eq!(Quantity::count(9_200).to_string(), "9200");
    }

    #[test]
    fn what_is_no_number_has_no_quantity() {
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.001] {
            assert_eq!(Quantity::measured(value), None);
        }
    }

    #[test]
    fn what_is_too_large_stays_within_what_the_autoscaler_can_take() {
        for large in [Quantity::count(u64::MAX), Quantity::measured(1e300).unwrap()] {
            let milli = read(&large.to_string()).unwrap();
            assert!(milli <= i128::from(i64::MAX), "{large}");
        }
    }

    #[test]
    fn times_are_exact_to_the_millisecond() {
        for (time, text) in [
            (Duration::ZERO, "0"),
            (Duration::from_nanos(1), "1m"),
            (Duration::from_millis(70), "70m"),
            (Duration::from_micros(70_001), "71m"),
            (Duration::from_secs(3_000), "3k"),
            (Duration::MAX, "9223372036854775"),
        ] {
            assert_eq!(Quantity::seconds(time).to_string(), text);
        }
    }

    proptest! {
        #[test]
        fn counts_survive_being_written_and_read(value in 0..u64::try_from(LARGEST).unwrap()) {
            prop_assert_eq!(canonical(Quantity::count(value)), i128::from(value) * 1000);
        }

        #[test]
        fn round_counts_get_the_largest_suffix(mantissa in 1_u64..1_000, power in 0_u32..5) {
            let written = Quantity::count(mantissa * 1000_u64.pow(power)).to_string();
            prop_assert_eq!(written, format!("{mantissa}{}", SUFFIXES[power as usize + 1]));
        }

        #[test]
        fn thousandths_survive_being_measured_written_and_read(milli in 0_i64..1_000_000_000_000_000) {
            #[allow(clippy::cast_precision_loss)]
            let value = milli as f64 / 1000.0;
            prop_assert_eq!(canonical(Quantity::measured(value).unwrap()), i128::from(milli));
        }

        #[test]
        #[allow(clippy::cast_precision_loss)]
        fn what_is_finer_is_rounded_up(value in 0.0_f64..1e12) {
            let milli = canonical(Quantity::measured(value).unwrap());
            prop_assert!(milli as f64 / 1000.0 >= value, "{milli} is less than {value}");
            prop_assert!((milli - 1) as f64 / 1000.0 <= value, "{milli} is more than the next after {value}");
        }

        #[test]
        fn times_survive_being_written_and_read(time in any::<Duration>()) {
            let milli = i128::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap().min(i128::from(LARGEST) * 1000);
            prop_assert_eq!(canonical(Quantity::seconds(time)), milli);
        }

        #[test]
        fn every_number_is_canonical_within_the_bound_or_none(value in proptest::num::f64::ANY, count in any::<u64>()) {
            let measured = Quantity::measured(value);
            prop_assert_eq!(measured.is_some(), value.is_finite() && value >= 0.0);
            for quantity in measured.into_iter().chain([Quantity::count(count)]) {
                prop_assert!((0..=i128::from(i64::MAX)).contains(&canonical(quantity)), "{quantity}");
            }
        }

        #[test]
        fn more_is_never_written_as_less(one in 0.0_f64..1e19, other in 0.0_f64..1e19) {
            let (one, other) = (one.min(other), one.max(other));
            prop_assert!(Quantity::measured(one) <= Quantity::measured(other));
        }
    }
}
