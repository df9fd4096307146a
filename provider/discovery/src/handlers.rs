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
use crate::overview::{HandlerOverview, Shown};
pub use crate::owners::ForeignName;
use crate::owners::Owners;
use crate::service;
use akri_krustlet_host::ServedSocket;
use akri_krustlet_host::socket::SocketError;
use akri_krustlet_metrics::counted;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How often it is looked which names nobody claims any more.
const OWNER_LOOK: Duration = Duration::from_secs(3600);
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

/// The handlers of a node.
#[derive(Debug)]
pub struct Handlers {
    config: HandlersConfig,
    lists: Arc<LastLists>,
    instances: Arc<Instances>,
    entries: Mutex<Entries>,
    changed: watch::Sender<()>,
}

#[derive(Debug)]
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
    /// The open streams, by number.
    pub(crate) streams: Mutex<BTreeMap<u64, Arc<Shown>>>,
}

impl Handler {
    pub(crate) fn streams(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Shown>>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn overview(&self, shared: bool) -> HandlerOverview {
        let container = self.serving.borrow().clone();
        let complaints = container.as_ref().map(|container| container.complaints());
        let complaint = |number: &u64| complaints.as_ref().and_then(|all| all.borrow().get(number).cloned());
        let streams = self.streams();
        HandlerOverview {
            name: self.name.clone(),
            shared,
            container: container.as_ref().map(|container| container.name().to_owned()),
            streams: streams.iter().map(|(number, shown)| shown.overview(complaint(number))).collect(),
        }
    }
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
        let owners = Owners::open(config.owners.clone(), config.namespaces.clone());
        let entries = Entries { by_name: HashMap::new(), owners, next_claim: 0, changed: BTreeSet::new() };
        let (entries, changed) = (Mutex::new(entries), watch::Sender::new(()));
        let handlers = Arc::new(Self { config, lists, instances, entries, changed });
        let unclaimed = Arc::downgrade(&handlers);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(OWNER_LOOK).await;
                let Some(handlers) = unclaimed.upgrade() else { return };
                let mut entries = handlers.entries();
                let Entries { by_name, owners, .. } = &mut *entries;
                owners.forget_old(|name| by_name.contains_key(name));
            }
        });
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
        let Entries { by_name, owners, .. } = &mut *entries;
        owners.claim(name, namespace, |name| by_name.contains_key(name))?;
        entries.next_claim += 1;
        let number = entries.next_claim;
        let entry = entries.by_name.entry(name.to_owned()).or_insert_with(|| Entry {
            handler: Arc::new(Handler {
                name: name.to_owned(),
                lists: self.lists.clone(),
                instances: self.instances.clone(),
                serving: watch::Sender::new(None),
                closing: CancellationToken::new(),
                streams: Mutex::default(),
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

    /// What all handlers are at, by name.
    pub fn overview(&self) -> Vec<HandlerOverview> {
        let mut all: Vec<_> =
            self.entries().by_name.values().map(|entry| (entry.handler.clone(), entry.shared)).collect();
        all.sort_by(|(one, _), (other, _)| one.name.cmp(&other.name));
        all.into_iter().map(|(handler, shared)| handler.overview(shared)).collect()
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
        ServedSocket::start(&path, service::service(handler.clone()))
    }

    fn close_if_still_unclaimed(&self, name: &str, departures: u64) {
        let mut entries = self.entries();
        let unclaimed =
            entries.by_name.get(name).is_some_and(|entry| entry.claims == 0 && entry.departures == departures);
        if unclaimed && let Some(entry) = entries.by_name.remove(name) {
            tracing::info!(handler = name, "no pod of this handler is left: its streams end");
            entry.handler.closing.cancel();
            drop(entry);
            counted().forget_handler(name);
            entries.changed.insert(name.to_owned());
            self.changed.send_replace(());
        }
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
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
