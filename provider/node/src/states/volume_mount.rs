//! The pod's volumes are made available.

use super::Initializing;
use super::prelude::*;
use crate::cluster::events::EventType;
use crate::volume;

/// Tried again with back-off until all volumes are there, as a kubelet does.
#[derive(Debug, TransitionTo)]
#[transition_to(Initializing, VolumeMount)]
pub struct VolumeMount {
    /// Why the attempt before this one failed; empty at first.
    pub message: String,
}

#[async_trait::async_trait]
impl State<PodState> for VolumeMount {
    async fn next(
        self: Box<Self>,
        _provider: SharedState<ProviderState>,
        state: &mut PodState,
        _pod: Manifest<Pod>,
    ) -> Transition<PodState> {
        if !self.message.is_empty() {
            tokio::time::sleep(state.back_off.next(tokio::time::Instant::now()).max(crate::back_off::FIRST)).await;
        }
        match volume::mount(&state.context).await {
            Ok(volumes) => {
                state.volumes = volumes;
                Transition::next(self, Initializing)
            }
            Err(error) => {
                let context = &state.context;
                tracing::error!(pod = context.pod.key(), "{error}");
                let message = error.to_string();
                context.services.events.pod(&context.pod, EventType::Warning, "FailedMount", message);
                Transition::next(self, Self { message: error.to_string() })
            }
        }
    }

    async fn status(&self, _state: &mut PodState, _pod: &Pod) -> anyhow::Result<Status> {
        if self.message.is_empty() {
            return Ok(phase(Phase::Pending));
        }
        Ok(explained(Phase::Pending, "FailedMount", &self.message))
    }
}
