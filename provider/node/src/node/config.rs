//! What a [`Node`](super::Node) is made of, and why it does not start.

use crate::cluster::EventRecorder;
use crate::data_directory::{DataDirectory, DataDirectoryError};
use crate::eviction::PressureWatch;
use crate::fields::NodeFacts;
use crate::machine_shutdown::ShutdownPeriods;
use crate::services::ClusterAccess;
use akri_krustlet_devices::{Devices, DevicesConfig, DevicesError};
use akri_krustlet_discovery::HandlersConfig;
use akri_krustlet_host::DirectoryWatcher;
use akri_krustlet_images::{GarbageCollection, ImagePolicy, NodeCredentials};
use akri_krustlet_runtime::network::NodeNetwork;
use akri_krustlet_runtime::{RuntimeConfig, RuntimeError};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// What a node is made of.
#[derive(Debug)]
pub struct NodeConfig {
    /// Who it is.
    pub facts: NodeFacts,
    /// Where its files are.
    pub data: DataDirectory,
    /// Its discovery handlers.
    pub handlers: HandlersConfig,
    /// Its devices.
    pub devices: DevicePlugins,
    /// What the networks of guests are held to.
    pub network: Arc<NodeNetwork>,
    /// Its WebAssembly runtime.
    pub runtime: RuntimeConfig,
    /// Registries it speaks to without TLS, as `host` or `host:port`.
    pub insecure_registries: Vec<String>,
    /// What is asked of images before they are run.
    pub image_policy: ImagePolicy,
    /// Credentials for registries, for all pods.
    pub registry_credentials: NodeCredentials,
    /// Whether pods of a cluster may run files of this machine.
    pub allow_local_modules: bool,
    /// Percent of the disk in use at which unused images are removed, and until which.
    pub image_gc: GarbageCollection,
    /// What the machine is short of, so that pods are evicted.
    pub pressure: Arc<PressureWatch>,
    /// How long containers that notice the node's end, by that of their standard input, may take for their own.
    pub shutdown_grace_period: Duration,
    /// How long pods may take to end when the machine goes down.
    pub shutdown_periods: ShutdownPeriods,
    /// It is about to, for whoever tells of it.
    pub machine_goes_down: watch::Sender<bool>,
    /// The cluster, and where events go.
    pub cluster: Option<(ClusterAccess, EventRecorder)>,
}

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The data directory cannot be used.
    #[error(transparent)]
    Data(#[from] DataDirectoryError),
    /// The runtime does not start.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The images that were pulled cannot be opened.
    #[error("cannot open the images of the data directory: {0}")]
    Images(#[source] std::io::Error),
    /// The system has no inotify instance left.
    #[error("cannot watch directories: {0} (is fs.inotify.max_user_instances used up?)")]
    Watch(#[source] std::io::Error),
    /// Device plugins cannot be served.
    #[error(
        "device plugins: {0}; give this node another directory with --device-plugins-directory, or a mount namespace in which the path is its own"
    )]
    Devices(#[source] DevicesError),
}

/// Whether a node has devices of device plugins.
#[derive(Clone, Debug)]
pub enum DevicePlugins {
    /// It has none.
    None,
    /// It has them, unless somebody else does or the directory cannot be used: a kubelet may run on the same machine.
    IfFree(DevicesConfig),
    /// It has them, or does not start.
    Required(DevicesConfig),
}

impl DevicePlugins {
    /// The devices, if the node has some.
    pub(super) async fn start(self, watcher: &DirectoryWatcher) -> Result<Option<Arc<Devices>>, NodeError> {
        let (config, required) = match self {
            Self::None => return Ok(None),
            Self::IfFree(config) => (config, false),
            Self::Required(config) => (config, true),
        };
        match Devices::start(config, watcher).await {
            Ok(devices) => Ok(Some(devices)),
            Err(error) if required => Err(NodeError::Devices(error)),
            Err(error) => {
                tracing::warn!("this node takes no device plugins: {}", NodeError::Devices(error));
                Ok(None)
            }
        }
    }
}
