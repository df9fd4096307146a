//! The discovery handlers of a node, by name: their sockets, the containers behind them, and when each comes and goes.
//!
//! # Flow
//! 1. A pod with a handler container makes a [`HandlerClaim`] on the name, and releases it by dropping it.
//! 2. When the container runs (its module is compiled by then), [`HandlerClaim::serve`] puts it behind the name. The first
//!    one makes the socket.
//! 3. Of several containers with one name the one of the newest pod serves; when that changes, streams move over.
//! 4. A name belongs to the namespace whose pods claimed it first, or to the one that the operator says. Pods of others are told.
//! 5. A container that stops leaves its claim in place: the streams stay open with their last good lists. Only when the
//!    last claim has been gone for the grace period do the streams get an empty list and end, and the socket goes.

use crate::container::HandlerContainer;
use crate::host_path::AllowList;
use crate::instance::Instances;
use crate::last_lists::LastLists;
use crate::service;
use akri_krustlet_host::ServedSocket;
use akri_krustlet_host::socket::SocketError;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How long a name stays that of the namespace that had it, when none of its pods claims it any more. Long enough for a slow
/// start and a long weekend: what is kept from others are the discovery properties that its Configurations still hold.
const OWNER_PATIENCE: Duration = Duration::from_secs(7 * 24 * 3600);
/// How often it is looked at.
const OWNER_LOOK: Duration = Duration::from_secs(3600);
/// Names that are kept, most of them of pods that are gone; a pod's author could make up any number.
const MOST_OWNERS: usize = 1024;

/// How a node serves its handlers.
#[derive(Clone, Debug)]
pub struct HandlersConfig {
    /// Directory of the handlers' sockets and the Agent's.
    pub directory: PathBuf,
    /// Where the last lists of open streams are kept over an end of the node.
    pub last_lists: PathBuf,
    /// How long streams stay open after the last pod of their handler is gone. Default 30 s.
    pub grace_period: Duration,
    /// Which namespace's pods may serve a handler of a name; of other names, those that served it first.
    pub namespaces: BTreeMap<String, String>,
    /// Where it is kept who served a name first, over an end of the node.
    pub owners: PathBuf,
    /// Host paths that the devices of any handler may name, if its pod allows them too.
    pub host_paths: AllowList,
    /// The node's name, which is in the Instances' names of devices that other nodes do not see.
    pub node: String,
}

impl HandlersConfig {
    /// The defaults.
    pub fn new(
        node: &str,
        directory: impl Into<PathBuf>,
        last_lists: impl Into<PathBuf>,
        owners: impl Into<PathBuf>,
    ) -> Self {
        Self {
            directory: directory.into(),
            last_lists: last_lists.into(),
            grace_period: Duration::from_secs(30),
            namespaces: BTreeMap::new(),
            owners: owners.into(),
            host_paths: AllowList::default(),
            node: node.to_owned(),
        }
    }
}

/// A handler's name that a pod may not have.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "the discovery handler {name:?} belongs to pods of namespace {owner:?}, which served it last; choose another DISCOVERY_HANDLER_NAME, or start the node with --handler-namespaces {name}={namespace}"
)]
pub struct ForeignName {
    name: String,
    owner: String,
    namespace: String,
}

/// The handlers of a node.
#[derive(Debug)]
pub struct Handlers {
    config: HandlersConfig,
    lists: Arc<LastLists>,
    instances: Arc<Instances>,
    entries: Mutex<Entries>,
    changed: watch::Sender<()>,
    /// What is written of the owners.
    kept_owners: watch::Sender<Owners>,
}

/// Whose a name is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Owner {
    namespace: String,
    /// When a pod claimed it last, in seconds since 1970.
    claimed: u64,
}

type Owners = BTreeMap<String, Owner>;

#[derive(Debug, Default)]
struct Entries {
    by_name: HashMap<String, Entry>,
    /// The namespace of each name's pods.
    owners: Owners,
    next_claim: u64,
    /// Names whose socket or scope is another than [`Handlers::take_changed`] told.
    changed: BTreeSet<String>,
}

#[derive(Debug)]
struct Entry {
    handler: Arc<Handler>,
    /// As the container that served last says; what the Agent was told.
    shared: bool,
    claims: usize,
    /// Counts how often the claims went to none, so that an old grace period does not end a new life.
    departures: u64,
    /// With the number of the claim; the largest serves.
    containers: Vec<(u64, Arc<HandlerContainer>)>,
    socket: Option<ServedSocket>,
}

/// One name: what its streams need to know.
#[derive(Debug)]
pub(crate) struct Handler {
    pub(crate) name: String,
    pub(crate) lists: Arc<LastLists>,
    pub(crate) instances: Arc<Instances>,
    pub(crate) serving: watch::Sender<Option<Arc<HandlerContainer>>>,
    /// Cancelled when the handler is gone for good.
    pub(crate) closing: CancellationToken,
}

/// A handler that the Agent should know of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServedHandler {
    /// Its name.
    pub name: String,
    /// Its socket.
    pub endpoint: PathBuf,
    /// Whether other nodes see the same devices.
    pub shared: bool,
}

impl Handlers {
    /// No handlers yet. Must be called in a runtime.
    pub fn new(config: HandlersConfig) -> std::io::Result<Arc<Self>> {
        let lists = LastLists::open(&config.last_lists)?;
        let instances = Instances::new(&config.node);
        let owners = read_owners(&config.owners);
        let entries = Mutex::new(Entries { owners, ..Entries::default() });
        let (changed, kept_owners) = (watch::Sender::new(()), watch::Sender::default());
        let handlers = Arc::new(Self { config, lists, instances, entries, changed, kept_owners });
        let unclaimed = Arc::downgrade(&handlers);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(OWNER_LOOK).await;
                let Some(handlers) = unclaimed.upgrade() else { return };
                handlers.forget_owners();
            }
        });
        tokio::spawn(write_owners(handlers.config.owners.clone(), handlers.kept_owners.subscribe()));
        Ok(handlers)
    }

    /// Host paths that devices of any handler may name, if its pod allows them too.
    pub fn host_paths(&self) -> &AllowList {
        &self.config.host_paths
    }

    /// Directory of the sockets.
    pub fn directory(&self) -> &std::path::Path {
        &self.config.directory
    }

    /// The Instances of the handlers' devices, for whoever can tell of them.
    pub fn instances(&self) -> Arc<Instances> {
        self.instances.clone()
    }

    /// A pod of a namespace wants to be a handler of this name. The name stays the namespace's as long as pods claim it: the
    /// discovery properties of open streams are nobody else's.
    pub fn claim(self: &Arc<Self>, name: &str, namespace: &str) -> Result<HandlerClaim, ForeignName> {
        let mut entries = self.entries();
        let kept = entries.owners.get(name).map(|owner| &owner.namespace);
        let owner = self.config.namespaces.get(name).or(kept);
        match owner {
            Some(owner) if owner != namespace => {
                return Err(ForeignName {
                    name: name.to_owned(),
                    owner: owner.clone(),
                    namespace: namespace.to_owned(),
                });
            }
            _ => {}
        }
        let owner = Owner { namespace: namespace.to_owned(), claimed: now() };
        entries.owners.insert(name.to_owned(), owner);
        self.keep_owners(&mut entries);
        entries.next_claim += 1;
        let number = entries.next_claim;
        let entry = entries.by_name.entry(name.to_owned()).or_insert_with(|| Entry {
            handler: Arc::new(Handler {
                name: name.to_owned(),
                lists: self.lists.clone(),
                instances: self.instances.clone(),
                serving: watch::Sender::new(None),
                closing: CancellationToken::new(),
            }),
            shared: true,
            claims: 0,
            departures: 0,
            containers: Vec::new(),
            socket: None,
        });
        entry.claims += 1;
        Ok(HandlerClaim { handlers: self.clone(), name: name.to_owned(), number })
    }

    /// Has the owners written, and no more of them than are kept.
    fn keep_owners(&self, entries: &mut Entries) {
        let Entries { by_name, owners, .. } = entries;
        while owners.len() > MOST_OWNERS {
            let unclaimed = owners.iter().filter(|(name, _)| !by_name.contains_key(*name));
            let Some(oldest) = unclaimed.min_by_key(|(_, owner)| owner.claimed).map(|(name, _)| name.clone()) else {
                break;
            };
            owners.remove(&oldest);
        }
        self.kept_owners.send_replace(owners.clone());
    }

    /// Frees the names that nobody has claimed for long.
    fn forget_owners(&self) {
        let mut entries = self.entries();
        let Entries { by_name, owners, .. } = &mut *entries;
        for (name, owner) in owners.iter_mut() {
            if by_name.contains_key(name) {
                owner.claimed = now();
            }
        }
        owners.retain(|_, owner| now().saturating_sub(owner.claimed) < OWNER_PATIENCE.as_secs());
        self.keep_owners(&mut entries);
    }

    /// The handlers that have changed since they were asked for last, by name; `None` for one that has no socket any more.
    pub fn take_changed(&self) -> Vec<(String, Option<ServedHandler>)> {
        let mut entries = self.entries();
        let changed = std::mem::take(&mut entries.changed);
        let served = |name: &str| {
            let entry = entries.by_name.get(name)?;
            let endpoint = entry.socket.as_ref()?.path().to_owned();
            Some(ServedHandler { name: name.to_owned(), endpoint, shared: entry.shared })
        };
        let pair = |name: String| {
            let served = served(&name);
            (name, served)
        };
        changed.into_iter().map(pair).collect()
    }

    /// Changes when a handler gets or loses its socket, or is shared where it was not.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Removes the sockets, for a node that is about to end. Streams are left as they are: one that ended would make the
    /// Agent delete its Instances, one whose process vanishes leaves them until the node is back.
    pub fn remove_sockets(&self) {
        for entry in self.entries().by_name.values_mut() {
            entry.socket = None;
        }
    }

    /// Makes again what somebody removed from the directory.
    pub fn restore_sockets(&self) {
        let mut restored = Vec::new();
        let mut entries = self.entries();
        for (name, entry) in &mut entries.by_name {
            let in_place = entry.socket.as_ref().is_some_and(ServedSocket::is_in_place);
            if !in_place && (entry.socket.is_some() || !entry.containers.is_empty()) {
                tracing::warn!(handler = entry.handler.name, "the handler's socket was removed; making it again");
                entry.socket = None;
                match self.open_socket(&entry.handler) {
                    Ok(socket) => entry.socket = Some(socket),
                    Err(error) => tracing::error!(handler = entry.handler.name, %error, "cannot make the socket again"),
                }
                restored.push(name.clone());
            }
        }
        if !restored.is_empty() {
            entries.changed.extend(restored);
            self.changed.send_replace(());
        }
    }

    fn open_socket(&self, handler: &Arc<Handler>) -> Result<ServedSocket, SocketError> {
        let path = self.config.directory.join(format!("{}.sock", handler.name));
        ServedSocket::start(&path, service::routes(handler.clone()))
    }

    fn close_if_still_unclaimed(&self, name: &str, departures: u64) {
        let mut entries = self.entries();
        let unclaimed =
            entries.by_name.get(name).is_some_and(|entry| entry.claims == 0 && entry.departures == departures);
        if unclaimed && let Some(entry) = entries.by_name.remove(name) {
            tracing::info!(handler = name, "no pod of this handler is left: its streams end");
            entry.handler.closing.cancel();
            drop(entry);
            entries.changed.insert(name.to_owned());
            self.changed.send_replace(());
        }
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn read_owners(path: &std::path::Path) -> Owners {
    let json = match std::fs::read(path) {
        Ok(json) => json,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Owners::new(),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "cannot read whose the handlers' names are");
            return Owners::new();
        }
    };
    serde_json::from_slice(&json).unwrap_or_else(|error| {
        tracing::warn!(path = %path.display(), %error, "cannot understand whose the handlers' names are");
        Owners::new()
    })
}

/// Writes the owners whenever they change.
async fn write_owners(path: PathBuf, mut owners: watch::Receiver<Owners>) {
    while owners.changed().await.is_ok() {
        let (path, kept) = (path.clone(), owners.borrow_and_update().clone());
        let written = tokio::task::spawn_blocking(move || {
            let kept = serde_json::to_vec(&kept).map_err(std::io::Error::other);
            let written = kept.and_then(|json| akri_krustlet_host::file::write_atomically(&path, &json, 0o600));
            if let Err(error) = written {
                tracing::warn!(
                    path = %path.display(), %error,
                    "cannot keep whose the handlers' names are; after a restart of the node they belong to whoever comes first"
                );
            }
        });
        let _ = written.await;
    }
}

impl Entry {
    fn update_serving(&mut self) {
        let newest = self.containers.iter().max_by_key(|(number, _)| *number).map(|(_, container)| container.clone());
        if let Some(newest) = &newest {
            self.shared = newest.settings().shared;
        }
        self.handler.serving.send_if_modified(|serving| {
            let same = match (&*serving, &newest) {
                (Some(old), Some(new)) => Arc::ptr_eq(old, new),
                (None, None) => true,
                _ => false,
            };
            *serving = newest;
            !same
        });
    }
}

/// One pod's claim on a handler's name.
#[derive(Debug)]
pub struct HandlerClaim {
    handlers: Arc<Handlers>,
    name: String,
    number: u64,
}

impl HandlerClaim {
    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Puts a running container behind the name, until the result is dropped.
    pub fn serve(&self, container: Arc<HandlerContainer>) -> Result<Serving<'_>, SocketError> {
        let mut entries = self.handlers.entries();
        let Some(entry) = entries.by_name.get_mut(&self.name) else {
            unreachable!("a claimed handler has an entry");
        };
        let made_socket = entry.socket.is_none();
        if made_socket {
            entry.socket = Some(self.handlers.open_socket(&entry.handler)?);
        }
        let was_shared = entry.shared;
        entry.containers.push((self.number, container.clone()));
        entry.update_serving();
        if made_socket || entry.shared != was_shared {
            entries.changed.insert(self.name.clone());
            self.handlers.changed.send_replace(());
        }
        Ok(Serving { claim: self, container })
    }
}

impl Drop for HandlerClaim {
    fn drop(&mut self) {
        let departures = {
            let mut entries = self.handlers.entries();
            let Some(entry) = entries.by_name.get_mut(&self.name) else { return };
            entry.claims -= 1;
            if entry.claims > 0 {
                return;
            }
            entry.departures += 1;
            entry.departures
        };
        // Without a runtime the process is ending, and the streams with it.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (handlers, name) = (self.handlers.clone(), self.name.clone());
            runtime.spawn(async move {
                tokio::time::sleep(handlers.config.grace_period).await;
                handlers.close_if_still_unclaimed(&name, departures);
            });
        }
    }
}

/// A container that is behind a handler's name. Dropping it takes the container away.
#[derive(Debug)]
pub struct Serving<'a> {
    claim: &'a HandlerClaim,
    container: Arc<HandlerContainer>,
}

impl Drop for Serving<'_> {
    fn drop(&mut self) {
        let mut entries = self.claim.handlers.entries();
        if let Some(entry) = entries.by_name.get_mut(&self.claim.name) {
            entry.containers.retain(|(_, container)| !Arc::ptr_eq(container, &self.container));
            entry.update_serving();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(directory: &std::path::Path) -> HandlersConfig {
        HandlersConfig::new("n", directory, directory.join("lists"), directory.join("owners.json"))
    }

    #[tokio::test]
    async fn a_name_stays_in_its_namespace_when_its_pods_are_gone_and_over_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let handlers = Handlers::new(config(directory.path())).unwrap();
        let mut written = handlers.kept_owners.subscribe();
        let first = handlers.claim("camera", "a").unwrap();
        written.wait_for(|owners| owners.contains_key("camera")).await.unwrap();
        let refused = handlers.claim("camera", "b").unwrap_err().to_string();
        assert!(refused.contains("namespace \"a\"") && refused.contains("--handler-namespaces camera=b"), "{refused}");
        drop(first);
        handlers.close_if_still_unclaimed("camera", 1);
        assert!(handlers.claim("camera", "b").is_err(), "a Configuration may still tell its secrets");
        let path = directory.path().join("owners.json");
        while read_owners(&path).is_empty() {
            tokio::task::yield_now().await;
        }
        let restarted = Handlers::new(config(directory.path())).unwrap();
        assert!(restarted.claim("camera", "b").is_err());
        // Nobody has claimed it for long.
        let old = Owner { namespace: "a".to_owned(), claimed: now() - OWNER_PATIENCE.as_secs() - 1 };
        restarted.entries().owners.insert("camera".to_owned(), old);
        restarted.forget_owners();
        assert!(restarted.claim("camera", "b").is_ok());
    }

    #[tokio::test]
    async fn no_more_owners_are_kept_than_a_pods_author_can_bear() {
        let directory = tempfile::tempdir().unwrap();
        let handlers = Handlers::new(config(directory.path())).unwrap();
        let held = handlers.claim("held", "a").unwrap();
        for number in 0..2 * MOST_OWNERS {
            drop(handlers.claim(&format!("n{number}"), "b").unwrap());
            handlers.close_if_still_unclaimed(&format!("n{number}"), 1);
        }
        let entries = handlers.entries();
        assert!(entries.owners.len() == MOST_OWNERS && entries.owners.contains_key("held"));
        drop(entries);
        drop(held);
    }

    #[tokio::test]
    async fn what_the_operator_says_counts() {
        let directory = tempfile::tempdir().unwrap();
        let namespaces = BTreeMap::from([("camera".to_owned(), "trusted".to_owned())]);
        let handlers = Handlers::new(HandlersConfig { namespaces, ..config(directory.path()) }).unwrap();
        assert!(handlers.claim("camera", "a").is_err());
        assert!(handlers.claim("camera", "trusted").is_ok());
        assert!(handlers.claim("meter", "a").is_ok());
    }
}
