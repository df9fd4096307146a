//! Pods from the API server: those that the scheduler, or somebody, has bound to this node.
//!
//! # Guarantees
//! - An object that cannot be understood is named once and hides no other.
//! - What was missed while the watch was down is caught up by the next list.
//! - A node that starts while the API server does not answer takes up the pods that it remembers.

use super::{PodEvent, PodSource};
use crate::cluster::History;
use crate::cluster::connection::watch_back_off;
use crate::data_directory::DataDirectory;
use crate::manifest::static_pod::{HASH_ANNOTATION, is_static};
use crate::pod::{MANIFEST_ANNOTATION, PodObject};
use akri_krustlet_host::until;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject};
use kube::runtime::{WatchStreamExt as _, watcher};
use std::collections::{HashSet, VecDeque};
use std::time::Duration;
use tokio::time::Instant;

/// How long the first list may take before the node takes up the pods that it remembers.
const PATIENCE: Duration = Duration::from_secs(3);

type Changes = BoxStream<'static, Result<watcher::Event<DynamicObject>, watcher::Error>>;

/// Watches the pods of one node.
pub struct ClusterSource {
    changes: Changes,
    data: DataDirectory,
    /// UIDs that the node has been told of.
    told: HashSet<String>,
    /// UIDs of the list that is being read.
    listed: HashSet<String>,
    events: VecDeque<PodEvent>,
    /// Until when the first list is waited for.
    patience: Option<Instant>,
    misunderstood: HashSet<String>,
    outage: bool,
}

impl std::fmt::Debug for ClusterSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClusterSource").field("told", &self.told).finish_non_exhaustive()
    }
}

impl ClusterSource {
    /// The pods bound to `node`.
    pub fn new(client: Client, history: &History, node: &str, data: DataDirectory) -> Self {
        // Objects of any content, so that one that is malformed does not make the whole list fail.
        let pods: Api<DynamicObject> = Api::all_with(client, &ApiResource::erase::<Pod>(&()));
        let config = watcher::Config::default().fields(&format!("spec.nodeName={node}"));
        let watch = move || watcher(pods.clone(), config.clone()).backoff(watch_back_off());
        Self::of(history.follow(watch), data)
    }

    fn of(changes: Changes, data: DataDirectory) -> Self {
        Self {
            changes,
            data,
            told: HashSet::new(),
            listed: HashSet::new(),
            events: VecDeque::new(),
            patience: Some(Instant::now() + PATIENCE),
            misunderstood: HashSet::new(),
            outage: false,
        }
    }

    fn take(&mut self, event: watcher::Event<DynamicObject>) {
        if std::mem::take(&mut self.outage) {
            tracing::info!("pods are watched again");
        }
        match event {
            watcher::Event::Init => self.listed.clear(),
            watcher::Event::InitApply(object) => {
                self.listed.extend(object.metadata.uid.clone());
                self.apply(object);
            }
            watcher::Event::InitDone => {
                self.patience = None;
                let gone: Vec<_> = self.told.difference(&self.listed).cloned().collect();
                for uid in gone {
                    self.told.remove(&uid);
                    self.events.push_back(PodEvent::Deleted(uid));
                }
                self.events.push_back(PodEvent::Synced { unreadable: Vec::new() });
            }
            watcher::Event::Apply(object) => self.apply(object),
            watcher::Event::Delete(object) => {
                let uid = object.metadata.uid.unwrap_or_default();
                self.told.remove(&uid);
                self.misunderstood.remove(&uid);
                self.events.push_back(PodEvent::Deleted(uid));
            }
        }
    }

    fn apply(&mut self, object: DynamicObject) {
        let uid = object.metadata.uid.clone().unwrap_or_default();
        let key = format!(
            "{}/{}",
            object.metadata.namespace.as_deref().unwrap_or("default"),
            object.metadata.name.as_deref().unwrap_or_default()
        );
        let pod: Result<Pod, _> = serde_json::to_value(object).and_then(serde_json::from_value);
        match pod {
            Ok(mut pod) => {
                // What only manifests' pods have says nothing here: anybody may write annotations.
                if let Some(annotations) = &mut pod.metadata.annotations {
                    annotations.remove(MANIFEST_ANNOTATION);
                    annotations.retain(|name, value| name != HASH_ANNOTATION || *value != uid);
                }
                self.told.insert(uid);
                self.events.push_back(PodEvent::Applied(PodObject::new(&pod, None)));
            }
            Err(error) => {
                if self.misunderstood.insert(uid) {
                    tracing::error!(pod = key, %error, "the pod cannot be understood and is not run");
                }
            }
        }
    }

    fn take_up_remembered(&mut self) {
        self.patience = None;
        let stored = match self.data.pods() {
            Ok(stored) => stored,
            Err(error) => {
                tracing::warn!(%error, "cannot list the pods of the data directory");
                return;
            }
        };
        // The static ones are taken up by their manifests.
        let stored: Vec<_> = stored.into_iter().filter(|stored| !is_static(&stored.pod)).collect();
        if !stored.is_empty() {
            tracing::warn!("the API server does not answer; the {} pods of the last run are taken up", stored.len());
        }
        for stored in stored {
            let mut pod = stored.pod;
            self.told.extend(pod.metadata.uid.clone());
            pod.status = Some(stored.status);
            self.events.push_back(PodEvent::Applied(PodObject::new(&pod, None)));
        }
    }
}

#[async_trait::async_trait]
impl PodSource for ClusterSource {
    async fn next(&mut self) -> PodEvent {
        loop {
            if let Some(event) = self.events.pop_front() {
                return event;
            }
            let patience = self.patience;
            let change = tokio::select! {
                change = self.changes.next() => change,
                () = until(patience) => {
                    self.take_up_remembered();
                    continue;
                }
            };
            match change {
                Some(Ok(event)) => self.take(event),
                Some(Err(error)) => match std::mem::replace(&mut self.outage, true) {
                    false => tracing::warn!("cannot watch the pods of this node: {error}; trying again, pods run on"),
                    true => tracing::debug!("still cannot watch the pods of this node: {error}"),
                },
                None => std::future::pending().await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::stream;
    use serde_json::{Value, json};

    fn object(uid: &str, spec: Value) -> DynamicObject {
        let object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": uid, "uid": uid}, "spec": spec});
        serde_json::from_value(object).unwrap()
    }

    fn good(uid: &str) -> DynamicObject {
        object(uid, json!({"containers": [{"name": "c"}]}))
    }

    fn source(changes: Vec<watcher::Event<DynamicObject>>, directory: &std::path::Path) -> ClusterSource {
        let changes = stream::iter(changes.into_iter().map(Ok)).chain(stream::pending()).boxed();
        ClusterSource::of(changes, DataDirectory::new(directory, directory))
    }

    async fn next(source: &mut ClusterSource) -> String {
        match source.next().await {
            PodEvent::Applied(pod) => format!("applied {}", pod.uid()),
            PodEvent::Deleted(uid) => format!("deleted {uid}"),
            PodEvent::Synced { .. } => "synced".to_owned(),
        }
    }

    #[tokio::test]
    async fn an_object_that_cannot_be_understood_hides_no_other() {
        use watcher::Event::{Apply, Init, InitApply, InitDone};
        let directory = tempfile::tempdir().unwrap();
        let bad = object("bad", json!({"containers": 7}));
        let changes = vec![Init, InitApply(bad.clone()), InitApply(good("a")), InitDone, Apply(bad), Apply(good("b"))];
        let mut source = source(changes, directory.path());
        for expected in ["applied a", "synced", "applied b"] {
            assert_eq!(next(&mut source).await, expected);
        }
    }

    #[tokio::test]
    async fn what_went_while_the_watch_was_down_is_told_by_the_next_list() {
        use watcher::Event::{Init, InitApply, InitDone};
        let directory = tempfile::tempdir().unwrap();
        let first = vec![Init, InitApply(good("stays")), InitApply(good("goes")), InitDone];
        let second = vec![Init, InitApply(good("stays")), InitApply(good("comes")), InitDone];
        let mut source = source([first, second].concat(), directory.path());
        for expected in
            ["applied stays", "applied goes", "synced", "applied stays", "applied comes", "deleted goes", "synced"]
        {
            assert_eq!(next(&mut source).await, expected);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn without_an_api_server_the_remembered_pods_are_taken_up() {
        let directory = tempfile::tempdir().unwrap();
        let mut source = source(Vec::new(), directory.path());
        let remembered: Pod = serde_json::from_value(serde_json::to_value(good("remembered")).unwrap()).unwrap();
        source.data.store_pod(&PodObject::new(&remembered, None)).unwrap();
        assert_eq!(next(&mut source).await, "applied remembered");
    }
}
