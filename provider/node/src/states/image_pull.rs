//! The modules of all containers are made available, compiled.

use super::prelude::*;
use super::{ImagePullBackOff, VolumeMount};
use crate::image::{self, ImageFailure};
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
        let pod = context.latest();
        let init = pod.init_containers().iter().map(|container| (ContainerKind::Init, container));
        let app = pod.spec().containers.iter().map(|container| (ContainerKind::App, container));
        for (kind, container) in init.chain(app) {
            let services = &context.services;
            match image::load(services, &pod, kind, container).await {
                Ok(image) => context.keep_image(&container.name, image),
                Err(error) => {
                    let failure = ImageFailure::of(&context, kind, container, &error);
                    let pause = state.back_off.next(started).max(crate::back_off::FIRST);
                    return Transition::next(self, ImagePullBackOff { failure, pause });
                }
            }
        }
        state.back_off = Default::default();
        Transition::next(self, VolumeMount::default())
    }

    async fn status(&self, _state: &mut PodState, _pod: &Pod) -> anyhow::Result<Status> {
        Ok(phase(Phase::Pending))
    }
}
