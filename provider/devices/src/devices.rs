//! The devices of a node: which resources there are, and who has what.

use crate::allocation::{AllocationError, Offer, PodDevices};
use crate::checkpoint::{Checkpoint, Plugin};
use crate::config::{DevicesConfig, DevicesError};
use crate::plugin::Connection;
use crate::{pod_resources, registry};
use akri_krustlet_host::socket::SocketError;
use akri_krustlet_host::{DirectoryWatcher, ServedSocket};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// How much of a resource the node has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Amount {
    /// Devices.
    pub capacity: usize,
    /// Devices that are healthy, of a plugin that answers.
    pub allocatable: usize,
}

/// How long a start waits for the plugins that are known.
const ATTACH: Duration = Duration::from_secs(1);

/// The devices of a node.
#[derive(Debug)]
pub struct Devices {
    pub(crate) config: DevicesConfig,
    /// Tells of removed sockets as long as it is here.
    _watcher: DirectoryWatcher,
    pub(crate) state: Mutex<State>,
    /// `None` for a resource that was removed and that somebody may still show.
    pub(crate) amounts: watch::Sender<BTreeMap<String, Option<Amount>>>,
    /// Changes when devices come, go or are free again.
    pub(crate) turnover: watch::Sender<()>,
    /// None when the node is about to end.
    pub(crate) sockets: Mutex<Option<Vec<ServedSocket>>>,
    pub(crate) tasks: Mutex<Vec<JoinHandle<()>>>,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) resources: BTreeMap<String, Resource>,
    pub(crate) pods: BTreeMap<String, PodDevices>,
    /// Pods that wait until a plugin that refused a device notices that it is free.
    pub(crate) refused: BTreeSet<String>,
    /// Devices (resource, id) that were freed, and when, as long as their plugins may not have noticed.
    pub(crate) freed: BTreeMap<(String, String), Instant>,
    /// Counts the registrations, so that what an old one does no longer counts.
    pub(crate) lives: u64,
}

/// One resource and its plugin.
#[derive(Debug)]
pub(crate) struct Resource {
    pub(crate) plugin: Plugin,
    /// Which registration it is.
    pub(crate) life: u64,
    /// Id, and whether it is healthy.
    pub(crate) devices: BTreeMap<String, DeviceState>,
    pub(crate) connection: Option<Connection>,
    pub(crate) has_told: bool,
    pub(crate) gone_since: Option<Instant>,
    pub(crate) follower: Option<JoinHandle<()>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DeviceState {
    pub(crate) healthy: bool,
    /// NUMA nodes that it is near to.
    pub(crate) numa_nodes: Vec<i64>,
}

impl Drop for Resource {
    fn drop(&mut self) {
        if let Some(follower) = &self.follower {
            follower.abort();
        }
    }
}

impl Devices {
    /// Takes up what the node knew, serves the sockets and goes to the plugins that were there.
    pub async fn start(config: DevicesConfig, watcher: &DirectoryWatcher) -> Result<Arc<Self>, DevicesError> {
        let checkpoint = Checkpoint::read(&config.checkpoint)
            .map_err(|source| DevicesError::Checkpoint { path: config.checkpoint.clone(), source })?;
        let devices = Arc::new(Self {
            config,
            _watcher: watcher.clone(),
            state: Mutex::new(State { pods: checkpoint.pods, ..State::default() }),
            amounts: watch::Sender::default(),
            turnover: watch::Sender::default(),
            sockets: Mutex::new(Some(Vec::new())),
            tasks: Mutex::default(),
        });
        devices.serve()?;
        let beside = devices.config.pod_resources_socket.as_ref().and_then(|socket| socket.parent());
        for directory in [Some(devices.config.plugins_directory.as_path()), beside].into_iter().flatten() {
            let changes = watcher
                .watch(directory)
                .map_err(|source| DevicesError::Watch { path: directory.to_owned(), source })?;
            let keep = registry::keep(Arc::downgrade(&devices), directory.to_owned(), changes);
            devices.tasks().push(tokio::spawn(keep));
        }
        for (resource, plugin) in checkpoint.plugins {
            devices.attach(&resource, plugin);
        }
        let attached = async {
            let mut changes = devices.turnover.subscribe();
            let is_open = |resource: &Resource| resource.connection.is_none() && resource.gone_since.is_none();
            while devices.lock().resources.values().any(is_open) {
                if changes.changed().await.is_err() {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(ATTACH, attached).await;
        Ok(devices)
    }

    /// The socket that plugins register at.
    pub fn registration_socket(&self) -> PathBuf {
        self.config.plugins_directory.join(registry::SOCKET)
    }

    /// How much of each resource there is; `None` for one that was removed, until [`Devices::removal_is_told`].
    pub fn amounts(&self) -> watch::Receiver<BTreeMap<String, Option<Amount>>> {
        self.amounts.subscribe()
    }

    /// Nobody shows these resources any more.
    pub fn removal_is_told(&self, resources: &[String]) {
        self.amounts.send_modify(|amounts| {
            amounts.retain(|name, amount| amount.is_some() || !resources.contains(name));
        });
    }

    // What the pod resources interface tells.

    /// What pods have or are being given; not what was refused to them, or its plugin would go on taking it for used.
    pub(crate) fn pods(&self) -> Vec<PodDevices> {
        let state = self.lock();
        let shown = state.pods.iter().map(|(uid, pod)| {
            let mut pod = pod.clone();
            if state.refused.contains(uid) {
                for container in &mut pod.containers {
                    container.granted.retain(|_, granted| granted.provided.is_some());
                }
            }
            pod
        });
        shown.collect()
    }

    /// Healthy devices of plugins that answer, by resource.
    pub(crate) fn allocatable(&self) -> BTreeMap<String, BTreeMap<String, DeviceState>> {
        let state = self.lock();
        let answering = state.resources.iter().filter(|(_, resource)| resource.connection.is_some());
        let healthy = |resource: &Resource| {
            let devices = resource.devices.iter().filter(|(_, device)| device.healthy);
            devices.map(|(id, device)| (id.clone(), device.clone())).collect()
        };
        answering.map(|(name, resource)| (name.clone(), healthy(resource))).collect()
    }

    /// NUMA nodes of a device.
    pub(crate) fn numa_nodes(&self, resource: &str, id: &str) -> Vec<i64> {
        let state = self.lock();
        let device = state.resources.get(resource).and_then(|resource| resource.devices.get(id));
        device.map(|device| device.numa_nodes.clone()).unwrap_or_default()
    }

    // Sockets.

    /// Serves the sockets that are not in place.
    pub(crate) fn serve(self: &Arc<Self>) -> Result<(), SocketError> {
        let mut sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(sockets) = &mut *sockets else { return Ok(()) };
        sockets.retain(ServedSocket::is_in_place);
        let missing = |path: &Path, sockets: &[ServedSocket]| sockets.iter().all(|socket| socket.path() != path);
        let registration = self.registration_socket();
        if missing(&registration, sockets) {
            sockets.push(ServedSocket::start(&registration, registry::service(self))?);
        }
        if let Some(path) = &self.config.pod_resources_socket
            && missing(path, sockets)
        {
            sockets.push(ServedSocket::start(path, pod_resources::service(self))?);
        }
        Ok(())
    }

    /// Removes the sockets for good, for a node that is about to end.
    pub fn remove_sockets(&self) {
        *self.sockets.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub(crate) fn tasks(&self) -> MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write(&self, state: &State) -> Result<(), AllocationError> {
        let plugins = state.resources.iter().map(|(name, resource)| (name.clone(), resource.plugin.clone())).collect();
        let checkpoint = Checkpoint { plugins, pods: state.pods.clone() };
        let path = &self.config.checkpoint;
        checkpoint.write(path).map_err(|source| AllocationError::Checkpoint { path: path.clone(), source })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        for task in self.tasks.get_mut().unwrap_or_else(PoisonError::into_inner) {
            task.abort();
        }
    }
}

impl Resource {
    pub(crate) fn offer(&self) -> Offer {
        let answers = self.connection.is_some();
        let healthy = self.devices.iter().filter(|(_, device)| answers && device.healthy).map(|(id, _)| id.clone());
        Offer { healthy: healthy.collect(), all: self.devices.len(), answers }
    }

    pub(crate) fn amount(&self, grace_period: Duration) -> Amount {
        let offer = self.offer();
        let given_up = self.gone_since.is_some_and(|since| since.elapsed() >= grace_period);
        Amount { capacity: if given_up { 0 } else { offer.all }, allocatable: offer.healthy.len() }
    }
}
