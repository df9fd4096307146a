//! What Krustlet's contract calls state: that of the provider, and that of each pod.

use crate::back_off::BackOff;
use crate::context::PodContext;
use crate::services::Services;
use crate::volume::Volumes;
use krator::ObjectState;
use kubelet::pod::{Pod, Status};
use kubelet::provider::{DevicePluginSupport, PluginSupport};
use std::sync::Arc;
use tokio_util::task::AbortOnDropHandle;

/// The provider's state in Krustlet's sense.
#[derive(Clone, Debug)]
pub struct ProviderState {
    /// The services.
    pub services: Arc<Services>,
}

// The kubelet crate's plugin manager and device manager are not used; a node without them says so.
impl PluginSupport for ProviderState {}
impl DevicePluginSupport for ProviderState {}

/// What a pod's states hand from one to the next.
#[derive(Debug)]
pub struct PodState {
    /// The pod, its status, the services.
    pub context: Arc<PodContext>,
    /// The pod's volumes, once they are mounted.
    pub volumes: Volumes,
    /// Pause before the image or a volume is tried again.
    pub back_off: BackOff,
    /// Its sidecars, each a task.
    pub sidecars: Vec<AbortOnDropHandle<()>>,
}

impl PodState {
    /// The pod's containers have ended for good; so do its sidecars.
    pub async fn end_sidecars(&mut self) {
        self.context.termination.finish(self.context.latest().grace_period());
        if self.sidecars.is_empty() {
            return;
        }
        for sidecar in self.sidecars.drain(..) {
            if let Err(error) = sidecar.await {
                tracing::error!(pod = self.context.pod.key(), %error, "the task of a sidecar failed");
            }
        }
        self.context.reporter.set_sidecars_terminated();
    }
}

#[async_trait::async_trait]
impl ObjectState for PodState {
    type Manifest = Pod;
    type Status = Status;
    type SharedState = ProviderState;

    async fn async_drop(self, _shared: &mut ProviderState) {}
}
