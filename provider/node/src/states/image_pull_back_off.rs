//! An image could not be used; it is tried again after a pause.

use super::ImagePull;
use super::prelude::*;
use std::time::Duration;

/// Waits.
#[derive(Debug, TransitionTo)]
#[transition_to(ImagePull)]
pub struct ImagePullBackOff {
    /// Whose image it is.
    pub container: String,
    /// What was wrong with it.
    pub message: String,
    /// How long to wait.
    pub pause: Duration,
}

#[async_trait::async_trait]
impl State<PodState> for ImagePullBackOff {
    async fn next(
        self: Box<Self>,
        _provider: SharedState<ProviderState>,
        _state: &mut PodState,
        _pod: Manifest<Pod>,
    ) -> Transition<PodState> {
        tokio::time::sleep(self.pause).await;
        Transition::next(self, ImagePull)
    }

    async fn status(&self, _state: &mut PodState, _pod: &Pod) -> anyhow::Result<Status> {
        let message =
            format!("container {}: {}; trying again in {} s", self.container, self.message, self.pause.as_secs());
        Ok(explained(Phase::Pending, "ImagePullBackOff", &message))
    }
}
