//! The pod is known; its specification is checked.

use super::prelude::*;
use super::{Rejected, Resources};
use crate::admission;
use crate::eviction;
use crate::placement::Rejection;
use crate::services::Services;
use k8s_openapi::api::core::v1::Node;
use std::sync::Arc;
use std::time::Duration;

/// First state of every pod. One that had ended in an earlier life of the node ends here, unchanged.
#[derive(Debug, Default, TransitionTo)]
#[transition_to(Resources, Rejected)]
pub struct Registered;

/// Time in which the API server tells the node's object after a start; without it, a pod is taken as it comes.
const PATIENCE: Duration = Duration::from_secs(5);

/// The node's own object, with the labels, taints and amounts that decide what belongs here.
async fn own_node(services: &Services) -> Option<Arc<Node>> {
    let mut node = services.cluster.as_ref()?.node.clone();
    let told = tokio::time::timeout(PATIENCE, node.wait_for(Option::is_some)).await;
    told.ok()?.ok()?.clone()
}

fn has_ended(state: &PodState) -> bool {
    crate::status::is_final(&state.context.reporter.current())
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
        let (context, services) = (&state.context, &state.context.services);
        if let Err(error) = admission::validate(&context.pod, &services.node) {
            return Transition::next(
                self,
                Rejected { reason: "FailedValidation".to_owned(), message: error.to_string() },
            );
        }
        if *services.machine_goes_down.borrow() {
            let (reason, message) =
                ("NodeShutdown".to_owned(), "Pod was rejected as the node is shutting down.".to_owned());
            return Transition::next(self, Rejected { reason, message });
        }
        // One that ran here is judged when it is next to go.
        let pressure = services.pressure.conditions().borrow().clone();
        if let Err(Rejection { reason, message }) = eviction::admit(&context.pod, &pressure)
            && !context.ran_before
        {
            return Transition::next(self, Rejected { reason, message });
        }
        let node = own_node(services).await;
        let admitted = {
            // Nothing is granted to it meanwhile.
            let _unchanged = context.resizing();
            services.admitted.admit(&context.latest(), node.as_deref(), context.ran_before)
        };
        match admitted {
            Ok(()) => {
                let pod = context.latest();
                context.reporter.update(|status| crate::status::pod_resized(status, &pod));
                Transition::next(self, Resources)
            }
            Err(Rejection { reason, message }) => Transition::next(self, Rejected { reason, message }),
        }
    }

    async fn status(&self, state: &mut PodState, _pod: &Pod) -> anyhow::Result<Status> {
        if has_ended(state) { Ok(Status::default()) } else { phase(state, Phase::Pending) }
    }
}
