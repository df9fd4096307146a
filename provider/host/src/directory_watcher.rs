//! Tells when something in a directory changes: one inotify instance for the whole process.
//!
//! An event says only *that* a directory changed; whoever watches it looks for itself. That makes a lost event (queue
//! overflow) harmless: everybody looks. Who must not see files half written watches for [`FinishedFiles`].

use futures::StreamExt as _;
use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask, Watches};
use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;

/// Watches directories. Cheap to clone.
#[derive(Clone, Debug)]
pub struct DirectoryWatcher {
    shared: Arc<Shared>,
}

struct Shared {
    watches: Mutex<Watches>,
    listeners: Mutex<HashMap<WatchDescriptor, Vec<Listener>>>,
}

struct Listener {
    changed: watch::Sender<()>,
    /// Only of what is finished, and by name.
    finished: Option<Arc<Mutex<Finished>>>,
}

/// Files of a directory that somebody has finished, since they were asked for last.
#[derive(Debug, Default)]
pub struct Finished {
    /// Their names: written and closed, moved here or away, removed.
    pub names: HashSet<OsString>,
    /// New names; of a file that is being written, or another name for one that is not.
    pub created: HashSet<OsString>,
    /// Any file may be one: events were lost, or there were too many.
    pub any: bool,
}

/// More names than these are not kept apart.
const MOST_NAMES: usize = 256;

impl Finished {
    /// For whoever has to look at all files.
    pub fn all() -> Self {
        Self { any: true, ..Self::default() }
    }

    fn add(&mut self, mask: EventMask, name: Option<&OsStr>) {
        let names = if mask.contains(EventMask::CREATE) { &mut self.created } else { &mut self.names };
        match name {
            Some(name) if names.len() < MOST_NAMES => {
                names.insert(name.to_owned());
            }
            _ => self.any = true,
        }
    }
}

/// Follows the files of a directory that are finished.
#[derive(Debug)]
pub struct FinishedFiles {
    shared: Arc<Shared>,
    descriptor: WatchDescriptor,
    changes: watch::Receiver<()>,
    finished: Arc<Mutex<Finished>>,
}

impl FinishedFiles {
    /// Resolves when files are finished; an error when the directory is gone.
    pub async fn changed(&mut self) -> Result<(), watch::error::RecvError> {
        self.changes.changed().await
    }

    /// Where they are, for whoever takes them elsewhere than where it waits.
    pub fn finished(&self) -> Arc<Mutex<Finished>> {
        self.finished.clone()
    }

    /// What was finished since it was taken last.
    pub fn take(&self) -> Finished {
        std::mem::take(&mut *self.finished.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for FinishedFiles {
    fn drop(&mut self) {
        let mut listeners = self.shared.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(of_directory) = listeners.get_mut(&self.descriptor) else { return };
        let is_this = |listener: &Listener| {
            listener.finished.as_ref().is_some_and(|finished| Arc::ptr_eq(finished, &self.finished))
        };
        of_directory.retain(|listener| !is_this(listener));
        if of_directory.is_empty() {
            listeners.remove(&self.descriptor);
            self.shared.unwatch(&self.descriptor);
        }
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl DirectoryWatcher {
    /// Starts watching; the task ends with the runtime.
    pub fn start() -> std::io::Result<Self> {
        let inotify = Inotify::init()?;
        let shared = Arc::new(Shared { watches: Mutex::new(inotify.watches()), listeners: Mutex::new(HashMap::new()) });
        let mut events = inotify.into_event_stream(vec![0; 64 << 10])?;
        let of_task = Arc::downgrade(&shared);
        tokio::spawn(async move {
            while let Some(event) = events.next().await {
                let Some(shared) = of_task.upgrade() else { return };
                match event {
                    Ok(event) => shared.notify(&event.wd, event.mask, event.name.as_deref()),
                    Err(error) => {
                        tracing::warn!(%error, "reading inotify events");
                        shared.notify_all();
                    }
                }
            }
        });
        Ok(Self { shared })
    }

    /// Watches `directory`. The receiver changes when a file in it was written and closed, appeared, vanished or was
    /// renamed; it closes when the directory itself is gone.
    pub fn watch(&self, directory: &Path) -> std::io::Result<watch::Receiver<()>> {
        let (changed, changes) = watch::channel(());
        self.listen(directory, Listener { changed, finished: None })?;
        Ok(changes)
    }

    /// Watches `directory` for files that are finished.
    pub fn watch_finished(&self, directory: &Path) -> std::io::Result<FinishedFiles> {
        let (changed, changes) = watch::channel(());
        let finished: Arc<Mutex<Finished>> = Arc::default();
        let descriptor = self.listen(directory, Listener { changed, finished: Some(finished.clone()) })?;
        Ok(FinishedFiles { shared: self.shared.clone(), descriptor, changes, finished })
    }

    fn listen(&self, directory: &Path, listener: Listener) -> std::io::Result<WatchDescriptor> {
        let mask = WatchMask::CLOSE_WRITE
            | WatchMask::CREATE
            | WatchMask::DELETE
            | WatchMask::MOVE
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR;
        // Held over both steps, so that an event cannot come between them.
        let mut listeners = self.shared.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        let descriptor = self.shared.watches.lock().unwrap_or_else(PoisonError::into_inner).add(directory, mask)?;
        let of_directory = listeners.entry(descriptor.clone()).or_default();
        of_directory.retain(|listener| !listener.changed.is_closed());
        of_directory.push(listener);
        Ok(descriptor)
    }
}

impl Shared {
    fn notify(&self, descriptor: &WatchDescriptor, mask: EventMask, name: Option<&OsStr>) {
        if mask.contains(EventMask::Q_OVERFLOW) {
            self.notify_all();
            return;
        }
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        if mask.intersects(EventMask::IGNORED | EventMask::DELETE_SELF | EventMask::MOVE_SELF) {
            listeners.remove(descriptor);
            if mask.contains(EventMask::MOVE_SELF) {
                // It would be watched on, elsewhere.
                self.unwatch(descriptor);
            }
            return;
        }
        let Some(of_directory) = listeners.get_mut(descriptor) else { return };
        of_directory.retain(|listener| !listener.changed.is_closed());
        for listener in of_directory.iter() {
            if let Some(finished) = &listener.finished {
                finished.lock().unwrap_or_else(PoisonError::into_inner).add(mask, name);
            }
            listener.changed.send_replace(());
        }
        if of_directory.is_empty() {
            listeners.remove(descriptor);
            self.unwatch(descriptor);
        }
    }

    fn unwatch(&self, descriptor: &WatchDescriptor) {
        let _ = self.watches.lock().unwrap_or_else(PoisonError::into_inner).remove(descriptor.clone());
    }

    fn notify_all(&self) {
        for listener in self.listeners.lock().unwrap_or_else(PoisonError::into_inner).values().flatten() {
            if let Some(finished) = &listener.finished {
                finished.lock().unwrap_or_else(PoisonError::into_inner).any = true;
            }
            listener.changed.send_replace(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_watcher_of_a_directory_hears_of_a_change_and_of_its_end() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("watched");
        std::fs::create_dir(&directory).unwrap();
        let watcher = DirectoryWatcher::start().unwrap();
        let mut one = watcher.watch(&directory).unwrap();
        let mut two = watcher.watch(&directory).unwrap();
        std::fs::write(directory.join("file"), "x").unwrap();
        one.changed().await.unwrap();
        two.changed().await.unwrap();
        drop(two);
        std::fs::remove_dir_all(&directory).unwrap();
        while one.changed().await.is_ok() {}
    }

    #[tokio::test]
    async fn a_directory_that_nobody_follows_any_more_is_not_watched() {
        let directory = tempfile::tempdir().unwrap();
        let watcher = DirectoryWatcher::start().unwrap();
        let (one, two) = (watcher.watch_finished(directory.path()).unwrap(), watcher.watch_finished(directory.path()));
        let watched = || watcher.shared.listeners.lock().unwrap().values().map(Vec::len).sum::<usize>();
        assert_eq!(watched(), 2);
        drop(one);
        assert_eq!(watched(), 1);
        drop(two);
        assert_eq!(watcher.shared.listeners.lock().unwrap().len(), 0);
    }

    #[tokio::test]
    async fn a_directory_that_is_not_there_is_an_error() {
        let watcher = DirectoryWatcher::start().unwrap();
        assert!(watcher.watch(Path::new("/nonexistent")).is_err());
    }
}
