//! The node cannot run this pod, and says why.

use super::prelude::*;
use crate::cluster::events::EventType;
use akri_krustlet_host::spans;

/// Failed before anything was started.
#[derive(Debug, TransitionTo)]
#[transition_to()]
pub struct Rejected {
    /// In one word.
    pub reason: String,
    /// What the node cannot do.
    pub message: String,
}

#[async_trait::async_trait]
impl State<PodState> for Rejected {
    async fn next(
        self: Box<Self>,
        _provider: SharedState<ProviderState>,
        state: &mut PodState,
        _pod: Manifest<Pod>,
    ) -> Transition<PodState> {
        let context = &state.context;
        tracing::error!(pod = context.pod.key(), reason = self.reason, "pod refused: {}", self.message);
        let message = self.message.clone();
        spans::fail(&context.start_span(), &message);
        context.has_started();
        context.services.events.pod(&context.pod, EventType::Warning, self.reason.clone(), message);
        Transition::Complete(Ok(()))
    }

    async fn status(&self, state: &mut PodState, _pod: &Pod) -> anyhow::Result<Status> {
        explained(state, Phase::Failed, &self.reason, &self.message)
    }
}
