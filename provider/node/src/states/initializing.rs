//! The init containers run, one after the other.

use super::prelude::*;
use super::{Completed, Running};
use crate::container::supervise;
use crate::pod::RestartPolicy;
use crate::status::ContainerKind;

/// Each must succeed before the next starts; whether one that fails is run again is the pod's restart policy.
#[derive(Debug, TransitionTo)]
#[transition_to(Running, Completed)]
pub struct Initializing;

#[async_trait::async_trait]
impl State<PodState> for Initializing {
    async fn next(
        self: Box<Self>,
        _provider: SharedState<ProviderState>,
        state: &mut PodState,
        _pod: Manifest<Pod>,
    ) -> Transition<PodState> {
        let context = state.context.clone();
        context.reporter.set_ready_to_start();
        // An init container that succeeded is never run again, whatever the policy says of containers.
        let policy = match context.pod.restart_policy() {
            RestartPolicy::Never => RestartPolicy::Never,
            RestartPolicy::Always | RestartPolicy::OnFailure => RestartPolicy::OnFailure,
        };
        for container in context.pod.init_containers() {
            if !supervise(&context, &state.volumes, ContainerKind::Init, container, policy).await {
                return Transition::next(self, Completed { succeeded: false });
            }
        }
        Transition::next(self, Running)
    }

    async fn status(&self, state: &mut PodState, _pod: &Pod) -> anyhow::Result<Status> {
        phase(state, Phase::Pending)
    }
}
