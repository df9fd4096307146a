//! Drives a pod through its states.

use crate::status::StatusReporter;
use krator::{Manifest, ObjectStatus, State, Transition};
use kubelet::pod::Pod;
use kubelet::provider::Provider;
use tokio_util::sync::CancellationToken;

/// Runs the states of a provider's pod until they end, or until `deleted` is cancelled: then the state is left where it
/// waits, and the provider's terminated state is run instead.
///
/// Nothing is patched here: each state's status goes to `reporter`, which hands it to its sink.
pub async fn drive<P: Provider>(
    provider: &P,
    state: &mut P::PodState,
    pod: &Manifest<Pod>,
    reporter: &StatusReporter,
    deleted: &CancellationToken,
) {
    let mut current: Box<dyn State<P::PodState>> = Box::new(P::InitialState::default());
    let mut terminating = false;
    loop {
        match current.status(state, &pod.latest()).await {
            Ok(status) => reporter.apply_patch(&status.json_patch()),
            Err(error) => tracing::warn!(pod = reporter.pod().key(), %error, "a state has no status"),
        }
        let next = current.next(provider.provider_state(), state, pod.clone());
        let transition = tokio::select! {
            transition = next => transition,
            () = deleted.cancelled(), if !terminating => {
                terminating = true;
                current = Box::new(P::TerminatedState::default());
                continue;
            }
        };
        match transition {
            Transition::Next(next) => current = next.into(),
            Transition::Complete(Ok(())) => return,
            Transition::Complete(Err(error)) => {
                tracing::error!(pod = reporter.pod().key(), error = format!("{error:#}"), "the pod failed");
                let failed =
                    <<P::PodState as krator::ObjectState>::Status as ObjectStatus>::failed(&format!("{error:#}"));
                reporter.apply_patch(&failed.json_patch());
                return;
            }
        }
    }
}
