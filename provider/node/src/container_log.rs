//! Reading what a container has printed, for `logs` and for the node's endpoint.

use crate::data_directory::{DataDirectory, StoredPod};
use crate::pod::PodObject;
use akri_krustlet_host::DirectoryWatcher;
use akri_krustlet_runtime::log::{LogError, LogOptions, LogPart, Logs};
use k8s_openapi::api::core::v1::{ContainerStatus, PodStatus};
use tokio::sync::watch;

/// Which log.
#[derive(Clone, Debug)]
pub struct LogRequest {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The container's name.
    pub container: String,
    /// The life of the container before its last restart.
    pub previous: bool,
    /// Go on until the container ends.
    pub follow: bool,
    /// Which lines.
    pub options: LogOptions,
}

/// Why there is no log to read.
#[derive(Debug, thiserror::Error)]
pub enum ContainerLogError {
    /// The node does not run such a pod.
    #[error("pod {0} is not on this node")]
    NoPod(String),
    /// The pod has no such container.
    #[error("container {container} is not in pod {pod}")]
    NoContainer {
        /// `namespace/name`.
        pod: String,
        /// The container.
        container: String,
    },
    /// It has not been started.
    #[error("container \"{container}\" in pod \"{pod}\" is waiting to start: {reason}")]
    Waiting {
        /// The pod's name.
        pod: String,
        /// The container.
        container: String,
        /// What it waits for.
        reason: String,
    },
    /// It has not been restarted.
    #[error("previous terminated container \"{container}\" in pod \"{pod}\" not found")]
    NoPrevious {
        /// The pod's name.
        pod: String,
        /// The container.
        container: String,
    },
    /// See [`LogError`].
    #[error(transparent)]
    Log(#[from] LogError),
    /// The data directory cannot be read, or not watched.
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

/// Reads a log from its beginning, or from where the options say, and goes on if it is to follow.
#[derive(Debug)]
pub struct ContainerLogReader {
    request: LogRequest,
    uid: String,
    data: DataDirectory,
    /// Only missing while it is read.
    logs: Option<Logs>,
    restart: u32,
    changes: Option<(watch::Receiver<()>, watch::Receiver<()>)>,
    ended: bool,
}

impl ContainerLogReader {
    /// Finds the log. `watcher` is needed to follow.
    pub fn open(
        request: LogRequest,
        data: DataDirectory,
        watcher: Option<&DirectoryWatcher>,
    ) -> Result<Self, ContainerLogError> {
        let (object, status) = find(&request, &data)?;
        let (pod, container) = (request.pod.clone(), request.container.clone());
        let current = u32::try_from(status.restart_count).unwrap_or(0);
        // Between two runs, the last state is that of the run that is counted last.
        let pauses = status.state.as_ref().is_some_and(|state| state.waiting.is_some())
            && status.last_state.as_ref().is_some_and(|last| last.terminated.is_some());
        let restart = match request.previous {
            true if pauses => current,
            true => current.checked_sub(1).ok_or(ContainerLogError::NoPrevious { pod, container })?,
            false => current,
        };
        let directory = data.container_logs(&object, &request.container);
        let waiting = || {
            let state = status.state.as_ref().and_then(|state| state.waiting.as_ref());
            let reason = state.and_then(|waiting| waiting.reason.clone()).unwrap_or_else(|| "no output".to_owned());
            let reason = match reason.as_str() {
                "ErrImagePull" | "ImagePullBackOff" => "trying and failing to pull image".to_owned(),
                _ => reason,
            };
            ContainerLogError::Waiting { pod: request.pod.clone(), container: request.container.clone(), reason }
        };
        let logs = match Logs::open(&directory, restart, request.options) {
            Err(LogError::Missing(_)) => return Err(waiting()),
            logs => logs?,
        };
        let changes = match watcher.filter(|_| request.follow && !request.previous) {
            Some(watcher) => Some((watcher.watch(&directory)?, watcher.watch(&data.pod(object.uid()))?)),
            None => None,
        };
        Ok(Self { uid: object.uid().to_owned(), request, data, logs: Some(logs), restart, changes, ended: false })
    }

    /// The life of the container that is read: the pod's UID, and how many lives there were before.
    pub fn life(&self) -> (String, u32) {
        (self.uid.clone(), self.restart)
    }

    /// What comes next; waits for some if the container may still print. `None` at the end. If the wait is given up, so is the
    /// reader.
    pub async fn next(&mut self) -> Result<Option<Vec<LogPart>>, ContainerLogError> {
        loop {
            let Some(mut logs) = self.logs.take() else { return Ok(None) };
            let (uid, name, restart) = (self.uid.clone(), self.request.container.clone(), self.restart);
            let data = self.changes.is_some().then(|| self.data.clone());
            let read = tokio::task::spawn_blocking(move || {
                // Asked before reading: what was printed before the end is read after it is known.
                let runs = data.is_some_and(|data| runs(&data, &uid, &name, restart));
                (logs.read_batch(), runs, logs)
            });
            let (parts, runs, logs) = read.await.map_err(std::io::Error::other)?;
            self.logs = Some(logs);
            let parts = parts?;
            if !parts.is_empty() {
                return Ok(Some(parts));
            }
            if !runs || self.ended {
                return Ok(None);
            }
            if let Some((printed, reported)) = &mut self.changes {
                let gone = tokio::select! {
                    changed = printed.changed() => changed.is_err(),
                    changed = reported.changed() => changed.is_err(),
                };
                self.ended = gone;
            }
        }
    }
}

fn runs(data: &DataDirectory, uid: &str, container: &str, restart: u32) -> bool {
    let status = data.status(uid).and_then(|status| container_of(status, container));
    status.is_some_and(|status| {
        let running = status.state.as_ref().is_some_and(|state| state.running.is_some());
        running && u32::try_from(status.restart_count) == Ok(restart)
    })
}

fn find(request: &LogRequest, data: &DataDirectory) -> Result<(PodObject, ContainerStatus), ContainerLogError> {
    let of_name = |stored: &StoredPod| {
        let metadata = &stored.pod.metadata;
        metadata.name.as_ref() == Some(&request.pod)
            && metadata.namespace.as_deref().unwrap_or("default") == request.namespace
    };
    let key = format!("{}/{}", request.namespace, request.pod);
    // Of two pods of one name, one is going.
    let stored = data.pods()?.into_iter().filter(of_name).max_by_key(|stored| stored.status.start_time.clone());
    let StoredPod { pod, status } = stored.ok_or_else(|| ContainerLogError::NoPod(key.clone()))?;
    let container = container_of(status, &request.container);
    let container =
        container.ok_or_else(|| ContainerLogError::NoContainer { pod: key, container: request.container.clone() })?;
    Ok((PodObject::new(&pod, None), container))
}

fn container_of(status: PodStatus, name: &str) -> Option<ContainerStatus> {
    let containers = status.container_statuses.into_iter().chain(status.init_container_statuses).flatten();
    containers.into_iter().find(|container| container.name == name)
}
