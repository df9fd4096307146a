//! The pod's volumes are made available.

use super::Initializing;
use super::prelude::*;
use crate::cluster::events::EventType;
use crate::volume::{self, MountError};

/// Tried again until all volumes are there: when a ConfigMap or Secret that is missing changes, and with back-off.
#[derive(Debug, Default, TransitionTo)]
#[transition_to(Initializing, VolumeMount)]
pub struct VolumeMount {
    /// Why the attempt before this one failed.
    pub failed: Option<MountError>,
}

#[async_trait::async_trait]
impl State<PodState> for VolumeMount {
    async fn next(
        mut self: Box<Self>,
        _provider: SharedState<ProviderState>,
        state: &mut PodState,
        _pod: Manifest<Pod>,
    ) -> Transition<PodState> {
        if let Some(failed) = &mut self.failed {
            let pause = state.back_off.next(tokio::time::Instant::now()).max(crate::back_off::FIRST);
            tokio::select! {
                () = failed.awaited.changed() => {}
                () = tokio::time::sleep(pause) => {}
            }
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
                Transition::next(self, Self { failed: Some(error) })
            }
        }
    }

    async fn status(&self, _state: &mut PodState, _pod: &Pod) -> anyhow::Result<Status> {
        Ok(match &self.failed {
            None => phase(Phase::Pending),
            Some(failed) => explained(Phase::Pending, "FailedMount", &failed.to_string()),
        })
    }
}
