//! A node of its own for the project: this program, in a directory that goes with it.

use super::DevArguments;
use super::project::Project;
use crate::pods::problems_of;
use akri_krustlet_discovery::settings::ALLOWED_HOST_PATHS;
use akri_krustlet_host::DirectoryWatcher;
use akri_krustlet_node::DataDirectory;
use akri_krustlet_node::container_log::{ContainerLogReader, LogRequest};
use akri_krustlet_node::data_directory::StoredPod;
use akri_krustlet_runtime::log::{LogOptions, LogPrinter};
use anyhow::Context as _;
use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::mpsc;

/// How long it may take to end.
const END: Duration = Duration::from_secs(10);
/// How often the pod's status is looked at, which is a small file.
const LOOK: Duration = Duration::from_millis(100);

/// A node that runs.
pub(super) struct DevNode {
    directory: tempfile::TempDir,
    child: Child,
    /// It ends when this is closed, however that comes about.
    stdin: Option<ChildStdin>,
}

impl DevNode {
    pub(super) fn directory() -> anyhow::Result<tempfile::TempDir> {
        let directory = tempfile::Builder::new()
            .prefix("akri-krustlet-dev-")
            .permissions(std::fs::Permissions::from_mode(0o700))
            .tempdir()?;
        std::fs::create_dir(directory.path().join("handlers"))?;
        Ok(directory)
    }

    pub(super) fn start(
        project: &Project,
        directory: tempfile::TempDir,
        arguments: &DevArguments,
    ) -> anyhow::Result<Self> {
        let record = arguments.record.as_ref().map(std::path::absolute).transpose()?;
        let path = |name: &str| directory.path().join(name);
        let log = std::fs::File::create(path("node.log"))?;
        let annotations = project.pod.api.metadata.annotations.as_ref();
        // Here the author is the operator, too.
        let allowed = annotations.and_then(|all| all.get(ALLOWED_HOST_PATHS)).cloned().unwrap_or_default();
        let mut child = Command::new("/proc/self/exe")
            .args(["run", "--until-input-ends", "--manifests"])
            .arg(&project.manifests)
            .arg("--data-dir")
            .arg(path("data"))
            .arg("--log-dir")
            .arg(path("logs"))
            .arg("--discovery-handlers-directory")
            .arg(path("handlers"))
            .arg("--device-plugins-directory")
            .arg(path("plugins"))
            .args(["--allowed-host-paths", &allowed])
            .args(record.iter().flat_map(|path| [OsStr::new("--record"), path.as_os_str()]))
            .args(arguments.record_secrets.then_some("--record-secrets"))
            // However full the machine is.
            .args(["--eviction-hard", "memory.available<0,nodefs.available<0%,nodefs.inodesFree<0%,pid.available<0%"])
            .env_remove("AKRI_KRUSTLET_CONFIG")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            // The terminal's Ctrl-C is for this process, which ends the node when it has shown all.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .context("the node does not start")?;
        let stdin = child.stdin.take();
        Ok(Self { directory, child, stdin })
    }

    pub(super) fn data(&self) -> DataDirectory {
        DataDirectory::new(self.directory.path().join("data"), self.directory.path().join("logs"))
    }

    /// Resolves with its last words when it ends by itself.
    pub(super) async fn ended(&mut self) -> String {
        let status = self.child.wait().await;
        let log = std::fs::read_to_string(self.directory.path().join("node.log")).unwrap_or_default();
        let last: Vec<_> = log.lines().rev().take(5).collect();
        let last = last.into_iter().rev().collect::<Vec<_>>().join("\n");
        format!(
            "the node ended ({}): {last}",
            status.map_or_else(|error| error.to_string(), |status| status.to_string())
        )
    }

    /// Ends it, and removes what it left.
    pub(super) async fn end(mut self) {
        drop(self.stdin.take());
        if tokio::time::timeout(END, self.child.wait()).await.is_err() {
            let _ = self.child.kill().await;
        }
    }
}

/// Something that the node tells of the project's pod.
#[derive(Debug)]
pub(super) enum PodChange {
    /// Lines of its container's log.
    Printed(Vec<u8>),
    /// It has this trouble now, or none.
    Trouble(Vec<String>),
    /// Its container runs for the first time, or once more.
    Runs,
}

/// Follows the pod until nobody listens.
pub(super) async fn follow(data: DataDirectory, pod: PodName, told: mpsc::UnboundedSender<PodChange>) {
    let log = tokio::spawn(follow_log(data.clone(), pod.clone(), told.clone()));
    let (mut trouble, mut runs) = (Vec::new(), -1);
    while !told.is_closed() {
        if let Some(StoredPod { status, .. }) = pod.stored(&data) {
            let now = problems_of(&status);
            if now != trouble {
                trouble.clone_from(&now);
                let _ = told.send(PodChange::Trouble(now));
            }
            let container = status.container_statuses.iter().flatten().find(|one| one.name == pod.container);
            let running = container.filter(|one| one.state.as_ref().is_some_and(|state| state.running.is_some()));
            if let Some(restarts) = running.map(|one| one.restart_count).filter(|restarts| *restarts != runs) {
                runs = restarts;
                let _ = told.send(PodChange::Runs);
            }
        }
        tokio::time::sleep(LOOK).await;
    }
    log.abort();
}

/// Whose log and status is followed.
#[derive(Clone, Debug)]
pub(super) struct PodName {
    pub namespace: String,
    pub pod: String,
    pub container: String,
}

impl PodName {
    /// The newest of its pods: an edited manifest makes another one.
    fn stored(&self, data: &DataDirectory) -> Option<StoredPod> {
        let of_name = |stored: &StoredPod| {
            let metadata = &stored.pod.metadata;
            metadata.name.as_ref() == Some(&self.pod) && metadata.namespace.as_ref() == Some(&self.namespace)
        };
        data.pods().ok()?.into_iter().filter(of_name).max_by_key(|stored| stored.status.start_time.clone())
    }
}

/// Each life of the container, from its beginning.
async fn follow_log(data: DataDirectory, pod: PodName, told: mpsc::UnboundedSender<PodChange>) -> anyhow::Result<()> {
    let watcher = DirectoryWatcher::start()?;
    let mut seen = None;
    loop {
        let request = LogRequest {
            namespace: pod.namespace.clone(),
            pod: pod.pod.clone(),
            container: pod.container.clone(),
            previous: false,
            follow: true,
            options: LogOptions::default(),
        };
        match ContainerLogReader::open(request, data.clone(), Some(&watcher)) {
            Ok(mut reader) if seen.as_ref() != Some(&reader.life()) => {
                seen = Some(reader.life());
                let mut printer = LogPrinter::new(false);
                while let Ok(Some(parts)) = reader.next().await {
                    let mut text = Vec::new();
                    parts.iter().for_each(|part| printer.print(part, &mut text));
                    if told.send(PodChange::Printed(text)).is_err() {
                        return Ok(());
                    }
                }
            }
            _ => tokio::time::sleep(LOOK).await,
        }
    }
}

/// Where handlers and the one who asks them meet.
pub(super) fn handlers(directory: &Path) -> PathBuf {
    directory.join("handlers")
}
