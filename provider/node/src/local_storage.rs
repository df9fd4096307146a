//! What a pod takes of the node's disk.

use crate::data_directory::DataDirectory;
use crate::pod::{PodObject, is_sidecar};
use crate::quantity;
use k8s_openapi::api::core::v1::Container;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, openat, statat};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

/// Directories below a pod's own that are of one container each.
const OF_CONTAINERS: [&str; 4] = ["files", "exchange", "streams", "termination"];

/// Bytes on the disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalStorage {
    /// By container: its logs, and what its guests write beside volumes.
    pub containers: BTreeMap<String, u64>,
    /// Volumes; what the node itself keeps of the pod is some kilobytes.
    pub rest: u64,
}

impl LocalStorage {
    /// Measures a pod. Blocks.
    pub fn of(data: &DataDirectory, pod: &PodObject) -> Self {
        let directory = data.pod(pod.uid());
        let mut containers = BTreeMap::new();
        for container in pod.init_containers().iter().chain(&pod.spec().containers) {
            let own = OF_CONTAINERS.iter().map(|part| size(&directory.join(part).join(&container.name)));
            let bytes = own.fold(size(&data.container_logs(pod, &container.name)), u64::saturating_add);
            containers.insert(container.name.clone(), bytes);
        }
        Self { containers, rest: size(&directory.join("volumes")) }
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        self.containers.values().copied().fold(self.rest, u64::saturating_add)
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
        let sidecars = pod.init_containers().iter().filter(|container| is_sidecar(container));
        let together: Vec<_> = pod.spec().containers.iter().chain(sidecars).filter_map(limit).collect();
        let init = pod.init_containers().iter().filter_map(limit).map(|(limit, _)| limit).max().unwrap_or(0);
        let sum = together.iter().fold(0u64, |sum, (limit, _)| sum.saturating_add(*limit)).max(init);
        let is_over = !together.is_empty() && self.total() > sum;
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

/// A tree that is deeper, or has more entries, counts as larger than any limit: nobody has such but to hide something in it.
const MOST_DEPTH: usize = 128;
const MOST_ENTRIES: usize = 1_000_000;

/// The room that a directory takes, in bytes; [`u64::MAX`] if it cannot be measured. Guests may write in it meanwhile: no link is
/// followed. Blocks.
pub fn size(directory: &Path) -> u64 {
    let root = match open(CWD, directory) {
        Ok(root) => root,
        Err(_) => return 0,
    };
    let (mut bytes, mut entries) = (0u64, 0);
    // The directories on the way down, each with what is left to look at in it.
    let mut open_directories = vec![(root, None)];
    while let Some((current, below)) = open_directories.last_mut() {
        let below: &mut Vec<CString> = match below {
            Some(below) => below,
            None => {
                let Some(found) = look(current, &mut bytes, &mut entries) else { return u64::MAX };
                below.insert(found)
            }
        };
        let Some(name) = below.pop() else {
            open_directories.pop();
            continue;
        };
        match open(current.as_fd(), name.as_c_str()) {
            Ok(inner) => open_directories.push((inner, None)),
            // It has gone, or is something else by now.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
            Err(_) => return u64::MAX,
        }
        if open_directories.len() > MOST_DEPTH || entries > MOST_ENTRIES {
            return u64::MAX;
        }
    }
    bytes
}

/// Adds up a directory and names those in it; none if it cannot be read.
fn look(directory: &OwnedFd, bytes: &mut u64, entries: &mut usize) -> Option<Vec<CString>> {
    let mut below = Vec::new();
    for entry in Dir::read_from(directory).ok()? {
        let entry = entry.ok()?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        *entries += 1;
        if *entries > MOST_ENTRIES {
            return None;
        }
        let Ok(stat) = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
        *bytes = bytes.saturating_add(u64::try_from(stat.st_blocks).unwrap_or(0) * 512);
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            below.push(name.to_owned());
        }
    }
    Some(below)
}

fn open(at: BorrowedFd<'_>, path: impl rustix::path::Arg) -> Result<OwnedFd, Errno> {
    openat(at, path, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
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

    #[test]
    fn what_is_hidden_in_the_depth_counts_and_links_lead_nowhere() {
        let place = tempfile::tempdir().unwrap();
        std::fs::write(place.path().join("outside"), vec![1; 1 << 20]).unwrap();
        let volume = place.path().join("volume");
        std::fs::create_dir(&volume).unwrap();
        std::os::unix::fs::symlink(place.path(), volume.join("link")).unwrap();
        std::fs::create_dir_all(volume.join("a/b/c")).unwrap();
        std::fs::write(volume.join("a/b/c/file"), vec![1; 100 << 10]).unwrap();
        assert!((100 << 10..200 << 10).contains(&size(&volume)), "{}", size(&volume));
        let mut deep = open(CWD, &volume).unwrap();
        for _ in 0..3000 {
            rustix::fs::mkdirat(&deep, "d", Mode::from_raw_mode(0o755)).unwrap();
            deep = open(deep.as_fd(), "d").unwrap();
        }
        assert_eq!(size(&volume), u64::MAX);
        drop(deep);
        akri_krustlet_host::file::remove_tree(&volume).unwrap();
        assert_eq!(size(&volume), 0, "it is not there");
    }
}
