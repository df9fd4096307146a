//! Pods from a folder of manifests: all of a node without a cluster, and the static pods of a node of one.
//!
//! A file added starts its pods, a changed one replaces those that changed, a removed one stops them. A file that cannot be
//! read for the moment (a syntax error while somebody edits it) keeps the pods that it had.

use super::{PodEvent, PodSource};
use crate::manifest::static_pod::static_pod;
use crate::manifest::{MOST_FILE, Manifest, ManifestError, is_manifest};
use crate::pod::PodObject;
use akri_krustlet_host::DirectoryWatcher;
use akri_krustlet_host::file::FileStamp;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::watch;

/// Watches a folder.
#[derive(Debug)]
pub struct FolderSource {
    folder: PathBuf,
    /// The node of whose static pods the folder has the manifests; none for a node without a cluster.
    node: Option<String>,
    watcher: DirectoryWatcher,
    changes: Option<watch::Receiver<()>>,
    files: BTreeMap<PathBuf, File>,
    /// What the node has been told: the pod's UID by its key.
    told: HashMap<String, String>,
    events: VecDeque<PodEvent>,
    synced: bool,
    complaints: HashSet<String>,
}

#[derive(Debug)]
struct File {
    /// What the file was when it was read; `None` if it was so new that another write may look the same.
    stamp: Option<FileStamp>,
    pods: Vec<(PodObject, usize)>,
    complaints: Vec<String>,
}

impl FolderSource {
    /// A source of the manifests in `folder`, which must exist.
    pub fn open(folder: &Path, watcher: DirectoryWatcher) -> std::io::Result<Self> {
        Self::open_for(folder, None, watcher)
    }

    /// A source of the static pods of a node of a cluster.
    pub fn of_static_pods(folder: &Path, node: &str, watcher: DirectoryWatcher) -> std::io::Result<Self> {
        Self::open_for(folder, Some(node.to_owned()), watcher)
    }

    fn open_for(folder: &Path, node: Option<String>, watcher: DirectoryWatcher) -> std::io::Result<Self> {
        let folder = folder.canonicalize()?;
        let changes = watcher.watch(&folder)?;
        let mut source = Self {
            folder,
            node,
            watcher,
            changes: Some(changes),
            files: BTreeMap::new(),
            told: HashMap::new(),
            events: VecDeque::new(),
            synced: false,
            complaints: HashSet::new(),
        };
        source.scan();
        Ok(source)
    }

    /// Reads what changed and queues the events that follow from it.
    fn scan(&mut self) {
        let paths = match std::fs::read_dir(&self.folder) {
            Ok(entries) => {
                entries.flatten().map(|entry| entry.path()).filter(|path| is_manifest(path)).collect::<HashSet<_>>()
            }
            Err(error) => {
                tracing::error!(folder = %self.folder.display(), %error, "cannot read the manifests; the pods stay as they are");
                return;
            }
        };
        let mut complaints = Vec::new();
        self.files.retain(|path, _| paths.contains(path));
        for path in paths {
            if let Err(complaint) = self.read(&path, &mut complaints) {
                complaints.push(complaint);
            }
        }
        self.queue_differences(&mut complaints);
        for complaint in &complaints {
            if !self.complaints.contains(complaint) {
                tracing::error!("{complaint}");
            }
        }
        self.complaints = complaints.into_iter().collect();
        if !self.synced {
            self.synced = true;
            let unreadable = self.files.iter().filter(|(_, file)| !file.complaints.is_empty());
            let unreadable = unreadable.map(|(path, _)| path.clone()).collect();
            self.events.push_back(PodEvent::Synced { unreadable });
        }
    }

    fn read(&mut self, path: &Path, complaints: &mut Vec<String>) -> Result<(), String> {
        let failed = |error: std::io::Error| format!("manifest {}: {error}", path.display());
        let metadata = match std::fs::metadata(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            metadata => metadata.map_err(failed)?,
        };
        if !metadata.is_file() {
            return Ok(());
        }
        if metadata.len() > MOST_FILE {
            return Err(format!("manifest {}: larger than {} MiB", path.display(), MOST_FILE >> 20));
        }
        let stamp = FileStamp::settled(&metadata);
        if stamp.is_some() && self.files.get(path).is_some_and(|file| file.stamp == stamp) {
            complaints.extend(self.files.get(path).into_iter().flat_map(|file| file.complaints.iter().cloned()));
            return Ok(());
        }
        let text = std::fs::read_to_string(path).map_err(failed)?;
        let Manifest { mut pods, mut errors } = Manifest::parse(path, &text);
        if let Some(node) = &self.node {
            pods = pods
                .into_iter()
                .filter_map(|(pod, line)| match static_pod(&pod, node) {
                    Ok(pod) => Some((pod, line)),
                    Err(message) => {
                        errors.push(ManifestError { file: path.to_owned(), line, message });
                        None
                    }
                })
                .collect();
        }
        // Most are what they were, and the node has that object already.
        for (pod, _) in &mut pods {
            let known = self.files.get(path).into_iter().flat_map(|file| &file.pods);
            if let Some((known, _)) = known.clone().find(|(known, _)| known.uid() == pod.uid()) {
                *pod = known.clone();
            }
        }
        let errors: Vec<_> = errors.iter().map(ManifestError::to_string).collect();
        complaints.extend(errors.iter().cloned());
        match self.files.get_mut(path) {
            // Half a file: keep what it had until it can be read again.
            Some(file) if !errors.is_empty() => {
                // Half a file: what it had before and cannot be found now stays, until the file can be read again.
                let missing = |old: &&(PodObject, usize)| pods.iter().all(|(new, _)| new.key() != old.0.key());
                let kept: Vec<_> = file.pods.iter().filter(missing).cloned().collect();
                *file = File { stamp, pods: pods.into_iter().chain(kept).collect(), complaints: errors };
            }
            Some(file) => *file = File { stamp, pods, complaints: errors },
            None => {
                self.files.insert(path.to_owned(), File { stamp, pods, complaints: errors });
            }
        }
        Ok(())
    }

    fn queue_differences(&mut self, complaints: &mut Vec<String>) {
        let mut wanted: BTreeMap<String, (&PodObject, String)> = BTreeMap::new();
        for (path, file) in &self.files {
            for (pod, line) in &file.pods {
                let place = format!("{}:{line}", path.display());
                match wanted.get(&pod.key()) {
                    Some((_, first)) => complaints.push(format!(
                        "{place}: pod {} is already defined at {first}; this one is not used: rename one of them",
                        pod.key()
                    )),
                    None => {
                        wanted.insert(pod.key(), (pod, place));
                    }
                }
            }
        }
        let gone = self.told.iter().filter(|(key, uid)| wanted.get(*key).is_none_or(|(pod, _)| pod.uid() != *uid));
        let gone: Vec<_> = gone.map(|(key, uid)| (key.clone(), uid.clone())).collect();
        // A replacement is told before its predecessor's end, so that a handler's streams pass from one to the other.
        let new = wanted.iter().filter(|(key, (pod, _))| self.told.get(*key).is_none_or(|uid| uid != pod.uid()));
        let new: Vec<_> = new.map(|(key, (pod, _))| (key.clone(), (*pod).clone())).collect();
        for (key, uid) in gone {
            if self.told.get(&key) == Some(&uid) {
                self.told.remove(&key);
            }
            self.events.push_back(PodEvent::Deleted(uid));
        }
        for (key, pod) in new.into_iter().rev() {
            self.told.insert(key, pod.uid().to_owned());
            self.events.push_front(PodEvent::Applied(pod));
        }
    }
}

#[async_trait::async_trait]
impl PodSource for FolderSource {
    async fn next(&mut self) -> PodEvent {
        loop {
            if let Some(event) = self.events.pop_front() {
                return event;
            }
            match &mut self.changes {
                Some(changes) => {
                    if changes.changed().await.is_err() {
                        tracing::warn!(folder = %self.folder.display(), "the folder of manifests was removed; the pods stay until it is back");
                        self.changes = None;
                        continue;
                    }
                }
                None => {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    match self.watcher.watch(&self.folder) {
                        Ok(changes) => self.changes = Some(changes),
                        Err(_) => continue,
                    }
                }
            }
            self.scan();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(name: &str, image: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{containers: [{{name: c, image: '{image}'}}]}}\n"
        )
    }

    async fn next(source: &mut FolderSource) -> String {
        match source.next().await {
            PodEvent::Applied(pod) => format!("applied {}", pod.name()),
            PodEvent::Deleted(_) => "deleted".to_owned(),
            PodEvent::Synced { unreadable } => format!("synced {}", unreadable.len()),
        }
    }

    #[tokio::test]
    async fn files_that_come_change_and_go_start_replace_and_stop_pods() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("a.yaml"), manifest("a", "x")).unwrap();
        std::fs::write(path("ignored.txt"), "no manifest").unwrap();
        let mut source = FolderSource::open(folder.path(), DirectoryWatcher::start().unwrap()).unwrap();
        assert_eq!(next(&mut source).await, "applied a");
        assert_eq!(next(&mut source).await, "synced 0");
        std::fs::write(path("b.yaml"), manifest("b", "x")).unwrap();
        assert_eq!(next(&mut source).await, "applied b");
        std::fs::write(path("new"), manifest("b", "y")).unwrap();
        std::fs::rename(path("new"), path("b.yaml")).unwrap();
        assert_eq!(next(&mut source).await, "applied b");
        assert_eq!(next(&mut source).await, "deleted");
        std::fs::remove_file(path("a.yaml")).unwrap();
        assert_eq!(next(&mut source).await, "deleted");
    }

    #[tokio::test]
    async fn a_duplicate_name_and_a_broken_edit_change_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("a.yaml"), manifest("a", "x")).unwrap();
        std::fs::write(path("z.yaml"), manifest("a", "y")).unwrap();
        let mut source = FolderSource::open(folder.path(), DirectoryWatcher::start().unwrap()).unwrap();
        assert_eq!(next(&mut source).await, "applied a");
        assert_eq!(next(&mut source).await, "synced 0");
        let complaint = source.complaints.iter().next().unwrap().clone();
        assert!(complaint.contains("z.yaml:1: pod default/a is already defined at"), "{complaint}");
        std::fs::write(path("a.yaml"), "kind: [").unwrap();
        std::fs::write(path("c.yaml"), manifest("c", "x")).unwrap();
        assert_eq!(next(&mut source).await, "applied c");
        assert!(source.events.is_empty());
        // Of two documents one is broken: neither pod goes.
        std::fs::write(path("c.yaml"), format!("{}---\n{}", manifest("c", "x"), manifest("d", "x"))).unwrap();
        assert_eq!(next(&mut source).await, "applied d");
        std::fs::write(path("c.yaml"), format!("{}---\nkind: [", manifest("c", "x"))).unwrap();
        std::fs::write(path("e.yaml"), manifest("e", "x")).unwrap();
        assert_eq!(next(&mut source).await, "applied e");
        assert!(source.events.is_empty());
    }
}
