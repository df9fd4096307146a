//! All containers have ended for good.

use super::prelude::*;
use super::terminated::final_status;

/// Succeeded or Failed; the pod stays known until it is deleted.
#[derive(Debug, TransitionTo)]
#[transition_to()]
pub struct Completed {
    /// True if every container succeeded.
    pub succeeded: bool,
}

#[async_trait::async_trait]
impl State<PodState> for Completed {
    async fn next(
        self: Box<Self>,
        _provider: SharedState<ProviderState>,
        state: &mut PodState,
        _pod: Manifest<Pod>,
    ) -> Transition<PodState> {
        state.context.has_started();
        Transition::Complete(Ok(()))
    }

    async fn status(&self, state: &mut PodState, _pod: &Pod) -> anyhow::Result<Status> {
        final_status(state, self.succeeded)
    }
}
