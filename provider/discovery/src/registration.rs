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
use akri_krustlet_host::DirectoryWatcher;
use akri_krustlet_host::socket::connect;
use akri_proto::v0::RegisterDiscoveryHandlerRequest;
use akri_proto::v0::register_discovery_handler_request::EndpointType;
use akri_proto::v0::registration_client::RegistrationClient;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use std::collections::HashMap;
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
    let mut book = Book { directory: handlers.directory().to_owned(), known: HashMap::new() };
    let mut under_way = FuturesUnordered::new();
    loop {
        let life = AgentLife::of(&book.directory.join(AGENT_SOCKET));
        let served = handlers.served();
        book.forget_all_but(&served);
        let mut next_try = None;
        for handler in served {
            match book.due(&handler, life) {
                Due::No => {}
                Due::At(time) => next_try = Some(next_try.map_or(time, |other: Instant| other.min(time))),
                Due::Now(life) if under_way.len() < AT_ONCE => under_way.push(book.attempt(handler, life)),
                // Comes when one of those under way is done.
                Due::Now(_) => {}
            }
        }
        let retry = async {
            match next_try {
                Some(time) => tokio::time::sleep_until(time).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some((handler, life, result)) = under_way.next() => book.record(&handler, life, result),
            Ok(()) = served_changed.changed() => {}
            changed = directory.changes.changed() => {
                if changed.is_err() || !directory.is_in_place() {
                    tracing::warn!(directory = %book.directory.display(), "the discovery handlers' directory was removed; making it again");
                    directory = WatchedDirectory::watch(&book.directory, &watcher).await;
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
    directory: PathBuf,
    known: HashMap<String, Entry>,
}

#[derive(Default)]
struct Entry {
    registered: Option<(AgentLife, ServedHandler)>,
    under_way: bool,
    failed: Option<Failure>,
}

struct Failure {
    life: AgentLife,
    pause: Duration,
    next: Instant,
    message: String,
}

enum Due {
    No,
    At(Instant),
    Now(AgentLife),
}

impl Book {
    fn forget_all_but(&mut self, served: &[ServedHandler]) {
        self.known.retain(|name, entry| entry.under_way || served.iter().any(|handler| handler.name == *name));
    }

    fn due(&self, handler: &ServedHandler, life: Option<AgentLife>) -> Due {
        let Some(life) = life else { return Due::No };
        let Some(entry) = self.known.get(&handler.name) else { return Due::Now(life) };
        if entry.under_way || entry.registered.as_ref().is_some_and(|known| *known == (life, handler.clone())) {
            return Due::No;
        }
        match &entry.failed {
            Some(failure) if failure.life == life && failure.next > Instant::now() => Due::At(failure.next),
            _ => Due::Now(life),
        }
    }

    fn attempt(
        &mut self,
        handler: ServedHandler,
        life: AgentLife,
    ) -> impl Future<Output = (ServedHandler, AgentLife, Result<(), String>)> + use<> {
        self.known.entry(handler.name.clone()).or_default().under_way = true;
        let socket = self.directory.join(AGENT_SOCKET);
        async move {
            let result = match tokio::time::timeout(ANSWER, register(socket, life, &handler)).await {
                Ok(result) => result,
                Err(_) => Err(format!("no answer within {} s", ANSWER.as_secs())),
            };
            (handler, life, result)
        }
    }

    fn record(&mut self, handler: &ServedHandler, life: AgentLife, result: Result<(), String>) {
        let entry = self.known.entry(handler.name.clone()).or_default();
        entry.under_way = false;
        match result {
            Ok(()) => {
                tracing::info!(handler = handler.name, endpoint = %handler.endpoint.display(), shared = handler.shared, "registered with the Agent");
                entry.failed = None;
                entry.registered = Some((life, handler.clone()));
            }
            Err(message) => {
                let before = entry.failed.take().filter(|failure| failure.life == life);
                let pause = before.as_ref().map_or(BACK_OFF.0, |failure| (failure.pause * 2).min(BACK_OFF.1));
                if before.is_none_or(|failure| failure.message != message) {
                    tracing::warn!(
                        handler = handler.name,
                        error = message,
                        "the Agent did not register the handler; trying again"
                    );
                }
                entry.failed = Some(Failure { life, pause, next: Instant::now() + pause, message });
            }
        }
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
