//! What the parts of one pod's life have in common.

use crate::cluster::events::EventType;
use crate::loaded_image::LoadedImage;
use crate::pod::PodObject;
use crate::services::Services;
use crate::status::{ContainerKind, DISRUPTION_TARGET, StatusReporter};
use crate::termination::{StopReason, Termination};
use akri_krustlet_metrics::counted;
use akri_krustlet_runtime::{PodShare, SharedLimits};
use k8s_openapi::api::core::v1::Container;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tracing::Span;

/// What the containers of one pod have in common.
#[derive(Debug)]
pub struct PodContext {
    /// The node's services.
    pub services: Arc<Services>,
    /// The pod as it was taken up: who it is.
    pub pod: PodObject,
    /// The pod as the API has it now, with the requests and limits that it has been granted; images, `activeDeadlineSeconds`, labels and
    /// annotations can be changed, too.
    pub latest: watch::Sender<PodObject>,
    /// Its status.
    pub reporter: StatusReporter,
    /// Its end, when it is asked for.
    pub termination: Termination,
    /// The images of its containers by the containers' names; they stay loaded as long as the pod is there.
    pub images: Mutex<HashMap<String, LoadedImage>>,
    /// Why the node puts an end to it, if it does.
    pub eviction: OnceLock<String>,
    /// What the guests of its containers share: limits, and what was taken of them.
    pub shares: Shares,
    /// What its containers may use together: all that they want, unless the pod bounds it.
    pub pod_share: Arc<PodShare>,
    /// An earlier run of the node had it.
    pub ran_before: bool,
    /// Of its requests and limits, what it waits for.
    pub resizing: Mutex<Resizing>,
    /// Its start, until one of its containers runs.
    pub start: Mutex<Span>,
}

impl PodContext {
    /// The pod as the API has it now.
    pub fn latest(&self) -> PodObject {
        self.latest.borrow().clone()
    }

    /// A change of the pod, which its containers take over when they start the next time; another image makes them.
    pub fn update(&self, pod: &PodObject) {
        let ephemeral = |pod: &PodObject| pod.spec().ephemeral_containers.as_ref().map_or(0, Vec::len);
        if ephemeral(pod) > ephemeral(&self.latest.borrow()) {
            let message = "an ephemeral container is not run: a WebAssembly guest has no processes to look at";
            self.services.events.pod(pod, EventType::Warning, "FailedValidation", message.to_owned());
        }
        self.latest.send_replace(pod.clone());
    }

    /// The span of its start, in which what belongs to it is told; none when it has been started.
    pub fn start_span(&self) -> Span {
        self.start.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// One of its containers runs.
    pub fn has_started(&self) {
        *self.start.lock().unwrap_or_else(PoisonError::into_inner) = Span::none();
    }

    /// What the pod waits for of its requests and limits.
    pub fn resizing(&self) -> MutexGuard<'_, Resizing> {
        self.resizing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Resolves when the container is to have another image than this.
    pub async fn image_changed(&self, kind: ContainerKind, container: &Container) {
        self.changed(kind, container, |latest| latest.image != container.image).await;
    }

    /// Resolves when the container is another one, in a way that counts.
    pub async fn changed(&self, kind: ContainerKind, container: &Container, how: impl Fn(&Container) -> bool) {
        let is_other = |pod: &PodObject| find(pod, kind, &container.name).is_some_and(&how);
        if self.latest.subscribe().wait_for(is_other).await.is_err() {
            std::future::pending().await
        }
    }

    /// Ends the pod, which has taken more than it may have of what a kubelet's signal names.
    pub fn evict(&self, signal: &'static str, message: String) {
        if self.eviction.set(message.clone()).is_ok() {
            counted().evictions.add([signal]);
            tracing::warn!(pod = self.pod.key(), "evicted: {message}");
            self.services.events.pod(&self.pod, EventType::Warning, "Evicted", message);
            self.termination.stop(Duration::ZERO, StopReason::Evicted);
        }
    }

    /// Ends the pod because the node is short of something; a Job may not count that as the pod's failure.
    pub fn evict_for_node(&self, signal: &'static str, message: String) {
        self.reporter.set_condition(DISRUPTION_TARGET, true, "TerminationByKubelet", &message);
        self.evict(signal, message);
    }

    /// The image that was loaded for a container, if it is still the one that it names.
    pub fn image(&self, container: &Container) -> Option<LoadedImage> {
        let images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        images.get(&container.name).filter(|image| Some(&image.name) == container.image.as_ref()).cloned()
    }

    /// Bytes of linear memory that its guests have now.
    pub fn memory_in_use(&self) -> u64 {
        self.shares.lives().values().map(|limits| limits.memory_in_use() as u64).sum()
    }

    /// The limits that the guests of a container share, in the life that it was started for last.
    pub fn limits(&self, container: &str) -> Option<Arc<SharedLimits>> {
        self.shares.lives().get(container).cloned()
    }

    /// Keeps an image for a container.
    pub fn keep_image(&self, container: &str, image: LoadedImage) {
        self.images.lock().unwrap_or_else(PoisonError::into_inner).insert(container.to_owned(), image);
    }

    /// Tells of something that happened to one of its containers.
    pub fn event(&self, kind: ContainerKind, container: &str, of: EventType, reason: &'static str, message: String) {
        self.services.events.container(&self.pod, (kind, container), of, reason, message);
    }
}

/// What a pod waits for that has other requests and limits than it had.
#[derive(Debug, Default)]
pub struct Resizing {
    /// The pod as the API has it, whose requests and limits are not granted.
    pub asked: Option<PodObject>,
    /// It has been granted something, which is not told to be done yet.
    pub in_progress: bool,
    /// Containers do not have what it has been granted, and its condition says so.
    pub unsettled: bool,
}

impl Resizing {
    /// There is something to be tried again.
    pub fn is_outstanding(&self) -> bool {
        self.asked.is_some() || self.in_progress || self.unsettled
    }
}

/// What the containers of a pod have taken, each in its last life, and all in the lives before.
#[derive(Debug, Default)]
pub struct Shares {
    lives: Mutex<HashMap<String, Arc<SharedLimits>>>,
    ended: Mutex<Taken>,
}

/// What guests have taken.
#[derive(Clone, Copy, Debug, Default)]
pub struct Taken {
    /// CPU time.
    pub cpu: Duration,
    /// Bytes sent by the network.
    pub sent: u64,
    /// Bytes received.
    pub received: u64,
}

impl Taken {
    fn add(&mut self, limits: &SharedLimits) {
        self.cpu += limits.cpu_time();
        self.sent += limits.sent();
        self.received += limits.received();
    }
}

impl Shares {
    /// A container is started once more.
    pub fn begin(&self, container: &str, limits: Arc<SharedLimits>) {
        if let Some(old) = self.lives().insert(container.to_owned(), limits) {
            self.ended.lock().unwrap_or_else(PoisonError::into_inner).add(&old);
        }
    }

    /// What all lives of all containers have taken; it never becomes less.
    pub fn taken(&self) -> Taken {
        let lives = self.lives();
        let mut taken = *self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        lives.values().for_each(|limits| taken.add(limits));
        taken
    }

    fn lives(&self) -> MutexGuard<'_, HashMap<String, Arc<SharedLimits>>> {
        self.lives.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A container of a pod, as the pod has it.
pub fn find<'a>(pod: &'a PodObject, kind: ContainerKind, name: &str) -> Option<&'a Container> {
    let containers = match kind {
        ContainerKind::Init => pod.init_containers(),
        ContainerKind::App => &pod.spec().containers,
    };
    containers.iter().find(|container| container.name == name)
}
