//! Quantities as the API machinery reads them: targets in thousandths, tolerances as the controller's float. No IO.

/// Why a text is no quantity.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{text:?} is not a quantity: write it as 0.05, 500m, 2 or 1k")]
pub struct NotAQuantity {
    text: String,
}

/// A number with a decimal exponent, in the canonical form: the largest exponent divisible by three that keeps the mantissa whole.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Quantity {
    mantissa: i128,
    exponent: i32,
}

/// Finer than this nothing is kept; it is rounded away from zero.
const FINEST: i32 = -9;
/// Larger than this the API machinery takes nothing (and the mantissa here would not hold it).
const LARGEST: i32 = 18;

impl Quantity {
    /// Reads `0.05`, `500m`, `2`, `1k`, `1Ki` or `1e3`.
    ///
    /// # Errors
    /// When the text follows no form of a quantity, or the number is beyond what one can hold.
    pub fn parse(text: &str) -> Result<Self, NotAQuantity> {
        read(text).ok_or_else(|| NotAQuantity { text: text.to_owned() })
    }

    /// In thousandths, rounded up; at most `i64::MAX`.
    pub fn milli(self) -> i64 {
        let milli = match self.exponent + 3 {
            up @ 0.. => self.mantissa.saturating_mul(power_of_ten(up)),
            down => ceiling(self.mantissa, power_of_ten(-down)),
        };
        i64::try_from(milli).unwrap_or(if milli < 0 { i64::MIN } else { i64::MAX })
    }

    /// As the float that the controller computes with: mantissa times a power of ten.
    #[allow(clippy::cast_precision_loss)]
    pub fn approximate(self) -> f64 {
        let power: f64 = format!("1e{}", self.exponent).parse().unwrap_or(f64::NAN);
        if self.exponent == 0 { self.mantissa as f64 } else { self.mantissa as f64 * power }
    }
}

fn read(text: &str) -> Option<Quantity> {
    let (sign, rest) = match text.as_bytes().first()? {
        b'-' => (-1, &text[1..]),
        b'+' => (1, &text[1..]),
        _ => (1, text),
    };
    let digits = rest.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b'.').count();
    let (number, suffix) = rest.split_at(digits);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if fraction.contains('.') || (whole.is_empty() && fraction.is_empty()) {
        return None;
    }
    let fraction = fraction.trim_end_matches('0');
    let (factor, power) = scale(suffix)?;
    let mantissa: i128 = format!("0{whole}{fraction}").parse().ok()?;
    let mantissa = mantissa.checked_mul(factor)?.checked_mul(sign)?;
    let exponent = power.checked_sub(i32::try_from(fraction.len()).ok()?)?;
    canonical(mantissa, exponent)
}

/// Binary factor and decimal exponent of a suffix.
fn scale(suffix: &str) -> Option<(i128, i32)> {
    let decimal = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"].into_iter().position(|known| known == suffix);
    if let Some(step) = decimal {
        return Some((1, i32::try_from(step).ok()? * 3 - 9));
    }
    let binary = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"].into_iter().position(|known| known == suffix);
    if let Some(step) = binary {
        return Some((1024_i128.pow(u32::try_from(step).ok()? + 1), 0));
    }
    let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
    (-30..=LARGEST).contains(&exponent).then_some((1, exponent))
}

fn canonical(mut mantissa: i128, mut exponent: i32) -> Option<Quantity> {
    if mantissa == 0 {
        return Some(Quantity { mantissa, exponent: 0 });
    }
    if exponent < FINEST {
        let divisor = power_of_ten((FINEST - exponent).min(38));
        let away = if mantissa < 0 { -ceiling(-mantissa, divisor) } else { ceiling(mantissa, divisor) };
        (mantissa, exponent) = (away, FINEST);
    }
    while exponent.rem_euclid(3) != 0 {
        (mantissa, exponent) = (mantissa.checked_mul(10)?, exponent - 1);
    }
    while mantissa % 1000 == 0 && exponent < LARGEST {
        (mantissa, exponent) = (mantissa / 1000, exponent + 3);
    }
    Some(Quantity { mantissa, exponent })
}

fn ceiling(number: i128, divisor: i128) -> i128 {
    number.div_euclid(divisor) + i128::from(number.rem_euclid(divisor) != 0)
}

/// 10^38 is the largest that fits.
fn power_of_ten(power: i32) -> i128 {
    10_i128.saturating_pow(power.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_each_form_in_thousandths_rounded_up() {
        for (text, milli) in [
            ("0", 0),
            ("1", 1_000),
            ("0.05", 50),
            ("0.050", 50),
            (".5", 500),
            ("5.", 5_000),
            ("+1500m", 1_500),
            ("-1m", -1),
            ("1k", 1_000_000),
            ("1Ki", 1_024_000),
            ("1e3", 1_000_000),
            ("1E", i64::MAX),
            ("15e-1", 1_500),
            ("1u", 1),
            ("-1u", 0),
            ("1.0001", 1_001),
            ("0.0000000001", 1),
        ] {
            assert_eq!(Quantity::parse(text).map(Quantity::milli), Ok(milli), "{text}");
        }
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        for text in ["", "-", ".", "1x", "1 k", "1,5", "1.2.3", "e3", "1e99", "ten", "1kk", "--1", "1e", "é"] {
            assert!(Quantity::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_tolerance_is_the_float_that_the_controller_has() {
        for (text, float) in [("0", 0.0), ("0.1", 100.0 * 1e-3), ("0.05", 50.0 * 1e-3), ("1", 1.0), ("2k", 2.0 * 1e3)] {
            let read = Quantity::parse(text).unwrap().approximate();
            assert_eq!(read.to_bits(), f64::to_bits(float), "{text}");
        }
    }
}
