//! The node cannot run this pod, and says why.

use super::prelude::*;

/// Failed before anything was started.
#[derive(Debug, TransitionTo)]
#[transition_to()]
pub struct Rejected {
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
        tracing::error!(pod = state.context.pod.key(), "pod refused: {}", self.message);
        Transition::Complete(Ok(()))
    }

    async fn status(&self, _state: &mut PodState, _pod: &Pod) -> anyhow::Result<Status> {
        Ok(explained(Phase::Failed, "FailedValidation", &self.message))
    }
}
