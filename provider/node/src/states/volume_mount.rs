//! The pod's volumes are made available.

use super::Initializing;
use super::prelude::*;
use crate::cluster::events::EventType;
use crate::objects::Awaited;
use crate::volume;
use akri_krustlet_host::{span, spans};

/// Tried again until all volumes are there: when a ConfigMap or Secret that is missing changes, and with back-off.
#[derive(Debug, Default, TransitionTo)]
#[transition_to(Initializing, VolumeMount)]
pub struct VolumeMount {
    /// Why the attempt before this one failed; empty at first.
    message: String,
    awaited: Awaited,
}

#[async_trait::async_trait]
impl State<PodState> for VolumeMount {
    async fn next(
        mut self: Box<Self>,
        _provider: SharedState<ProviderState>,
        state: &mut PodState,
        _pod: Manifest<Pod>,
    ) -> Transition<PodState> {
        if !self.message.is_empty() {
            let pause = state.back_off.next(tokio::time::Instant::now()).max(crate::back_off::FIRST);
            tokio::select! {
                () = self.awaited.changed() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
        let mut awaited = Awaited::default();
        let span = span!(parent: &state.context.start_span(), "volumes mount");
        match spans::told(span, volume::mount(&state.context, &mut awaited)).await {
            Ok(volumes) => {
                state.volumes = volumes;
                Transition::next(self, Initializing)
            }
            Err(error) => {
                let context = &state.context;
                tracing::error!(pod = context.pod.key(), "{error}");
                let message = error.to_string();
                context.services.events.pod(&context.pod, EventType::Warning, "FailedMount", message.clone());
                Transition::next(self, Self { message, awaited })
            }
        }
    }

    async fn status(&self, state: &mut PodState, _pod: &Pod) -> anyhow::Result<Status> {
        if self.message.is_empty() {
            return phase(state, Phase::Pending);
        }
        explained(state, Phase::Pending, "FailedMount", &self.message)
    }
}
