//! Floats to counts as the controller, a Go program on x86-64, turns them: what does not fit becomes the smallest number.

/// The next whole number upwards.
pub(super) fn ceil_to_i32(number: f64) -> i32 {
    trunc_to_i32(number.ceil())
}

/// The whole part.
#[allow(clippy::cast_possible_truncation)]
pub(super) fn trunc_to_i32(number: f64) -> i32 {
    let whole = number.trunc();
    if whole >= f64::from(i32::MIN) && whole <= f64::from(i32::MAX) { whole as i32 } else { i32::MIN }
}

/// The next whole number upwards, where the controller takes care that a large one stays the largest.
pub(super) fn ceil_at_most_i32(number: f64) -> i32 {
    if number > f64::from(i32::MAX) { i32::MAX } else { ceil_to_i32(number) }
}

/// The next whole number upwards, in 64 bits.
#[allow(clippy::cast_possible_truncation)]
pub(super) fn ceil_to_i64(number: f64) -> i64 {
    let whole = number.ceil();
    if whole >= as_float(i64::MIN) && whole < as_float(i64::MAX) { whole as i64 } else { i64::MIN }
}

/// Numbers of thousandths above 2^53 are rounded, as in the controller.
#[allow(clippy::cast_precision_loss)]
pub(super) fn as_float(milli: i64) -> f64 {
    milli as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_floats_into_counts_as_go_does() {
        for (number, up, down, bounded, long) in [
            (3.2, 4, 3, 4, 4),
            (-3.8, -3, -3, -3, -3),
            (0.0, 0, 0, 0, 0),
            (3e9, i32::MIN, i32::MIN, i32::MAX, 3_000_000_000),
            (-3e9, i32::MIN, i32::MIN, i32::MIN, -3_000_000_000),
            (f64::NAN, i32::MIN, i32::MIN, i32::MIN, i64::MIN),
            (f64::INFINITY, i32::MIN, i32::MIN, i32::MAX, i64::MIN),
        ] {
            let turned = (ceil_to_i32(number), trunc_to_i32(number), ceil_at_most_i32(number), ceil_to_i64(number));
            assert_eq!(turned, (up, down, bounded, long), "{number}");
        }
    }
}
