//! Krustlet's contract: what this kind of node runs, and how its pods begin and end.

use crate::admission;
use crate::container_log::{ContainerLogReader, LogRequest};
use crate::context::PodContext;
use crate::pod::PodObject;
use crate::pod_state::{PodState, ProviderState};
use crate::resize;
use crate::services::Services;
use crate::states::{Registered, Terminated};
use crate::status::{StatusReporter, is_final};
use crate::volume::Volumes;
use akri_krustlet_devices::Devices;
use akri_krustlet_host::span;
use akri_krustlet_images::ListedImage;
use akri_krustlet_runtime::log::{LogOptions, LogPrinter};
use krator::SharedState;
use kubelet::node::Builder;
use kubelet::pod::Pod;
use kubelet::provider::Provider;
use std::sync::{Arc, Mutex};
use tokio::sync::{RwLock, watch};
use tracing::Span;

/// Runs pods whose containers are WebAssembly modules.
#[derive(Debug)]
pub struct WasmProvider {
    state: ProviderState,
}

/// Name of the engine in the node's information, as `containerRuntimeVersion`.
pub const RUNTIME_VERSION: &str = "wasmtime://48.0.8";

impl WasmProvider {
    /// A provider with these services.
    pub fn new(services: Arc<Services>) -> Self {
        Self { state: ProviderState { services } }
    }

    /// The devices of device plugins.
    pub fn devices(&self) -> Option<&Arc<Devices>> {
        self.state.services.devices.as_ref()
    }

    /// The images that are on the machine, the largest first.
    pub fn images(&self) -> Vec<ListedImage> {
        self.state.services.registry.store().list()
    }

    /// The state of a pod, continuing what the node remembers of it.
    pub fn pod_state(&self, pod: PodObject) -> PodState {
        let services = self.state.services.clone();
        // A node that lost its data knows from the API only that a pod has ended, or has run before.
        let told = pod.api.status.as_ref().filter(|status| crate::status::is_final(status)).cloned();
        let known = services.data.status(pod.uid());
        // Whoever may write statuses may write this one: it makes the node skip nothing.
        let mut ran_before = told.is_some() || known.is_some();
        let mut earlier = told.or(known).or_else(|| pod.api.status.as_ref().and_then(crate::status::begun));
        // Of a node alone, nobody else makes another pod of what the node itself gave up.
        if pod.folder.is_some() && earlier.as_ref().is_some_and(crate::status::is_given_up) {
            (earlier, ran_before) = (None, false);
        }
        if let Some(status) = &mut earlier {
            let containers = status.container_statuses.iter_mut().chain(&mut status.init_container_statuses);
            containers.flatten().for_each(crate::status::lost_with_node);
        }
        let remembered = ran_before.then(|| services.data.remembered(pod.uid())).flatten();
        let (latest, resizing) = resize::granted_before(&pod, remembered);
        if let Some(status) = &mut earlier {
            resize::forget_told(status, &resizing);
        }
        let reporter = StatusReporter::new(pod.clone(), earlier, &services.node.addresses, services.sink.clone());
        // What makes no sense fails the pod before anything of it runs.
        let pod_limits = admission::pod_limits(&latest).unwrap_or_default();
        let start = match is_final(&reporter.current()) {
            // Nothing of it starts.
            true => Span::none(),
            false => span!(
                parent: None, "pod start",
                k8s.namespace.name = pod.namespace(), k8s.pod.name = pod.name(), k8s.pod.uid = pod.uid()
            ),
        };
        let context = Arc::new(PodContext {
            start: Mutex::new(start),
            services,
            pod_share: pod_limits.share(),
            latest: watch::Sender::new(latest),
            pod,
            reporter,
            termination: Default::default(),
            images: Default::default(),
            eviction: Default::default(),
            shares: Default::default(),
            ran_before,
            resizing: Mutex::new(resizing),
        });
        PodState { context, volumes: Volumes::default(), back_off: Default::default(), sidecars: Vec::new() }
    }
}

#[async_trait::async_trait]
impl Provider for WasmProvider {
    type ProviderState = ProviderState;
    type PodState = PodState;
    type InitialState = Registered;
    type TerminatedState = Terminated;

    const ARCH: &'static str = "wasm32-wasi";

    fn provider_state(&self) -> SharedState<ProviderState> {
        Arc::new(RwLock::new(self.state.clone()))
    }

    async fn node(&self, builder: &mut Builder) -> anyhow::Result<()> {
        builder.set_architecture(Self::ARCH);
        builder.set_operating_system(Self::ARCH);
        builder.set_container_runtime_version(RUNTIME_VERSION);
        builder.add_taint("NoSchedule", "kubernetes.io/arch", Self::ARCH);
        builder.add_taint("NoExecute", "kubernetes.io/arch", Self::ARCH);
        Ok(())
    }

    async fn initialize_pod_state(&self, pod: &Pod) -> anyhow::Result<PodState> {
        let api = serde_json::from_value(serde_json::to_value(pod)?)?;
        Ok(self.pod_state(PodObject { api: Arc::new(api), folder: None }))
    }

    async fn logs(
        &self,
        namespace: String,
        pod: String,
        container: String,
        mut sender: kubelet::log::Sender,
    ) -> anyhow::Result<()> {
        let options = LogOptions { tail: sender.tail(), since: None };
        let request = LogRequest { namespace, pod, container, previous: false, follow: false, options };
        let mut reader = ContainerLogReader::open(request, self.state.services.data.clone(), None)?;
        let mut printer = LogPrinter::default();
        while let Some(parts) = reader.next().await? {
            let mut text = Vec::new();
            parts.iter().for_each(|part| printer.print(part, &mut text));
            sender.send(String::from_utf8_lossy(&text).into_owned()).await?;
        }
        Ok(())
    }
}
