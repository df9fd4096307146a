//! The configuration of containerd, of its network and of the kubelet.

use super::share::Share;
use crate::cluster::Cluster;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// The image that holds a pod's namespaces.
pub const PAUSE_IMAGE: &str = "akri-krustlet.test/pause:v1";
/// Name of the runtime, and of its RuntimeClass, that `WASM_SHIM` adds.
pub const WASM_RUNTIME: &str = "wasm";

/// Kernel settings that a kubelet makes. It finds them made in the node's own view of `/proc/sys`, and the machine keeps its own.
pub const KERNEL_SETTINGS: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// Where the files of a node are.
///
/// ```text
/// FILES/kubelet/        /var/lib/kubelet, as the node's processes see it
/// FILES/log/            /var/log, likewise
/// FILES/containerd/     images and containers
/// FILES/*.{toml,yaml}   configuration
/// RUN/                  containerd's socket and state
/// ```
#[derive(Clone, Debug)]
pub struct Paths {
    pub files: PathBuf,
    pub run: PathBuf,
    /// The directory with containerd's shim and the CNI plugins.
    pub programs: PathBuf,
}

impl Paths {
    pub fn socket(&self) -> PathBuf {
        self.run.join("containerd.sock")
    }

    pub fn containerd_config(&self) -> PathBuf {
        self.files.join("containerd.toml")
    }

    pub fn kubelet_config(&self) -> PathBuf {
        self.files.join("kubelet.yaml")
    }

    pub fn network_config(&self) -> PathBuf {
        self.files.join("cni/pods.conflist")
    }
}

pub fn containerd(paths: &Paths, runc: &Path, wasm_shim: Option<&Path>) -> String {
    let snapshotter = if is_overlay(&paths.files) { "native" } else { "overlayfs" };
    let Paths { files, run, programs } = paths;
    let (files, run, programs, runc) = (files.display(), run.display(), programs.display(), runc.display());
    let mut text = format!(
        "version = 3\n\
         root = '{files}/containerd'\n\
         state = '{run}/containerd'\n\
         disabled_plugins = ['io.containerd.internal.v1.opt', 'io.containerd.nri.v1.nri']\n\
         [grpc]\naddress = '{run}/containerd.sock'\n\
         [plugins.'io.containerd.cri.v1.runtime']\n\
         # Without CAP_SYS_RESOURCE, a container cannot be made less likely to be killed than containerd itself.\n\
         restrict_oom_score_adj = true\n\
         [plugins.'io.containerd.cri.v1.runtime'.cni]\nbin_dirs = ['{programs}']\nconf_dir = '{files}/cni'\n\
         [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]\nruntime_type = 'io.containerd.runc.v2'\n\
         [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]\nBinaryName = '{runc}'\n\
         [plugins.'io.containerd.cri.v1.images']\nsnapshotter = '{snapshotter}'\n\
         [plugins.'io.containerd.cri.v1.images'.pinned_images]\nsandbox = '{PAUSE_IMAGE}'\n"
    );
    if let Some(shim) = wasm_shim {
        text.push_str(&format!(
            "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.{WASM_RUNTIME}]\n\
             runtime_type = 'io.containerd.wasm.v1'\nruntime_path = '{}'\n",
            shim.display()
        ));
    }
    text
}

/// An overlay cannot lie on another one, as in a container.
fn is_overlay(directory: &Path) -> bool {
    const OVERLAYFS_SUPER_MAGIC: u64 = 0x794c_7630;
    rustix::fs::statfs(directory).is_ok_and(|status| u64::try_from(status.f_type) == Ok(OVERLAYFS_SUPER_MAGIC))
}

/// The pods of a node see each other, and nothing else.
pub fn network(paths: &Paths, share: &Share) -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "pods",
        "plugins": [{
            "type": "bridge", "bridge": share.bridge(), "isGateway": false,
            "ipam": {
                "type": "host-local", "dataDir": paths.run.join("addresses"),
                "ranges": [[{"subnet": share.pods()}]],
            },
        }],
    })
}

pub fn kubelet(cluster: &Cluster, paths: &Paths, share: &Share, port: u16) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": format!("unix://{}", paths.socket().display()),
        "authentication": {
            "anonymous": {"enabled": false}, "webhook": {"enabled": true},
            "x509": {"clientCAFile": cluster.pki("ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "address": share.address(), "port": port, "healthzPort": 0,
        "cgroupDriver": "cgroupfs", "cgroupRoot": share.cgroup(), "failCgroupV1": false,
        "enforceNodeAllocatable": [], "failSwapOn": false, "resolvConf": "", "makeIPTablesUtilChains": false,
        "clusterDNS": ["10.96.0.10"], "clusterDomain": "cluster.local",
        "oomScoreAdj": 0,
        // However full the machine is that it runs on.
        "evictionHard": {}, "imageGCHighThresholdPercent": 100,
    })
}
