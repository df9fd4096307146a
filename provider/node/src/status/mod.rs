//! A pod's status, kept as a kubelet keeps it, and where it goes.

mod api;
mod condition;
mod container;
mod sink;

pub use api::ApiSink;
pub(crate) use container::lost_with_node;
pub use container::{ContainerKind, failed_start, running, terminated, waiting};
pub use sink::{FileSink, StatusSink};

use crate::pod::PodObject;
use k8s_openapi::api::core::v1::{ContainerStatus, HostIP, PodIP, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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
}

impl StatusReporter {
    /// The status of a pod, continuing `earlier` if the node has seen the pod before.
    pub fn new(pod: PodObject, earlier: Option<PodStatus>, addresses: &[String], sink: Arc<dyn StatusSink>) -> Self {
        let mut status = earlier.unwrap_or_default();
        status.start_time.get_or_insert_with(now);
        status.qos_class.get_or_insert_with(|| qos_class(&pod).to_owned());
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
            for spec in containers
                .iter()
                .filter(|spec| statuses.iter().all(|status| status.name != spec.name))
                .collect::<Vec<_>>()
            {
                statuses.push(container::initial(spec, !pod.init_containers().is_empty()));
            }
        }
        Self { pod, sink, status: Mutex::new(status) }
    }

    /// The pod.
    pub fn pod(&self) -> &PodObject {
        &self.pod
    }

    /// The node has taken notice of a change to the pod.
    pub fn observed(&self, pod: &PodObject) {
        self.update(|status| status.observed_generation = pod.api.metadata.generation);
    }

    /// The status as it is now.
    pub fn current(&self) -> PodStatus {
        self.lock().clone()
    }

    /// Takes the patch of a state: its phase, and `<Reason>: <message>` in one text; an empty text clears both.
    pub fn apply_patch(&self, patch: &serde_json::Value) {
        let field = |name: &str| patch.pointer(&format!("/status/{name}")).and_then(|value| value.as_str());
        self.update(|status| {
            if let Some(phase) = field("phase") {
                status.phase = Some(phase.to_owned());
            }
            let Some(text) = field("message") else { return };
            let (reason, message) = match text.split_once(": ") {
                Some((reason, message)) if reason.bytes().all(|byte| byte.is_ascii_alphanumeric()) => (reason, message),
                _ => ("", text),
            };
            status.reason = (!reason.is_empty()).then(|| reason.to_owned());
            status.message = (!message.is_empty()).then(|| message.to_owned());
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
        condition::complete(&mut status, !self.pod.init_containers().is_empty());
        if *status != before {
            self.sink.report(&self.pod, &status);
        }
    }

    fn lock(&self) -> MutexGuard<'_, PodStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Condition of a pod with a discovery handler: whether its answers are used.
pub const DISCOVERY_HEALTHY: &str = "DiscoveryHealthy";

fn statuses_mut(status: &mut PodStatus, kind: ContainerKind) -> &mut Vec<ContainerStatus> {
    match kind {
        ContainerKind::Init => status.init_container_statuses.get_or_insert_default(),
        ContainerKind::App => status.container_statuses.get_or_insert_default(),
    }
}

/// The quality-of-service class that the API defines.
pub(crate) fn qos_class(pod: &PodObject) -> &'static str {
    let mut any = false;
    let mut guaranteed = true;
    for container in pod.init_containers().iter().chain(&pod.spec().containers) {
        let resources = container.resources.clone().unwrap_or_default();
        let (limits, requests) = (resources.limits.unwrap_or_default(), resources.requests.unwrap_or_default());
        for name in ["cpu", "memory"] {
            any |= limits.contains_key(name) || requests.contains_key(name);
            guaranteed &=
                limits.contains_key(name) && requests.get(name).is_none_or(|request| Some(request) == limits.get(name));
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}
