//! How a node has its devices, and why it may not.

use akri_krustlet_host::socket::SocketError;
use std::path::PathBuf;
use std::time::Duration;

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
