//! The kubelet's pause before something that failed is tried again.

use std::time::Duration;
use tokio::time::Instant;

/// First pause of a container that keeps ending.
pub const FIRST: Duration = Duration::from_secs(10);
/// Longest pause.
pub const MOST: Duration = Duration::from_secs(300);
/// A container that ran this long starts over with the first pause.
pub const RESET: Duration = Duration::from_secs(600);

/// None before the first restart, then 10 s, 20 s, ... 5 min.
#[derive(Debug, Default)]
pub struct BackOff {
    /// Once something has failed.
    pauses: Option<akri_krustlet_host::BackOff>,
}

impl BackOff {
    /// The pause now, after something that was started at `started` has failed or ended.
    pub fn next(&mut self, started: Instant) -> Duration {
        if started.elapsed() >= RESET {
            self.pauses = None;
        }
        match &mut self.pauses {
            Some(pauses) => pauses.pause(),
            None => {
                self.pauses = Some(akri_krustlet_host::BackOff::new(FIRST, MOST));
                Duration::ZERO
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn pauses_double_to_five_minutes_and_start_over_after_ten() {
        let mut back_off = BackOff::default();
        let mut pauses = Vec::new();
        for _ in 0..8 {
            pauses.push(back_off.next(Instant::now()).as_secs());
        }
        assert_eq!(pauses, [0, 10, 20, 40, 80, 160, 300, 300]);
        let started = Instant::now();
        tokio::time::advance(RESET).await;
        assert_eq!(back_off.next(started), Duration::ZERO);
        assert_eq!(back_off.next(Instant::now()), FIRST);
    }
}
