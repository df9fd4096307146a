//! The pods of a node of a cluster: those that the API server has for it, and the static pods of a folder.

use super::{ClusterSource, FolderSource, PodEvent, PodSource};
use crate::status::{Mirrors, is_mirror};
use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

/// Both sources. Mirror pods, by which the API server shows static pods, are no pods to run; they go to [`Mirrors`].
#[derive(Debug)]
pub struct NodeSource {
    cluster: ClusterSource,
    folder: Option<FolderSource>,
    mirrors: Arc<Mirrors>,
    /// Manifests that could not be read at the start.
    unreadable: Vec<PathBuf>,
    /// UIDs of the static pods, which no object of the cluster has.
    own: HashSet<String>,
}

impl NodeSource {
    /// The pods of `cluster`, and those of `folder` if there is one.
    pub fn new(cluster: ClusterSource, folder: Option<FolderSource>, mirrors: Arc<Mirrors>) -> Self {
        Self { cluster, folder, mirrors, unreadable: Vec::new(), own: HashSet::new() }
    }

    async fn of_folder(folder: &mut Option<FolderSource>) -> PodEvent {
        match folder {
            Some(folder) => folder.next().await,
            None => std::future::pending().await,
        }
    }
}

#[async_trait::async_trait]
impl PodSource for NodeSource {
    async fn next(&mut self) -> PodEvent {
        loop {
            let event = tokio::select! {
                // What the folder has at the start comes before the first list of the cluster is complete.
                biased;
                event = Self::of_folder(&mut self.folder) => match event {
                    PodEvent::Synced { unreadable } => {
                        self.unreadable = unreadable;
                        continue;
                    }
                    PodEvent::Applied(pod) => {
                        self.mirrors.add(pod.clone());
                        self.own.insert(pod.uid().to_owned());
                        return PodEvent::Applied(pod);
                    }
                    PodEvent::Deleted(uid) => {
                        self.mirrors.remove(&uid);
                        self.own.remove(&uid);
                        return PodEvent::Deleted(uid);
                    }
                },
                event = self.cluster.next() => event,
            };
            match event {
                PodEvent::Applied(pod) if is_mirror(&pod) => self.mirrors.seen(pod),
                // Their UIDs are no secret.
                PodEvent::Applied(pod) if self.own.contains(pod.uid()) => {
                    tracing::error!(
                        pod = pod.key(),
                        "a pod of the cluster has the UID of a static pod, and is not run"
                    );
                }
                PodEvent::Deleted(uid) if self.own.contains(&uid) => {}
                PodEvent::Deleted(uid) if self.mirrors.is_gone(&uid) => {}
                PodEvent::Synced { .. } => {
                    self.mirrors.synced();
                    return PodEvent::Synced { unreadable: self.unreadable.clone() };
                }
                event => return event,
            }
        }
    }
}
