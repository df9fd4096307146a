//! A pod's status, kept as a kubelet keeps it, and where it goes.

mod api;
mod condition;
mod config_map;
mod container;
mod mirror;
mod sink;

pub use api::ApiSink;
pub use config_map::ConfigMapSink;
pub(crate) use container::lost_with_node;
pub use container::{
    ContainerKind, allocated, failed_start, pod_allocated, pod_resized, resized, running, terminated, waiting,
};
pub use mirror::{MirrorSink, Mirrors, is_mirror};
pub use sink::{FileSink, StatusSink};

use crate::pod::{self, PodObject};
use crate::quantity;
use akri_krustlet_host::resting_memory;
use condition::Gate;
use k8s_openapi::api::core::v1::{ContainerStatus, HostIP, PodIP, PodStatus, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// Now, in the precision of the API: whole seconds.
pub fn now() -> Time {
    let now = jiff::Timestamp::now();
    Time(jiff::Timestamp::from_second(now.as_second()).unwrap_or(now))
}

/// The one place where a pod's status changes. Each change is completed (conditions, readiness) and handed to the sink
/// unless nothing has changed.
#[derive(Debug)]
pub struct StatusReporter {
    pod: PodObject,
    sink: Arc<dyn StatusSink>,
    status: Mutex<PodStatus>,
    /// What the probes of containers say, by the containers' names.
    verdicts: Mutex<BTreeMap<String, Verdict>>,
    /// The conditions of the pod's readiness gates, which others set, as they were seen last.
    gates: Mutex<Vec<Gate>>,
    changed: Notify,
}

/// What the probes of a running container say of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Its startup probe has succeeded.
    pub started: bool,
    /// And its readiness probe says so.
    pub ready: bool,
}

impl StatusReporter {
    /// The status of a pod, continuing `earlier` if the node has seen the pod before.
    pub fn new(pod: PodObject, earlier: Option<PodStatus>, addresses: &[String], sink: Arc<dyn StatusSink>) -> Self {
        let mut status = earlier.unwrap_or_default();
        status.start_time.get_or_insert_with(now);
        // The API server has computed it and refuses any other one.
        let told = pod.api.status.as_ref().and_then(|status| status.qos_class.clone());
        status.qos_class = Some(told.unwrap_or_else(|| qos_class(&pod).to_owned()));
        status.host_ip = addresses.first().cloned();
        status.host_ips = Some(addresses.iter().map(|ip| HostIP { ip: ip.clone() }).collect());
        // A guest has no network of its own: its pod's addresses are the node's.
        status.pod_ip = addresses.first().cloned();
        status.pod_ips = Some(addresses.iter().map(|ip| PodIP { ip: ip.clone() }).collect());
        status.observed_generation = pod.api.metadata.generation;
        for (kind, containers) in
            [(ContainerKind::Init, pod.init_containers()), (ContainerKind::App, pod.spec().containers.as_slice())]
        {
            let statuses = statuses_mut(&mut status, kind);
            statuses.reserve_exact(containers.len().saturating_sub(statuses.len()));
            for spec in containers
                .iter()
                .filter(|spec| statuses.iter().all(|status| status.name != spec.name))
                .collect::<Vec<_>>()
            {
                statuses.push(container::initial(spec, !pod.init_containers().is_empty()));
            }
        }
        let gates = Mutex::new(Gate::of(&pod));
        Self { pod, sink, status: Mutex::new(status), verdicts: Mutex::default(), gates, changed: Notify::new() }
    }

    /// The pod.
    pub fn pod(&self) -> &PodObject {
        &self.pod
    }

    /// The node has taken notice of this generation of the pod.
    pub fn observed(&self, pod: &PodObject) {
        *self.gates.lock().unwrap_or_else(PoisonError::into_inner) = Gate::of(pod);
        self.update(|status| status.observed_generation = pod.api.metadata.generation);
    }

    /// The pod's volumes are there: its containers can be started.
    pub fn set_ready_to_start(&self) {
        self.set_condition(condition::READY_TO_START, true, "", "");
    }

    /// Nothing of the pod runs, or ever will: what should have been started and was not is said to be lost, as a kubelet says it.
    pub fn set_all_terminated(&self) {
        self.update(|status| {
            let mut initialized = true;
            for container in status.init_container_statuses.iter_mut().flatten() {
                if initialized {
                    container::never_started(container);
                }
                // The others do not wait for the end of a sidecar.
                initialized &= self.is_sidecar(&container.name) || condition::exited_well(container);
            }
            if initialized {
                status.container_statuses.iter_mut().flatten().for_each(container::never_started);
            }
        });
    }

    /// The pod's containers have ended for good, and so have its sidecars: one that was about to be started again is not.
    pub fn set_sidecars_terminated(&self) {
        self.update(|status| {
            for container in status.init_container_statuses.iter_mut().flatten() {
                if self.is_sidecar(&container.name) {
                    container::never_started(container);
                }
            }
        });
    }

    fn is_sidecar(&self, name: &str) -> bool {
        self.pod.init_containers().iter().any(|container| container.name == name && pod::is_sidecar(container))
    }

    /// The status as it is now.
    pub fn current(&self) -> PodStatus {
        self.lock().clone()
    }

    /// The pod's phase and why it is in it: in one word, and in words.
    pub fn set_phase(&self, phase: &str, why: Option<(&str, &str)>) {
        self.update(|status| {
            status.phase = Some(phase.to_owned());
            status.reason = why.map(|(reason, _)| reason.to_owned());
            status.message = why.map(|(_, message)| message.to_owned());
        });
    }

    /// Changes the status of one container.
    pub fn update_container(&self, kind: ContainerKind, name: &str, change: impl FnOnce(&mut ContainerStatus)) {
        self.update(|status| {
            if let Some(status) = statuses_mut(status, kind).iter_mut().find(|status| status.name == name) {
                change(status);
            }
        });
    }

    /// The status of one container.
    pub fn container(&self, kind: ContainerKind, name: &str) -> Option<ContainerStatus> {
        let mut status = self.lock().clone();
        statuses_mut(&mut status, kind).iter().find(|status| status.name == name).cloned()
    }

    /// Whether every container that was started has succeeded, and at least one was.
    pub fn has_succeeded(&self) -> bool {
        let status = self.lock();
        let ended = |container: &ContainerStatus| {
            let ended = container.state.as_ref().and_then(|state| state.terminated.as_ref());
            ended.is_some_and(|ended| ended.exit_code == 0)
        };
        let containers = status.container_statuses.as_deref().unwrap_or_default();
        !containers.is_empty() && containers.iter().all(ended)
    }

    /// Sets a condition of our own, such as [`DISCOVERY_HEALTHY`].
    pub fn set_condition(&self, kind: &str, is_true: bool, reason: &str, message: &str) {
        self.update(|status| condition::set(status, kind, is_true, reason, message));
    }

    /// Changes the status; reports it if it is another one then.
    pub fn update(&self, change: impl FnOnce(&mut PodStatus)) {
        let mut status = self.lock();
        let before = status.clone();
        change(&mut status);
        if !matches!(status.phase.as_deref(), None | Some("Succeeded" | "Failed")) {
            status.phase = Some(condition::phase(&status).to_owned());
        }
        let is_sidecar = |name: &str| self.is_sidecar(name);
        let gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        condition::complete(&mut status, &self.verdicts(), &is_sidecar, &gates);
        drop(gates);
        if *status != before {
            self.changed.notify_waiters();
            resting_memory::has_worked();
            self.sink.report(&self.pod, &status);
        }
    }

    /// Resolves when a sidecar has been started, as its startup probe says if it has one.
    pub async fn started(&self, name: &str) {
        loop {
            let changed = self.changed.notified();
            if self.container(ContainerKind::Init, name).is_some_and(|status| status.started == Some(true)) {
                return;
            }
            changed.await;
        }
    }

    /// Resolves when the pod has ended.
    pub async fn ended(&self) {
        loop {
            let changed = self.changed.notified();
            if is_final(&self.current()) {
                return;
            }
            changed.await;
        }
    }

    /// The probes of a container say something, or are about to.
    pub fn set_verdict(&self, container: &str, verdict: Verdict) {
        let old = self.verdicts().insert(container.to_owned(), verdict);
        if old != Some(verdict) {
            self.update(|_| {});
        }
    }

    fn verdicts(&self) -> MutexGuard<'_, BTreeMap<String, Verdict>> {
        self.verdicts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, PodStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Nothing changes any more in such a status: the pod has ended.
pub(crate) fn is_final(status: &PodStatus) -> bool {
    matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"))
}

/// What the API server has of the lives of a pod's containers that this node does not know of, because its data was lost: their numbers
/// and ends. Init containers run again.
pub(crate) fn begun(told: &PodStatus) -> Option<PodStatus> {
    let has_run = |container: &&ContainerStatus| {
        let state = container.state.as_ref();
        container.restart_count > 0 || state.is_some_and(|state| state.running.is_some() || state.terminated.is_some())
    };
    let containers: Vec<_> = told.container_statuses.iter().flatten().filter(has_run).cloned().collect();
    (!containers.is_empty()).then(|| PodStatus {
        start_time: told.start_time.clone(),
        container_statuses: Some(containers),
        ..PodStatus::default()
    })
}

/// Reasons of failures that are the node's, and may be over later.
const GIVEN_UP: [&str; 5] = ["Evicted", "UnexpectedAdmissionError", "NodeFault", "NodeShutdown", "Terminated"];

/// Whether the node failed the pod for what may be otherwise later: it was short of something, a device was not to be had, or the
/// machine went down.
pub fn is_given_up(status: &PodStatus) -> bool {
    let reason = status.reason.as_deref().unwrap_or_default();
    status.phase.as_deref() == Some("Failed") && (GIVEN_UP.contains(&reason) || reason.starts_with("OutOf"))
}

/// Condition of a pod that the node ends for a reason that is not the pod's.
pub const DISRUPTION_TARGET: &str = "DisruptionTarget";

/// Condition of a pod that has not been granted the requests and limits that it asks for.
pub const RESIZE_PENDING: &str = "PodResizePending";

/// Condition of a pod whose containers do not have yet what it was granted.
pub const RESIZE_IN_PROGRESS: &str = "PodResizeInProgress";

/// Condition of a pod with a discovery handler: whether its answers are used.
pub const DISCOVERY_HEALTHY: &str = "DiscoveryHealthy";

fn statuses_mut(status: &mut PodStatus, kind: ContainerKind) -> &mut Vec<ContainerStatus> {
    match kind {
        ContainerKind::Init => status.init_container_statuses.get_or_insert_default(),
        ContainerKind::App => status.container_statuses.get_or_insert_default(),
    }
}

/// The quality-of-service class that the API defines. Zero is as good as nothing.
pub(crate) fn qos_class(pod: &PodObject) -> &'static str {
    let of_pod = pod.spec().resources.iter();
    let of_containers = pod.init_containers().iter().chain(&pod.spec().containers);
    let resources: Vec<_> = match of_pod.clone().next() {
        Some(_) => of_pod.cloned().collect(),
        None => of_containers.map(|container| container.resources.clone().unwrap_or_default()).collect(),
    };
    let mut any = false;
    let mut guaranteed = true;
    for ResourceRequirements { limits, requests, .. } in resources {
        for name in ["cpu", "memory"] {
            let of = |amounts: &Option<BTreeMap<String, Quantity>>| {
                let amount = quantity::parse(&amounts.as_ref()?.get(name)?.0).ok()?;
                (!amount.is_zero()).then_some(amount)
            };
            let (limit, request) = (of(&limits), of(&requests));
            any |= limit.is_some() || request.is_some();
            guaranteed &= limit.is_some() && (request.is_none() || request == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn the_quality_of_service_is_that_which_the_api_server_computes() {
        let class = |resources: Value| {
            let pod = json!({"spec": {"containers": [{"name": "c", "resources": resources}]}});
            qos_class(&PodObject { api: Arc::new(serde_json::from_value(pod).unwrap()), folder: None })
        };
        for (resources, expected) in [
            (json!({}), "BestEffort"),
            (json!({"requests": {"cpu": "0"}}), "BestEffort"),
            (json!({"limits": {"cpu": "0", "memory": "0m"}}), "BestEffort"),
            (json!({"requests": {"example.com/thing": "1"}}), "BestEffort"),
            (json!({"limits": {"memory": "1Gi"}}), "Burstable"),
            (
                json!({"limits": {"cpu": "0.1", "memory": "64Mi"}, "requests": {"cpu": "100m", "memory": "65536Ki"}}),
                "Guaranteed",
            ),
            (json!({"limits": {"cpu": "1", "memory": "64Mi"}, "requests": {"cpu": "0"}}), "Guaranteed"),
            (json!({"limits": {"cpu": "1", "memory": "64Mi"}, "requests": {"cpu": "500m"}}), "Burstable"),
        ] {
            assert_eq!(class(resources.clone()), expected, "{resources}");
        }
    }
}
