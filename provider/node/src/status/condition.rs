//! Pod conditions, derived from the rest of the status as a kubelet derives them.

use super::{Verdict, now};
use crate::pod::PodObject;
use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, PodCondition, PodReadinessGate, PodStatus};
use std::collections::BTreeMap;

/// The pod's volumes are there and its containers can be started; a kubelet has made the pod's sandbox then.
pub(crate) const READY_TO_START: &str = "PodReadyToStartContainers";

/// A condition that somebody else sets and without which the pod is not ready (`spec.readinessGates`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Gate {
    kind: String,
    /// The condition's status, if there is one.
    status: Option<String>,
}

impl Gate {
    /// Those of a pod, as the API has it.
    pub(super) fn of(pod: &PodObject) -> Vec<Self> {
        let conditions = pod.api.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        let gate = |gate: &PodReadinessGate| {
            let condition = conditions.iter().find(|condition| condition.type_ == gate.condition_type);
            Self { kind: gate.condition_type.clone(), status: condition.map(|condition| condition.status.clone()) }
        };
        pod.spec().readiness_gates.iter().flatten().map(gate).collect()
    }

    /// Why it keeps the pod from being ready, in a kubelet's words.
    fn closed(&self) -> Option<String> {
        let kind = &self.kind;
        match self.status.as_deref() {
            Some("True") => None,
            Some(status) => Some(format!("the status of pod readiness gate \"{kind}\" is not \"True\", but {status}")),
            None => Some(format!("corresponding condition of pod readiness gate \"{kind}\" does not exist.")),
        }
    }
}

/// Brings what follows from phase and containers up to date.
pub(super) fn complete(
    status: &mut PodStatus,
    verdicts: &BTreeMap<String, Verdict>,
    is_sidecar: &dyn Fn(&str) -> bool,
    gates: &[Gate],
) {
    let phase = status.phase.clone().unwrap_or_default();
    if phase.is_empty() {
        return;
    }
    let succeeded = phase == "Succeeded";
    let ended = succeeded || phase == "Failed";
    let by_probes = |container: &mut ContainerStatus| {
        let verdict = verdicts.get(&container.name).copied().unwrap_or(Verdict { started: true, ready: true });
        container.ready = is_running(container) && verdict.ready;
        container.started = Some(is_running(container) && verdict.started);
    };
    status.container_statuses.iter_mut().flatten().for_each(by_probes);
    for container in status.init_container_statuses.iter_mut().flatten() {
        if is_sidecar(&container.name) {
            by_probes(container);
        } else {
            container.ready = exited_well(container);
            container.started = Some(is_running(container));
        }
    }
    let names = |containers: &[&ContainerStatus]| {
        containers.iter().map(|container| container.name.clone()).collect::<Vec<_>>().join(" ")
    };
    let init = || status.init_container_statuses.iter().flatten();
    let is_incomplete = |container: &&ContainerStatus| match is_sidecar(&container.name) {
        true => container.started != Some(true),
        false => !container.ready,
    };
    let incomplete = names(&init().filter(is_incomplete).collect::<Vec<_>>());
    let all = init().filter(|container| is_sidecar(&container.name));
    let all = all.chain(status.container_statuses.iter().flatten());
    let unready = names(&all.filter(|container| !container.ready).collect::<Vec<_>>());
    let was_started = status.container_statuses.iter().flatten().any(has_been_started);

    set(status, "PodScheduled", true, "", "");
    let ready_to_start = !ended && is_true(status, READY_TO_START);
    set(status, READY_TO_START, ready_to_start, "", "");
    if succeeded {
        set(status, "Initialized", true, "PodCompleted", "");
    } else if incomplete.is_empty() || was_started {
        set(status, "Initialized", true, "", "");
    } else {
        let message = format!("containers with incomplete status: [{incomplete}]");
        set(status, "Initialized", false, "ContainersNotInitialized", &message);
    }
    for kind in ["ContainersReady", "Ready"] {
        if succeeded {
            set(status, kind, false, "PodCompleted", "");
        } else if ended {
            set(status, kind, false, "PodFailed", "");
        } else if unready.is_empty() {
            let closed: Vec<_> = gates.iter().filter(|_| kind == "Ready").filter_map(Gate::closed).collect();
            let reason = if closed.is_empty() { "" } else { "ReadinessGatesNotReady" };
            set(status, kind, closed.is_empty(), reason, &closed.join(", "));
        } else {
            set(status, kind, false, "ContainersNotReady", &format!("containers with unready status: [{unready}]"));
        }
    }
}

/// The phase of a pod that has not ended: Running from when its last container has been started for the first time.
pub(super) fn phase(status: &PodStatus) -> &'static str {
    let containers = status.container_statuses.as_deref().unwrap_or_default();
    let started = !containers.is_empty() && containers.iter().all(has_been_started);
    if started { "Running" } else { "Pending" }
}

/// It runs, or ran before.
fn has_been_started(container: &ContainerStatus) -> bool {
    // One whose end nobody knows may never have been.
    let ran = |state: &Option<ContainerState>| {
        let ended = state.as_ref().and_then(|state| state.terminated.as_ref());
        let is_known = ended.is_some_and(|ended| ended.reason.as_deref() != Some(super::container::STATUS_UNKNOWN));
        is_known || state.as_ref().is_some_and(|state| state.running.is_some())
    };
    ran(&container.state) || ran(&container.last_state)
}

fn is_true(status: &PodStatus, kind: &str) -> bool {
    status.conditions.iter().flatten().any(|condition| condition.type_ == kind && condition.status == "True")
}

fn is_running(container: &ContainerStatus) -> bool {
    container.state.as_ref().is_some_and(|state| state.running.is_some())
}

pub(super) fn exited_well(container: &ContainerStatus) -> bool {
    let ended = container.state.as_ref().and_then(|state| state.terminated.as_ref());
    ended.is_some_and(|terminated| terminated.exit_code == 0)
}

/// Sets one condition; its transition time changes only with its status.
pub(super) fn set(status: &mut PodStatus, kind: &str, is_true: bool, reason: &str, message: &str) {
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let value = if is_true { "True" } else { "False" };
    let observed_generation = status.observed_generation;
    let conditions = status.conditions.get_or_insert_default();
    match conditions.iter_mut().find(|condition| condition.type_ == kind) {
        Some(condition) => {
            if condition.status != value {
                condition.status = value.to_owned();
                condition.last_transition_time = Some(now());
            }
            condition.reason = text(reason);
            condition.message = text(message);
            condition.observed_generation = observed_generation;
        }
        None => conditions.push(PodCondition {
            type_: kind.to_owned(),
            status: value.to_owned(),
            reason: text(reason),
            message: text(message),
            last_transition_time: Some(now()),
            observed_generation,
            ..PodCondition::default()
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn completed(status: Value) -> Value {
        let mut status: PodStatus = serde_json::from_value(status).unwrap();
        complete(&mut status, &BTreeMap::new(), &|name| name.starts_with("sidecar"), &[]);
        let conditions = status.conditions.into_iter().flatten();
        conditions
            .map(|condition| {
                let text =
                    format!("{} {}", condition.status, condition.message.or(condition.reason).unwrap_or_default());
                (condition.type_, json!(text.trim()))
            })
            .collect::<serde_json::Map<_, _>>()
            .into()
    }

    fn container(name: &str, state: Value) -> Value {
        json!({"name": name, "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state})
    }

    #[test]
    fn a_pod_is_ready_when_its_gates_are_open() {
        let ready = |conditions: Value| {
            let spec = json!({"containers": [], "readinessGates": [{"conditionType": "example.com/gate"}]});
            let pod = json!({"metadata": {}, "spec": spec, "status": {"conditions": conditions}});
            let pod = PodObject { api: std::sync::Arc::new(serde_json::from_value(pod).unwrap()), folder: None };
            let status = json!({"phase": "Running", "containerStatuses": [container("a", json!({"running": {}}))]});
            let mut status: PodStatus = serde_json::from_value(status).unwrap();
            complete(&mut status, &BTreeMap::new(), &|_| false, &Gate::of(&pod));
            let of = |kind: &str| status.conditions.iter().flatten().find(|one| one.type_ == kind).unwrap().clone();
            assert_eq!(of("ContainersReady").status, "True");
            let ready = of("Ready");
            (ready.status, ready.reason.unwrap_or_default(), ready.message.unwrap_or_default())
        };
        let closed = |message: &str| ("False".to_owned(), "ReadinessGatesNotReady".to_owned(), message.to_owned());
        let missing = "corresponding condition of pod readiness gate \"example.com/gate\" does not exist.";
        assert_eq!(ready(json!([])), closed(missing));
        let false_ = "the status of pod readiness gate \"example.com/gate\" is not \"True\", but False";
        assert_eq!(ready(json!([{"type": "example.com/gate", "status": "False"}])), closed(false_));
        let open = json!([{"type": "example.com/gate", "status": "True"}]);
        assert_eq!(ready(open), ("True".to_owned(), String::new(), String::new()));
    }

    #[test]
    fn conditions_follow_from_the_containers() {
        let (running, waiting) = (json!({"running": {}}), json!({"waiting": {"reason": "ImagePullBackOff"}}));
        let exited = |code: i32| json!({"terminated": {"exitCode": code}});
        let some = completed(json!({"phase": "Pending",
            "containerStatuses": [container("a", running.clone()), container("b", waiting.clone())]}));
        assert_eq!(some["Ready"], "False containers with unready status: [b]");
        assert_eq!(some["Initialized"], "True");
        let sidecar = |started: &Value| {
            completed(json!({"phase": "Pending", "containerStatuses": [container("a", running.clone())],
                "initContainerStatuses": [container("sidecar", started.clone())]}))
        };
        assert_eq!(sidecar(&running)["Ready"], "True");
        assert_eq!(sidecar(&waiting)["Ready"], "False containers with unready status: [sidecar]");
        let init = completed(json!({"phase": "Pending", "containerStatuses": [container("a", waiting.clone())],
            "initContainerStatuses": [container("x", exited(0)), container("y", exited(3)), container("z", waiting.clone())]}));
        assert_eq!(init["Initialized"], "False containers with incomplete status: [y z]");
        let failed = completed(json!({"phase": "Failed", "containerStatuses": [container("a", exited(3))]}));
        assert_eq!(
            (&failed["Ready"], &failed["PodReadyToStartContainers"]),
            (&json!("False PodFailed"), &json!("False"))
        );
    }

    #[test]
    fn a_pod_runs_from_when_its_last_container_has_been_started() {
        let phase = |status: Value| phase(&serde_json::from_value(status).unwrap());
        let (running, waiting) = (json!({"running": {}}), json!({"waiting": {"reason": "x"}}));
        let one = container("a", running.clone());
        let other = container("b", waiting.clone());
        assert_eq!(phase(json!({"containerStatuses": [one.clone(), other]})), "Pending");
        let mut backs_off = container("b", waiting);
        backs_off["lastState"] = json!({"terminated": {"exitCode": 1}});
        assert_eq!(phase(json!({"containerStatuses": [one, backs_off]})), "Running");
        assert_eq!(phase(json!({})), "Pending");
    }
}
