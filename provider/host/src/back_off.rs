use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use std::time::Duration;

/// Pauses before something that failed is tried again: the first, and each twice as long as the one before, up to the longest.
#[derive(Debug)]
pub struct BackOff {
    of: ExponentialBuilder,
    pauses: ExponentialBackoff,
    longest: Duration,
}

impl BackOff {
    /// Pauses from `first` to `longest`.
    pub fn new(first: Duration, longest: Duration) -> Self {
        let of = ExponentialBuilder::new().with_min_delay(first).with_max_delay(longest).without_max_times();
        Self { of, pauses: of.build(), longest }
    }

    /// The pause now.
    pub fn pause(&mut self) -> Duration {
        self.pauses.next().unwrap_or(self.longest).min(self.longest)
    }

    /// What is tried has succeeded, or is something else: the next pause is the first.
    pub fn reset(&mut self) {
        self.pauses = self.of.build();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_to_the_longest_for_as_long_as_it_takes_and_begin_anew() {
        let mut back_off = BackOff::new(Duration::from_millis(500), Duration::from_secs(30));
        let pauses: Vec<_> = (0..8).map(|_| back_off.pause().as_millis()).collect();
        assert_eq!(pauses, [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]);
        (0..100_000).for_each(|_| assert_eq!(back_off.pause(), Duration::from_secs(30)));
        back_off.reset();
        assert_eq!(back_off.pause(), Duration::from_millis(500));
    }
}
