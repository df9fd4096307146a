//! The containers run.

use super::Completed;
use super::prelude::*;
use crate::container::supervise;
use crate::status::ContainerKind;

/// Until each of them has ended for good.
#[derive(Debug, TransitionTo)]
#[transition_to(Completed)]
pub struct Running;

#[async_trait::async_trait]
impl State<PodState> for Running {
    async fn next(
        self: Box<Self>,
        _provider: SharedState<ProviderState>,
        state: &mut PodState,
        _pod: Manifest<Pod>,
    ) -> Transition<PodState> {
        let context = &state.context;
        let policy = context.pod.restart_policy();
        let mounted = state.volumes.mounted();
        let containers = &context.pod.spec().containers;
        let running =
            containers.iter().map(|container| supervise(context, &mounted, ContainerKind::App, container, policy));
        let succeeded = futures::future::join_all(running).await.into_iter().all(|succeeded| succeeded);
        state.end_sidecars().await;
        Transition::next(self, Completed { succeeded })
    }

    async fn status(&self, state: &mut PodState, _pod: &Pod) -> anyhow::Result<Status> {
        // The reporter says Running when the last container has been started.
        phase(state, Phase::Pending)
    }
}
