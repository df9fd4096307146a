//! Changes of directories.

use crate::inbox::{Flag, Inbox};
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
    has_changed: Arc<Flag>,
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
        let has_changed = Arc::new(Flag::new(inbox));
        let (gone, changed) = (is_gone.clone(), has_changed.clone());
        let follower = thread.spawn(async move {
            while files.changed().await.is_ok() {
                changed.raise();
            }
            gone.store(true, Ordering::Relaxed);
            changed.raise();
        });
        Ok(Self { finished, has_changed, is_gone, _follower: AbortOnDropHandle::new(follower) })
    }

    /// The names that changed since this was called last, and whether there were more. A directory that is gone has more
    /// for ever.
    pub fn take(&self) -> (Vec<String>, bool) {
        self.has_changed.lower();
        let finished = std::mem::take(&mut *self.finished.lock().unwrap_or_else(PoisonError::into_inner));
        let names = finished.names.union(&finished.created);
        let mut names: Vec<_> = names.map(|name| name.to_string_lossy().into_owned()).collect();
        names.sort();
        (names, finished.any || self.is_gone.load(Ordering::Relaxed))
    }
}
