//! Kubernetes quantities: `64Mi`, `100m`, `1.5`, `1e3`. Computed in integers: a notation makes no difference.

use std::cmp::Ordering;

/// A text that is no quantity.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not a quantity such as 64Mi, 100m or 0.5")]
pub struct QuantityError(String);

/// An amount, in nanos (10^-9) of its unit: bytes, cores. What is more than the node could ever have is [`Quantity::MOST`], and what
/// is less than a nano counts as one, as the API has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Quantity(i128);

const NANOS: i128 = 1_000_000_000;
/// More digits than this change nothing in an amount that is bounded.
const MOST_DIGITS: usize = 100;
/// Beyond it, an amount is as large or as small as can be.
const MOST_EXPONENT: i32 = 1000;

/// Reads a quantity.
pub fn parse(text: &str) -> Result<Quantity, QuantityError> {
    read(text).ok_or_else(|| QuantityError(text.to_owned()))
}

fn read(text: &str) -> Option<Quantity> {
    let (is_negative, unsigned) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let split = unsigned.find(|letter: char| letter.is_ascii_alphabetic()).unwrap_or(unsigned.len());
    let (number, suffix) = unsigned.split_at(split);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let are_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.len() + fraction.len() == 0 || number.len() > MOST_DIGITS || !are_digits(whole) || !are_digits(fraction) {
        return None;
    }
    // 10^exponent times 1024^binary.
    let (exponent, binary) = match suffix {
        "n" => (-9, 0),
        "u" => (-6, 0),
        "m" => (-3, 0),
        "" => (0, 0),
        "k" => (3, 0),
        "M" => (6, 0),
        "G" => (9, 0),
        "T" => (12, 0),
        "P" => (15, 0),
        "E" => (18, 0),
        "Ki" => (0, 1),
        "Mi" => (0, 2),
        "Gi" => (0, 3),
        "Ti" => (0, 4),
        "Pi" => (0, 5),
        "Ei" => (0, 6),
        exponent => {
            let digits = exponent.strip_prefix(['e', 'E'])?;
            let unsigned = digits.strip_prefix(['+', '-']).unwrap_or(digits);
            if unsigned.is_empty() || !are_digits(unsigned) {
                return None;
            }
            let beyond = if digits.starts_with('-') { -MOST_EXPONENT } else { MOST_EXPONENT };
            (digits.parse::<i32>().unwrap_or(beyond).clamp(-MOST_EXPONENT, MOST_EXPONENT), 0)
        }
    };
    let digits = format!("{whole}{fraction}");
    let digits = digits.trim_start_matches('0');
    if digits.is_empty() {
        return Some(Quantity(0));
    }
    let exponent = exponent - i32::try_from(fraction.len()).ok()? + 9;
    let amount = scaled(digits, exponent, 1024i128.pow(binary)).unwrap_or(Quantity::MOST.0).min(Quantity::MOST.0);
    Some(Quantity(if is_negative { -amount } else { amount }))
}

/// `digits` times 10^`exponent` times `factor`, rounded up; `None` if that is out of bounds.
fn scaled(digits: &str, exponent: i32, factor: i128) -> Option<i128> {
    match usize::try_from(exponent) {
        Ok(zeros) if digits.len() + zeros <= 38 => {
            format!("{digits}{}", "0".repeat(zeros)).parse::<i128>().ok()?.checked_mul(factor)
        }
        Ok(_) => None,
        Err(_) => {
            let dropped = usize::try_from(exponent.unsigned_abs()).ok()?;
            if dropped > MOST_DIGITS * 2 {
                return Some(1);
            }
            let (kept, rest) = digits.split_at(digits.len().saturating_sub(dropped));
            let kept: i128 = if kept.is_empty() { 0 } else { kept.parse().ok()? };
            let whole = kept.checked_mul(factor)?;
            // What is beyond the point; a power of two may bring digits of it back.
            let fraction = format!("{}{rest}", "0".repeat(dropped - rest.len()));
            let fraction = fraction.trim_end_matches('0');
            let read = &fraction[..fraction.len().min(20)];
            let numerator: i128 = if read.is_empty() { 0 } else { read.parse().ok()? };
            let (numerator, places) = (numerator.checked_mul(factor)?, 10i128.pow(u32::try_from(read.len()).ok()?));
            let is_exact = numerator % places == 0 && read.len() == fraction.len();
            let part = numerator / places + i128::from(!is_exact);
            whole.checked_add(part)
        }
    }
}

impl Quantity {
    /// 2^63 - 1 of the unit: more does not count in the API either.
    pub const MOST: Self = Self(i64::MAX as i128 * NANOS);

    /// True for 0 in any notation.
    pub fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// True for less than 0.
    pub fn is_negative(self) -> bool {
        self.0 < 0
    }

    /// In whole units, rounded up; 0 for what is less than 0.
    pub fn ceil(self) -> u64 {
        Self::rounded(self.0, NANOS)
    }

    /// In thousandths of the unit, rounded up; 0 for what is less than 0.
    pub fn millis(self) -> u64 {
        Self::rounded(self.0, NANOS / 1000)
    }

    fn rounded(nanos: i128, unit: i128) -> u64 {
        let whole = nanos.div_euclid(unit) + i128::from(nanos.rem_euclid(unit) != 0);
        u64::try_from(whole.max(0)).unwrap_or(u64::MAX)
    }

    /// As a number, where a fraction matters and exactness does not.
    pub fn as_f64(self) -> f64 {
        self.0 as f64 / NANOS as f64
    }

    /// How many times `divisor` it is, rounded up.
    pub fn divided(self, divisor: Self) -> Option<u64> {
        match divisor.0.cmp(&0) {
            Ordering::Greater => Some(Self::rounded(self.0, divisor.0)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_have_their_values_in_any_notation() {
        let millis = |text: &str| parse(text).unwrap().millis();
        for (text, expected) in [
            ("64Mi", 67_108_864_000),
            ("0.5Gi", 536_870_912_000),
            ("100m", 100),
            ("0.1", 100),
            ("1e-1", 100),
            (".1", 100),
            ("1.", 1000),
            ("1.5", 1500),
            ("2e3", 2_000_000),
            ("1E3", 1_000_000),
            ("1k", 1_000_000),
            ("1n", 1),
            ("1e-30", 1),
            ("1.1e-2147483648", 1),
            ("1.1e-99999999999", 1),
            ("0", 0),
            ("0e99999999999", 0),
            ("-1", 0),
            ("0.0009765625Ki", 1000),
        ] {
            assert_eq!(millis(text), expected, "{text}");
        }
        for text in [
            "1e30",
            "1e99999999999",
            "1e2147483647",
            "9223372036854775807",
            "8Ei",
            "99999999999999999999999999999999999999999",
        ] {
            assert_eq!(parse(text), Ok(Quantity::MOST), "{text}");
        }
        for text in ["", "Mi", "12 Mi", "nan", "1Xi", "0x10", "1e", "1e+", "--1", "1.2.3", "."] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert_eq!(parse("65536Ki"), parse("64Mi"));
        assert_eq!(parse("1Gi").unwrap().divided(parse("1Mi").unwrap()), Some(1024));
        assert_eq!(parse("1500m").unwrap().divided(parse("1").unwrap()), Some(2));
        assert_eq!(parse("1").unwrap().divided(parse("0").unwrap()), None);
    }
}
