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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_floats_into_counts_as_go_does() {
        for (number, up, down) in [
            (3.2, 4, 3),
            (-3.8, -3, -3),
            (0.0, 0, 0),
            (3e9, i32::MIN, i32::MIN),
            (-3e9, i32::MIN, i32::MIN),
            (f64::NAN, i32::MIN, i32::MIN),
            (f64::INFINITY, i32::MIN, i32::MIN),
        ] {
            let turned = (ceil_to_i32(number), trunc_to_i32(number));
            assert_eq!(turned, (up, down), "{number}");
        }
    }
}
