//! A handler container: the guests of one program that do the work of one discovery handler, one for each Discover stream.
//!
//! How they are asked and how they answer is their [`crate::contract`]'s affair. All of them share the container's memory and
//! CPU limits.

use crate::contract::component::HandlerInfo;
use crate::contract::{Contract, Guest};
use crate::host_path::{AllowList, HostPaths};
use crate::settings::HandlerSettings;
use akri_krustlet_host::DirectoryWatcher;
use akri_krustlet_runtime::guest::StartError;
use akri_krustlet_runtime::log::ContainerLog;
use akri_krustlet_runtime::network::NetworkGrant;
use akri_krustlet_runtime::{EventGrant, Outcome, Preopen, Program, Runtime, SharedLimits};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What a handler container is made of.
#[derive(Debug)]
pub struct ContainerSpec {
    /// `namespace/pod/container`, for messages.
    pub name: String,
    /// The handler in it.
    pub settings: HandlerSettings,
    /// The module.
    pub program: Arc<Program>,
    /// What its image says of the handler; a component does.
    pub info: Option<Arc<HandlerInfo>>,
    /// Arguments.
    pub args: Vec<String>,
    /// Environment.
    pub env: Vec<(String, String)>,
    /// Volumes other than the exchange volume.
    pub preopens: Vec<Preopen>,
    /// The network that its pod grants it; only components can use one.
    pub network: NetworkGrant,
    /// What of the machine's events its pod grants it; only components can follow them.
    pub events: EventGrant,
    /// Limits of all guests together.
    pub limits: Arc<SharedLimits>,
    /// The container's log.
    pub log: Arc<ContainerLog>,
    /// Host paths that devices of any handler may name, if its pod allows them too.
    pub operator_host_paths: AllowList,
    /// Directories that the pod's other containers can write in.
    pub writable: Vec<PathBuf>,
    /// Directory for the guests' exchange directories; emptied at start.
    pub exchange_root: PathBuf,
    /// The exchange volume.
    pub exchange_volume: PathBuf,
    /// It is a volume that the pod mounts.
    pub exchange_is_mounted: bool,
}

/// Why a handler container or one of its guests does not start.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// The guest cannot be made.
    #[error(transparent)]
    Guest(#[from] StartError),
    /// Its exchange directory cannot be made or filled.
    #[error("exchange directory: {0}")]
    Exchange(#[source] std::io::Error),
    /// The exchange volume cannot be read.
    #[error("exchange volume {}: {source}", path.display())]
    Volume {
        /// The volume's directory on the host.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A component cannot be this handler.
    #[error("{0}")]
    Component(String),
    /// The container was stopped.
    #[error("the container is being stopped")]
    Stopped,
}

/// A running handler container.
#[derive(Debug)]
pub struct HandlerContainer {
    spec: Arc<ContainerSpec>,
    contract: Contract,
    stopped: CancellationToken,
    host_paths: Arc<HostPaths>,
    complaints: watch::Sender<BTreeMap<u64, String>>,
}

impl HandlerContainer {
    /// Starts the container.
    pub fn start(
        runtime: Arc<Runtime>,
        watcher: &DirectoryWatcher,
        spec: ContainerSpec,
    ) -> Result<Arc<Self>, ContainerError> {
        let spec = Arc::new(spec);
        let stopped = CancellationToken::new();
        let contract = Contract::start(runtime, watcher, spec.clone(), stopped.clone())?;
        let volumes = spec.preopens.iter().filter(|preopen| !preopen.read_only).map(|preopen| preopen.host.clone());
        let host_paths = Arc::new(HostPaths {
            pod: spec.settings.allowed_host_paths.clone(),
            operator: spec.operator_host_paths.clone(),
            writable: volumes
                .chain([spec.exchange_root.clone(), spec.exchange_volume.clone()])
                .chain(spec.writable.iter().cloned())
                .collect(),
        });
        Ok(Arc::new(Self { spec, contract, stopped, host_paths, complaints: watch::Sender::default() }))
    }

    /// The handler in it.
    pub fn settings(&self) -> &HandlerSettings {
        &self.spec.settings
    }

    /// `namespace/pod/container`.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// What its streams complain about, by stream: refused answers, guests that trapped.
    pub fn complaints(&self) -> watch::Receiver<BTreeMap<u64, String>> {
        self.complaints.subscribe()
    }

    /// Runs until it ends by itself or is stopped. The guests of streams end with it.
    pub async fn run(&self) -> Outcome {
        let outcome = tokio::select! {
            () = self.stopped.cancelled() => Outcome::Interrupted,
            outcome = self.contract.ended() => outcome,
        };
        self.stop();
        outcome
    }

    /// Ends all guests.
    pub fn stop(&self) {
        self.stopped.cancel();
        self.contract.stop();
    }

    pub(crate) fn stopped(&self) -> &CancellationToken {
        &self.stopped
    }

    pub(crate) fn contract(&self) -> &Contract {
        &self.contract
    }

    /// What its devices may name of the host.
    pub(crate) fn host_paths(&self) -> &Arc<HostPaths> {
        &self.host_paths
    }

    /// A guest for a stream.
    pub(crate) fn take_guest(&self) -> Result<Guest, ContainerError> {
        if self.stopped.is_cancelled() {
            return Err(ContainerError::Stopped);
        }
        self.contract.take_guest()
    }

    /// A line of the node's own in the container's log.
    pub(crate) fn note(&self, text: &str) {
        self.spec.log.note(text);
    }

    pub(crate) fn complain(&self, stream: u64, complaint: Option<String>) {
        self.complaints.send_if_modified(|complaints| match complaint {
            Some(complaint) => complaints.insert(stream, complaint.clone()).is_none_or(|old| old != complaint),
            None => complaints.remove(&stream).is_some(),
        });
    }
}
