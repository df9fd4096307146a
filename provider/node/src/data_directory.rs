//! The node's directory: everything that must survive it.
//!
//! ```text
//! <data>/lock                                   held by the running node, with its pid
//! <data>/instance                               tells this installation from another of the same name
//! <data>/pki/, <data>/kubeconfig                the node's identity in its cluster, 0600
//! <data>/images/                                images that were pulled
//! <data>/modules/                               compiled modules
//! <data>/devices.json                           which pod has which devices, and the device plugins, 0600
//! <data>/handler-owners.json                    which namespace's pods serve which discovery handler
//! <data>/last-lists/                            of the Discover streams that are open, 0600
//! <data>/pods/<uid>/pod.json                    the pod, annotated with the manifest that it came from
//! <data>/pods/<uid>/status.json                 its status, as last reported
//! <data>/pods/<uid>/volumes/<name>/             emptyDir volumes, files of ConfigMaps
//! <data>/memory/                                a tmpfs: files of Secrets, volumes with medium Memory
//! <data>/pods/<uid>/exchange/<container>/       exchange volume of a handler that mounts none
//! <data>/pods/<uid>/streams/<container>/        exchange directories of its streams, gone at each start
//! <logs>/<namespace>_<name>_<uid>/<container>/  logs, <restart>.log
//! ```

use crate::pod::PodObject;
use akri_krustlet_host::file::write_atomically;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use std::io::{Read as _, Seek as _, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Mode of the files.
const MODE: u32 = 0o640;

/// Paths below the data and log directories.
#[derive(Clone, Debug)]
pub struct DataDirectory {
    data: PathBuf,
    logs: PathBuf,
}

/// What is kept here, and how. A program reads the formats before its own; another number is for a change that the program before
/// this one would take for damage.
const FORMAT: u32 = 1;

/// Why the data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirectoryError {
    /// Another node uses it.
    #[error("data directory {}: in use by another node{by}; stop it, or give this one its own --data-dir", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
        /// ` (pid N)` if known.
        by: String,
    },
    /// What is in it is another program's.
    #[error(
        "data directory {}: it was written by a newer akri-krustlet (format {format}, this one reads up to {FORMAT}); run that one again, or give this one another --data-dir: its pods, images and certificates are made anew there",
        path.display()
    )]
    Newer {
        /// The directory.
        path: PathBuf,
        /// Its format.
        format: String,
    },
    /// The system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

/// The lock of a running node; released when dropped.
#[derive(Debug)]
pub struct DataDirectoryLock {
    _file: std::fs::File,
}

/// A pod that the data directory remembers.
#[derive(Clone, Debug)]
pub struct StoredPod {
    /// The pod.
    pub pod: Pod,
    /// Its last status.
    pub status: PodStatus,
}

impl DataDirectory {
    /// The directory and where its logs are.
    pub fn new(data: impl Into<PathBuf>, logs: impl Into<PathBuf>) -> Self {
        Self { data: data.into(), logs: logs.into() }
    }

    /// Makes the directories and takes the lock.
    pub fn lock(&self) -> Result<DataDirectoryLock, DataDirectoryError> {
        for directory in [&self.data, &self.data.join("pods"), &self.logs] {
            make_directory(directory).map_err(|source| DataDirectoryError::Io { path: directory.clone(), source })?;
        }
        let path = self.lock_path();
        let failed = |source| DataDirectoryError::Io { path: path.clone(), source };
        let mut file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o644)
            .open(&path)
            .map_err(failed)?;
        if rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
            let mut pid = String::new();
            let _ = file.read_to_string(&mut pid);
            let by = if pid.trim().is_empty() { String::new() } else { format!(" (pid {})", pid.trim()) };
            return Err(DataDirectoryError::Locked { path: self.data.clone(), by });
        }
        file.set_len(0).and_then(|()| file.rewind()).map_err(failed)?;
        writeln!(file, "{}", std::process::id()).map_err(failed)?;
        self.check_format()?;
        self.remove_staged();
        Ok(DataDirectoryLock { _file: file })
    }

    /// A directory without a format is of a program that knew only the first one.
    fn check_format(&self) -> Result<(), DataDirectoryError> {
        let path = self.data.join("format");
        let format = match std::fs::read_to_string(&path) {
            Ok(text) => text.trim().to_owned(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(source) => return Err(DataDirectoryError::Io { path, source }),
        };
        // One that was cut by a full disk says nothing.
        if format.is_empty() {
            let written = write_atomically(&path, format!("{FORMAT}\n").as_bytes(), MODE);
            return written.map_err(|source| DataDirectoryError::Io { path, source });
        }
        match format.parse::<u32>() {
            Ok(known) if known <= FORMAT => Ok(()),
            _ => Err(DataDirectoryError::Newer { path: self.data.clone(), format }),
        }
    }

    /// Removes what a kill left of files that were being written.
    fn remove_staged(&self) {
        let entries = std::fs::read_dir(&self.data).into_iter().flatten().flatten();
        for staged in entries.filter(|entry| entry.file_name().to_string_lossy().ends_with(".new")) {
            let _ = std::fs::remove_file(staged.path());
        }
    }

    /// True if a node runs on this directory.
    pub fn is_locked(&self) -> bool {
        std::fs::File::open(self.lock_path())
            .is_ok_and(|file| rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockShared).is_err())
    }

    fn lock_path(&self) -> PathBuf {
        self.data.join("lock")
    }

    /// The data directory itself.
    pub fn path(&self) -> &Path {
        &self.data
    }

    /// The store of compiled modules.
    pub fn modules(&self) -> PathBuf {
        self.data.join("modules")
    }

    /// Which pod has which devices.
    pub fn devices(&self) -> PathBuf {
        self.data.join("devices.json")
    }

    /// Where a node that runs says what it is at.
    pub fn overview_socket(&self) -> PathBuf {
        self.data.join("overview.sock")
    }

    /// The last lists of open Discover streams.
    pub fn last_lists(&self) -> PathBuf {
        self.data.join("last-lists")
    }

    /// Whose the handlers' names are.
    pub fn handler_owners(&self) -> PathBuf {
        self.data.join("handler-owners.json")
    }

    /// The images that were pulled.
    pub fn images(&self) -> PathBuf {
        self.data.join("images")
    }

    /// What must not be on a disk.
    pub fn memory(&self) -> PathBuf {
        self.data.join("memory")
    }

    /// Which installation this is: made once, kept as long as the directory.
    pub fn instance(&self) -> std::io::Result<String> {
        let path = self.data.join("instance");
        if let Ok(known) = std::fs::read_to_string(&path)
            && !known.trim().is_empty()
        {
            return Ok(known.trim().to_owned());
        }
        let made = std::fs::read_to_string("/proc/sys/kernel/random/uuid")?.trim().to_owned();
        make_directory(&self.data)?;
        write_atomically(&path, made.as_bytes(), MODE)?;
        Ok(made)
    }

    /// The address that the node had last.
    pub fn address(&self) -> Option<IpAddr> {
        std::fs::read_to_string(self.data.join("address")).ok()?.trim().parse().ok()
    }

    /// Remembers the node's address.
    pub fn store_address(&self, address: IpAddr) -> std::io::Result<()> {
        make_directory(&self.data)?;
        write_atomically(&self.data.join("address"), address.to_string().as_bytes(), MODE)
    }

    /// A pod's directory.
    pub fn pod(&self, uid: &str) -> PathBuf {
        self.data.join("pods").join(file_name(uid))
    }

    /// The directory of a container's logs.
    pub fn container_logs(&self, pod: &PodObject, container: &str) -> PathBuf {
        self.pod_logs(pod.namespace(), pod.name(), pod.uid()).join(file_name(container))
    }

    /// The directory of a pod's logs.
    pub fn pod_logs(&self, namespace: &str, name: &str, uid: &str) -> PathBuf {
        self.logs.join(file_name(&format!("{namespace}_{name}_{uid}")))
    }

    /// Remembers a pod.
    pub fn store_pod(&self, pod: &PodObject) -> std::io::Result<()> {
        let directory = self.pod(pod.uid());
        make_directory(&directory)?;
        write_atomically(&directory.join("pod.json"), &serde_json::to_vec_pretty(&*pod.api)?, MODE)
    }

    /// A pod as it was remembered last.
    pub fn remembered(&self, uid: &str) -> Option<Pod> {
        read_json(&self.pod(uid).join("pod.json"))
    }

    /// Remembers a pod's status.
    pub fn store_status(&self, uid: &str, status: &PodStatus) -> std::io::Result<()> {
        let directory = self.pod(uid);
        write_atomically(&directory.join("status.json"), &serde_json::to_vec_pretty(status)?, MODE)
    }

    /// A pod's last status. One that cannot be read is told and treated as missing.
    pub fn status(&self, uid: &str) -> Option<PodStatus> {
        read_json(&self.pod(uid).join("status.json"))
    }

    /// All pods that are remembered, by name.
    pub fn pods(&self) -> std::io::Result<Vec<StoredPod>> {
        let mut pods = self.each_pod()?.collect::<std::io::Result<Vec<_>>>()?;
        let key = |stored: &StoredPod| (stored.pod.metadata.namespace.clone(), stored.pod.metadata.name.clone());
        pods.sort_by_key(key);
        Ok(pods)
    }

    /// The pods one after the other, so that no more than one of them is in memory, in any order.
    pub fn each_pod(&self) -> std::io::Result<impl Iterator<Item = std::io::Result<StoredPod>> + use<>> {
        let stored = |entry: std::io::Result<std::fs::DirEntry>| {
            let directory = match entry {
                Ok(entry) => entry.path(),
                Err(error) => return Some(Err(error)),
            };
            if is_aside(&directory) {
                return None;
            }
            let pod = read_json::<Pod>(&directory.join("pod.json"))?;
            let status = read_json(&directory.join("status.json")).unwrap_or_default();
            Some(Ok(StoredPod { pod, status }))
        };
        Ok(std::fs::read_dir(self.data.join("pods"))?.filter_map(stored))
    }

    /// Directories of pods that were not remembered yet when the node ended: names, and where they are.
    pub fn unfinished(&self) -> Vec<(String, PathBuf)> {
        let entries =
            std::fs::read_dir(self.data.join("pods")).into_iter().flatten().flatten().map(|entry| entry.path());
        let is_missing = |path: &PathBuf| {
            let pod = path.join("pod.json").symlink_metadata();
            pod.is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
        };
        let unfinished = entries.filter(|path| !is_aside(path) && is_missing(path));
        unfinished.filter_map(|path| Some((path.file_name()?.to_str()?.to_owned(), path))).collect()
    }

    /// Moves a directory of [`DataDirectory::unfinished`] aside; where it is now.
    pub fn set_unfinished_aside(&self, directory: &Path) -> std::io::Result<Option<PathBuf>> {
        move_aside(directory, &self.data.join("pods"))
    }

    /// Forgets a pod: its directory and its logs are moved aside, to be removed by whoever has the time. A name of the same pod
    /// is free at once.
    pub fn set_aside(&self, pod: &Pod) -> std::io::Result<Vec<PathBuf>> {
        let metadata = &pod.metadata;
        let (Some(name), Some(uid)) = (&metadata.name, &metadata.uid) else { return Ok(Vec::new()) };
        let namespace = metadata.namespace.as_deref().unwrap_or("default");
        let mut aside = Vec::new();
        for directory in [self.pod_logs(namespace, name, uid), self.pod(uid)] {
            aside.extend(move_aside(&directory, directory.parent().unwrap_or(&self.data))?);
        }
        Ok(aside)
    }

    /// What an earlier life of the node set aside and did not remove.
    pub fn left_aside(&self) -> Vec<PathBuf> {
        let places = [self.data.join("pods"), self.logs.clone()];
        let entries = places.into_iter().flat_map(std::fs::read_dir).flatten().flatten();
        entries.map(|entry| entry.path()).filter(|path| is_aside(path)).collect()
    }
}

/// Names of directories that are set aside begin with it. No pod's do: names and UIDs begin with a letter or digit.
const ASIDE: &str = ".akri-krustlet-removed-";

/// True for what [`move_aside`] moved.
pub(crate) fn is_aside(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(ASIDE))
}

/// Moves a directory aside, to be removed by whoever has the time: its name is free at once. Where it is now; none if it is not
/// there.
pub(crate) fn move_aside(directory: &Path, parent: &Path) -> std::io::Result<Option<PathBuf>> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    loop {
        let place = parent.join(format!("{ASIDE}{}", NEXT.fetch_add(1, Ordering::Relaxed)));
        match std::fs::rename(directory, &place) {
            Ok(()) => return Ok(Some(place)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            // Of an earlier life of the node, which is removed with what was left aside.
            Err(_) if place.symlink_metadata().is_ok() => {}
            Err(error) => return Err(error),
        }
    }
}

/// Names come from manifests: never a path.
pub(crate) fn file_name(name: &str) -> String {
    match name {
        "" | "." | ".." => "_".to_owned(),
        name => name.replace(['/', '\0'], "_"),
    }
}

/// Makes a directory that only the node's user can read, and its parents.
pub(crate) fn make_directory(path: &Path) -> std::io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o750).create(path)
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Option<T> {
    let content = match std::fs::read(path) {
        Ok(content) => content,
        Err(error) => {
            if error.kind() != std::io::ErrorKind::NotFound {
                tracing::warn!(path = %path.display(), %error, "cannot be read");
            }
            return None;
        }
    };
    match serde_json::from_slice(&content) {
        Ok(value) => Some(value),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "cannot be understood and is ignored");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_locked_by_one_node_at_a_time() {
        let parent = tempfile::tempdir().unwrap();
        let directory = DataDirectory::new(parent.path().join("data"), parent.path().join("logs"));
        assert!(!directory.is_locked());
        let lock = directory.lock().unwrap();
        assert!(directory.is_locked());
        let error = directory.lock().unwrap_err().to_string();
        assert!(error.contains(&format!("pid {}", std::process::id())), "{error}");
        drop(lock);
        assert!(!directory.is_locked());
        directory.lock().unwrap();
    }

    #[test]
    fn a_directory_of_a_newer_program_is_left_alone() {
        let parent = tempfile::tempdir().unwrap();
        let directory = DataDirectory::new(parent.path().join("data"), parent.path().join("logs"));
        drop(directory.lock().unwrap());
        let format = directory.path().join("format");
        assert_eq!(std::fs::read_to_string(&format).unwrap(), "1\n");
        for (text, is_taken) in [("1", true), ("", true), ("2\n", false), ("a-later-one", false)] {
            std::fs::write(&format, text).unwrap();
            match directory.lock() {
                Ok(_) => assert!(is_taken, "{text}"),
                Err(error) => {
                    assert!(!is_taken && error.to_string().contains("written by a newer akri-krustlet"), "{error}");
                    assert_eq!(std::fs::read_to_string(&format).unwrap(), text);
                }
            }
        }
    }

    #[test]
    fn a_damaged_status_counts_as_none() {
        let parent = tempfile::tempdir().unwrap();
        let directory = DataDirectory::new(parent.path().join("data"), parent.path().join("logs"));
        let _lock = directory.lock().unwrap();
        std::fs::create_dir_all(directory.pod("u")).unwrap();
        std::fs::write(directory.pod("u").join("status.json"), "{\"phase\":").unwrap();
        assert_eq!(directory.status("u"), None);
        let status = PodStatus { phase: Some("Running".to_owned()), ..PodStatus::default() };
        directory.store_status("u", &status).unwrap();
        assert_eq!(directory.status("u"), Some(status));
    }
}
