//! An ordinary node beside the control plane: a real kubelet with containerd and runc, in a view of the machine of its own.
//!
//! # Flow
//! 1. It takes a share of the machine: a number that is free, from which names and addresses follow; what an earlier node left
//!    is swept.
//! 2. containerd and the kubelet start in a mount and a process namespace. The kubelet has `/var/lib/kubelet` and `/var/log` there,
//!    which are directories of the cluster.
//! 3. The kubelet joins by the cluster's bootstrap token; [`crate::Running::add_linux_node`] returns when the Node is Ready.
//!
//! # Guarantees
//! - A kubelet, a containerd, networks and kernel settings of the machine are left alone.
//! - When whoever started the node ends, however that happens, the kernel ends each process of it and with them the mounts.
//!   Links, cgroups and files go then too, or at the next start of such a node.

mod config;
mod image;
mod share;

pub use config::WASM_RUNTIME;

use crate::cluster::Cluster;
use crate::port;
use crate::programs::{self, Programs};
use anyhow::{Context as _, bail};
use config::{KERNEL_SETTINGS, PAUSE_IMAGE, Paths};
use share::Share;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A running node. Dropping it ends it.
#[derive(Debug)]
pub struct LinuxNode {
    name: String,
    directory: PathBuf,
    paths: Paths,
    share: Share,
    ctr: PathBuf,
    /// The parent of the first process of its namespaces; its end is theirs.
    namespaces: Child,
}

/// The directory of a node's files, in the cluster's.
const FILES: &str = "linux-node";
/// The programs that a node consists of, which have logs and files with their process ids.
const PROGRAMS: [&str; 2] = ["containerd", "kubelet"];
/// How long containerd may take until it answers.
const ANSWERS: Duration = Duration::from_secs(60);

/// The first process of the node's namespaces. It makes the node's view of the machine and starts again what ends.
const FIRST_PROCESS: &str = r#"
set -e
mount --make-rshared /
files=$1 run=$2 logs=$3 programs=$4
mkdir -p /var/lib/kubelet /run/netns /run/containerd
mount --bind "$files/kubelet" /var/lib/kubelet
mount --bind "$files/log" /var/log
mount -t tmpfs tmpfs /run/netns
mount -t tmpfs tmpfs /run/containerd
(cd "$files/sys" && find . -type f) | while read -r setting; do
    [ ! -e "/proc/sys/$setting" ] || mount --bind "$files/sys/$setting" "/proc/sys/$setting"
done
keep() {
    log=$logs/$1.log
    shift
    while :; do
        "$@" </dev/null >>"$log" 2>&1 || :
        sleep 0.2
    done
}
keep containerd "$programs/containerd" --config "$files/containerd.toml" &
until [ -S "$run/containerd.sock" ]; do sleep 0.02; done
shift 4
keep kubelet "$@" &
wait
"#;

/// Whether this machine can run such a node; why not.
pub fn is_possible() -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        return Err("a Linux node (kubelet, containerd, runc) needs root".to_owned());
    }
    for (program, package) in [("ip", "iproute2"), ("unshare", "util-linux"), ("setpriv", "util-linux")] {
        if programs::on_path(program).is_none() {
            return Err(format!("a Linux node needs the program {program} (Debian: apt-get install {package})"));
        }
    }
    programs::runc().map(drop).map_err(|error| format!("{error:#}"))
}

impl LinuxNode {
    /// Starts the node, whose kubelet joins the cluster then. `programs` are those [with a Linux node](Programs::with_linux_node).
    pub fn start(cluster: &Cluster, programs: &Programs, name: &str) -> anyhow::Result<Self> {
        is_possible().map_err(anyhow::Error::msg)?;
        let files = cluster.directory().join(FILES);
        let share = Share::take(&files)?;
        let programs_directory = programs.path("containerd")?.with_file_name("");
        let paths = Paths { files, run: share.run(), programs: programs_directory };
        write_configuration(cluster, &paths, &share)?;
        share.make_cgroup()?;
        share.make_link()?;
        let mut kubelet = vec![programs.path("kubelet")?.into_os_string()];
        for (flag, value) in [
            ("--config", paths.kubelet_config()),
            ("--bootstrap-kubeconfig", cluster.bootstrap()),
            ("--kubeconfig", paths.files.join("kubelet.conf")),
            ("--node-ip", share.address().into()),
            ("--hostname-override", name.into()),
        ] {
            kubelet.extend([flag.into(), value.into_os_string()]);
        }
        let search_path = std::env::join_paths(
            [paths.programs.clone()]
                .into_iter()
                .chain(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()))
                .chain(["/usr/sbin".into(), "/sbin".into()]),
        )?;
        let log = std::fs::File::options().create(true).append(true).open(cluster.log("linux-node"))?;
        // The kernel ends the first process with its parent, and the parent with this thread; the rest ends with the first.
        let namespaces = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
            .args(["sh", "-c", FIRST_PROCESS, "linux-node"])
            .args([&paths.files, &paths.run, &cluster.directory().to_owned(), &paths.programs])
            .args(kubelet)
            .env("PATH", search_path)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("setpriv")?;
        let ctr = programs.path("ctr")?;
        let directory = cluster.directory().to_owned();
        let mut node = Self { name: name.to_owned(), directory, paths, share, ctr, namespaces };
        node.wait_for_containerd()?;
        node.write_pids()?;
        node.add_image(PAUSE_IMAGE, &programs.path("pause")?)?;
        Ok(node)
    }

    /// Its name in the cluster.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Makes an image of one static program, its entrypoint, for pods with `imagePullPolicy: Never`.
    pub fn add_image(&self, image: &str, program: &Path) -> anyhow::Result<()> {
        let archive = self.paths.files.join("image.tar");
        image::write_archive(image, program, &archive)?;
        import(&self.ctr, &self.paths.socket(), &archive)
    }

    /// Fails if it has ended; else sees to it that the files with its programs' process ids are right.
    pub fn keep_up(&mut self) -> anyhow::Result<()> {
        self.check()?;
        self.write_pids()
    }

    fn check(&mut self) -> anyhow::Result<()> {
        if let Some(status) = self.namespaces.try_wait()? {
            bail!("the Linux node ended ({status}); see {}", self.directory.join("linux-node.log").display());
        }
        Ok(())
    }

    fn wait_for_containerd(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + ANSWERS;
        loop {
            let version = Command::new(&self.ctr).arg("-a").arg(self.paths.socket()).arg("version").output()?;
            if version.status.success() {
                return Ok(());
            }
            self.check()?;
            if Instant::now() > deadline {
                let said = String::from_utf8_lossy(&version.stderr).trim().to_owned();
                let log = self.directory.join("containerd.log");
                bail!("containerd does not answer after {} s: {said}; see {}", ANSWERS.as_secs(), log.display());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// `<program>.pid` in the cluster's directory, and `linux-node.pid` of the first process, as this process sees them.
    fn write_pids(&self) -> anyhow::Result<()> {
        let is_recorded = |program: &str| {
            let pid = std::fs::read_to_string(self.pid_file(program)).unwrap_or_default();
            std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|running| running.trim() == program)
        };
        if PROGRAMS.iter().all(|program| is_recorded(program)) {
            return Ok(());
        }
        let parent = self.namespaces.id();
        let Some(first) = processes().find(|process| process.parent == parent) else { return Ok(()) };
        let mut found = vec![("linux-node", first.pid)];
        let keepers: Vec<_> =
            processes().filter(|process| process.parent == first.pid).map(|keeper| keeper.pid).collect();
        for process in processes().filter(|process| keepers.contains(&process.parent)) {
            found.extend(
                PROGRAMS.iter().find(|program| **program == process.name).map(|program| (*program, process.pid)),
            );
        }
        for (program, pid) in found {
            let path = self.pid_file(program);
            std::fs::write(path.with_extension("new"), pid.to_string())?;
            std::fs::rename(path.with_extension("new"), path)?;
        }
        Ok(())
    }

    fn pid_file(&self, program: &str) -> PathBuf {
        self.directory.join(format!("{program}.pid"))
    }
}

impl Drop for LinuxNode {
    fn drop(&mut self) {
        let _ = self.namespaces.kill();
        let _ = self.namespaces.wait();
        if let Err(error) = self.share.give_back(&self.paths.files) {
            eprintln!("the Linux node {} has left something: {error:#}", self.name);
        }
    }
}

/// Makes an image for the Linux node of a cluster that another process runs.
pub fn add_image(cluster: &Cluster, programs: &Programs, image: &str, program: &Path) -> anyhow::Result<()> {
    let files = cluster.directory().join(FILES);
    let socket = std::fs::read_to_string(files.join("socket")).with_context(|| {
        format!("{} has no Linux node; start it with --linux-node NAME", cluster.directory().display())
    })?;
    let archive = files.join(format!("image-{}.tar", std::process::id()));
    image::write_archive(image, program, &archive)?;
    let imported = import(&programs.path("ctr")?, Path::new(&socket), &archive);
    let _ = std::fs::remove_file(&archive);
    imported
}

fn import(ctr: &Path, socket: &Path, archive: &Path) -> anyhow::Result<()> {
    let mut command = Command::new(ctr);
    command.arg("-a").arg(socket).args(["-n", "k8s.io", "images", "import"]).arg(archive);
    let output = command.output().context("ctr")?;
    if !output.status.success() {
        bail!("ctr images import: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

fn write_configuration(cluster: &Cluster, paths: &Paths, share: &Share) -> anyhow::Result<()> {
    for directory in ["kubelet", "log/pods", "log/containers", "containerd", "cni"] {
        std::fs::create_dir_all(paths.files.join(directory))?;
    }
    for (setting, value) in KERNEL_SETTINGS {
        let path = paths.files.join("sys").join(setting);
        std::fs::create_dir_all(path.with_file_name(""))?;
        std::fs::write(path, format!("{value}\n"))?;
    }
    let wasm_shim = std::env::var_os("WASM_SHIM").map(PathBuf::from);
    let wasm_shim = wasm_shim.map(|shim| shim.canonicalize().with_context(|| format!("WASM_SHIM={}", shim.display())));
    let containerd = config::containerd(paths, &programs::runc()?, wasm_shim.transpose()?.as_deref());
    std::fs::write(paths.containerd_config(), containerd)?;
    std::fs::write(paths.network_config(), config::network(paths, share).to_string())?;
    let kubelet = config::kubelet(cluster, paths, share, port::free()?);
    std::fs::write(paths.kubelet_config(), kubelet.to_string())?;
    std::fs::write(paths.files.join("socket"), paths.socket().as_os_str().as_encoded_bytes())?;
    Ok(())
}

struct Process {
    pid: u32,
    parent: u32,
    name: String,
}

/// What runs on the machine.
fn processes() -> impl Iterator<Item = Process> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        // `PID (NAME) STATE PPID ...`
        let status = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        let (name, rest) = status.split_once('(')?.1.rsplit_once(')')?;
        Some(Process { pid, parent: rest.split_whitespace().nth(1)?.parse().ok()?, name: name.to_owned() })
    })
}
