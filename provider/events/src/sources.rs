//! All sources of a process, and the thread that reads them.

use crate::directories::DirectoryChanges;
use crate::inbox::Inbox;
use crate::links::{self, LinkChanges, LinkNames};
use crate::multicast::{Multicast, MulticastError, MulticastListener, SourceFilter};
use crate::uevents::{Subsystems, Uevent, UeventMonitor, Uevents};
use akri_krustlet_host::DirectoryWatcher;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// Several changes of links come together: a link, its addresses, its routes.
const LINKS_SETTLE: Duration = Duration::from_millis(50);

/// The event sources of this machine. Made once per process; it opens what somebody asks for.
#[derive(Default)]
pub struct EventSources {
    thread: Mutex<Option<Thread>>,
    uevents: Arc<Uevents>,
    multicast: Arc<Multicast>,
}

impl fmt::Debug for EventSources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventSources").finish_non_exhaustive()
    }
}

/// The thread that reads all sources. Dropping it ends it.
struct Thread {
    handle: Handle,
    watcher: DirectoryWatcher,
    _end: oneshot::Sender<()>,
}

impl EventSources {
    /// With nothing open.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Follows uevents of the kernel.
    pub fn uevents(&self, subsystems: Subsystems, inbox: Arc<Inbox>) -> io::Result<Arc<UeventMonitor>> {
        self.uevents.open(&self.thread()?.0, subsystems, inbox)
    }

    /// Tells all who follow uevents of one that the kernel has not sent, for whoever tries out a guest.
    pub fn inject_uevent(&self, uevent: Uevent) {
        self.uevents.inject(uevent);
    }

    /// Listens to a multicast group, on the links of these names that carry it, those that come later included.
    pub fn join(
        &self,
        place: SocketAddr,
        links: LinkNames,
        from: SourceFilter,
        inbox: Arc<Inbox>,
    ) -> Result<Arc<MulticastListener>, MulticastError> {
        self.multicast.join(&self.thread()?.0, place, links, from, inbox)
    }

    /// Follows the changes of what is in a directory.
    pub fn directory(&self, directory: &Path, inbox: Arc<Inbox>) -> io::Result<DirectoryChanges> {
        let (thread, watcher) = self.thread()?;
        DirectoryChanges::follow(&watcher, &thread, directory, inbox)
    }

    /// The thread, which is started when it is needed first. Its lock is not held while somebody waits for the system.
    fn thread(&self) -> io::Result<(Handle, DirectoryWatcher)> {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        let running = match thread.take() {
            Some(running) => running,
            None => Thread::start(Arc::downgrade(&self.multicast))?,
        };
        let running = thread.insert(running);
        Ok((running.handle.clone(), running.watcher.clone()))
    }
}

impl Thread {
    fn start(multicast: Weak<Multicast>) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (watcher, changes) = {
            let _in_thread = handle.enter();
            (DirectoryWatcher::start()?, LinkChanges::follow()?)
        };
        handle.spawn(follow_links(changes, multicast));
        let (end, ended) = oneshot::channel();
        std::thread::Builder::new().name("events".to_owned()).spawn(move || {
            // Until the sources are dropped.
            let _ = runtime.block_on(ended);
        })?;
        Ok(Self { handle, watcher, _end: end })
    }
}

async fn follow_links(changes: LinkChanges, multicast: Weak<Multicast>) {
    loop {
        if let Err(error) = changes.changed().await {
            tracing::error!(%error, "network links are not followed any more");
            return;
        }
        tokio::time::sleep(LINKS_SETTLE).await;
        let Some(multicast) = multicast.upgrade() else { return };
        match links::list() {
            Ok(links) => multicast.follow(&links),
            Err(error) => tracing::warn!(%error, "network links cannot be listed"),
        }
    }
}
