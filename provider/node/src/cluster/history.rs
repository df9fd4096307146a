//! Whether the API server's data is that of an earlier time: somebody restored a backup of etcd.
//!
//! A watch that goes on from a version which a restored server has not reached yet is silent until it has, and what it tells after that
//! is not all. The node's lease, which only the node writes, every ten seconds, is then an earlier one than the node wrote, or gone; and all
//! is listed anew. What was restored within those ten seconds, the next of the lists sets right that come now and then.

use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt as _};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// What is known of the API server's time. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct History {
    restored: Arc<watch::Sender<u64>>,
}

impl History {
    /// The API server has an earlier state of what nobody else writes.
    pub fn went_back(&self) {
        tracing::warn!("the API server's data is that of an earlier time: a backup was restored. All is read anew");
        self.restored.send_modify(|times| *times += 1);
    }

    /// Changes whenever its data has gone back.
    pub fn restored(&self) -> watch::Receiver<u64> {
        self.restored.subscribe()
    }

    /// A watch that begins anew, with a list, whenever that happens, and now and then.
    pub fn follow<T, S>(&self, make: impl Fn() -> S + Send + 'static) -> BoxStream<'static, T>
    where
        T: 'static,
        S: Stream<Item = T> + Send + 'static,
    {
        let state = (make().boxed(), next_list(), self.restored(), make);
        let next = |(mut stream, mut at, mut restored, make): (
            BoxStream<'static, T>,
            Instant,
            watch::Receiver<u64>,
            _,
        )| async move {
            loop {
                tokio::select! {
                    biased;
                    Ok(()) = restored.changed() => stream = Self::made(&make),
                    () = tokio::time::sleep_until(at) => (stream, at) = (Self::made(&make), next_list()),
                    item = stream.next() => return item.map(|item| (item, (stream, at, restored, make))),
                }
            }
        };
        stream::unfold(state, next).boxed()
    }

    fn made<T, S: Stream<Item = T> + Send + 'static>(make: &impl Fn() -> S) -> BoxStream<'static, T> {
        make().boxed()
    }
}

/// Half an hour and up to another one, so that a fleet does not list at once.
fn next_list() -> Instant {
    let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0);
    Instant::now() + Duration::from_secs(1800 + random % 1800)
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;

    #[tokio::test(start_paused = true)]
    async fn a_watch_begins_anew_when_the_data_goes_back() {
        let history = History::default();
        let mut watch = history.follow(|| stream::iter([1, 2]).chain(stream::pending()));
        assert_eq!((watch.next().await, watch.next().await), (Some(1), Some(2)));
        assert!(watch.next().now_or_never().is_none());
        history.went_back();
        assert_eq!((watch.next().await, watch.next().await), (Some(1), Some(2)));
        assert!(watch.next().now_or_never().is_none());
        // Also where nothing was noticed.
        let later = tokio::time::timeout(Duration::from_secs(3600), watch.next());
        assert_eq!(later.await, Ok(Some(1)));
    }
}
