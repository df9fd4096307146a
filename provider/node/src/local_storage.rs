//! What a pod takes of the node's disk.

use crate::data_directory::DataDirectory;
use crate::pod::PodObject;
use crate::quantity;
use k8s_openapi::api::core::v1::Container;
use std::collections::BTreeMap;
use std::path::Path;

/// Directories below a pod's own that are of one container each.
const OF_CONTAINERS: [&str; 4] = ["files", "exchange", "streams", "termination"];

/// Bytes on the disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalStorage {
    /// By container: its logs, and what its guests write beside volumes.
    pub containers: BTreeMap<String, u64>,
    /// Volumes and what the node keeps of the pod.
    pub rest: u64,
}

impl LocalStorage {
    /// Measures a pod. Blocks.
    pub fn of(data: &DataDirectory, pod: &PodObject) -> Self {
        let directory = data.pod(pod.uid());
        let mut containers = BTreeMap::new();
        for container in pod.init_containers().iter().chain(&pod.spec().containers) {
            let own = OF_CONTAINERS.iter().map(|part| size(&directory.join(part).join(&container.name)));
            let bytes = own.sum::<u64>() + size(&data.container_logs(pod, &container.name));
            containers.insert(container.name.clone(), bytes);
        }
        let of_containers: u64 = OF_CONTAINERS.iter().map(|part| size(&directory.join(part))).sum();
        Self { containers, rest: size(&directory).saturating_sub(of_containers) }
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        self.containers.values().sum::<u64>() + self.rest
    }

    /// Which limit of the pod it is over, in a kubelet's words.
    pub fn exceeds(&self, pod: &PodObject) -> Option<String> {
        let containers = pod.init_containers().iter().chain(&pod.spec().containers);
        let over = |container: &&Container| {
            let used = self.containers.get(&container.name).copied().unwrap_or(0);
            limit(container).is_some_and(|(limit, _)| used > limit)
        };
        if let Some(container) = containers.clone().find(over) {
            let text = limit(container).map(|(_, text)| text).unwrap_or_default();
            let name = &container.name;
            return Some(format!("Container {name} exceeded its local ephemeral storage limit \"{text}\". "));
        }
        let limits: Vec<_> = pod.spec().containers.iter().filter_map(limit).collect();
        let sum = limits.iter().fold(0u64, |sum, (limit, _)| sum.saturating_add(*limit));
        let is_over = !limits.is_empty() && self.total() > sum;
        is_over.then(|| format!("Pod ephemeral local storage usage exceeds the total limit of containers {sum}. "))
    }
}

/// Whether a pod has such limits at all.
pub fn is_limited(pod: &PodObject) -> bool {
    pod.init_containers().iter().chain(&pod.spec().containers).any(|container| limit(container).is_some())
}

/// A container's limit, in bytes and as it is written; zero is none.
fn limit(container: &Container) -> Option<(u64, String)> {
    let limit = container.resources.as_ref()?.limits.as_ref()?.get("ephemeral-storage")?;
    let bytes = quantity::parse(&limit.0).ok()?.ceil();
    (bytes > 0).then(|| (bytes, limit.0.clone()))
}

/// The room that a directory takes, in bytes.
pub fn size(directory: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let mut bytes = 0;
    let mut open = vec![directory.to_owned()];
    while let Some(next) = open.pop() {
        let Ok(entries) = std::fs::read_dir(&next) else { continue };
        for entry in entries.flatten() {
            let Ok(metadata) = std::fs::symlink_metadata(entry.path()) else { continue };
            bytes += metadata.blocks() * 512;
            if metadata.is_dir() {
                open.push(entry.path());
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::sync::Arc;

    #[test]
    fn a_pod_is_over_its_limits_by_what_its_containers_write_and_by_all_together() {
        let place = tempfile::tempdir().unwrap();
        let data = DataDirectory::new(place.path().join("data"), place.path().join("logs"));
        let container =
            |name: &str, limit: &str| json!({"name": name, "resources": {"limits": {"ephemeral-storage": limit}}});
        let pod = json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": {
            "containers": [container("a", "1Mi"), container("b", "512Ki"), container("c", "0")]}});
        let pod = PodObject { api: Arc::new(serde_json::from_value(pod).unwrap()), folder: None };
        assert!(is_limited(&pod));
        let write = |path: std::path::PathBuf, kibibytes: usize| {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, vec![1; kibibytes << 10]).unwrap();
        };
        let directory = data.pod("u");
        write(data.container_logs(&pod, "a").join("0.log"), 400);
        write(directory.join("exchange/a/file"), 400);
        let storage = LocalStorage::of(&data, &pod);
        assert!((800 << 10..900 << 10).contains(&storage.containers["a"]), "{storage:?}");
        assert_eq!((storage.containers["b"], storage.exceeds(&pod)), (0, None));
        write(directory.join("volumes/v/file"), 800);
        let storage = LocalStorage::of(&data, &pod);
        assert!(storage.total() > 1600 << 10, "{storage:?}");
        let over = storage.exceeds(&pod).unwrap();
        assert_eq!(over, "Pod ephemeral local storage usage exceeds the total limit of containers 1572864. ");
        write(directory.join("streams/b/file"), 600);
        let over = LocalStorage::of(&data, &pod).exceeds(&pod).unwrap();
        assert_eq!(over, "Container b exceeded its local ephemeral storage limit \"512Ki\". ");
    }
}
