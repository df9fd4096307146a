//! Work on files that may never end: of a dead network filesystem, of a FUSE server that is stopped, of a FIFO.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, Semaphore};

/// How long such work may take.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// How much of it may hang at a time; the rest of the blocking threads are for others.
static PERMITS: Semaphore = Semaphore::const_new(8);
/// Whose work is under way: each has one at a time, so that what hangs takes one thread however often it is tried.
static OWNERS: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
/// Tells that one of them is done.
static DONE: Notify = Notify::const_new();

/// The work did not end in time. It may still be under way, on a thread of its own.
#[derive(Debug, thiserror::Error)]
pub enum Hangs {
    /// This one.
    #[error("no answer within {} s: is it on a network filesystem whose server is away?", PATIENCE.as_secs())]
    Itself,
    /// Others before it.
    #[error("other files do not answer, and this one waits for them: see the messages about those")]
    Others,
    /// A defect of the node.
    #[error("the work failed: {0}")]
    Failed(#[source] tokio::task::JoinError),
}

/// Runs work on users' files on a thread that may block, so that nobody else waits for it. `owner` is what the files are of: of
/// one owner, one piece of work is under way at a time.
///
/// # Errors
/// When it takes longer than [`PATIENCE`]. What it would have done may still be done.
pub async fn patiently<T: Send + 'static>(owner: &str, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Hangs> {
    within(PATIENCE, owner, work).await
}

/// Work of an owner that is under way.
struct Turn(String);

impl Turn {
    async fn of(owner: &str) -> Self {
        loop {
            let done = DONE.notified();
            tokio::pin!(done);
            done.as_mut().enable();
            if OWNERS.lock().unwrap_or_else(PoisonError::into_inner).insert(owner.to_owned()) {
                return Self(owner.to_owned());
            }
            done.await;
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        OWNERS.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
        DONE.notify_waiters();
    }
}

async fn within<T: Send + 'static>(
    time: Duration,
    owner: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Hangs> {
    let Ok(turn) = tokio::time::timeout(time, Turn::of(owner)).await else { return Err(Hangs::Itself) };
    let Ok(permit) = tokio::time::timeout(time, PERMITS.acquire()).await else { return Err(Hangs::Others) };
    let work = tokio::task::spawn_blocking(move || {
        let result = work();
        drop((permit, turn));
        result
    });
    match tokio::time::timeout(time, work).await {
        Ok(done) => done.map_err(Hangs::Failed),
        Err(_) => Err(Hangs::Itself),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[tokio::test]
    async fn work_that_hangs_is_given_up_and_others_go_on_when_it_lets_go() {
        let time = Duration::from_millis(50);
        let mut held = Vec::new();
        for owner in 0..8 {
            let (let_go, wait) = mpsc::channel::<()>();
            let owner = owner.to_string();
            let hung = within(time, &owner, move || wait.recv()).await;
            assert!(matches!(hung, Err(Hangs::Itself)));
            // However often it is tried, it has one thread.
            assert!(matches!(within(time, &owner, || 1).await, Err(Hangs::Itself)));
            held.push(let_go);
        }
        assert!(matches!(within(time, "other", || 1).await, Err(Hangs::Others)));
        held.clear();
        assert!(matches!(patiently("other", || 1).await, Ok(1)));
        assert!(matches!(patiently("0", || 1).await, Ok(1)));
    }
}
