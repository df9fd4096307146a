//! A pod as the node keeps it: the API's object, and where it came from.

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use kubelet_k8s::api::core::v1 as of_1_21;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// A pod. Cheap to clone.
#[derive(Clone, Debug)]
pub struct PodObject {
    /// The object in the API's current version.
    pub api: Arc<Pod>,
    /// The folder that relative paths in it refer to: the manifest's. `None` for pods from an API server.
    pub folder: Option<PathBuf>,
}

/// Annotation that the node gives to the pods of manifests, as a kubelet does to static pods: the manifest's file.
pub const MANIFEST_ANNOTATION: &str = "akri-krustlet/manifest";

impl PodObject {
    /// In no more memory than it needs: lists that were read have room for more, those of a copy have not.
    pub fn new(api: &Pod, folder: Option<PathBuf>) -> Self {
        Self { api: Arc::new(api.clone()), folder }
    }

    /// `metadata.uid`; every source sets it.
    pub fn uid(&self) -> &str {
        self.api.metadata.uid.as_deref().unwrap_or_default()
    }

    /// `metadata.name`.
    pub fn name(&self) -> &str {
        self.api.metadata.name.as_deref().unwrap_or_default()
    }

    /// `metadata.namespace`, `default` if there is none.
    pub fn namespace(&self) -> &str {
        self.api.metadata.namespace.as_deref().unwrap_or("default")
    }

    /// `namespace/name`, as messages name it.
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace(), self.name())
    }

    /// The specification; empty if the pod has none.
    pub fn spec(&self) -> &PodSpec {
        static EMPTY: std::sync::LazyLock<PodSpec> = std::sync::LazyLock::new(PodSpec::default);
        self.api.spec.as_ref().unwrap_or(&EMPTY)
    }

    /// The init containers, in order.
    pub fn init_containers(&self) -> &[Container] {
        self.spec().init_containers.as_deref().unwrap_or_default()
    }

    /// Whether an object is this pod with other values in what its author can change while it is there.
    pub fn is_changed(&self, new: &Self) -> bool {
        let (old_metadata, metadata) = (&self.api.metadata, &new.api.metadata);
        self.api.spec != new.api.spec
            || old_metadata.labels != metadata.labels
            || old_metadata.annotations != metadata.annotations
    }

    /// `spec.restartPolicy`.
    pub fn restart_policy(&self) -> RestartPolicy {
        match self.spec().restart_policy.as_deref() {
            Some("Never") => RestartPolicy::Never,
            Some("OnFailure") => RestartPolicy::OnFailure,
            _ => RestartPolicy::Always,
        }
    }

    /// True if the API server has been asked to delete the pod.
    pub fn is_deleted(&self) -> bool {
        self.api.metadata.deletion_timestamp.is_some()
    }

    /// How long its containers may take to end: what the deletion asks for, else what the pod does.
    pub fn grace_period(&self) -> Duration {
        let seconds = self.api.metadata.deletion_grace_period_seconds;
        let seconds = seconds.or(self.spec().termination_grace_period_seconds).unwrap_or(30);
        bounded(seconds)
    }

    /// A path of the manifest as a path of the host: relative ones from the manifest's folder.
    pub fn resolve(&self, path: &str) -> PathBuf {
        match &self.folder {
            Some(folder) => folder.join(path),
            None => Path::new(path).to_owned(),
        }
    }

    /// The pod as Krustlet's contract has it, in the 1.21 type: who it is. The node's own states read the pod itself,
    /// [`crate::context::PodContext::pod`].
    pub fn to_kubelet(&self) -> kubelet::pod::Pod {
        let metadata = kubelet_k8s::apimachinery::pkg::apis::meta::v1::ObjectMeta {
            name: self.api.metadata.name.clone(),
            namespace: self.api.metadata.namespace.clone(),
            uid: self.api.metadata.uid.clone(),
            ..Default::default()
        };
        of_1_21::Pod { metadata, spec: Some(of_1_21::PodSpec::default()), status: None }.into()
    }
}

/// A time of an object, in seconds; none below zero. Nothing lasts for more than a year, and no clock is asked for more.
pub fn bounded(seconds: i64) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0).min(365 * 24 * 3600))
}

/// Whether an init container is a sidecar: it runs beside those that come after it, and is started again however it ends.
pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// When a container that ended is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestartPolicy {
    /// However it ended.
    Always,
    /// If it did not exit with 0.
    OnFailure,
    /// Never.
    Never,
}

impl RestartPolicy {
    /// Whether a container that ended this way is started again.
    pub fn restarts(self, succeeded: bool) -> bool {
        match self {
            Self::Always => true,
            Self::OnFailure => !succeeded,
            Self::Never => false,
        }
    }
}
