//! Announces the node's handlers to Akri's Agent.
//!
//! # Guarantees
//! - Each handler is registered once in each life of the Agent: a second registration would make every Configuration open
//!   one more stream, for good.
//! - A life begins when `agent-registration.sock` appears: the Agent unlinks and binds it when it starts, and forgets all
//!   handlers. Nothing is concluded from a closed stream.
//! - A handler is registered once its socket is served, and its socket is served once its module is compiled.
//! - An Agent that is absent, refuses or does not answer is asked again after 0.5 s, doubling to 30 s.

use crate::handlers::{Handlers, ServedHandler};
use akri_krustlet_host::socket::connect;
use akri_krustlet_host::{BackOff, DirectoryWatcher, until};
use akri_proto::v0::RegisterDiscoveryHandlerRequest;
use akri_proto::v0::register_discovery_handler_request::EndpointType;
use akri_proto::v0::registration_client::RegistrationClient;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use std::collections::{BTreeSet, HashMap};
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// The Agent's socket in the handlers' directory.
pub const AGENT_SOCKET: &str = "agent-registration.sock";

/// How long the Agent may take to answer one registration.
const ANSWER: Duration = Duration::from_secs(5);
/// The pause after a failed registration doubles from the first to the second.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// Registrations under way at once.
const AT_ONCE: usize = 16;

/// One life of the Agent: what its socket's file was when it appeared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct AgentLife {
    device: u64,
    inode: u64,
    /// Set by `bind`, and unlike the change time not by a later chmod.
    modified: (i64, i64),
}

impl AgentLife {
    fn of(socket: &Path) -> Option<Self> {
        let metadata = std::fs::metadata(socket).ok()?;
        metadata.file_type().is_socket().then(|| Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        })
    }
}

/// Registers what `handlers` serves, for as long as it is polled.
pub async fn run(handlers: Arc<Handlers>, watcher: DirectoryWatcher) {
    let mut served_changed = handlers.changes();
    let mut directory = WatchedDirectory::watch(handlers.directory(), &watcher).await;
    let mut book = Book::new(handlers.directory());
    let mut under_way = FuturesUnordered::new();
    loop {
        for (name, served) in handlers.take_changed() {
            book.changed(name, served);
        }
        book.life_is(AgentLife::of(&book.socket));
        while under_way.len() < AT_ONCE
            && let Some(attempt) = book.next_attempt(Instant::now())
        {
            under_way.push(attempt);
        }
        // At the limit the next one comes when one of those under way is done.
        let next = book.next_time().filter(|_| under_way.len() < AT_ONCE);
        let retry = until(next);
        tokio::select! {
            Some((handler, life, result)) = under_way.next() => book.record(&handler, life, result),
            Ok(()) = served_changed.changed() => {}
            changed = directory.changes.changed() => {
                if changed.is_err() || !directory.is_in_place() {
                    tracing::warn!(directory = %directory.path.display(), "the discovery handlers' directory was removed; making it again");
                    directory = WatchedDirectory::watch(&directory.path, &watcher).await;
                }
                handlers.restore_sockets();
            }
            () = retry => {}
        }
    }
}

/// The handlers' directory, by its inode: one that is removed stays alive, unheard, while a socket in it is open.
struct WatchedDirectory {
    path: PathBuf,
    inode: Option<(u64, u64)>,
    changes: watch::Receiver<()>,
}

impl WatchedDirectory {
    /// Watches the directory, making it if it is missing; does not give up.
    async fn watch(path: &Path, watcher: &DirectoryWatcher) -> Self {
        let mut told = false;
        loop {
            let made = std::fs::DirBuilder::new().recursive(true).mode(0o755).create(path);
            let inode = inode_of(path);
            match made.and_then(|()| watcher.watch(path)) {
                Ok(changes) => return Self { path: path.to_owned(), inode, changes },
                Err(error) => {
                    if !told {
                        tracing::error!(directory = %path.display(), %error, "cannot watch the discovery handlers' directory; trying again");
                        told = true;
                    }
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }

    fn is_in_place(&self) -> bool {
        self.inode == inode_of(&self.path)
    }
}

fn inode_of(path: &Path) -> Option<(u64, u64)> {
    std::fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

/// What has been registered, and what is to be tried when.
struct Book {
    /// The Agent's.
    socket: PathBuf,
    life: Option<AgentLife>,
    known: HashMap<String, Entry>,
    /// When each handler that is not registered is due; none while it is under way.
    due: BTreeSet<(Instant, String)>,
}

#[derive(Default)]
struct Entry {
    served: Option<ServedHandler>,
    registered: Option<(AgentLife, ServedHandler)>,
    under_way: bool,
    due: Option<Instant>,
    failed: Option<Failure>,
}

struct Failure {
    life: AgentLife,
    back_off: BackOff,
    message: String,
}

impl Book {
    fn new(directory: &Path) -> Self {
        Self { socket: directory.join(AGENT_SOCKET), life: None, known: HashMap::new(), due: BTreeSet::new() }
    }

    /// A handler has come, changed or gone.
    fn changed(&mut self, name: String, served: Option<ServedHandler>) {
        self.known.entry(name.clone()).or_default().served = served;
        self.schedule(name, Instant::now());
    }

    /// What the Agent's socket says. Another life knows no handler.
    fn life_is(&mut self, life: Option<AgentLife>) {
        if std::mem::replace(&mut self.life, life) != life {
            let now = Instant::now();
            let names: Vec<_> = self.known.keys().cloned().collect();
            names.into_iter().for_each(|name| self.schedule(name, now));
        }
    }

    /// Notes when the handler is to be registered, if it is at all.
    fn schedule(&mut self, name: String, at: Instant) {
        let Some(entry) = self.known.get_mut(&name) else { return };
        if let Some(due) = entry.due.take() {
            self.due.remove(&(due, name.clone()));
        }
        if entry.under_way {
            return;
        }
        let Some(served) = &entry.served else {
            self.known.remove(&name);
            return;
        };
        let Some(life) = self.life else { return };
        let is_registered = entry.registered.as_ref().is_some_and(|(of, handler)| *of == life && handler == served);
        if !is_registered {
            entry.due = Some(at);
            self.due.insert((at, name));
        }
    }

    fn next_time(&self) -> Option<Instant> {
        self.due.first().map(|(time, _)| *time)
    }

    /// A registration that is due, to be polled.
    fn next_attempt(
        &mut self,
        now: Instant,
    ) -> Option<impl Future<Output = (ServedHandler, AgentLife, Result<(), String>)> + use<>> {
        if self.next_time()? > now {
            return None;
        }
        let life = self.life?;
        let (_, name) = self.due.pop_first()?;
        let entry = self.known.get_mut(&name)?;
        (entry.due, entry.under_way) = (None, true);
        let (handler, socket) = (entry.served.clone()?, self.socket.clone());
        Some(async move {
            let result = match tokio::time::timeout(ANSWER, register(socket, life, &handler)).await {
                Ok(result) => result,
                Err(_) => Err(format!("no answer within {} s", ANSWER.as_secs())),
            };
            (handler, life, result)
        })
    }

    fn record(&mut self, handler: &ServedHandler, life: AgentLife, result: Result<(), String>) {
        let Some(entry) = self.known.get_mut(&handler.name) else { return };
        entry.under_way = false;
        let mut next = Instant::now();
        match result {
            Ok(()) => {
                tracing::info!(handler = handler.name, endpoint = %handler.endpoint.display(), shared = handler.shared, "registered with the Agent");
                entry.failed = None;
                entry.registered = Some((life, handler.clone()));
            }
            Err(message) => {
                let before = entry.failed.take().filter(|failure| failure.life == life);
                let is_new = before.as_ref().is_none_or(|failure| failure.message != message);
                let mut back_off =
                    before.map_or_else(|| BackOff::new(BACK_OFF.0, BACK_OFF.1), |failure| failure.back_off);
                if is_new {
                    tracing::warn!(
                        handler = handler.name,
                        error = message,
                        "the Agent did not register the handler; trying again"
                    );
                }
                // Another life is asked at once.
                if self.life == Some(life) {
                    next += back_off.pause();
                }
                entry.failed = Some(Failure { life, back_off, message });
            }
        }
        self.schedule(handler.name.clone(), next);
    }
}

async fn register(socket: PathBuf, life: AgentLife, handler: &ServedHandler) -> Result<(), String> {
    let channel = connect(socket.clone()).await.map_err(|error| match std::error::Error::source(&error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    })?;
    if AgentLife::of(&socket) != Some(life) {
        return Err("the Agent was restarted meanwhile".to_owned());
    }
    let request = RegisterDiscoveryHandlerRequest {
        name: handler.name.clone(),
        endpoint: handler.endpoint.to_string_lossy().into_owned(),
        endpoint_type: EndpointType::Uds.into(),
        shared: handler.shared,
    };
    RegistrationClient::new(channel)
        .register_discovery_handler(request)
        .await
        .map(|_| ())
        .map_err(|status| format!("{:?}: {}", status.code(), status.message()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served(name: &str, shared: bool) -> ServedHandler {
        ServedHandler { name: name.to_owned(), endpoint: PathBuf::from(format!("/a/{name}.sock")), shared }
    }

    fn life(inode: u64) -> AgentLife {
        AgentLife { device: 1, inode, modified: (0, 0) }
    }

    /// Takes the attempts that are due now, with the answer `result`.
    fn answer(book: &mut Book, result: &Result<(), String>) -> usize {
        let mut count = 0;
        while book.next_attempt(Instant::now()).is_some() {
            count += 1;
        }
        let life = book.life.unwrap();
        let under_way = book.known.values().filter(|entry| entry.under_way);
        let under_way: Vec<_> = under_way.filter_map(|entry| entry.served.clone()).collect();
        for handler in under_way {
            book.record(&handler, life, result.clone());
        }
        count
    }

    #[tokio::test(start_paused = true)]
    async fn each_handler_is_registered_once_in_each_life_and_a_failure_is_tried_again() {
        let mut book = Book::new(Path::new("/a"));
        for name in 0..1000 {
            book.changed(name.to_string(), Some(served(&name.to_string(), true)));
        }
        assert!(book.next_time().is_none(), "there is no Agent");
        book.life_is(Some(life(1)));
        assert_eq!(answer(&mut book, &Ok(())), 1000);
        book.life_is(Some(life(1)));
        assert!(book.next_time().is_none());
        book.life_is(Some(life(2)));
        assert_eq!(answer(&mut book, &Err("busy".to_owned())), 1000);
        assert_eq!(book.next_time(), Some(Instant::now() + BACK_OFF.0));
        tokio::time::advance(BACK_OFF.0).await;
        assert_eq!(answer(&mut book, &Err("busy".to_owned())), 1000);
        assert_eq!(book.next_time(), Some(Instant::now() + BACK_OFF.0 * 2));
        // One that is changed or gone meanwhile.
        book.changed("1".to_owned(), Some(served("1", false)));
        book.changed("2".to_owned(), None);
        assert_eq!(answer(&mut book, &Ok(())), 1);
        tokio::time::advance(BACK_OFF.1).await;
        assert_eq!(answer(&mut book, &Ok(())), 998);
        assert_eq!(book.known.len(), 999);
        assert!(book.next_time().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn what_changes_while_it_is_registered_is_registered_again() {
        let mut book = Book::new(Path::new("/a"));
        book.life_is(Some(life(1)));
        book.changed("a".to_owned(), Some(served("a", true)));
        assert!(book.next_attempt(Instant::now()).is_some());
        book.changed("a".to_owned(), Some(served("a", false)));
        assert!(book.next_attempt(Instant::now()).is_none());
        book.record(&served("a", true), life(1), Ok(()));
        assert!(book.next_attempt(Instant::now()).is_some());
        book.changed("a".to_owned(), None);
        book.record(&served("a", false), life(1), Ok(()));
        assert!(book.known.is_empty() && book.due.is_empty());
    }
}
