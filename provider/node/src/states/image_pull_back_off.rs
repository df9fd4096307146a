//! An image could not be had; it is tried again after a pause.

use super::ImagePull;
use super::prelude::*;
use crate::cluster::events::EventType;
use crate::status::{ContainerKind, waiting};
use k8s_openapi::api::core::v1::Container;
use std::time::Duration;

/// Waits.
#[derive(Debug, TransitionTo)]
#[transition_to(ImagePull)]
pub struct ImagePullBackOff {
    /// Whose image it is.
    pub container: (ContainerKind, Container),
    /// What was wrong with it, in one word.
    pub reason: &'static str,
    /// And in words.
    pub message: String,
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
        let context = &state.context;
        let (kind, container) = &self.container;
        context.reporter.update_container(*kind, &container.name, |status| waiting(status, self.reason, &self.message));
        // Long enough to be seen; then what the node is doing about it, as a kubelet tells it.
        let seen = self.pause.min(Duration::from_secs(1));
        tokio::time::sleep(seen).await;
        let reason = if self.reason == "ErrImagePull" { "ImagePullBackOff" } else { self.reason };
        let image = container.image.as_deref().unwrap_or_default();
        let message = format!("Back-off pulling image \"{image}\": {}: {}", self.reason, self.message);
        context.reporter.update_container(*kind, &container.name, |status| waiting(status, reason, &message));
        let event = format!("Back-off pulling image \"{image}\"");
        context.services.events.container(&context.pod, (*kind, &container.name), EventType::Normal, "BackOff", event);
        tokio::time::sleep(self.pause - seen).await;
        Transition::next(self, ImagePull)
    }

    async fn status(&self, _state: &mut PodState, _pod: &Pod) -> anyhow::Result<Status> {
        Ok(phase(Phase::Pending))
    }
}
