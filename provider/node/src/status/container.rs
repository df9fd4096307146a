//! Container statuses.

use super::now;
use crate::pod::PodObject;
use akri_krustlet_runtime::{Digest, Outcome};
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    PodStatus, ResourceRequirements, VolumeMountStatus,
};

/// Which list of the pod a container is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContainerKind {
    /// `spec.initContainers`.
    Init,
    /// `spec.containers`.
    App,
}

impl ContainerKind {
    /// As the kubelet's metrics tell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Init => "init_container",
            Self::App => "container",
        }
    }
}

/// Longest message in a terminated state, in bytes; the API's bound for termination messages.
const MOST_MESSAGE: usize = 4096;

/// Reason of an end that nobody has seen.
pub(super) const STATUS_UNKNOWN: &str = "ContainerStatusUnknown";

/// `behind_init`: init containers run first.
pub(super) fn initial(container: &Container, behind_init: bool) -> ContainerStatus {
    ContainerStatus {
        name: container.name.clone(),
        image: container.image.clone().unwrap_or_default(),
        started: Some(false),
        state: Some(waiting_state(if behind_init { "PodInitializing" } else { "ContainerCreating" }, "")),
        ..ContainerStatus::default()
    }
}

fn waiting_state(reason: &str, message: &str) -> ContainerState {
    let message = (!message.is_empty()).then(|| message.to_owned());
    ContainerState {
        waiting: Some(ContainerStateWaiting { reason: Some(reason.to_owned()), message }),
        ..ContainerState::default()
    }
}

/// The container waits. A state that it ended with is kept as its last one.
pub fn waiting(status: &mut ContainerStatus, reason: &str, message: &str) {
    keep_last(status);
    status.state = Some(waiting_state(reason, message));
}

/// The container, with this specification, runs for the `restart`th time again. Its image: the name, and the content.
pub fn running(
    status: &mut ContainerStatus,
    container: &Container,
    restart: u32,
    pod_uid: &str,
    (image, image_id): (&str, &str),
) {
    keep_last(status);
    resized(status, container);
    let mounts = container.volume_mounts.iter().flatten().map(|mount| VolumeMountStatus {
        name: mount.name.clone(),
        mount_path: mount.mount_path.clone(),
        read_only: mount.read_only,
        recursive_read_only: mount.read_only.filter(|read_only| *read_only).map(|_| "Disabled".to_owned()),
        ..VolumeMountStatus::default()
    });
    status.volume_mounts = container.volume_mounts.as_ref().map(|_| mounts.collect());
    let id = Digest::of(format!("{pod_uid}/{}/{restart}", status.name).as_bytes());
    status.container_id = Some(format!("wasmtime://{}", id.hex()));
    image.clone_into(&mut status.image);
    image_id.clone_into(&mut status.image_id);
    status.restart_count = i32::try_from(restart).unwrap_or(i32::MAX);
    status.state = Some(ContainerState {
        running: Some(ContainerStateRunning { started_at: Some(now()) }),
        ..ContainerState::default()
    });
}

/// The container has been granted what its specification asks for.
pub fn allocated(status: &mut ContainerStatus, container: &Container) {
    let requests = container.resources.as_ref().and_then(|resources| resources.requests.clone());
    status.allocated_resources = requests.filter(|requests| !requests.is_empty());
}

/// And has it.
pub fn resized(status: &mut ContainerStatus, container: &Container) {
    allocated(status, container);
    let resources = container.resources.clone().unwrap_or_default();
    status.resources = Some(ResourceRequirements { claims: None, ..resources });
}

/// The pod as a whole has been granted what it asks for.
pub fn pod_allocated(status: &mut PodStatus, pod: &PodObject) {
    let requests = pod.spec().resources.as_ref().and_then(|resources| resources.requests.clone());
    status.allocated_resources = requests.filter(|requests| !requests.is_empty());
}

/// And has it.
pub fn pod_resized(status: &mut PodStatus, pod: &PodObject) {
    pod_allocated(status, pod);
    let resources = pod.spec().resources.clone();
    status.resources = resources.map(|resources| ResourceRequirements { claims: None, ..resources });
}

/// The container ended. What it left as its last words is its message, else what it died of.
pub fn terminated(status: &mut ContainerStatus, outcome: &Outcome, termination_message: Option<String>) {
    let (exit_code, reason, message) = match outcome {
        Outcome::Exited(0) => (0, "Completed", None),
        Outcome::Exited(code) => (*code, "Error", None),
        // What a shell reports of a program that was ended by SIGABRT, and what a container is ended with by SIGKILL.
        Outcome::Trapped(report) => (134, "Error", Some(report.to_string())),
        Outcome::OutOfMemory { limit } => {
            let message = format!("the container's guests need more memory than its limit of {} KiB", limit >> 10);
            (137, "OOMKilled", Some(message))
        }
        Outcome::Interrupted => (137, "Error", None),
    };
    end(status, exit_code, reason, termination_message.or(message));
}

/// Nothing of the pod runs any more; a container that has no end was not started, or is lost.
pub(super) fn never_started(status: &mut ContainerStatus) {
    if status.state.as_ref().is_none_or(|state| state.terminated.is_none()) {
        // One that was about to be started again ended as it did.
        let runs = status.state.as_ref().is_some_and(|state| state.running.is_some());
        if let Some(last) = status.last_state.as_ref().filter(|last| !runs && last.terminated.is_some()) {
            status.state = Some(last.clone());
            return;
        }
        let message = "The container could not be located when the pod was terminated";
        status.state = Some(ContainerState {
            terminated: Some(ContainerStateTerminated {
                exit_code: 137,
                reason: Some(STATUS_UNKNOWN.to_owned()),
                message: Some(message.to_owned()),
                ..ContainerStateTerminated::default()
            }),
            ..ContainerState::default()
        });
    }
}

/// The container could not be started: its module cannot be run, a directory of it cannot be opened.
pub fn failed_start(status: &mut ContainerStatus, message: &str) {
    end(status, 128, "StartError", Some(message.to_owned()));
}

/// What the container was when the node stopped without it.
pub(crate) fn lost_with_node(status: &mut ContainerStatus) {
    if status.state.as_ref().is_some_and(|state| state.running.is_some()) {
        end(status, 255, "Unknown", Some("the node stopped while the container ran".to_owned()));
    }
}

fn end(status: &mut ContainerStatus, exit_code: i32, reason: &str, message: Option<String>) {
    let running = status.state.as_ref().and_then(|state| state.running.as_ref());
    let started_at = running.and_then(|running| running.started_at.clone());
    let message = message.map(|mut message| {
        let end = message.floor_char_boundary(MOST_MESSAGE);
        message.truncate(end);
        message
    });
    status.state = Some(ContainerState {
        terminated: Some(ContainerStateTerminated {
            container_id: status.container_id.clone(),
            exit_code,
            reason: Some(reason.to_owned()),
            message,
            started_at: started_at.or_else(|| Some(now())),
            finished_at: Some(now()),
            ..ContainerStateTerminated::default()
        }),
        ..ContainerState::default()
    });
}

fn keep_last(status: &mut ContainerStatus) {
    if status.state.as_ref().is_some_and(|state| state.terminated.is_some()) {
        status.last_state = status.state.take();
    }
}
