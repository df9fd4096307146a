//! The container image, in a real containerd: handler mode on an ordinary Linux node. `IMAGE` names the archive that `make image` makes;
//! `make image-test` makes it and runs this.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test they are assertions")]

mod fixture;

use akri_krustlet_discovery::agent;
use akri_proto::v0::DiscoverRequest;
use fixture::cluster::{Cluster, cluster_with_linux_node};
use fixture::registry::{Access, Registry};
use fixture::{component, ids, image, serves, wait_for};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

const NODE: &str = "image-node";

struct Scene {
    cluster: Cluster,
    registry: Registry,
    image: String,
    directory: tempfile::TempDir,
}

async fn scene() -> Option<Scene> {
    let Some(archive) = image::archive() else {
        println!("skipped: IMAGE names no archive of the container image (make image-test)");
        return None;
    };
    let cluster = cluster_with_linux_node(NODE)?;
    let registry = Registry::start(Access::Public);
    let image = image::push(&registry, &archive);
    let typed = std::fs::read(component("debug-echo-typed")).unwrap();
    registry.push_module("typed:v1", &typed).await;
    Some(Scene { cluster, registry, image, directory: tempfile::tempdir().unwrap() })
}

impl Scene {
    /// The DaemonSet's pod of manifests/handler-mode on the Linux node, with one handler, and sockets in a directory of the test's.
    fn pod(&self, name: &str, change: impl FnOnce(&mut Value)) -> PathBuf {
        let sockets = self.directory.path().join(name);
        std::fs::create_dir_all(&sockets).unwrap();
        let handler = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "typed"},
            "spec": {"containers": [{"name": "typed", "image": format!("{}/typed:v1", self.registry.address)}]}});
        self.cluster.apply(&json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": format!("{name}-handlers"), "namespace": "default"},
            "data": {"typed.json": handler.to_string()}}));
        let data = self.directory.path().join(format!("{name}-data"));
        let handlers = format!("{name}-handlers");
        let mut spec = image::handler_mode(&self.image, &self.registry, &handlers, &sockets, &data);
        spec["nodeName"] = json!(NODE);
        // Two pods of one network cannot both have the place of the metrics.
        let arguments = spec["containers"][0]["args"].as_array_mut().unwrap();
        arguments.retain(|argument| !argument.as_str().unwrap().starts_with("--metrics"));
        change(&mut spec);
        self.cluster.apply(&json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"}, "spec": spec}));
        sockets.join("debugEcho.sock")
    }

    fn log(&self, pod: &str) -> String {
        let log = self.cluster.kubectl(&["logs", pod]);
        let described = self.cluster.kubectl(&["describe", "pod", pod]);
        format!("{}\n{}", String::from_utf8_lossy(&log.stdout), String::from_utf8_lossy(&described.stdout))
    }

    async fn finds_devices(&self, pod: &str, socket: &Path) {
        assert!(wait_for(|| serves(socket)), "{}", self.log(pod));
        let request = DiscoverRequest { discovery_details: "descriptions: [a, b]".to_owned(), ..Default::default() };
        let mut stream = agent::discover(socket.to_owned(), request).await.unwrap();
        let list = tokio::time::timeout(fixture::DEADLINE, stream.message()).await.unwrap().unwrap().unwrap();
        assert_eq!(ids(list), ["a", "b"], "{}", self.log(pod));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_image_runs_handlers_in_containerd_with_what_the_manifest_gives_it() {
    let Some(scene) = scene().await else { return };
    let account = || scene.cluster.get("serviceaccount", "default", "default").is_some();
    assert!(wait_for(account));
    let socket = scene.pod("as-root", |_| {});
    scene.finds_devices("as-root", &socket).await;
    // As the image's own user, with nothing but a directory that this user may write.
    let sockets = scene.directory.path().join("as-user");
    std::fs::create_dir_all(&sockets).unwrap();
    std::fs::set_permissions(&sockets, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let socket = scene.pod("as-user", |spec| {
        spec["containers"][0]["securityContext"]["runAsUser"] = json!(65_532);
        spec["containers"][0]["securityContext"]["runAsNonRoot"] = json!(true);
        for volume in spec["volumes"].as_array_mut().unwrap() {
            if volume["name"] == "data" {
                *volume = json!({"name": "data", "emptyDir": {}});
            }
        }
        spec["securityContext"] = json!({"fsGroup": 65_532});
    });
    scene.finds_devices("as-user", &socket).await;
    // It ends as it is asked to, and takes its socket with it.
    for pod in ["as-root", "as-user"] {
        scene.cluster.kubectl_ok(&["delete", "pod", pod, "--wait=true"]);
    }
    assert!(wait_for(|| !socket.exists()));
}
