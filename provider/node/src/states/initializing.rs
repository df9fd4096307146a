//! The init containers run, one after the other; sidecars among them run on.

use super::prelude::*;
use super::{Completed, Running};
use crate::container::{place, supervise};
use crate::context::PodContext;
use crate::pod::{RestartPolicy, is_sidecar};
use crate::status::ContainerKind;
use crate::volume::MountedVolumes;
use k8s_openapi::api::core::v1::{Container, ContainerStatus};
use std::sync::Arc;
use tokio_util::task::AbortOnDropHandle;

/// Each must succeed, or be started if it is a sidecar, before the next starts; whether one that fails is run again is the pod's
/// restart policy.
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
        if have_ended(&context) {
            return Transition::next(self, Running);
        }
        let mounted = state.volumes.mounted();
        for container in context.pod.init_containers() {
            if is_sidecar(container) {
                let task = tokio::spawn(run_sidecar(context.clone(), mounted.clone(), container.clone()));
                state.sidecars.push(AbortOnDropHandle::new(task));
                context.reporter.started(&container.name).await;
            } else if !supervise(&context, &mounted, ContainerKind::Init, container, policy).await {
                state.end_sidecars().await;
                return Transition::next(self, Completed { succeeded: false });
            }
        }
        Transition::next(self, Running)
    }

    async fn status(&self, state: &mut PodState, _pod: &Pod) -> anyhow::Result<Status> {
        phase(state, Phase::Pending)
    }
}

/// Whether all of its containers ended for good in an earlier life of the node: then no sidecar is started for them.
fn have_ended(context: &PodContext) -> bool {
    let status = context.reporter.current();
    let policy = context.pod.restart_policy();
    let has_ended = |container: &ContainerStatus| {
        let ended = container.state.as_ref().and_then(|state| state.terminated.as_ref());
        ended.is_some_and(|ended| !policy.restarts(ended.exit_code == 0))
    };
    let containers = status.container_statuses.as_deref().unwrap_or_default();
    !containers.is_empty() && containers.iter().all(has_ended)
}

/// Until it has ended and is not started again.
async fn run_sidecar(context: Arc<PodContext>, mounted: Arc<MountedVolumes>, container: Container) {
    let place = place(&context, ContainerKind::Init, &container.name);
    tokio::select! {
        // Nothing is started when the pod is over.
        biased;
        () = context.termination.over_without(place) => {}
        _ = supervise(&context, &mounted, ContainerKind::Init, &container, RestartPolicy::Always) => {}
    }
}
