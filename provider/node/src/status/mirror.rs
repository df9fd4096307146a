//! Mirror pods: what the API server shows of a node's static pods.
//!
//! # Guarantees
//! - Each static pod has one, with its status, whatever becomes of the one before; deleting it does not end the static pod.
//! - A mirror pod whose static pod is gone or another one is deleted, also if that went while the node was down.
//! - What fails is tried again, and told once.

use super::{ApiSink, StatusSink};
use crate::cluster::connection::describe;
use crate::manifest::static_pod::HASH_ANNOTATION;
use crate::pod::PodObject;
use akri_krustlet_host::BackOff;
use k8s_openapi::api::core::v1::{Node, Pod, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Client;
use kube::api::{Api, DeleteParams, PostParams, Preconditions};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// On a mirror pod: the UID of its static pod. Only a node may make pods with it, and only such for itself.
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
    /// The static pods and their statuses, by namespace and name; of two of one name the one that came last.
    own: HashMap<String, (PodObject, PodStatus)>,
    /// UIDs of those that another one of their name has replaced.
    replaced: HashSet<String>,
    /// The mirror pods that the API server has, by namespace and name.
    mirrors: HashMap<String, PodObject>,
    /// UIDs of those that it was asked to delete.
    deleted: HashSet<String>,
    /// It has told all that there are.
    is_synced: bool,
}

/// What is to be done next.
enum Work {
    Create(PodObject),
    Delete(PodObject),
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

    /// The API server has this mirror pod.
    pub fn seen(&self, mirror: PodObject) {
        let current = {
            let mut pods = self.pods();
            pods.mirrors.insert(mirror.key(), mirror.clone());
            pods.current(&mirror)
        };
        self.changed.notify_one();
        if let Some(status) = current {
            self.api.seen(&mirror, &|| status.clone());
        }
    }

    /// True if the pod that is gone was a mirror pod.
    pub fn is_gone(&self, uid: &str) -> bool {
        let mut pods = self.pods();
        let before = pods.mirrors.len();
        pods.mirrors.retain(|_, mirror| mirror.uid() != uid);
        pods.deleted.remove(uid);
        let was_mirror = pods.mirrors.len() < before;
        drop(pods);
        if was_mirror {
            self.api.forget(uid);
            self.changed.notify_one();
        }
        was_mirror
    }

    /// The API server has told all pods that it has for the node.
    pub fn synced(&self) {
        self.pods().is_synced = true;
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
                let preconditions = Preconditions { uid: Some(uid.clone()), resource_version: None };
                let now =
                    DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() }.grace_period(0);
                match of(mirror).delete(mirror.name(), &now).await {
                    Ok(_) => tracing::info!(pod = mirror.key(), "mirror pod deleted"),
                    // It is gone, or another one has its name; the watch tells.
                    Err(error) if matches!(crate::cluster::connection::code(&error), Some(404 | 409)) => {}
                    Err(error) => return Err(error),
                }
                self.pods().deleted.insert(uid);
            }
        }
        Ok(())
    }
}

impl Pods {
    /// The status that a mirror pod should have, if it is that of the static pod of its name.
    fn current(&self, mirror: &PodObject) -> Option<PodStatus> {
        let (pod, status) = self.own.get(&mirror.key())?;
        let is_current = annotation(mirror, MIRROR_ANNOTATION) == Some(pod.uid()) && !mirror.is_deleted();
        is_current.then(|| status.clone())
    }

    fn next(&self) -> Option<Work> {
        let to_delete = |mirror: &&PodObject| self.current(mirror).is_none() && !self.deleted.contains(mirror.uid());
        if !self.is_synced {
            return None;
        }
        if let Some(mirror) = self.mirrors.values().find(to_delete) {
            return Some(Work::Delete(mirror.clone()));
        }
        let without = self.own.iter().find(|(key, _)| !self.mirrors.contains_key(*key));
        without.map(|(_, (pod, _))| Work::Create(pod.clone()))
    }
}

/// Does what there is to do, for as long as the node lives.
async fn keep(mirrors: Arc<Mirrors>) {
    let mut node = mirrors.node.clone();
    if node.wait_for(Option::is_some).await.is_err() {
        return;
    }
    let mut back_off = BackOff::new(PAUSES.0, PAUSES.1);
    let mut told = String::new();
    loop {
        let work = mirrors.pods().next();
        let Some(work) = work else {
            mirrors.changed.notified().await;
            continue;
        };
        match mirrors.work(&work).await {
            Ok(()) => {
                back_off.reset();
                told.clear();
            }
            Err(error) => {
                let (what, pod) = match &work {
                    Work::Create(pod) => ("made", pod),
                    Work::Delete(pod) => ("deleted", pod),
                };
                let message = format!(
                    "the mirror pod is not {what} yet, and the static pod not seen as it is: {}",
                    describe(&error)
                );
                if message != told {
                    tracing::warn!(pod = pod.key(), "{message}");
                    told = message;
                }
                tokio::time::sleep(back_off.pause()).await;
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
            if pods.replaced.contains(pod.uid()) {
                return;
            }
            let before = pods.own.insert(pod.key(), (pod.clone(), status.clone()));
            if let Some((before, _)) = before.filter(|(before, _)| before.uid() != pod.uid()) {
                pods.replaced.insert(before.uid().to_owned());
            }
            pods.mirrors.get(&pod.key()).filter(|mirror| pods.current(mirror).is_some()).cloned()
        };
        match mirror {
            Some(mirror) => self.api.show(&mirror, status),
            None => self.mirrors.changed.notify_one(),
        }
    }

    fn seen(&self, pod: &PodObject, wanted: &dyn Fn() -> PodStatus) {
        match is_static(pod) {
            // Nobody tells it anything; one that had ended before this start changes no more.
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
        self.api.restored();
    }

    fn is_told(&self) -> bool {
        self.api.is_told()
    }

    fn forget(&self, uid: &str) {
        let mut pods = self.mirrors.pods();
        let of_static = pods.replaced.remove(uid) || {
            let before = pods.own.len();
            pods.own.retain(|_, (pod, _)| pod.uid() != uid);
            pods.own.len() < before
        };
        drop(pods);
        if of_static {
            self.mirrors.changed.notify_one();
        } else {
            self.api.forget(uid);
        }
    }
}
