//! Tells when something in a directory changes: one inotify instance for the whole process.
//!
//! An event says only *that* a directory changed; whoever watches it looks for itself. That makes a lost event (queue
//! overflow) harmless: everybody looks.

use futures::StreamExt as _;
use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask, Watches};
use std::collections::HashMap;
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
    listeners: Mutex<HashMap<WatchDescriptor, Vec<watch::Sender<()>>>>,
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
                    Ok(event) => shared.notify(&event.wd, event.mask),
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
        let (sender, receiver) = watch::channel(());
        let of_directory = listeners.entry(descriptor).or_default();
        of_directory.retain(|sender| !sender.is_closed());
        of_directory.push(sender);
        Ok(receiver)
    }
}

impl Shared {
    fn notify(&self, descriptor: &WatchDescriptor, mask: EventMask) {
        if mask.contains(EventMask::Q_OVERFLOW) {
            self.notify_all();
            return;
        }
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        if mask.intersects(EventMask::IGNORED | EventMask::DELETE_SELF | EventMask::MOVE_SELF) {
            listeners.remove(descriptor);
            return;
        }
        let Some(of_directory) = listeners.get_mut(descriptor) else { return };
        of_directory.retain(|sender| !sender.is_closed());
        for sender in of_directory.iter() {
            sender.send_replace(());
        }
        if of_directory.is_empty() {
            listeners.remove(descriptor);
            let _ = self.watches.lock().unwrap_or_else(PoisonError::into_inner).remove(descriptor.clone());
        }
    }

    fn notify_all(&self) {
        for sender in self.listeners.lock().unwrap_or_else(PoisonError::into_inner).values().flatten() {
            sender.send_replace(());
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
    async fn a_directory_that_is_not_there_is_an_error() {
        let watcher = DirectoryWatcher::start().unwrap();
        assert!(watcher.watch(Path::new("/nonexistent")).is_err());
    }
}
