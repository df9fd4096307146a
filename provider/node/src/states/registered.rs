//! The pod is known; its specification is checked.

use super::prelude::*;
use super::{ImagePull, Rejected};
use crate::admission;

/// First state of every pod. One that had ended in an earlier life of the node ends here, unchanged.
#[derive(Debug, Default, TransitionTo)]
#[transition_to(ImagePull, Rejected)]
pub struct Registered;

fn has_ended(state: &PodState) -> bool {
    matches!(state.context.reporter.current().phase.as_deref(), Some("Succeeded" | "Failed"))
}

#[async_trait::async_trait]
impl State<PodState> for Registered {
    async fn next(
        self: Box<Self>,
        _provider: SharedState<ProviderState>,
        state: &mut PodState,
        _pod: Manifest<Pod>,
    ) -> Transition<PodState> {
        if has_ended(state) {
            return Transition::Complete(Ok(()));
        }
        match admission::validate(&state.context.pod, &state.context.services.node) {
            Ok(()) => Transition::next(self, ImagePull),
            Err(error) => Transition::next(self, Rejected { message: error.to_string() }),
        }
    }

    async fn status(&self, state: &mut PodState, _pod: &Pod) -> anyhow::Result<Status> {
        Ok(if has_ended(state) { Status::default() } else { phase(Phase::Pending) })
    }
}
