//! Values as Kubernetes writes quantities: canonical, exact to the milli.

use std::fmt;

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

    /// A measured number, rounded up to the next thousandth as the autoscaler does; `None` for what is no number, infinite or
    /// negative.
    #[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss)]
    pub fn measured(value: f64) -> Option<Self> {
        if !value.is_finite() || value < 0.0 {
            return None;
        }
        // The cast saturates, and what it loses is above the bound.
        let milli = (value * 1000.0).ceil() as i64;
        Some(Self { milli: milli.min(LARGEST * 1000) })
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

    /// Reads a quantity as the API machinery does, in milli.
    fn read(text: &str) -> Option<i128> {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let scale: i128 = match &text[digits.len()..] {
            "m" => 1,
            "" => 1_000,
            "k" => 1_000_000,
            "M" => 1_000_000_000,
            "G" => 1_000_000_000_000,
            "T" => 1_000_000_000_000_000,
            "P" => 1_000_000_000_000_000_000,
            "E" => 1_000_000_000_000_000_000_000,
            _ => return None,
        };
        digits.parse::<i128>().ok().map(|mantissa| mantissa * scale)
    }

    #[test]
    fn writes_the_canonical_form() {
        for (value, text) in
            [(0.0, "0"), (1.5, "1500m"), (1000.0, "1k"), (1234.0, "1234"), (0.0004, "1m"), (2.0e6, "2M")]
        {
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

    proptest! {
        #[test]
        fn counts_survive_being_written_and_read(value in 0..u64::try_from(LARGEST).unwrap()) {
            prop_assert_eq!(read(&Quantity::count(value).to_string()), Some(i128::from(value) * 1000));
        }

        #[test]
        fn measured_values_are_exact_to_the_milli_and_never_smaller(milli in 0_i64..1_000_000_000_000) {
            #[allow(clippy::cast_precision_loss)]
            let value = milli as f64 / 1000.0;
            let read = read(&Quantity::measured(value).unwrap().to_string()).unwrap();
            prop_assert!(read == i128::from(milli) || read == i128::from(milli) + 1);
        }
    }
}
