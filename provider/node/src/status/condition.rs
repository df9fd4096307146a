//! Pod conditions, derived from the rest of the status as a kubelet derives them.

use super::now;
use k8s_openapi::api::core::v1::{ContainerStatus, PodCondition, PodStatus};

/// Brings the conditions that follow from phase and containers up to date.
pub(super) fn complete(status: &mut PodStatus, has_init_containers: bool) {
    let phase = status.phase.clone().unwrap_or_default();
    if phase.is_empty() {
        return;
    }
    let succeeded = phase == "Succeeded";
    let ended = succeeded || phase == "Failed";
    let containers = status.container_statuses.clone().unwrap_or_default();
    let init_containers = status.init_container_statuses.clone().unwrap_or_default();
    for container in status.container_statuses.iter_mut().flatten() {
        container.ready = is_running(container);
        container.started = Some(container.ready);
    }

    let init_failed = init_containers.iter().find(|container| !exited_well(container));
    let initialized = !has_init_containers || init_failed.is_none();
    let not_ready: Vec<_> =
        containers.iter().filter(|container| !is_running(container)).map(|container| container.name.as_str()).collect();
    let started = ended || containers.iter().chain(&init_containers).any(|container| container.container_id.is_some());

    set(status, "PodScheduled", true, "", "");
    set(status, "PodReadyToStartContainers", started && !ended, "", "");
    match (succeeded, initialized) {
        (true, _) => set(status, "Initialized", true, "PodCompleted", ""),
        (false, true) => set(status, "Initialized", true, "", ""),
        (false, false) => {
            let name = init_failed.map_or("", |container| container.name.as_str());
            set(
                status,
                "Initialized",
                false,
                "ContainersNotInitialized",
                &format!("init container {name} has not completed"),
            );
        }
    }
    for kind in ["ContainersReady", "Ready"] {
        match (succeeded, ended, not_ready.is_empty() && initialized) {
            (true, ..) => set(status, kind, false, "PodCompleted", ""),
            (false, true, _) => set(status, kind, false, "PodFailed", ""),
            (false, false, true) => set(status, kind, true, "", ""),
            (false, false, false) => {
                let message = format!("containers with unready status: [{}]", not_ready.join(" "));
                set(status, kind, false, "ContainersNotReady", &message);
            }
        }
    }
}

fn is_running(container: &ContainerStatus) -> bool {
    container.state.as_ref().is_some_and(|state| state.running.is_some())
}

fn exited_well(container: &ContainerStatus) -> bool {
    let ended = container.state.as_ref().and_then(|state| state.terminated.as_ref());
    ended.is_some_and(|terminated| terminated.exit_code == 0)
}

/// Sets one condition; its transition time changes only with its status.
pub(super) fn set(status: &mut PodStatus, kind: &str, is_true: bool, reason: &str, message: &str) {
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let value = if is_true { "True" } else { "False" };
    let conditions = status.conditions.get_or_insert_default();
    match conditions.iter_mut().find(|condition| condition.type_ == kind) {
        Some(condition) => {
            if condition.status != value {
                condition.status = value.to_owned();
                condition.last_transition_time = Some(now());
            }
            condition.reason = text(reason);
            condition.message = text(message);
        }
        None => conditions.push(PodCondition {
            type_: kind.to_owned(),
            status: value.to_owned(),
            reason: text(reason),
            message: text(message),
            last_transition_time: Some(now()),
            ..PodCondition::default()
        }),
    }
}
