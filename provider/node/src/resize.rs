//! Requests and limits, of containers and of the pod as a whole, that change while a pod runs (`kubectl patch --subresource resize`),
//! as a kubelet takes them over.
//!
//! # Flow
//! 1. The API has other resources of a pod or its containers than the pod was granted ([`update`]).
//! 2. They fit beside the other pods: they are granted. They don't: the pod keeps what it has, and its condition `PodResizePending`
//!    says so; they are asked for again when another pod ends, and every ten seconds.
//! 3. What is granted, the containers that run get ([`settle`]): at once, or by another start where their `resizePolicy` says so
//!    ([`must_restart`]). A limit of memory below what the guests have waits; the condition `PodResizeInProgress` says so.

use crate::admission;
use crate::cluster::events::EventType;
use crate::context::{PodContext, Resizing, find};
use crate::pod::{PodObject, is_sidecar};
use crate::status::{self, ContainerKind, RESIZE_IN_PROGRESS, RESIZE_PENDING, is_final};
use k8s_openapi::api::core::v1::{Container, Pod, PodStatus, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The containers whose resources can change: not those of init containers that run once.
fn resizable(pod: &PodObject) -> impl Iterator<Item = (ContainerKind, &Container)> {
    let sidecars = pod.init_containers().iter().filter(|container| is_sidecar(container));
    let containers = pod.spec().containers.iter().map(|container| (ContainerKind::App, container));
    sidecars.map(|container| (ContainerKind::Init, container)).chain(containers)
}

/// Requests and limits, which are all that can change of a container's resources.
fn amounts(resources: Option<&ResourceRequirements>) -> [BTreeMap<String, Quantity>; 2] {
    let of = |amounts: Option<&BTreeMap<String, Quantity>>| amounts.cloned().unwrap_or_default();
    [
        of(resources.and_then(|resources| resources.requests.as_ref())),
        of(resources.and_then(|resources| resources.limits.as_ref())),
    ]
}

fn differ(one: &PodObject, other: &PodObject) -> bool {
    let of = |pod: &PodObject| {
        let of_containers = resizable(pod).map(|(_, container)| amounts(container.resources.as_ref()));
        of_containers.chain([amounts(pod.spec().resources.as_ref())]).collect::<Vec<_>>()
    };
    of(one) != of(other)
}

/// `pod` with other resources as a whole, and by the containers' kinds and names.
fn with(
    pod: &PodObject,
    of_pod: Option<ResourceRequirements>,
    resources: impl Fn(ContainerKind, &str) -> Option<ResourceRequirements>,
) -> PodObject {
    let mut api = (*pod.api).clone();
    if let Some(spec) = &mut api.spec {
        spec.resources = of_pod;
        let lists =
            [(ContainerKind::Init, spec.init_containers.as_mut()), (ContainerKind::App, Some(&mut spec.containers))];
        for (kind, containers) in lists {
            for container in containers.into_iter().flatten() {
                if let Some(resources) = resources(kind, &container.name) {
                    container.resources = Some(resources);
                }
            }
        }
    }
    PodObject { api: Arc::new(api), folder: pod.folder.clone() }
}

/// The pod with what it had been granted in an earlier life of the node, as that is remembered, and what it asks for if that is
/// something else.
pub fn granted_before(pod: &PodObject, remembered: Option<Pod>) -> (PodObject, Resizing) {
    let Some(remembered) = remembered.map(|api| PodObject { api: Arc::new(api), folder: None }) else {
        return (pod.clone(), Resizing::default());
    };
    let granted = as_granted(pod, &remembered);
    match differ(&granted, pod) {
        true => (granted, Resizing { asked: Some(pod.clone()), ..Resizing::default() }),
        false => (pod.clone(), Resizing::default()),
    }
}

/// `pod` with the requests and limits of `granted`.
fn as_granted(pod: &PodObject, granted: &PodObject) -> PodObject {
    with(pod, granted.spec().resources.clone(), |kind, name| {
        Some(find(granted, kind, name)?.resources.clone().unwrap_or_default())
    })
}

/// Takes away what an earlier life of the node has told of a resize, unless it is still so: its containers are started again.
pub fn forget_told(status: &mut PodStatus, resizing: &Resizing) {
    let is_over = |kind: &str| kind == RESIZE_IN_PROGRESS || (kind == RESIZE_PENDING && resizing.asked.is_none());
    if let Some(conditions) = &mut status.conditions {
        conditions.retain(|one| !is_over(&one.type_));
    }
}

/// A change of the pod, which its status tells to be observed already: its containers get what it asks for if the node has it, and go on with what they have if not.
pub fn update(context: &PodContext, pod: &PodObject) {
    // Until it is settled: a container that is started meanwhile settles after that.
    let mut resizing = context.resizing();
    let pod = ask(context, &context.latest(), pod, &mut resizing);
    context.update(&pod);
    settle_locked(context, &mut resizing);
}

/// Asks once more for requests and limits that the pod was not granted, or that its containers could not be given; true if they have
/// been granted.
pub fn retry(context: &PodContext) -> bool {
    let mut resizing = context.resizing();
    // Nearly all pods, each time that one ends; and one that is to end needs no more.
    if !resizing.is_outstanding() || context.termination.current().is_some() {
        return false;
    }
    let granted = match resizing.asked.clone() {
        Some(asked) if grant(context, &asked, &mut resizing) => {
            // All else of the pod is as it was seen last.
            context.latest.send_replace(as_granted(&context.latest(), &asked));
            true
        }
        _ => false,
    };
    settle_locked(context, &mut resizing);
    granted
}

/// The pod with what it asks for, or with what it has been granted before.
fn ask(context: &PodContext, granted: &PodObject, pod: &PodObject, resizing: &mut Resizing) -> PodObject {
    if !differ(granted, pod) || is_final(&context.reporter.current()) {
        if resizing.asked.take().is_some() {
            remove(context, RESIZE_PENDING);
        }
        return pod.clone();
    }
    if resizing.asked.replace(pod.clone()).is_some_and(|asked| differ(&asked, pod)) {
        // Another wish is told as one.
        remove(context, RESIZE_PENDING);
    }
    if grant(context, pod, resizing) { pod.clone() } else { as_granted(pod, granted) }
}

/// Whether the node has what a pod asks for, which is counted then; if not, the pod's condition says why.
fn grant(context: &PodContext, pod: &PodObject, resizing: &mut Resizing) -> bool {
    let services = &context.services;
    let node = services.cluster.as_ref().map(|cluster| cluster.node.borrow().clone());
    // How much there is may not have been told yet; without a cluster nothing bounds it.
    let Some(node) = node.map_or(Some(None), |told| told.map(Some)) else { return false };
    match services.admitted.resize(pod, node.as_deref()) {
        Ok(()) => {
            (resizing.asked, resizing.in_progress) = (None, true);
            remove(context, RESIZE_PENDING);
            event(context, pod, EventType::Normal, "ResizeStarted", "Pod resize started", None);
            true
        }
        Err(rejection) => {
            let was_told = has_condition(context, RESIZE_PENDING, "Deferred");
            context.reporter.set_condition(RESIZE_PENDING, true, "Deferred", &rejection.message);
            if !was_told {
                let message = Some(rejection.message.as_str());
                event(context, pod, EventType::Warning, "ResizeDeferred", "Pod resize Deferred", message);
            }
            false
        }
    }
}

/// Gives the containers that run what the pod has been granted; also one that was started with what was granted before.
pub fn settle(context: &PodContext) {
    settle_locked(context, &mut context.resizing());
}

fn settle_locked(context: &PodContext, resizing: &mut Resizing) {
    let latest = context.latest();
    let (mut errors, mut waits) = (Vec::new(), false);
    for (kind, container) in resizable(&latest) {
        let Some(status) = context.reporter.container(kind, &container.name) else { continue };
        // One that does not run is started with them.
        if status.state.as_ref().is_none_or(|state| state.running.is_none())
            || amounts(status.resources.as_ref()) == amounts(container.resources.as_ref())
        {
            continue;
        }
        let runs_with = Container { resources: status.resources, ..Container::default() };
        if must_restart(&runs_with, container) {
            waits = true;
        } else if let Err(error) = resize(context, container) {
            errors.push(error);
            context.reporter.update_container(kind, &container.name, |status| status::allocated(status, container));
        } else {
            context.reporter.update_container(kind, &container.name, |status| status::resized(status, container));
        }
    }
    if let Err(error) = settle_pod(context, &latest) {
        errors.push(error);
    }
    if errors.is_empty() && !waits {
        if std::mem::take(&mut resizing.unsettled) {
            remove(context, RESIZE_IN_PROGRESS);
        }
        if std::mem::take(&mut resizing.in_progress) {
            event(context, &latest, EventType::Normal, "ResizeCompleted", "Pod resize completed", None);
        }
        return;
    }
    resizing.unsettled = true;
    let error = errors.join(", ");
    let reason = if error.is_empty() { "" } else { "Error" };
    let was_told = has_condition(context, RESIZE_IN_PROGRESS, reason);
    context.reporter.set_condition(RESIZE_IN_PROGRESS, true, reason, &error);
    if !error.is_empty() && !was_told {
        event(context, &latest, EventType::Warning, "ResizeError", "Pod resize error", Some(&error));
    }
}

/// Gives the pod as a whole what it has been granted.
fn settle_pod(context: &PodContext, latest: &PodObject) -> Result<(), String> {
    let resources = latest.spec().resources.as_ref();
    if amounts(context.reporter.current().resources.as_ref()) == amounts(resources) {
        return Ok(());
    }
    let limits = admission::pod_limits(latest).map_err(|error| error.to_string())?;
    let result = context.pod_share.resize(limits).map_err(|in_use| {
        let asked = limits.memory.unwrap_or_default();
        format!("attempting to set pod memory limit ({asked}) below current usage ({in_use})")
    });
    context.reporter.update(|status| match result {
        Ok(()) => status::pod_resized(status, latest),
        Err(_) => status::pod_allocated(status, latest),
    });
    result
}

fn has_condition(context: &PodContext, kind: &str, reason: &str) -> bool {
    let mut conditions = context.reporter.current().conditions.into_iter().flatten();
    conditions.any(|one| one.type_ == kind && one.reason.as_deref().unwrap_or_default() == reason)
}

fn resize(context: &PodContext, container: &Container) -> Result<(), String> {
    let limits = admission::limits(&context.latest(), container).map_err(|error| error.to_string())?;
    let Some(share) = context.limits(&container.name) else { return Ok(()) };
    share.resize(limits.memory, limits.cpu_millis).map_err(|in_use| {
        format!(
            "attempting to set container {:?} memory limit ({}) below current usage ({in_use})",
            container.name, limits.memory
        )
    })
}

/// Resolves when the container is to be started again for other requests or limits than these.
pub async fn restart_wanted(context: &PodContext, kind: ContainerKind, container: &Container) {
    context.changed(kind, container, |latest| must_restart(container, latest)).await;
}

/// Whether a container that runs with the resources of `old` has to be started again for those of `new`, as its `resizePolicy` says
/// for a resource that changes.
pub fn must_restart(old: &Container, new: &Container) -> bool {
    let ([old_requests, old_limits], [requests, limits]) =
        (amounts(old.resources.as_ref()), amounts(new.resources.as_ref()));
    let changes = |resource: &str| {
        // Nothing of a guest depends on how much memory it has asked for.
        let requested = resource == "cpu" && old_requests.get(resource) != requests.get(resource);
        requested || old_limits.get(resource) != limits.get(resource)
    };
    let mut restarts = new.resize_policy.iter().flatten().filter(|policy| policy.restart_policy == "RestartContainer");
    restarts.any(|policy| changes(&policy.resource_name))
}

fn remove(context: &PodContext, condition: &str) {
    context.reporter.update(|status| {
        if let Some(conditions) = &mut status.conditions {
            conditions.retain(|one| one.type_ != condition);
        }
    });
}

/// The pod's resources as a kubelet's events tell them.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Summary<'a> {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    init_containers: Vec<SummaryOfOne<'a>>,
    containers: Vec<SummaryOfOne<'a>>,
    generation: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

#[derive(Serialize)]
struct SummaryOfOne<'a> {
    name: &'a str,
    resources: ResourceRequirements,
}

impl<'a> SummaryOfOne<'a> {
    fn of(container: &'a Container) -> Self {
        Self { name: &container.name, resources: container.resources.clone().unwrap_or_default() }
    }
}

fn event(context: &PodContext, pod: &PodObject, of: EventType, reason: &'static str, what: &str, error: Option<&str>) {
    let summary = Summary {
        init_containers: pod.init_containers().iter().map(SummaryOfOne::of).collect(),
        containers: pod.spec().containers.iter().map(SummaryOfOne::of).collect(),
        generation: pod.api.metadata.generation.unwrap_or_default(),
        error,
    };
    let summary = serde_json::to_string(&summary).unwrap_or_default();
    context.services.events.pod(&context.pod, of, reason, format!("{what}: {summary}"));
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(cpu: &str, memory: &str) -> PodObject {
        let resources = json!({"requests": {"cpu": cpu}, "limits": {"memory": memory}});
        let policy = json!([{"resourceName": "cpu", "restartPolicy": "NotRequired"},
            {"resourceName": "memory", "restartPolicy": "RestartContainer"}]);
        let container = json!({"name": "c", "resources": resources, "resizePolicy": policy});
        let pod = json!({"metadata": {"name": "p", "uid": "u"}, "spec": {"containers": [container]}});
        PodObject { api: Arc::new(serde_json::from_value(pod).unwrap()), folder: None }
    }

    #[test]
    fn what_was_granted_is_remembered() {
        let asks = pod("1", "2Gi");
        let remembered = |memory: &str| Some((*pod("1", memory).api).clone());
        let (granted, resizing) = granted_before(&asks, remembered("1Gi"));
        assert!(!differ(&granted, &pod("1", "1Gi")));
        assert!(resizing.asked.is_some_and(|asked| !differ(&asked, &asks)));
        for remembered in [None, remembered("2Gi")] {
            let (granted, resizing) = granted_before(&asks, remembered);
            assert!(!differ(&granted, &asks) && resizing.asked.is_none());
        }
    }

    #[test]
    fn a_container_is_started_again_for_what_its_policy_says() {
        let restarts = |new: &PodObject| must_restart(&pod("1", "1Gi").spec().containers[0], &new.spec().containers[0]);
        assert!(restarts(&pod("1", "2Gi")));
        assert!(!restarts(&pod("2", "1Gi")));
        assert!(!restarts(&pod("1", "1Gi")));
        let granted =
            with(&pod("2", "2Gi"), None, |_, name| find(&pod("1", "1Gi"), ContainerKind::App, name)?.resources.clone());
        assert!(!differ(&granted, &pod("1", "1Gi")));
    }
}
