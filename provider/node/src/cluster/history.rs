//! Whether the API server's data is that of an earlier time: somebody restored a backup of etcd.
//!
//! The versions of objects only grow. A watch that goes on from a version which a restored server has not reached yet is silent until
//! it has, and what it tells after that is not all. What the node writes itself, every ten seconds, gets a later version than all that it
//! has seen before; where it does not, all is listed anew.

use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::watch;

/// What is known of the API server's time. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct History {
    newest: Arc<AtomicU64>,
    restored: Arc<watch::Sender<u64>>,
}

impl History {
    /// The API server has told an object of this version.
    pub fn saw(&self, version: u64) {
        self.newest.fetch_max(version, Ordering::Relaxed);
    }

    /// The newest version that it has told: what is written from now on gets a later one.
    pub fn newest(&self) -> u64 {
        self.newest.load(Ordering::Relaxed)
    }

    /// It has taken a write, and this is the object's version since; true if that is an earlier one than what it had told before
    /// it was asked.
    pub fn wrote(&self, version: u64, newest_before: u64) -> bool {
        let is_restored = version < newest_before;
        if !is_restored {
            self.saw(version);
        } else {
            self.newest.store(version, Ordering::Relaxed);
            tracing::warn!("the API server's data is that of an earlier time: a backup was restored. All is read anew");
            self.restored.send_modify(|times| *times += 1);
        }
        is_restored
    }

    /// Changes whenever its data has gone back.
    pub fn restored(&self) -> watch::Receiver<u64> {
        self.restored.subscribe()
    }

    /// A watch that begins anew, with a list, whenever that happens.
    pub fn follow<T, S>(&self, make: impl Fn() -> S + Send + 'static) -> BoxStream<'static, T>
    where
        T: 'static,
        S: Stream<Item = T> + Send + 'static,
    {
        let state = (make().boxed(), self.restored(), make);
        let next = |(mut stream, mut restored, make): (BoxStream<'static, T>, watch::Receiver<u64>, _)| async move {
            loop {
                tokio::select! {
                    biased;
                    Ok(()) = restored.changed() => stream = Self::made(&make),
                    item = stream.next() => return item.map(|item| (item, (stream, restored, make))),
                }
            }
        };
        stream::unfold(state, next).boxed()
    }

    fn made<T, S: Stream<Item = T> + Send + 'static>(make: &impl Fn() -> S) -> BoxStream<'static, T> {
        make().boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;

    #[tokio::test]
    async fn a_watch_begins_anew_when_versions_go_back() {
        let history = History::default();
        let mut watch = history.follow(|| stream::iter([1, 2]).chain(stream::pending()));
        assert_eq!((watch.next().await, watch.next().await), (Some(1), Some(2)));
        assert!(!history.wrote(5, history.newest()));
        let before = history.newest();
        // Somebody else's write came later and is told first.
        history.saw(7);
        assert!(!history.wrote(6, before));
        history.saw(100);
        assert!(watch.next().now_or_never().is_none());
        assert!(history.wrote(40, history.newest()));
        assert_eq!((watch.next().await, watch.next().await), (Some(1), Some(2)));
        assert!(!history.wrote(41, history.newest()));
        assert!(watch.next().now_or_never().is_none());
    }
}
