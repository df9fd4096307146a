//! Where pods come from.

mod cluster;
mod folder;
mod static_pods;

pub use cluster::ClusterSource;
pub use folder::FolderSource;
pub use static_pods::NodeSource;

use crate::pod::PodObject;
use std::path::PathBuf;

/// What happened to the pods of a node.
#[derive(Debug)]
pub enum PodEvent {
    /// A pod is there, new or changed in place (same UID).
    Applied(PodObject),
    /// The pod with this UID is gone.
    Deleted(String),
    /// All pods that exist have been told; pods that the node remembers and that were not among them are gone, but for
    /// those of manifests that cannot be read for the moment.
    Synced {
        /// The files that cannot be read, or not wholly.
        unreadable: Vec<PathBuf>,
    },
}

/// A source of pods.
#[async_trait::async_trait]
pub trait PodSource: Send {
    /// The next event. Waits as long as there is none; a source does not end. May be cancelled without losing an event.
    async fn next(&mut self) -> PodEvent;
}
