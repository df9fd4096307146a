//! What a node's pods share.

use crate::cluster::{EventRecorder, History};
use crate::context::PodContext;
use crate::data_directory::DataDirectory;
use crate::eviction::PressureWatch;
use crate::fields::NodeFacts;
use crate::loaded_image::LoadedImages;
use crate::local_modules::LocalModules;
use crate::memory_directory::MemoryDirectory;
use crate::objects::Objects;
use crate::placement::Admitted;
use crate::status::StatusSink;
use crate::termination::Shutdown;
use akri_krustlet_devices::Devices;
use akri_krustlet_discovery::{Descriptions, Handlers};
use akri_krustlet_host::DirectoryWatcher;
use akri_krustlet_runtime::Runtime;
use akri_krustlet_runtime::network::NodeNetwork;
use k8s_openapi::api::core::v1::Node;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use tokio::sync::watch;

/// What a node's pods share. Its parts are shared themselves; krator's lock around it is never held.
#[derive(Debug)]
pub struct Services {
    /// Compiles and runs modules.
    pub runtime: Arc<Runtime>,
    /// The modules that are in use.
    pub images: LoadedImages,
    /// The files among them, as long as they are followed.
    pub local_modules: LocalModules,
    /// The pods, for whoever tells of them.
    pub pods: KnownPods,
    /// What they say of the handlers in them.
    pub descriptions: Descriptions,
    /// Images from registries.
    pub registry: akri_krustlet_images::Images,
    /// Whether pods of a cluster may run files of this machine.
    pub allow_local_modules: bool,
    /// What the pods on the node have asked for.
    pub admitted: Admitted,
    /// What the machine is short of.
    pub pressure: Arc<PressureWatch>,
    /// Takes events.
    pub events: EventRecorder,
    /// The cluster; a node may be without one.
    pub cluster: Option<ClusterAccess>,
    /// The ConfigMaps and Secrets of pods.
    pub objects: Objects,
    /// The discovery handlers.
    pub handlers: Arc<Handlers>,
    /// What all networks of guests are held to.
    pub network: Arc<NodeNetwork>,
    /// The devices of device plugins; a node may serve none.
    pub devices: Option<Arc<Devices>>,
    /// Tells of changed directories.
    pub watcher: DirectoryWatcher,
    /// Where files are.
    pub data: DataDirectory,
    /// What of it must not be on a disk.
    pub memory: Arc<MemoryDirectory>,
    /// Who the node is.
    pub node: NodeFacts,
    /// The node's own end.
    pub shutdown: Shutdown,
    /// The machine is about to go down.
    pub machine_goes_down: watch::Sender<bool>,
    /// Where statuses go.
    pub sink: Arc<dyn StatusSink>,
}

/// The pods that the node has now.
#[derive(Debug, Default)]
pub struct KnownPods(Mutex<HashMap<String, Weak<PodContext>>>);

impl KnownPods {
    /// A pod that was taken up; it is told of as long as the node has it.
    pub fn add(&self, context: &Arc<PodContext>) {
        let mut pods = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pods.retain(|_, pod| pod.strong_count() > 0);
        pods.insert(context.pod.uid().to_owned(), Arc::downgrade(context));
    }

    /// All of them, by namespace and name.
    pub fn all(&self) -> Vec<Arc<PodContext>> {
        let pods = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut pods: Vec<_> = pods.values().filter_map(Weak::upgrade).collect();
        pods.sort_by_cached_key(|context| context.pod.key());
        pods
    }
}

/// What a pod's states need of the cluster.
#[derive(Clone)]
pub struct ClusterAccess {
    /// Speaks to the API server.
    pub client: kube::Client,
    /// The node's own object, once the API server has told it.
    pub node: watch::Receiver<Option<Arc<Node>>>,
    /// What is known of the API server's time.
    pub history: History,
}

impl std::fmt::Debug for ClusterAccess {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClusterAccess").finish_non_exhaustive()
    }
}
