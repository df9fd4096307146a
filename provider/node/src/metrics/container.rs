//! What the containers that run take.

use crate::context::{PodContext, Taken};
use crate::services::Services;
use akri_krustlet_runtime::ContainerLimits;
use k8s_openapi::api::core::v1::{ContainerStatus, PodStatus};
use std::time::Duration;

/// A container that runs, and what it has taken since it was started.
#[derive(Clone, Debug)]
pub(super) struct ContainerSample {
    pub namespace: String,
    pub pod: String,
    pub uid: String,
    pub name: String,
    pub image: String,
    pub id: String,
    /// Seconds of Unix time.
    pub started: f64,
    pub cpu: Duration,
    /// Bytes of linear memory of its guests.
    pub memory: u64,
    pub limits: ContainerLimits,
}

/// A pod with a container that runs, and what all lives of its containers have taken.
#[derive(Clone, Debug)]
pub(super) struct PodSample {
    pub taken: Taken,
    /// Those that run, at least one.
    pub containers: Vec<ContainerSample>,
}

impl PodSample {
    pub(super) fn memory(&self) -> u64 {
        self.containers.iter().map(|container| container.memory).sum()
    }
}

/// All pods with a container that runs, by namespace and name.
pub(super) fn samples(services: &Services) -> Vec<PodSample> {
    services.pods.all().iter().filter_map(|context| of_pod(context)).collect()
}

fn of_pod(context: &PodContext) -> Option<PodSample> {
    let status = context.reporter.current();
    let containers: Vec<_> = containers(&status).filter_map(|container| sample(context, container)).collect();
    (!containers.is_empty()).then(|| PodSample { taken: context.shares.taken(), containers })
}

fn sample(context: &PodContext, status: &ContainerStatus) -> Option<ContainerSample> {
    let running = status.state.as_ref()?.running.as_ref()?;
    let limits = context.limits(&status.name)?;
    Some(ContainerSample {
        namespace: context.pod.namespace().to_owned(),
        pod: context.pod.name().to_owned(),
        uid: context.pod.uid().to_owned(),
        name: status.name.clone(),
        image: status.image.clone(),
        id: status.container_id.clone().unwrap_or_default(),
        started: running.started_at.as_ref().map_or(0.0, |time| time.0.as_second() as f64),
        cpu: limits.cpu_time(),
        memory: limits.memory_in_use() as u64,
        limits: limits.limits(),
    })
}

/// How many containers are in each state: `running`, `exited`, and `created` for those that wait.
pub(super) fn states<'a>(statuses: impl Iterator<Item = &'a PodStatus>) -> [(&'static str, usize); 3] {
    let mut counts = [("created", 0), ("exited", 0), ("running", 0)];
    for container in statuses.flat_map(containers) {
        let place = match container.state.as_ref() {
            Some(state) if state.running.is_some() => 2,
            Some(state) if state.terminated.is_some() => 1,
            _ => 0,
        };
        counts[place].1 += 1;
    }
    counts
}

/// All containers of a pod, the init containers first.
fn containers(status: &PodStatus) -> impl Iterator<Item = &ContainerStatus> {
    status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten())
}
