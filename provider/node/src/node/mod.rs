//! The [`Node`]: takes pods from a source and runs each as a task.

mod config;
mod files;
mod pressure;

pub use config::{DevicePlugins, NodeConfig, NodeError};

use crate::back_off::{self, BackOff};
use crate::cluster::events::EventType;
use crate::context::PodContext;
use crate::data_directory::{DataDirectoryError, DataDirectoryLock};
use crate::driver::drive;
use crate::eviction::{Candidate, Resource};
use crate::machine_shutdown::{self, ShutdownPeriods};
use crate::memory_directory::MemoryDirectory;
use crate::metrics::NodeMetrics;
use crate::objects::Objects;
use crate::placement::Admitted;
use crate::pod::{PodObject, bounded};
use crate::provider::WasmProvider;
use crate::resize;
use crate::services::Services;
use crate::source::{PodEvent, PodSource};
use crate::status::{self, StatusSink, is_final};
use crate::termination::{Shutdown, StopReason};
use akri_krustlet_discovery::{Descriptions, Handlers, registration};
use akri_krustlet_host::{DirectoryWatcher, changed, until};
use akri_krustlet_images::{Images, ImagesConfig, Unused};
use akri_krustlet_metrics::counted;
use akri_krustlet_runtime::Runtime;
use files::store;
use krator::Manifest;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// A node.
#[derive(Debug)]
pub struct Node {
    provider: Arc<WasmProvider>,
    services: Arc<Services>,
    pods: HashMap<String, KnownPod>,
    tasks: JoinSet<String>,
    /// The pods of the tasks, by UID.
    tasks_of: HashMap<tokio::task::Id, String>,
    image_gc_period: Duration,
    /// What the pods that run take of the disk, while it is looked at.
    measured: JoinSet<(String, Vec<Candidate>)>,
    shutdown_grace_period: Duration,
    shutdown_periods: ShutdownPeriods,
    /// Pods of a node alone that are tried again: what the node gave up, after a pause.
    retries: JoinSet<String>,
    pauses: HashMap<String, BackOff>,
    /// Pods whose manifests are back before they have ended, by their UIDs: they start again then.
    returning: HashMap<String, PodObject>,
    /// The disk was nearly full when it was looked at last.
    had_full_disk: bool,
    /// It was told that the disk is nearly full and no image can be removed.
    told_full: Arc<AtomicBool>,
    _lock: DataDirectoryLock,
}

#[derive(Debug)]
struct KnownPod {
    pod: PodObject,
    updates: tokio::sync::watch::Sender<kubelet::pod::Pod>,
    context: Arc<PodContext>,
    /// Its state machine has not ended.
    running: bool,
}

/// Resolves when the pod has been active for longer than its `spec.activeDeadlineSeconds`, which may be set later.
async fn overdue(context: Arc<PodContext>) {
    let mut latest = context.latest.subscribe();
    loop {
        let deadline = deadline(&context, &latest.borrow_and_update());
        tokio::select! {
            () = until(deadline) => break,
            _ = latest.changed() => {}
        }
    }
    let message = "Pod was active on the node longer than the specified deadline";
    context.services.events.pod(&context.pod, EventType::Normal, "DeadlineExceeded", message);
}

/// Counted from the pod's start.
fn deadline(context: &PodContext, pod: &PodObject) -> Option<tokio::time::Instant> {
    let deadline = bounded(pod.spec().active_deadline_seconds?);
    let started = context.reporter.current().start_time?.0;
    let active = Duration::try_from(jiff::Timestamp::now().duration_since(started)).unwrap_or_default();
    Some(tokio::time::Instant::now() + deadline.saturating_sub(active))
}

/// How often the machine is looked at.
const PRESSURE: Duration = Duration::from_secs(10);
/// How long pods may take to let go when the node ends.
const SHUTDOWN: Duration = Duration::from_secs(2);

impl Node {
    /// Takes the data directory and starts the runtime; runs nothing yet.
    pub async fn new(config: NodeConfig, sink: Arc<dyn StatusSink>) -> Result<Self, NodeError> {
        let lock = config.data.lock()?;
        let runtime = Runtime::new(config.runtime)?;
        let registry = Images::open(ImagesConfig {
            directory: config.data.images(),
            insecure_registries: config.insecure_registries,
            credentials: config.registry_credentials,
            module_size_limit: runtime.module_size_limit(),
            garbage_collection: config.image_gc,
            policy: config.image_policy,
        })
        .map_err(NodeError::Images)?;
        let last_lists = config.handlers.last_lists.clone();
        let handlers =
            Handlers::new(config.handlers).map_err(|source| DataDirectoryError::Io { path: last_lists, source })?;
        let watcher = DirectoryWatcher::start().map_err(NodeError::Watch)?;
        let devices = config.devices.start(&watcher).await?;
        let (cluster, events) = config.cluster.unzip();
        let objects = Objects::new(cluster.as_ref().map(|cluster| (cluster.client.clone(), cluster.history.clone())));
        let services = Arc::new(Services {
            objects,
            runtime,
            registry,
            allow_local_modules: config.allow_local_modules,
            admitted: Admitted::default(),
            pressure: config.pressure,
            events: events.unwrap_or_default(),
            cluster,
            images: crate::loaded_image::LoadedImages::default(),
            local_modules: crate::local_modules::LocalModules::default(),
            pods: crate::services::KnownPods::default(),
            descriptions: Descriptions::default(),
            handlers,
            network: config.network,
            devices,
            watcher,
            memory: Arc::new(MemoryDirectory::new(config.data.memory())),
            data: config.data,
            node: config.facts,
            shutdown: Shutdown::default(),
            machine_goes_down: config.machine_goes_down,
            sink,
        });
        Ok(Self {
            provider: Arc::new(WasmProvider::new(services.clone())),
            services,
            pods: HashMap::new(),
            tasks: JoinSet::new(),
            tasks_of: HashMap::new(),
            image_gc_period: config.image_gc.period,
            measured: JoinSet::new(),
            shutdown_grace_period: config.shutdown_grace_period,
            shutdown_periods: config.shutdown_periods,
            retries: JoinSet::new(),
            pauses: HashMap::new(),
            returning: HashMap::new(),
            had_full_disk: false,
            told_full: Arc::default(),
            _lock: lock,
        })
    }

    /// The provider, which describes the node.
    pub fn provider(&self) -> Arc<WasmProvider> {
        self.provider.clone()
    }

    /// What is told of the node by numbers.
    pub fn metrics(&self) -> Arc<NodeMetrics> {
        NodeMetrics::new(self.services.clone())
    }

    /// The node's watcher, for its pod source.
    pub fn watcher(&self) -> DirectoryWatcher {
        self.services.watcher.clone()
    }

    /// Runs the pods of `source` and registers their handlers, until `shutdown` is cancelled.
    ///
    /// Then the handlers' sockets are removed and the pods' containers stopped; those with a standard input see its end first. What is on disk stays as it is: the pods are
    /// taken up again by the next start. Discover streams are open until the process ends, so that no client sees a
    /// handler end that only restarts.
    pub async fn run(mut self, mut source: impl PodSource, shutdown: CancellationToken) {
        let registration =
            tokio::spawn(registration::run(self.services.handlers.clone(), self.services.watcher.clone()));
        let instances = self.services.cluster.as_ref().map(|cluster| {
            let (client, history) = (cluster.client.clone(), cluster.history.clone());
            tokio::spawn(crate::cluster::instances::follow(client, history, self.services.handlers.instances()))
        });
        if !self.shutdown_periods.is_empty() {
            let (services, periods) = (self.services.clone(), std::mem::take(&mut self.shutdown_periods));
            tokio::spawn(machine_shutdown::follow(services, periods, shutdown.clone()));
        }
        self.remove_directories("of an earlier run".to_owned(), self.services.data.left_aside());
        let period = self.image_gc_period;
        let mut pressure = tokio::time::interval_at(tokio::time::Instant::now() + PRESSURE, PRESSURE);
        let mut garbage = tokio::time::interval_at(tokio::time::Instant::now() + period, period);
        let mut restored = self.services.cluster.as_ref().map(|cluster| cluster.history.restored());
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                () = changed(&mut restored) => self.services.sink.restored(),
                _ = garbage.tick() => self.collect_garbage(Unused::AboveThreshold),
                _ = pressure.tick() => {
                    self.retry_resizes();
                    self.relieve();
                }
                Some(ended) = self.tasks.join_next_with_id() => self.task_ended(ended),
                Some(Ok(uid)) = self.retries.join_next() => self.retry(&uid),
                Some(Ok((state, candidates))) = self.measured.join_next() => {
                    // It may have taken a while.
                    if self.services.pressure.look().is_some_and(|(resource, _)| resource == Resource::Storage) {
                        self.evict_first(Resource::Storage, &state, candidates);
                    }
                }
                event = source.next() => match event {
                    PodEvent::Applied(pod) => self.apply(pod),
                    PodEvent::Deleted(uid) => self.delete(&uid),
                    PodEvent::Synced { unreadable } => {
                        self.forget_others(&unreadable);
                        self.retry_resizes();
                    }
                },
            }
        }
        tracing::info!("the node is ending; its pods are taken up again by its next start");
        registration.abort();
        instances.iter().for_each(|task| task.abort());
        self.services.handlers.remove_sockets();
        if let Some(devices) = &self.services.devices {
            devices.remove_sockets();
        }
        self.services.shutdown.request(self.shutdown_grace_period).await;
        self.tasks.abort_all();
        let all_ended = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(SHUTDOWN, all_ended).await.is_err() {
            tracing::warn!("some pods did not stop in time");
        }
        self.services.memory.close();
    }

    fn apply(&mut self, pod: PodObject) {
        if let Some(known) = self.pods.get_mut(pod.uid()) {
            if known.context.termination.current().is_some_and(|stop| stop.reason == StopReason::Gone) {
                // Its manifest went and is back.
                self.returning.insert(pod.uid().to_owned(), pod);
                return;
            }
            let _ = known.updates.send(pod.to_kubelet());
            known.context.reporter.observed(&pod);
            if known.pod.is_changed(&pod) {
                resize::update(&known.context, &pod);
                known.pod = pod.clone();
                store(&self.services.data, &known.context.latest());
            }
            self.services.sink.seen(&pod, &|| known.context.reporter.current());
            if pod.is_deleted() {
                self.terminate(&pod);
            }
            return;
        }
        if pod.is_deleted() {
            self.confirm_unknown(pod);
            return;
        }
        tracing::info!(pod = pod.key(), uid = pod.uid(), "pod added");
        counted().pods_started.add([]);
        let (updates, manifest) = Manifest::new(pod.to_kubelet(), krator::Store::new());
        let uid = pod.uid().to_owned();
        let mut state = self.provider.pod_state(pod.clone());
        let context = state.context.clone();
        // With what it has been granted: its next life on this node goes on with that.
        store(&self.services.data, &context.latest());
        self.services.pods.add(&context);
        if context.ran_before {
            // Before anything is granted to others.
            self.services.admitted.count(&context.latest());
        }
        if is_final(&context.reporter.current()) || pod.folder.is_some() {
            // The node may have been killed before it told, and of a static pod nobody tells what was told.
            self.services.sink.seen(&pod, &|| context.reporter.current());
        }
        let (provider, of_task, ended) = (self.provider.clone(), context.clone(), uid.clone());
        let overdue = overdue(context.clone());
        let task = self.tasks.spawn(async move {
            drive(&*provider, &mut state, &manifest, &of_task.reporter, &of_task.termination, overdue).await;
            ended
        });
        self.tasks_of.insert(task.id(), uid.clone());
        self.pods.insert(uid, KnownPod { pod, updates, context, running: true });
    }

    /// The API server has been asked to delete a pod that is here.
    fn terminate(&mut self, pod: &PodObject) {
        let Some(known) = self.pods.get_mut(pod.uid()) else { return };
        if known.context.termination.current().is_none() {
            tracing::info!(pod = pod.key(), grace_period = ?pod.grace_period(), "pod is being deleted");
        }
        known.context.termination.stop(pod.grace_period(), StopReason::Deleted);
        // So that a node that starts without the API server does not run it again.
        let running = known.running;
        store(&self.services.data, pod);
        if !running {
            self.services.sink.ended(pod);
        }
    }

    /// A pod that is being deleted and does not run here, perhaps because the node was started again meanwhile.
    fn confirm_unknown(&mut self, pod: PodObject) {
        tracing::info!(pod = pod.key(), uid = pod.uid(), "pod is being deleted and does not run");
        let state = self.provider.pod_state(pod.clone());
        state.context.has_started();
        if !is_final(&state.context.reporter.current()) {
            state.context.reporter.update(|status| status.phase = Some("Failed".to_owned()));
        }
        self.release(pod.uid());
        self.services.sink.ended(&pod);
        let (updates, _) = Manifest::new(pod.to_kubelet(), krator::Store::new());
        let uid = pod.uid().to_owned();
        self.pods.insert(uid, KnownPod { pod, updates, context: state.context, running: false });
    }

    /// The pod does not exist any more.
    fn delete(&mut self, uid: &str) {
        self.returning.remove(uid);
        let Some(known) = self.pods.get(uid) else { return };
        known.context.termination.stop(Duration::ZERO, StopReason::Gone);
        if !known.running {
            self.forget(uid);
        }
    }

    fn task_ended(&mut self, ended: Result<(tokio::task::Id, String), tokio::task::JoinError>) {
        let uid = match ended {
            Ok((task, uid)) => {
                self.tasks_of.remove(&task);
                uid
            }
            Err(error) => {
                let Some(uid) = self.tasks_of.remove(&error.id()) else { return };
                self.task_panicked(&uid, &error);
                uid
            }
        };
        let Some(known) = self.pods.get_mut(&uid) else { return };
        known.running = false;
        let stop = known.context.termination.current();
        self.release(&uid);
        if stop.is_some_and(|stop| stop.reason == StopReason::Evicted) {
            self.free(&uid);
        }
        match (stop.map(|stop| stop.reason), self.pods.get(&uid)) {
            (Some(StopReason::Gone), _) => self.forget(&uid),
            (Some(StopReason::Deleted), Some(known)) => self.services.sink.ended(&known.pod),
            _ => self.plan_retry(uid),
        }
    }

    /// A pod of a manifest that the node gave up: nobody but the node makes another one of it.
    fn plan_retry(&mut self, uid: String) {
        let Some(known) = self.pods.get(&uid) else { return };
        if known.pod.folder.is_none() || !status::is_given_up(&known.context.reporter.current()) {
            self.pauses.remove(&uid);
            return;
        }
        let started = known.context.reporter.current().start_time.map(|time| time.0);
        let lasted = started.map(|started| jiff::Timestamp::now().duration_since(started));
        let lasted = lasted.and_then(|lasted| Duration::try_from(lasted).ok()).unwrap_or_default();
        let now = tokio::time::Instant::now();
        let back_off = self.pauses.entry(uid.clone()).or_default();
        let pause = back_off.next(now.checked_sub(lasted).unwrap_or(now)).max(back_off::FIRST);
        tracing::info!(pod = known.pod.key(), "tried again in {} s", pause.as_secs());
        known.context.reporter.update(|status| {
            let message = status.message.get_or_insert_default();
            *message = format!("{message}; it is tried again in {} s", pause.as_secs());
        });
        self.retries.spawn(async move {
            tokio::time::sleep(pause).await;
            uid
        });
    }

    /// Runs a pod that the node gave up once more, from its beginning.
    fn retry(&mut self, uid: &str) {
        let is_given_up = |known: &KnownPod| !known.running && status::is_given_up(&known.context.reporter.current());
        if !self.pods.get(uid).is_some_and(is_given_up) {
            return;
        }
        if let Some(known) = self.pods.remove(uid) {
            self.services.sink.forget(uid);
            self.apply(known.pod);
        }
    }

    /// A defect of the node: the pod fails, and nothing of it is kept.
    fn task_panicked(&self, uid: &str, error: &tokio::task::JoinError) {
        let Some(known) = self.pods.get(uid) else { return };
        let message = format!("the node's task for this pod failed: {error}; please report this");
        tracing::error!(pod = known.pod.key(), "{message}");
        self.services.events.pod(&known.pod, EventType::Warning, "NodeFault", message.clone());
        known.context.reporter.set_all_terminated();
        known.context.reporter.update(|status| {
            status.phase = Some("Failed".to_owned());
            status.reason = Some("NodeFault".to_owned());
            status.message = Some(message);
        });
    }

    /// What the pod had of the node is free: it does not run, and never will again.
    fn release(&self, uid: &str) {
        self.services.admitted.release(uid);
        if let Some(devices) = &self.services.devices {
            devices.release(uid);
        }
        self.retry_resizes();
    }

    /// Of pods that ask for more than there was.
    fn retry_resizes(&self) {
        let is_waiting = |known: &&KnownPod| known.running && known.context.resizing().is_outstanding();
        let mut waiting: Vec<_> = self.pods.values().filter(is_waiting).collect();
        // Who is more important first, then who has been here for longer.
        let of = |known: &&KnownPod| {
            let created = known.pod.api.metadata.creation_timestamp.as_ref().map(|created| created.0);
            (std::cmp::Reverse(known.pod.spec().priority.unwrap_or(0)), created)
        };
        waiting.sort_by_key(of);
        for known in waiting {
            if resize::retry(&known.context) {
                store(&self.services.data, &known.context.latest());
            }
        }
    }

    fn forget(&mut self, uid: &str) {
        self.services.sink.forget(uid);
        self.pauses.remove(uid);
        if let Some(known) = self.pods.remove(uid) {
            counted().forget_pod(known.pod.namespace(), known.pod.name());
            self.remove_files(&known.pod.api);
        }
        if let Some(pod) = self.returning.remove(uid) {
            self.apply(pod);
        }
    }
}
