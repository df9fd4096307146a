//! An image could not be had; it is tried again after a pause, or when the pod names another one.

use super::ImagePull;
use super::prelude::*;
use crate::image::ImageFailure;
use std::time::Duration;

/// Waits.
#[derive(Debug, TransitionTo)]
#[transition_to(ImagePull)]
pub struct ImagePullBackOff {
    /// Which, and why.
    pub failure: ImageFailure,
    /// How long to wait.
    pub pause: Duration,
}

#[async_trait::async_trait]
impl State<PodState> for ImagePullBackOff {
    async fn next(
        self: Box<Self>,
        _provider: SharedState<ProviderState>,
        state: &mut PodState,
        _pod: Manifest<Pod>,
    ) -> Transition<PodState> {
        if self.failure.wait(&state.context, self.pause).await {
            state.back_off = Default::default();
        }
        Transition::next(self, ImagePull)
    }

    async fn status(&self, _state: &mut PodState, _pod: &Pod) -> anyhow::Result<Status> {
        Ok(phase(Phase::Pending))
    }
}
