//! The devices of a node: which resources there are, and who has what.

use crate::allocation::{AllocationError, ContainerRequest, Offer, PodDevices, PodRequest, Preferences, Provided};
use crate::checkpoint::{Checkpoint, Plugin};
use crate::plugin::{self, Connection};
use crate::{pod_resources, registry};
use akri_krustlet_host::socket::SocketError;
use akri_krustlet_host::{DirectoryWatcher, ServedSocket};
use akri_proto::v1beta1::RegisterRequest;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Where devices come from and what is remembered.
#[derive(Clone, Debug)]
pub struct DevicesConfig {
    /// Directory of `kubelet.sock` and of the plugins' sockets.
    pub plugins_directory: PathBuf,
    /// Socket of the pod resources interface; none is served without it.
    pub pod_resources_socket: Option<PathBuf>,
    /// File of the allocations.
    pub checkpoint: PathBuf,
    /// A resource whose plugin is gone counts 0 after this time, and is removed after twice of it. Default 5 min.
    pub grace_period: Duration,
    /// How long a plugin may take to answer.
    pub timeouts: Timeouts,
    /// How long a pod waits for a device whose plugin may just be starting. Default 5 s.
    pub patience: Duration,
    /// How long after a device is free again its plugin may still take it for used, and is asked again if it refuses it.
    /// Default 45 s: Akri's Agent looks every 10 s which devices are used, and believes it when they are not for 20 s.
    pub notice: Duration,
}

impl DevicesConfig {
    /// The defaults: plugins in `plugins_directory`, the pod resources interface beside it as a kubelet has it.
    pub fn new(plugins_directory: impl Into<PathBuf>, checkpoint: impl Into<PathBuf>) -> Self {
        let plugins_directory = plugins_directory.into();
        let beside = plugins_directory.parent().unwrap_or(&plugins_directory).join("pod-resources/kubelet.sock");
        Self {
            pod_resources_socket: Some(beside),
            plugins_directory,
            checkpoint: checkpoint.into(),
            grace_period: Duration::from_secs(300),
            timeouts: Timeouts::default(),
            patience: Duration::from_secs(5),
            notice: Duration::from_secs(45),
        }
    }
}

/// How long a plugin may take to answer. Its list of devices may take as long as it likes.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// To take a connection, and to say what it would rather give. Default 10 s.
    pub answer: Duration,
    /// To prepare devices for a container (Allocate). A kubelet waits without end; default 5 min.
    pub allocate: Duration,
    /// To make them ready before a start of the container (PreStartContainer). Default 30 s, a kubelet's.
    pub pre_start: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { answer: Duration::from_secs(10), allocate: Duration::from_secs(300), pre_start: Duration::from_secs(30) }
    }
}

/// Why devices cannot be had from plugins.
#[derive(Debug, thiserror::Error)]
pub enum DevicesError {
    /// The sockets cannot be served.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The file of the allocations.
    #[error("{}: {source}", path.display())]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The plugins' directory.
    #[error("cannot watch {}: {source}", path.display())]
    Watch {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

impl DevicesError {
    /// A kubelet, or another node, serves the socket.
    pub fn is_taken(&self) -> bool {
        matches!(self, Self::Socket(SocketError::Live { .. }))
    }
}

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
/// Between two tries at a device that its plugin still takes for used.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// Most resources; Akri has one for each Instance and each Configuration.
const MOST_RESOURCES: usize = 1000;

/// The devices of a node.
#[derive(Debug)]
pub struct Devices {
    config: DevicesConfig,
    /// Tells of removed sockets as long as it is here.
    _watcher: DirectoryWatcher,
    state: Mutex<State>,
    /// `None` for a resource that was removed and that somebody may still show.
    amounts: watch::Sender<BTreeMap<String, Option<Amount>>>,
    /// Changes when devices come, go or are free again.
    turnover: watch::Sender<()>,
    /// None when the node is about to end.
    sockets: Mutex<Option<Vec<ServedSocket>>>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

#[derive(Debug, Default)]
struct State {
    resources: BTreeMap<String, Resource>,
    pods: BTreeMap<String, PodDevices>,
    /// Pods that wait until a plugin that refused a device notices that it is free.
    refused: BTreeSet<String>,
    /// Devices (resource, id) that were freed, and when, as long as their plugins may not have noticed.
    freed: BTreeMap<(String, String), Instant>,
    /// Counts the registrations, so that what an old one does no longer counts.
    lives: u64,
}

/// One resource and its plugin.
#[derive(Debug)]
struct Resource {
    plugin: Plugin,
    /// Which registration it is.
    life: u64,
    /// Id, and whether it is healthy.
    devices: BTreeMap<String, DeviceState>,
    connection: Option<Connection>,
    has_told: bool,
    gone_since: Option<Instant>,
    follower: Option<JoinHandle<()>>,
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

    /// Gives a pod the devices that it asks for. A pod that has them keeps them.
    ///
    /// # Errors
    /// Then it has none of them.
    pub async fn allocate(&self, request: &PodRequest) -> Result<(), AllocationError> {
        let deadline = Instant::now() + self.config.patience;
        let mut changes = self.turnover.subscribe();
        loop {
            changes.mark_unchanged();
            let preferences = self.preferences(request).await;
            let reserved = self.reserve(request, &preferences);
            let error = match reserved {
                Ok(()) => break,
                Err(error) => error,
            };
            let changed = async { changes.changed().await.is_ok() };
            let waited = error.may_pass() && tokio::time::timeout_at(deadline, changed).await == Ok(true);
            if !waited {
                return Err(error);
            }
        }
        loop {
            let Err(error) = self.complete(request).await else {
                self.lock().refused.remove(&request.uid);
                return Ok(());
            };
            let Some(until) = self.may_be_unnoticed(&request.uid).filter(|_| error.is_refusal()) else {
                self.release(&request.uid);
                return Err(error);
            };
            self.lock().refused.insert(request.uid.clone());
            tracing::debug!(pod = request.name, "{error}; it may not know yet that the device is free");
            tokio::time::sleep_until(until.min(Instant::now() + ASK_AGAIN)).await;
        }
    }

    /// Until when the plugins of devices that the pod waits for may take them for used, if they may now.
    fn may_be_unnoticed(&self, uid: &str) -> Option<Instant> {
        let unanswered = self.unanswered(uid);
        let mut state = self.lock();
        let now = Instant::now();
        let notice = self.config.notice;
        state.freed.retain(|_, freed| *freed + notice > now);
        let devices =
            unanswered.iter().flat_map(|(_, resource, ids)| ids.iter().map(|id| (resource.clone(), id.clone())));
        devices.filter_map(|device| state.freed.get(&device)).max().map(|freed| *freed + notice)
    }

    /// Marks devices as the pod's.
    fn reserve(&self, request: &PodRequest, preferences: &Preferences) -> Result<(), AllocationError> {
        let mut state = self.lock();
        let offers: BTreeMap<_, _> =
            state.resources.iter().map(|(name, resource)| (name.clone(), resource.offer())).collect();
        let taken = |resource: &str| {
            let others = state.pods.iter().filter(|(uid, _)| **uid != request.uid);
            others.flat_map(|(_, pod)| pod.ids(resource)).cloned().collect::<BTreeSet<_>>()
        };
        let earlier = state.pods.get(&request.uid);
        let socket = self.registration_socket();
        let chosen = PodDevices::choose(request, earlier, &offers, taken, preferences, &socket)?;
        state.pods.insert(request.uid.clone(), chosen);
        Ok(())
    }

    /// Asks the plugins about what was reserved, and remembers what they say.
    async fn complete(&self, request: &PodRequest) -> Result<(), AllocationError> {
        let unanswered = self.unanswered(&request.uid);
        if unanswered.is_empty() {
            return Ok(());
        }
        for (container, resource, ids) in unanswered {
            let connection = self.connection(&resource).ok_or_else(|| AllocationError::Plugin {
                resource: resource.clone(),
                call: "Allocate",
                message: "it has just gone".to_owned(),
                refused: false,
            })?;
            let provided = connection.allocate(&ids).await?;
            let mut state = self.lock();
            let pod = state.pods.get_mut(&request.uid);
            let container = pod.and_then(|pod| pod.containers.iter_mut().find(|other| other.name == container));
            if let Some(granted) = container.and_then(|container| container.granted.get_mut(&resource)) {
                granted.provided = Some(provided);
            }
        }
        self.write(&self.lock())?;
        // A plugin that gave a device does not say again what it gave: that must outlive a power cut.
        let path = self.config.checkpoint.clone();
        let failed = |path: &Path, source| AllocationError::Checkpoint { path: path.to_owned(), source };
        let synced = tokio::task::spawn_blocking({
            let path = path.clone();
            move || akri_krustlet_host::file::sync(&path)
        });
        synced.await.map_err(std::io::Error::other).flatten().map_err(|source| failed(&path, source))
    }

    fn unanswered(&self, uid: &str) -> Vec<(String, String, BTreeSet<String>)> {
        let state = self.lock();
        let containers = state.pods.get(uid).map(|pod| pod.containers.as_slice()).unwrap_or_default();
        let mut unanswered = Vec::new();
        for container in containers {
            let open = container.granted.iter().filter(|(_, granted)| granted.provided.is_none());
            unanswered.extend(open.map(|(name, granted)| (container.name.clone(), name.clone(), granted.ids.clone())));
        }
        unanswered
    }

    /// What plugins say of the choice, where they care. One that fails has none.
    async fn preferences(&self, request: &PodRequest) -> Preferences {
        let mut preferences = Preferences::new();
        for ContainerRequest { name, resources, .. } in &request.containers {
            for (resource, count) in resources {
                let Some((connection, free)) = self.choice(&request.uid, resource) else { continue };
                match connection.preferred(free, *count).await {
                    Ok(ids) => {
                        preferences.insert((name.clone(), resource.clone()), ids);
                    }
                    Err(error) => tracing::warn!("{error}; choosing without its preference"),
                }
            }
        }
        preferences
    }

    /// What a plugin that has preferences may choose from.
    fn choice(&self, uid: &str, resource: &str) -> Option<(Connection, Vec<String>)> {
        let state = self.lock();
        let known = state.resources.get(resource).filter(|known| known.plugin.has_preferences)?;
        let others = state.pods.iter().filter(|(other, _)| *other != uid);
        let taken: BTreeSet<&String> = others.flat_map(|(_, pod)| pod.ids(resource)).collect();
        let free = known.offer().healthy.into_iter().filter(|id| !taken.contains(id)).collect();
        Some((known.connection.clone()?, free))
    }

    fn connection(&self, resource: &str) -> Option<Connection> {
        self.lock().resources.get(resource)?.connection.clone()
    }

    /// What a container needs to use its devices. Of variables that several resources set, the first resource's counts.
    pub fn provided(&self, uid: &str, container: &str) -> Provided {
        let state = self.lock();
        let mut provided = Provided::default();
        let container = state.pods.get(uid).and_then(|pod| pod.container(container));
        for (resource, granted) in container.into_iter().flat_map(|container| &container.granted) {
            if let Some(of_resource) = &granted.provided {
                provided.merge(resource, of_resource);
            }
        }
        provided
    }

    /// Tells the plugins that want to know that a container is about to start.
    pub async fn pre_start(&self, uid: &str, container: &str) -> Result<(), AllocationError> {
        for (resource, connection, ids) in self.to_tell(uid, container) {
            let connection = connection.ok_or_else(|| AllocationError::Plugin {
                resource,
                call: "PreStartContainer",
                message: "it is away, and wants to know of each start".to_owned(),
                refused: false,
            })?;
            connection.pre_start(&ids).await?;
        }
        Ok(())
    }

    /// The plugins that want to know, with what the container has of them.
    fn to_tell(&self, uid: &str, container: &str) -> Vec<(String, Option<Connection>, BTreeSet<String>)> {
        let state = self.lock();
        let container = state.pods.get(uid).and_then(|pod| pod.container(container));
        let granted = container.into_iter().flat_map(|container| &container.granted);
        let wants = granted.filter_map(|(resource, granted)| {
            let known = state.resources.get(resource).filter(|known| known.plugin.pre_start)?;
            Some((resource.clone(), known.connection.clone(), granted.ids.clone()))
        });
        wants.collect()
    }

    /// The pod has ended: its devices are free.
    pub fn release(&self, uid: &str) {
        let mut state = self.lock();
        state.refused.remove(uid);
        let containers = state.pods.remove(uid).map(|pod| pod.containers).unwrap_or_default();
        let had_devices = containers.iter().any(|container| !container.granted.is_empty());
        // Of one that its plugin never gave there is nothing to notice.
        let granted = containers.into_iter().flat_map(|container| container.granted);
        let granted = granted.filter(|(_, granted)| granted.provided.is_some());
        let ids = granted.flat_map(|(resource, granted)| granted.ids.into_iter().map(move |id| (resource.clone(), id)));
        let now = Instant::now();
        let notice = self.config.notice;
        state.freed.retain(|_, freed| *freed + notice > now);
        state.freed.extend(ids.map(|device| (device, now)));
        if had_devices {
            if let Err(error) = self.write(&state) {
                tracing::error!("{error}");
            }
            drop(state);
            self.changed();
        }
    }

    /// Frees what pods have that do not exist any more.
    pub fn retain(&self, exists: impl Fn(&str) -> bool) {
        let gone: Vec<_> = self.lock().pods.keys().filter(|uid| !exists(uid)).cloned().collect();
        for uid in gone {
            tracing::info!(uid, "devices of a pod that is gone are free again");
            self.release(&uid);
        }
    }

    // What the registry does.

    /// A plugin registers a resource; an earlier one of it is replaced.
    pub(crate) fn register(self: &Arc<Self>, request: RegisterRequest) -> Result<(), String> {
        let RegisterRequest { version, endpoint, resource_name, options } = request;
        if version != registry::VERSION {
            return Err(format!("version {version:?} is not served, {} is", registry::VERSION));
        }
        if !registry::is_resource_name(&resource_name) {
            return Err(format!(
                "{resource_name:?} is no name of a device resource: DOMAIN/NAME, and not of kubernetes.io"
            ));
        }
        if endpoint.is_empty() || endpoint.contains(['/', '\0']) || endpoint == registry::SOCKET || endpoint == ".." {
            return Err(format!("endpoint {endpoint:?} must be the name of a socket in the directory of kubelet.sock"));
        }
        {
            let state = self.lock();
            if state.resources.len() >= MOST_RESOURCES && !state.resources.contains_key(&resource_name) {
                return Err(format!("{MOST_RESOURCES} resources are registered, no more are taken"));
            }
        }
        let options = options.unwrap_or_default();
        let plugin = Plugin {
            endpoint,
            pre_start: options.pre_start_required,
            has_preferences: options.get_preferred_allocation_available,
        };
        tracing::info!(resource = resource_name, endpoint = plugin.endpoint, "a device plugin has registered");
        self.attach(&resource_name, plugin);
        let state = self.lock();
        if let Err(error) = self.write(&state) {
            // It would only have to register again after a restart.
            tracing::error!("{error}");
        }
        Ok(())
    }

    fn attach(self: &Arc<Self>, resource: &str, plugin: Plugin) {
        let socket = self.config.plugins_directory.join(&plugin.endpoint);
        let mut state = self.lock();
        state.lives += 1;
        let life = state.lives;
        // Its devices stay until the new plugin tells its own.
        let (devices, has_told, gone_since) = match state.resources.get_mut(resource) {
            Some(old) => (std::mem::take(&mut old.devices), old.has_told, old.gone_since),
            None => Default::default(),
        };
        let follower =
            tokio::spawn(plugin::follow(Arc::downgrade(self), resource.to_owned(), socket, self.config.timeouts, life));
        let new = Resource { plugin, life, devices, connection: None, has_told, gone_since, follower: Some(follower) };
        state.resources.insert(resource.to_owned(), new);
    }

    // What the followers of plugins do.

    pub(crate) fn config(&self) -> &DevicesConfig {
        &self.config
    }

    /// A plugin's list; false if it is not the resource's plugin any more.
    pub(crate) fn update(
        &self,
        resource: &str,
        life: u64,
        list: Vec<akri_proto::v1beta1::Device>,
        connection: &Connection,
    ) -> bool {
        {
            let mut state = self.lock();
            let Some(known) = state.resources.get_mut(resource).filter(|known| known.life == life) else {
                return false;
            };
            let state_of = |device: &akri_proto::v1beta1::Device| DeviceState {
                healthy: device.health == "Healthy",
                numa_nodes: device.topology.iter().flat_map(|near| near.nodes.iter().map(|node| node.id)).collect(),
            };
            known.devices = list.iter().map(|device| (device.id.clone(), state_of(device))).collect();
            known.gone_since = None;
            known.has_told = true;
            known.connection = Some(connection.clone());
        }
        self.changed();
        true
    }

    /// The connection to a plugin is gone; since when the resource is without one.
    pub(crate) fn lost(&self, resource: &str, life: u64) -> Option<Instant> {
        let since = {
            let mut state = self.lock();
            let known = state.resources.get_mut(resource).filter(|known| known.life == life)?;
            known.connection = None;
            *known.gone_since.get_or_insert_with(Instant::now)
        };
        self.changed();
        Some(since)
    }

    /// The plugin stays away: the resource is forgotten.
    pub(crate) fn remove(&self, resource: &str, life: u64) {
        {
            let mut state = self.lock();
            if state.resources.get(resource).is_none_or(|known| known.life != life) {
                return;
            }
            tracing::info!(resource, "the device plugin stays away: its resource is removed");
            if let Some(mut known) = state.resources.remove(resource) {
                // It is the follower that calls.
                known.follower = None;
            }
            if let Err(error) = self.write(&state) {
                tracing::error!("{error}");
            }
        }
        self.changed();
    }

    /// Tells those who wait for devices, and the amounts if they are others than before.
    pub(crate) fn changed(&self) {
        self.turnover.send_replace(());
        let grace_period = self.config.grace_period;
        let state = self.lock();
        // One whose plugin has not told its devices yet is not shown.
        let known = state.resources.iter().filter(|(_, resource)| resource.has_told);
        let now: BTreeMap<_, _> =
            known.map(|(name, resource)| (name.clone(), Some(resource.amount(grace_period)))).collect();
        drop(state);
        self.amounts.send_if_modified(|amounts| {
            let mut new: BTreeMap<_, _> = amounts.keys().map(|name| (name.clone(), None)).collect();
            new.extend(now);
            let is_other = *amounts != new;
            *amounts = new;
            is_other
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
            sockets.push(ServedSocket::start(&registration, registry::routes(self))?);
        }
        if let Some(path) = &self.config.pod_resources_socket
            && missing(path, sockets)
        {
            sockets.push(ServedSocket::start(path, pod_resources::routes(self))?);
        }
        Ok(())
    }

    /// Removes the sockets for good, for a node that is about to end.
    pub fn remove_sockets(&self) {
        *self.sockets.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn tasks(&self) -> MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, state: &State) -> Result<(), AllocationError> {
        let plugins = state.resources.iter().map(|(name, resource)| (name.clone(), resource.plugin.clone())).collect();
        let checkpoint = Checkpoint { plugins, pods: state.pods.clone() };
        let path = &self.config.checkpoint;
        checkpoint.write(path).map_err(|source| AllocationError::Checkpoint { path: path.clone(), source })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
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
    fn offer(&self) -> Offer {
        let answers = self.connection.is_some();
        let healthy = self.devices.iter().filter(|(_, device)| answers && device.healthy).map(|(id, _)| id.clone());
        Offer { healthy: healthy.collect(), all: self.devices.len(), answers }
    }

    fn amount(&self, grace_period: Duration) -> Amount {
        let offer = self.offer();
        let given_up = self.gone_since.is_some_and(|since| since.elapsed() >= grace_period);
        Amount { capacity: if given_up { 0 } else { offer.all }, allocatable: offer.healthy.len() }
    }
}
