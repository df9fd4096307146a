//! The modules of all containers are made available, compiled.

use super::prelude::*;
use super::{ImagePullBackOff, VolumeMount};
use crate::cluster::events::EventType;
use crate::image;
use crate::status::ContainerKind;

/// Reads and compiles; the containers find the result in the store.
#[derive(Debug, TransitionTo)]
#[transition_to(VolumeMount, ImagePullBackOff)]
pub struct ImagePull;

#[async_trait::async_trait]
impl State<PodState> for ImagePull {
    async fn next(
        self: Box<Self>,
        _provider: SharedState<ProviderState>,
        state: &mut PodState,
        _pod: Manifest<Pod>,
    ) -> Transition<PodState> {
        let started = tokio::time::Instant::now();
        let context = state.context.clone();
        let pod = &context.pod;
        let init = pod.init_containers().iter().map(|container| (ContainerKind::Init, container));
        let app = pod.spec().containers.iter().map(|container| (ContainerKind::App, container));
        for (kind, container) in init.chain(app) {
            let services = &context.services;
            let error = match image::load(services, pod, kind, container).await {
                Ok(image) => {
                    context.keep_image(&container.name, image);
                    continue;
                }
                Err(error) => error,
            };
            tracing::error!(pod = pod.key(), container = container.name, "{error}");
            let (reason, message) = (error.reason(), error.to_string());
            for message in [format!("Failed to pull image: {message}"), format!("Error: {reason}")] {
                services.events.container(pod, (kind, &container.name), EventType::Warning, "Failed", message);
            }
            let pause = state.back_off.next(started).max(crate::back_off::FIRST);
            let container = (kind, container.clone());
            return Transition::next(self, ImagePullBackOff { container, reason, message, pause });
        }
        state.back_off = Default::default();
        Transition::next(self, VolumeMount { message: String::new() })
    }

    async fn status(&self, _state: &mut PodState, _pod: &Pod) -> anyhow::Result<Status> {
        Ok(phase(Phase::Pending))
    }
}
