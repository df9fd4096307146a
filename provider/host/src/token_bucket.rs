//! How much of something may happen: at once, and over time.

use std::time::Duration;
use tokio::time::Instant;

/// A token bucket. It may go into debt: whoever cannot tell beforehand what a thing costs takes it and pays later.
#[derive(Debug)]
pub struct TokenBucket {
    size: f64,
    per_second: f64,
    tokens: f64,
    at: Instant,
}

impl TokenBucket {
    /// A full bucket of `size` tokens, of which `per_second` come back each second.
    pub fn new(size: f64, per_second: f64) -> Self {
        Self { size, per_second, tokens: size, at: Instant::now() }
    }

    /// The tokens that are there now; negative while it is in debt.
    pub fn available(&mut self) -> f64 {
        let now = Instant::now();
        let filled = now.duration_since(self.at).as_secs_f64() * self.per_second;
        self.tokens = (self.tokens + filled).min(self.size);
        self.at = now;
        self.tokens
    }

    /// Takes tokens, into debt if they are not there.
    pub fn spend(&mut self, tokens: f64) {
        self.tokens = self.available() - tokens;
    }

    /// Takes one token if it is there.
    pub fn try_take(&mut self) -> bool {
        let taken = self.available() >= 1.0;
        if taken {
            self.tokens -= 1.0;
        }
        taken
    }

    /// When so many tokens are there, if none are taken before.
    pub fn when(&self, tokens: f64) -> Instant {
        // A bucket that would be a hair short at that instant is looked at a hair later.
        let missing = (tokens.min(self.size) - self.tokens).max(0.0) / self.per_second;
        self.at
            + Duration::from_secs_f64(missing)
            + if missing > 0.0 { Duration::from_micros(1) } else { Duration::ZERO }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_first_ones_come_at_once_and_the_others_in_their_time() {
        let mut bucket = TokenBucket::new(3.0, 0.5);
        let start = Instant::now();
        let mut times = Vec::new();
        while times.len() < 6 {
            if bucket.try_take() {
                times.push(start.elapsed().as_secs());
            } else {
                tokio::time::sleep_until(bucket.when(1.0)).await;
            }
        }
        assert_eq!(times, [0, 0, 0, 2, 4, 6]);
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!((0..10).filter(|_| bucket.try_take()).count(), 3, "no more than its size is saved up");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_spent_beyond_it_is_waited_for() {
        let mut bucket = TokenBucket::new(10.0, 10.0);
        bucket.spend(35.0);
        assert_eq!(bucket.when(0.0).duration_since(Instant::now()).as_millis(), 2500);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert!((bucket.available() - 10.0).abs() < 1e-9);
    }
}
