//! The pod gets its devices.

use super::prelude::*;
use super::{Rejected, VolumeMount};
use crate::device;

/// All that its containers ask for, or the pod is refused.
#[derive(Debug, TransitionTo)]
#[transition_to(VolumeMount, Rejected)]
pub struct Resources;

#[async_trait::async_trait]
impl State<PodState> for Resources {
    async fn next(
        self: Box<Self>,
        _provider: SharedState<ProviderState>,
        state: &mut PodState,
        _pod: Manifest<Pod>,
    ) -> Transition<PodState> {
        match device::allocate(&state.context).await {
            Ok(()) => Transition::next(self, VolumeMount::default()),
            Err(message) => Transition::next(self, Rejected { reason: "UnexpectedAdmissionError".to_owned(), message }),
        }
    }

    async fn status(&self, state: &mut PodState, _pod: &Pod) -> anyhow::Result<Status> {
        phase(state, Phase::Pending)
    }
}
