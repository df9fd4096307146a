//! What the API server said, for a while.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Most answers that are remembered; beyond, questions are asked again.
const MOST: usize = 1024;

/// Answers by question; a good one and a bad one count for different times.
#[derive(Debug)]
pub(super) struct Answers<Q, A> {
    good_for: Duration,
    bad_for: Duration,
    is_good: fn(&A) -> bool,
    known: Mutex<HashMap<Q, (Instant, A)>>,
}

impl<Q: Eq + Hash, A: Clone> Answers<Q, A> {
    pub(super) fn new(is_good: fn(&A) -> bool, good_for: Duration, bad_for: Duration) -> Self {
        Self { good_for, bad_for, is_good, known: Mutex::default() }
    }

    pub(super) fn get(&self, question: &Q) -> Option<A> {
        self.lock().get(question).filter(|answer| self.counts(answer)).map(|(_, answer)| answer.clone())
    }

    pub(super) fn remember(&self, question: Q, answer: A) {
        let mut known = self.lock();
        if known.len() >= MOST {
            known.retain(|_, answer| self.counts(answer));
        }
        if known.len() < MOST || known.contains_key(&question) {
            known.insert(question, (Instant::now(), answer));
        }
    }

    fn counts(&self, (at, answer): &(Instant, A)) -> bool {
        at.elapsed() < if (self.is_good)(answer) { self.good_for } else { self.bad_for }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Q, (Instant, A)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn answers_are_forgotten_in_time_and_bounded_in_number() {
        let answers = Answers::new(|good| *good, Duration::from_secs(100), Duration::from_secs(10));
        for question in 0..=MOST {
            answers.remember(question, question == 0);
        }
        assert_eq!((answers.get(&0), answers.get(&1), answers.get(&MOST)), (Some(true), Some(false), None));
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!((answers.get(&0), answers.get(&1)), (Some(true), None));
        answers.remember(MOST, true);
        assert_eq!(answers.get(&MOST), Some(true), "there is room again");
        tokio::time::advance(Duration::from_secs(90)).await;
        assert_eq!(answers.get(&0), None);
    }
}
