//! Mirror pods: what the API server shows of a node's static pods.
//!
//! # Guarantees
//! - Each static pod has one, with its status, whatever becomes of the one before; deleting it does not end the static pod.
//! - A mirror pod whose static pod is gone or another one is deleted, also if that went while the node was down.
//! - What fails for one is tried again and told once, and keeps no other waiting.

use super::{ApiSink, StatusSink, is_final};
use crate::cluster::connection::{code, describe};
use crate::manifest::static_pod::HASH_ANNOTATION;
use crate::pod::PodObject;
use akri_krustlet_host::{BackOff, until};
use k8s_openapi::api::core::v1::{Node, Pod, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Client;
use kube::api::{Api, DeleteParams, PostParams, Preconditions};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// On a mirror pod: the UID of its static pod. Whoever may make pods may make one with it, too; then it is no pod that runs.
const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";
/// Pause after a request that failed, and the longest one, doubled in between.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));

/// Whether a pod is a mirror pod.
pub fn is_mirror(pod: &PodObject) -> bool {
    annotation(pod, MIRROR_ANNOTATION).is_some()
}

fn annotation<'a>(pod: &'a PodObject, name: &str) -> Option<&'a str> {
    pod.api.metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

/// The static pods of a node and their mirror pods.
pub struct Mirrors {
    client: Client,
    node: watch::Receiver<Option<Arc<Node>>>,
    api: ApiSink,
    pods: Mutex<Pods>,
    changed: Notify,
}

#[derive(Default)]
struct Pods {
    /// The static pods, by namespace and name; of two of one name the one that came last.
    own: HashMap<String, StaticPod>,
    /// The mirror pods that the API server has, by namespace and name.
    mirrors: HashMap<String, PodObject>,
    /// UIDs of those that it was asked to delete.
    deleted: HashSet<String>,
    /// What did not succeed, by namespace and name.
    failures: HashMap<String, Failure>,
    /// It has told all that there are.
    is_synced: bool,
}

struct StaticPod {
    pod: PodObject,
    /// None that was reported yet.
    status: Option<PodStatus>,
}

/// When something is tried again that failed, and what was told of it.
struct Failure {
    again: Instant,
    back_off: BackOff,
    told: String,
}

/// What is to be done next.
enum Work {
    Create(PodObject),
    Delete(PodObject),
}

impl Work {
    fn pod(&self) -> &PodObject {
        match self {
            Self::Create(pod) | Self::Delete(pod) => pod,
        }
    }
}

impl std::fmt::Debug for Mirrors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mirrors").finish_non_exhaustive()
    }
}

impl Mirrors {
    /// Keeps mirror pods from now on, with the statuses that `api` takes; they belong to the node's object.
    pub fn start(client: Client, node: watch::Receiver<Option<Arc<Node>>>, api: ApiSink) -> Arc<Self> {
        let mirrors = Arc::new(Self { client, node, api, pods: Mutex::default(), changed: Notify::new() });
        tokio::spawn(keep(mirrors.clone()));
        mirrors
    }

    /// The node has this static pod, in the place of another one of its name.
    pub fn add(&self, pod: PodObject) {
        self.pods().own.insert(pod.key(), StaticPod { pod, status: None });
        self.changed.notify_one();
    }

    /// It has it no more.
    pub fn remove(&self, uid: &str) {
        self.pods().own.retain(|_, own| own.pod.uid() != uid);
        self.changed.notify_one();
    }

    /// The API server has this mirror pod.
    pub fn seen(&self, mirror: PodObject) {
        let status = {
            let mut pods = self.pods();
            let before = pods.mirrors.insert(mirror.key(), mirror.clone());
            if let Some(before) = before.filter(|before| before.uid() != mirror.uid()) {
                pods.deleted.remove(before.uid());
                self.api.forget(before.uid());
            }
            pods.own_of(&mirror).and_then(|own| own.status.clone())
        };
        self.changed.notify_one();
        if let Some(status) = status {
            self.api.seen(&mirror, &|| status.clone());
        }
    }

    /// True if the pod that is gone was a mirror pod.
    pub fn is_gone(&self, uid: &str) -> bool {
        let mut pods = self.pods();
        let before = pods.mirrors.len();
        pods.mirrors.retain(|_, mirror| mirror.uid() != uid);
        let was_mirror = pods.mirrors.len() < before;
        // Also one that another of its name has replaced here.
        let was_deleted = pods.deleted.remove(uid);
        drop(pods);
        if was_mirror {
            self.api.forget(uid);
            self.changed.notify_one();
        }
        was_mirror || was_deleted
    }

    /// The API server has told all pods that it has for the node.
    pub fn synced(&self) {
        self.pods().is_synced = true;
        self.changed.notify_one();
    }

    fn restored(&self) {
        self.pods().deleted.clear();
        self.api.restored();
        self.changed.notify_one();
    }

    fn pods(&self) -> MutexGuard<'_, Pods> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn owner(&self) -> Option<OwnerReference> {
        let node = self.node.borrow().clone()?;
        Some(OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            name: node.metadata.name.clone()?,
            uid: node.metadata.uid.clone()?,
            controller: Some(true),
            block_owner_deletion: None,
        })
    }

    async fn work(&self, work: &Work) -> Result<(), kube::Error> {
        let of = |pod: &PodObject| Api::<Pod>::namespaced(self.client.clone(), pod.namespace());
        match work {
            Work::Create(pod) => {
                let mirror = mirror_of(pod, self.owner());
                let made = of(pod).create(&PostParams::default(), &mirror).await?;
                tracing::info!(pod = pod.key(), "mirror pod created");
                self.seen(PodObject::new(&made, None));
            }
            Work::Delete(mirror) => {
                let uid = mirror.uid().to_owned();
                // Before the watch tells that it is gone.
                self.pods().deleted.insert(uid.clone());
                let preconditions = Preconditions { uid: Some(uid.clone()), resource_version: None };
                let now =
                    DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() }.grace_period(0);
                match of(mirror).delete(mirror.name(), &now).await {
                    Ok(_) => tracing::info!(pod = mirror.key(), "mirror pod deleted"),
                    // It is gone, or another one has its name; the watch tells.
                    Err(error) if matches!(code(&error), Some(404 | 409)) => {}
                    Err(error) => {
                        self.pods().deleted.remove(&uid);
                        return Err(error);
                    }
                }
            }
        }
        Ok(())
    }
}

impl Pods {
    /// The static pod that a mirror pod is of.
    fn own_of(&self, mirror: &PodObject) -> Option<&StaticPod> {
        let own = self.own.get(&mirror.key())?;
        let is_its = annotation(mirror, MIRROR_ANNOTATION) == Some(own.pod.uid()) && !mirror.is_deleted();
        is_its.then_some(own)
    }

    /// What there is to do and does not wait to be tried again, or until when there is nothing.
    fn next(&self) -> Result<Work, Option<Instant>> {
        if !self.is_synced {
            return Err(None);
        }
        let needless = self.mirrors.values().filter(|mirror| {
            let own = self.own_of(mirror);
            // The API server takes no other status for a pod that has ended; one that runs again has another mirror pod.
            let runs_again = own.and_then(|own| own.status.as_ref()).is_some_and(|status| !is_final(status))
                && mirror.api.status.as_ref().is_some_and(is_final);
            (own.is_none() || runs_again) && !self.deleted.contains(mirror.uid())
        });
        let missing = self.own.iter().filter(|(key, _)| !self.mirrors.contains_key(*key));
        let all = needless.map(|mirror| Work::Delete(mirror.clone()));
        let all = all.chain(missing.map(|(_, own)| Work::Create(own.pod.clone())));
        let mut earliest: Option<Instant> = None;
        for work in all {
            match self.failures.get(&work.pod().key()).map(|failure| failure.again) {
                Some(again) if again > Instant::now() => {
                    earliest = Some(earliest.map_or(again, |earliest| earliest.min(again)));
                }
                _ => return Ok(work),
            }
        }
        Err(earliest)
    }

    fn failed(&mut self, work: &Work, error: &kube::Error) {
        let (what, pod) = match work {
            Work::Create(pod) => ("made", pod),
            Work::Delete(pod) => ("deleted", pod),
        };
        let failure = self.failures.entry(pod.key()).or_insert_with(|| Failure {
            again: Instant::now(),
            back_off: BackOff::new(PAUSES.0, PAUSES.1),
            told: String::new(),
        });
        failure.again = Instant::now() + failure.back_off.pause();
        let message =
            format!("the mirror pod is not {what} yet, and the static pod not seen as it is: {}", describe(error));
        if message != failure.told {
            tracing::warn!(pod = pod.key(), "{message}");
            failure.told = message;
        }
    }
}

/// Does what there is to do, for as long as the node lives.
async fn keep(mirrors: Arc<Mirrors>) {
    let mut node = mirrors.node.clone();
    if node.wait_for(Option::is_some).await.is_err() {
        return;
    }
    loop {
        let next = mirrors.pods().next();
        match next {
            Ok(work) => {
                let result = mirrors.work(&work).await;
                let mut pods = mirrors.pods();
                match result {
                    Ok(()) => drop(pods.failures.remove(&work.pod().key())),
                    Err(error) => pods.failed(&work, &error),
                }
            }
            Err(again) => {
                tokio::select! {
                    () = mirrors.changed.notified() => {}
                    () = until(again) => {}
                }
            }
        }
    }
}

/// The mirror pod of a static pod.
fn mirror_of(pod: &PodObject, owner: Option<OwnerReference>) -> Pod {
    let mut annotations = pod.api.metadata.annotations.clone().unwrap_or_default();
    annotations.insert(MIRROR_ANNOTATION.to_owned(), pod.uid().to_owned());
    annotations.insert(HASH_ANNOTATION.to_owned(), pod.uid().to_owned());
    let metadata = ObjectMeta {
        name: Some(pod.name().to_owned()),
        namespace: Some(pod.namespace().to_owned()),
        labels: pod.api.metadata.labels.clone(),
        annotations: Some(annotations),
        owner_references: owner.map(|owner| vec![owner]),
        ..ObjectMeta::default()
    };
    Pod { metadata, spec: pod.api.spec.clone(), status: None }
}

/// Statuses of the pods of a node of a cluster: those of static pods go to their mirror pods, all others to themselves.
#[derive(Debug)]
pub struct MirrorSink {
    api: ApiSink,
    mirrors: Arc<Mirrors>,
}

impl MirrorSink {
    /// A sink that tells the API server by `api`.
    pub fn new(api: ApiSink, mirrors: Arc<Mirrors>) -> Self {
        Self { api, mirrors }
    }
}

fn is_static(pod: &PodObject) -> bool {
    pod.folder.is_some()
}

impl StatusSink for MirrorSink {
    fn report(&self, pod: &PodObject, status: &PodStatus) {
        if !is_static(pod) {
            return self.api.report(pod, status);
        }
        self.api.remember(pod, status);
        let mirror = {
            let mut pods = self.mirrors.pods();
            let own = pods.own.get_mut(&pod.key()).filter(|own| own.pod.uid() == pod.uid());
            // One that another of its name has replaced ends without anybody seeing it.
            let Some(own) = own else { return };
            own.status = Some(status.clone());
            pods.mirrors.get(&pod.key()).filter(|mirror| pods.own_of(mirror).is_some()).cloned()
        };
        // It may have ended, and this one not.
        self.mirrors.changed.notify_one();
        if let Some(mirror) = mirror.filter(|mirror| !mirror.api.status.as_ref().is_some_and(is_final)) {
            self.api.show(&mirror, status);
        }
    }

    fn seen(&self, pod: &PodObject, wanted: &dyn Fn() -> PodStatus) {
        match is_static(pod) {
            // Nobody tells it anything.
            true => self.report(pod, &wanted()),
            false => self.api.seen(pod, wanted),
        }
    }

    fn ended(&self, pod: &PodObject) {
        if !is_static(pod) {
            self.api.ended(pod);
        }
    }

    fn restored(&self) {
        self.mirrors.restored();
    }

    fn is_told(&self) -> bool {
        self.api.is_told()
    }

    fn forget(&self, uid: &str) {
        self.api.forget(uid);
    }
}
