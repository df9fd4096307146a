//! Changes of directories.

use crate::inbox::Inbox;
use akri_krustlet_host::{DirectoryWatcher, Finished};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::runtime::Handle;
use tokio_util::task::AbortOnDropHandle;

/// A subscription to the changes of what is in a directory. A new file is told when it is whole.
#[derive(Debug)]
pub struct DirectoryChanges {
    finished: Arc<Mutex<Finished>>,
    is_gone: Arc<AtomicBool>,
    _follower: AbortOnDropHandle<()>,
}

impl DirectoryChanges {
    pub(crate) fn follow(
        watcher: &DirectoryWatcher,
        thread: &Handle,
        directory: &Path,
        inbox: Arc<Inbox>,
    ) -> io::Result<Self> {
        let mut files = watcher.watch_finished(directory)?;
        let finished = files.finished();
        let is_gone = Arc::new(AtomicBool::new(false));
        let gone = is_gone.clone();
        let follower = thread.spawn(async move {
            while files.changed().await.is_ok() {
                inbox.wake();
            }
            gone.store(true, Ordering::Relaxed);
            inbox.wake();
        });
        Ok(Self { finished, is_gone, _follower: AbortOnDropHandle::new(follower) })
    }

    /// The names that changed since this was called last, and whether there were more. A directory that is gone has more
    /// for ever.
    pub fn take(&self) -> (Vec<String>, bool) {
        let finished = std::mem::take(&mut *self.finished.lock().unwrap_or_else(PoisonError::into_inner));
        let names = finished.names.union(&finished.created);
        let mut names: Vec<_> = names.map(|name| name.to_string_lossy().into_owned()).collect();
        names.sort();
        (names, finished.any || self.is_gone.load(Ordering::Relaxed))
    }
}
