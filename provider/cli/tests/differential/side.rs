//! The two nodes of one cluster, and where each has its pods and images.

use crate::fixture::cluster::{Cluster, ClusterNode, cluster_with_linux_node};
use crate::fixture::registry::{Access, Registry};
use crate::fixture::{akri, component, guest, linux_program, wait_for};
use kube::Client;
use serde_json::json;

/// Which kind of node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// kubelet, containerd and runc.
    Linux,
    /// This project's.
    Wasm,
}

/// Both of them.
pub const KINDS: [Kind; 2] = [Kind::Linux, Kind::Wasm];

impl Kind {
    /// Name of the node, and of the namespace that its pods are in.
    pub fn name(self) -> &'static str {
        match self {
            Self::Linux => "linux",
            Self::Wasm => "wasm",
        }
    }
}

/// A cluster with both nodes, and a registry with the same program for each.
pub struct Scene {
    pub cluster: Cluster,
    pub client: Client,
    pub registry: Registry,
    pub node: tokio::sync::Mutex<ClusterNode>,
    /// Of this machine, and the same for both nodes: for hostPath volumes.
    pub files: tempfile::TempDir,
}

/// `None` where there can be no Linux node.
pub async fn scene() -> Option<Scene> {
    let cluster = cluster_with_linux_node(Kind::Linux.name())?;
    let registry = Registry::start(Access::Public);
    let mut node = ClusterNode::prepare(Kind::Wasm.name());
    // Else the API server lets nobody resize its pods.
    node = node.with(&["--insecure-registries", &registry.address, "--os-label", "linux"]);
    node.run(&cluster.bootstrap());
    node.wait_until_ready(&cluster);
    for kind in KINDS {
        cluster.kubectl_ok(&["create", "namespace", kind.name()]);
        assert!(wait_for(|| cluster.get("serviceaccount", kind.name(), "default").is_some()));
    }
    let scene = Scene {
        client: akri::client(&cluster).await,
        cluster,
        registry,
        node: tokio::sync::Mutex::new(node),
        files: tempfile::tempdir().unwrap(),
    };
    scene.push_images().await;
    scene.have_images_pulled();
    Some(scene)
}

impl Scene {
    /// An image of this repository, for a kind of node.
    pub fn image(&self, kind: Kind, repository: &str) -> String {
        format!("{}/{}/{repository}", self.registry.address, kind.name())
    }

    async fn push_images(&self) {
        // The same program as the other kind of guest.
        let as_component = std::env::var_os("AS_COMPONENT").is_some();
        let module = if as_component { component("workload") } else { guest("workload") };
        let module = std::fs::read(module).unwrap();
        let program = std::fs::read(linux_program("workload")).unwrap();
        // With sockets, which a module has not. Another label: containerd names an image that
        // it has under two names by whichever it likes.
        let served = std::fs::read(component("workload")).unwrap();
        self.registry.push_module("wasm/served:v1", &served).await;
        self.registry.push_linux("linux/served:v1", ("program", &program), "served").await;
        for tag in ["v1", "v2"] {
            let name = format!("workload:{tag}");
            self.registry.push_module(&format!("wasm/{name}"), &module).await;
            self.registry.push_linux(&format!("linux/{name}"), ("program", &program), tag).await;
        }
    }

    /// So that no spec is the first to have an image, whichever that would be.
    fn have_images_pulled(&self) {
        for kind in KINDS {
            for (repository, tag) in [("workload", "v1"), ("workload", "v2"), ("served", "v1")] {
                let name = format!("pulls-{repository}-{tag}");
                let image = self.image(kind, &format!("{repository}:{tag}"));
                self.cluster.apply(&json!({
                    "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": kind.name()},
                    "spec": {"nodeName": kind.name(), "restartPolicy": "Never", "tolerations": [{"operator": "Exists"}],
                        "containers": [{"name": "main", "image": image, "args": ["exit:0"]}]},
                }));
                let ended = || {
                    let pod = self.cluster.get("pod", kind.name(), &name);
                    pod.is_some_and(|pod| pod["status"]["phase"] == "Succeeded")
                };
                assert!(wait_for(ended), "{image} does not run");
            }
        }
    }

    /// The digest of an image in the registry.
    pub fn digest(&self, kind: Kind, repository: &str, tag: &str) -> String {
        // As the registry stores it: repositories/NAME/_manifests/tags/TAG/current/link.
        let path = format!(
            "data/docker/registry/v2/repositories/{}/{repository}/_manifests/tags/{tag}/current/link",
            kind.name()
        );
        std::fs::read_to_string(self.registry.directory().join(path)).unwrap().trim().to_owned()
    }
}
