//! The pod was deleted. Leaving the state before has interrupted its guests.

use super::prelude::*;

/// Last state of a deleted pod, from wherever it was.
#[derive(Debug, Default, TransitionTo)]
#[transition_to()]
pub struct Terminated;

#[async_trait::async_trait]
impl State<PodState> for Terminated {
    async fn next(
        self: Box<Self>,
        _provider: SharedState<ProviderState>,
        state: &mut PodState,
        _pod: Manifest<Pod>,
    ) -> Transition<PodState> {
        tracing::info!(pod = state.context.pod.key(), "pod deleted");
        Transition::Complete(Ok(()))
    }

    async fn status(&self, _state: &mut PodState, _pod: &Pod) -> anyhow::Result<Status> {
        Ok(Status::default())
    }
}
