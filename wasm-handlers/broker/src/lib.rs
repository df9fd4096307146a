//! What brokers have in common: settings in variables, and lines that are lines.

use std::time::Duration;

/// A variable that is there and not empty.
pub fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|text| !text.is_empty())
}

/// The variable that the node sets for a device.
pub fn device(name: &str) -> Result<String, String> {
    variable(name).ok_or_else(|| {
        format!("no {name} in the environment: this pod has no such device; does it request one in its resources?")
    })
}

/// What a broker begins with; without it, why was said.
pub fn begin<S>(settings: Result<S, String>) -> Option<S> {
    settings.inspect_err(|why| eprintln!("{why}")).ok()
}

/// Seconds from one look to the next, 0.1 to 86400.
pub fn interval(name: &str, default: Duration) -> Result<Duration, String> {
    let Some(text) = variable(name) else { return Ok(default) };
    let seconds = text.parse().ok().filter(|seconds| (0.1..=86400.0).contains(seconds));
    let seconds = seconds.ok_or_else(|| format!("{name}={text:?}: expected seconds from 0.1 to 86400"))?;
    Ok(Duration::from_secs_f64(seconds))
}

/// A text of a device as one line of at most so many letters, with nothing in it that a terminal takes for an order.
pub fn line(text: &str, most: usize) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().filter(|letter| !letter.is_control()).take(most).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_of_a_device_is_one_line() {
        assert_eq!(line(" a\r\n\tb\u{1b}[2J  c\n", 100), "a b[2J c");
        assert_eq!(line("äöü", 2), "äö");
    }
}
