//! Where statuses go.

use crate::data_directory::DataDirectory;
use crate::pod::PodObject;
use k8s_openapi::api::core::v1::PodStatus;

/// Takes the statuses of pods.
pub trait StatusSink: std::fmt::Debug + Send + Sync {
    /// A pod has this status now. Called with a changed, complete status; must not wait.
    fn report(&self, pod: &PodObject, status: &PodStatus);

    /// The API has this of the pod now; `wanted` is what it should have. Must not wait.
    fn seen(&self, _pod: &PodObject, _wanted: &dyn Fn() -> PodStatus) {}

    /// The pod is being deleted and nothing of it runs any more. Must not wait.
    fn ended(&self, _pod: &PodObject) {}

    /// The API has gone back in time: what it has now counts, whatever it had.
    fn restored(&self) {}

    /// All that was reported has arrived.
    fn is_told(&self) -> bool {
        true
    }

    /// The pod does not exist any more.
    fn forget(&self, _uid: &str) {}
}

/// Writes `status.json` in the pod's directory: the status of a node without a cluster, and what a node knows of its pods
/// when it starts again.
#[derive(Debug)]
pub struct FileSink {
    data: DataDirectory,
}

impl FileSink {
    /// A sink into a data directory.
    pub fn new(data: DataDirectory) -> Self {
        Self { data }
    }
}

impl StatusSink for FileSink {
    fn report(&self, pod: &PodObject, status: &PodStatus) {
        if let Err(error) = self.data.store_status(pod.uid(), status) {
            tracing::error!(pod = pod.key(), %error, "cannot write the pod's status; it will be written with its next change");
        }
    }
}
