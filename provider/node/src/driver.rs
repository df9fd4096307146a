//! Drives a pod through its states.

use crate::status::StatusReporter;
use crate::termination::{StopReason, Termination};
use krator::{Manifest, ObjectStatus, State, Transition};
use kubelet::pod::Pod;
use kubelet::provider::Provider;

/// Runs the states of a provider's pod until they end. When the pod's termination has been asked for and none of its
/// containers runs any more, the state is left where it waits, and the provider's terminated state is run instead.
///
/// A pod that is still there when `overdue` resolves is asked to terminate. Nothing is patched here: each state's status goes to
/// `reporter`, which hands it to its sink.
pub async fn drive<P: Provider>(
    provider: &P,
    state: &mut P::PodState,
    pod: &Manifest<Pod>,
    reporter: &StatusReporter,
    termination: &Termination,
    overdue: impl Future<Output = ()>,
) {
    let mut current: Box<dyn State<P::PodState>> = Box::new(P::InitialState::default());
    let mut terminating = false;
    tokio::pin!(overdue);
    let mut is_overdue = false;
    loop {
        match current.status(state, &pod.latest()).await {
            Ok(status) => reporter.apply_patch(&status.json_patch()),
            Err(error) => tracing::warn!(pod = reporter.pod().key(), %error, "a state has no status"),
        }
        let transition = {
            let next = current.next(provider.provider_state(), state, pod.clone());
            tokio::pin!(next);
            loop {
                tokio::select! {
                    biased;
                    () = termination.completed(), if !terminating => break None,
                    () = &mut overdue, if !is_overdue => {
                        is_overdue = true;
                        termination.stop(reporter.pod().grace_period(), StopReason::DeadlineExceeded);
                    }
                    transition = &mut next => break Some(transition),
                }
            }
        };
        match transition {
            None => {
                terminating = true;
                current = Box::new(P::TerminatedState::default());
            }
            Some(Transition::Next(next)) => current = next.into(),
            Some(Transition::Complete(Ok(()))) => return,
            Some(Transition::Complete(Err(error))) => {
                tracing::error!(pod = reporter.pod().key(), error = format!("{error:#}"), "the pod failed");
                let failed =
                    <<P::PodState as krator::ObjectState>::Status as ObjectStatus>::failed(&format!("{error:#}"));
                reporter.apply_patch(&failed.json_patch());
                return;
            }
        }
    }
}
