//! Kubernetes quantities: `64Mi`, `100m`, `1.5`, `1e3`.

/// A value that is no quantity.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not a quantity such as 64Mi, 100m or 0.5")]
pub struct QuantityError(String);

/// The value of a quantity, in its unit: bytes, cores.
pub fn parse(text: &str) -> Result<f64, QuantityError> {
    let error = || QuantityError(text.to_owned());
    let split = text.find(|letter: char| letter.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let scale = match suffix {
        "" => 1.0,
        "n" => 1e-9,
        "u" => 1e-6,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "E" => 1e18,
        "Ki" => 1024.0,
        "Mi" => 1024f64.powi(2),
        "Gi" => 1024f64.powi(3),
        "Ti" => 1024f64.powi(4),
        "Pi" => 1024f64.powi(5),
        "Ei" => 1024f64.powi(6),
        exponent => match exponent.strip_prefix(['e', 'E']).and_then(|digits| digits.parse::<i32>().ok()) {
            Some(exponent) if exponent.abs() <= 18 => 10f64.powi(exponent),
            _ => return Err(error()),
        },
    };
    let plain = number.bytes().all(|byte| byte.is_ascii_digit() || b"+-.".contains(&byte));
    let number: f64 = if plain { number.parse().map_err(|_| error())? } else { return Err(error()) };
    Ok(number * scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_have_their_values() {
        for (text, value) in [("64Mi", 67_108_864.0), ("100m", 0.1), ("1.5", 1.5), ("2e3", 2000.0), ("1k", 1000.0)] {
            assert_eq!(parse(text), Ok(value), "{text}");
        }
        for text in ["", "Mi", "12 Mi", "1e99", "nan", "1Xi", "0x10"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
