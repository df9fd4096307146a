//! Work on files that may never end: of a dead network filesystem, of a FUSE server that is stopped, of a FIFO.

use std::time::Duration;
use tokio::sync::Semaphore;

/// How long such work may take.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// How much of it may hang at a time; the rest of the blocking threads are for others.
static PERMITS: Semaphore = Semaphore::const_new(8);

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

/// Runs work on users' files on a thread that may block, so that nobody else waits for it.
///
/// # Errors
/// When it takes longer than [`PATIENCE`]. What it would have done may still be done.
pub async fn patiently<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Hangs> {
    within(PATIENCE, work).await
}

async fn within<T: Send + 'static>(time: Duration, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Hangs> {
    let Ok(permit) = tokio::time::timeout(time, PERMITS.acquire()).await else { return Err(Hangs::Others) };
    let work = tokio::task::spawn_blocking(move || {
        let result = work();
        drop(permit);
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
        for _ in 0..8 {
            let (let_go, wait) = mpsc::channel::<()>();
            let hung = within(time, move || wait.recv()).await;
            assert!(matches!(hung, Err(Hangs::Itself)));
            held.push(let_go);
        }
        assert!(matches!(within(time, || 1).await, Err(Hangs::Others)));
        held.clear();
        assert!(matches!(patiently(|| 1).await, Ok(1)));
    }
}
