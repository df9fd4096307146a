//! The pod was stopped, and nothing of it runs any more.

use super::prelude::*;
use crate::termination::StopReason;

/// Last state of a pod that is deleted or has exceeded its deadline, from wherever it was.
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
        let reason = state.context.termination.current().map(|stop| stop.reason);
        state.context.has_started();
        tracing::info!(pod = state.context.pod.key(), ?reason, "pod stopped");
        Transition::Complete(Ok(()))
    }

    async fn status(&self, state: &mut PodState, _pod: &Pod) -> anyhow::Result<Status> {
        state.context.reporter.set_all_terminated();
        final_status(state, state.context.reporter.has_succeeded())
    }
}

/// How a pod ends whose containers run no more.
pub(super) fn final_status(state: &PodState, succeeded: bool) -> anyhow::Result<Status> {
    match state.context.termination.current().map(|stop| stop.reason) {
        Some(StopReason::DeadlineExceeded) => explained(
            state,
            Phase::Failed,
            "DeadlineExceeded",
            "Pod was active on the node longer than the specified deadline",
        ),
        Some(StopReason::Evicted) => {
            let message = state.context.eviction.get().cloned().unwrap_or_default();
            explained(state, Phase::Failed, "Evicted", &message)
        }
        Some(StopReason::NodeShutdown) => {
            explained(state, Phase::Failed, "Terminated", crate::machine_shutdown::MESSAGE)
        }
        _ => phase(state, if succeeded { Phase::Succeeded } else { Phase::Failed }),
    }
}
