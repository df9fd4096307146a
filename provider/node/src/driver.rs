//! Drives a pod through its states.

use crate::status::StatusReporter;
use crate::termination::{StopReason, Termination};
use krator::{Manifest, State, Transition};
use kubelet::pod::Pod;
use kubelet::provider::Provider;

/// Runs the states of a provider's pod until they end. When the pod's termination has been asked for and none of its
/// containers runs any more, the state is left where it waits, and the provider's terminated state is run instead.
///
/// A pod that is still there when `overdue` resolves is asked to terminate. Nothing is patched here: each state tells `reporter`
/// its phase, which hands it to its sink.
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
        // Apart: it is not kept for as long as the state lasts.
        let told = {
            let latest = Box::new(pod.latest());
            current.status(state, &latest).await
        };
        if let Err(error) = told {
            tracing::warn!(pod = reporter.pod().key(), %error, "a state has no status");
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
                reporter.set_phase("Failed", Some(("NodeFault", &format!("{error:#}"))));
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::PodObject;
    use crate::status::StatusSink;
    use k8s_openapi::api::core::v1::PodStatus;
    use krator::{ObjectState, SharedState, TransitionTo};
    use kubelet::pod::Status;
    use kubelet::provider::{DevicePluginSupport, PluginSupport};
    use serde_json::json;
    use std::sync::{Arc, Mutex};
    use std::time::Duration;
    use tokio::time::Instant;

    /// Tells its pod's phases by what the test's states say.
    struct TestProvider;
    struct Nothing;
    impl PluginSupport for Nothing {}
    impl DevicePluginSupport for Nothing {}

    struct TestPod {
        reporter: Arc<StatusReporter>,
        /// What its first state comes to, if anything.
        result: Option<anyhow::Result<()>>,
    }

    #[async_trait::async_trait]
    impl ObjectState for TestPod {
        type Manifest = Pod;
        type Status = Status;
        type SharedState = Nothing;
        async fn async_drop(self, _shared: &mut Nothing) {}
    }

    #[derive(Debug, Default, TransitionTo)]
    #[transition_to(Second)]
    struct First;
    #[derive(Debug, Default, TransitionTo)]
    #[transition_to()]
    struct Second;
    #[derive(Debug, Default, TransitionTo)]
    #[transition_to()]
    struct Ended;

    #[async_trait::async_trait]
    impl State<TestPod> for First {
        async fn next(
            self: Box<Self>,
            _: SharedState<Nothing>,
            state: &mut TestPod,
            _: Manifest<Pod>,
        ) -> Transition<TestPod> {
            tokio::time::sleep(Duration::from_secs(60)).await;
            match state.result.take() {
                Some(Ok(())) => Transition::next(self, Second),
                Some(Err(error)) => Transition::Complete(Err(error)),
                None => std::future::pending().await,
            }
        }

        async fn status(&self, state: &mut TestPod, _: &Pod) -> anyhow::Result<Status> {
            state.reporter.set_phase("Pending", Some(("First", "the first state")));
            Ok(Status::default())
        }
    }

    #[async_trait::async_trait]
    impl State<TestPod> for Second {
        async fn next(
            self: Box<Self>,
            _: SharedState<Nothing>,
            _: &mut TestPod,
            _: Manifest<Pod>,
        ) -> Transition<TestPod> {
            Transition::Complete(Ok(()))
        }

        async fn status(&self, state: &mut TestPod, _: &Pod) -> anyhow::Result<Status> {
            state.reporter.set_phase("Succeeded", None);
            anyhow::bail!("a status that is not to be had ends nothing")
        }
    }

    #[async_trait::async_trait]
    impl State<TestPod> for Ended {
        async fn next(
            self: Box<Self>,
            _: SharedState<Nothing>,
            _: &mut TestPod,
            _: Manifest<Pod>,
        ) -> Transition<TestPod> {
            Transition::Complete(Ok(()))
        }

        async fn status(&self, state: &mut TestPod, _: &Pod) -> anyhow::Result<Status> {
            state.reporter.set_phase("Failed", Some(("Stopped", "it was stopped")));
            Ok(Status::default())
        }
    }

    #[async_trait::async_trait]
    impl Provider for TestProvider {
        type ProviderState = Nothing;
        type PodState = TestPod;
        type InitialState = First;
        type TerminatedState = Ended;
        const ARCH: &'static str = "test";

        fn provider_state(&self) -> SharedState<Nothing> {
            Arc::new(tokio::sync::RwLock::new(Nothing))
        }

        async fn initialize_pod_state(&self, _: &Pod) -> anyhow::Result<TestPod> {
            anyhow::bail!("not used")
        }

        async fn logs(&self, _: String, _: String, _: String, _: kubelet::log::Sender) -> anyhow::Result<()> {
            anyhow::bail!("not used")
        }
    }

    /// Each phase that was told, with its reason.
    #[derive(Debug, Default)]
    struct Told(Mutex<Vec<(String, String)>>);

    impl StatusSink for Told {
        fn report(&self, _: &PodObject, status: &PodStatus) {
            let told = (status.phase.clone().unwrap_or_default(), status.reason.clone().unwrap_or_default());
            self.0.lock().unwrap().push(told);
        }
    }

    /// Drives a pod to its end: what was told, after how many seconds, and why it was stopped.
    async fn driven(
        result: Option<anyhow::Result<()>>,
        overdue: Duration,
        meanwhile: impl AsyncFnOnce(&Termination),
    ) -> (Vec<(String, String)>, u64, Option<StopReason>) {
        let spec = json!({"containers": [{"name": "c"}], "terminationGracePeriodSeconds": 7});
        let pod = json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": spec});
        let pod = PodObject { api: Arc::new(serde_json::from_value(pod).unwrap()), folder: None };
        let told = Arc::new(Told::default());
        let reporter = Arc::new(StatusReporter::new(pod.clone(), None, &[], told.clone()));
        let termination = Termination::default();
        let (_updates, manifest) = Manifest::new(pod.to_kubelet(), krator::Store::new());
        let mut state = TestPod { reporter: reporter.clone(), result };
        let started = Instant::now();
        let overdue = tokio::time::sleep(overdue);
        let drive = drive(&TestProvider, &mut state, &manifest, &reporter, &termination, overdue);
        tokio::join!(drive, meanwhile(&termination));
        let mut told = told.0.lock().unwrap().clone();
        told.dedup();
        (told, started.elapsed().as_secs(), termination.current().map(|stop| stop.reason))
    }

    fn told(phases: &[(&str, &str)]) -> Vec<(String, String)> {
        phases.iter().map(|(phase, reason)| ((*phase).to_owned(), (*reason).to_owned())).collect()
    }

    const NEVER: Duration = Duration::from_secs(1_000_000);

    #[tokio::test(start_paused = true)]
    async fn each_state_tells_its_phase_and_an_error_fails_the_pod() {
        let ended = driven(Some(Ok(())), NEVER, async |_: &Termination| {}).await;
        assert_eq!(ended, (told(&[("Pending", "First"), ("Succeeded", "")]), 60, None));
        let failed = driven(Some(Err(anyhow::anyhow!("a: b: c"))), NEVER, async |_: &Termination| {}).await;
        assert_eq!(failed, (told(&[("Pending", "First"), ("Failed", "NodeFault")]), 60, None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_is_stopped_leaves_its_state_when_none_of_its_containers_runs() {
        let phases = told(&[("Pending", "First"), ("Failed", "Stopped")]);
        let stop = async |termination: &Termination| {
            tokio::time::sleep(Duration::from_secs(5)).await;
            termination.stop(Duration::ZERO, StopReason::Deleted);
        };
        assert_eq!(driven(None, NEVER, stop).await, (phases.clone(), 5, Some(StopReason::Deleted)));
        let with_container = async |termination: &Termination| {
            let running = termination.enter(crate::termination::Place::Container);
            stop(termination).await;
            tokio::time::sleep(Duration::from_secs(3)).await;
            drop(running);
        };
        assert_eq!(driven(None, NEVER, with_container).await, (phases.clone(), 8, Some(StopReason::Deleted)));
        let overdue = driven(None, Duration::from_secs(20), async |_: &Termination| {}).await;
        assert_eq!(overdue, (phases, 20, Some(StopReason::DeadlineExceeded)));
    }
}
