//! A Linux node beside the control plane: it runs containers, meets no other one, and leaves nothing behind.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "a test")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_control-plane");
const IMAGE: &str = "akri-krustlet.test/waits:v1";

fn run(arguments: &[&str]) -> String {
    let output = Command::new(PROGRAM).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A cluster with a Linux node, and a pod on it.
struct Scene {
    directory: PathBuf,
    kubectl: PathBuf,
}

impl Scene {
    fn start(directory: &Path, node: &str) -> Self {
        let kubectl = PathBuf::from(run(&["build", "--linux-node"]).trim());
        let text = directory.to_str().unwrap();
        run(&["up", text, "--linux-node", node]);
        // The pause program is a static one, and at hand.
        let programs = kubectl.parent().unwrap().parent().unwrap();
        let programs = std::fs::read_dir(programs).unwrap().flatten().map(|entry| entry.path().join("pause"));
        let program = programs.into_iter().find(|path| path.is_file()).unwrap();
        run(&["image", text, IMAGE, program.to_str().unwrap()]);
        let scene = Self { directory: directory.to_owned(), kubectl };
        let overrides = format!(r#"--overrides={{"spec":{{"nodeName":"{node}"}}}}"#);
        scene.kubectl(&["run", "waits", "--image", IMAGE, "--image-pull-policy=Never", &overrides]);
        scene.kubectl(&["wait", "--for=condition=Ready", "pod/waits", "--timeout=60s"]);
        scene
    }

    fn kubectl(&self, arguments: &[&str]) -> String {
        let admin = self.directory.join("admin.conf");
        let output = Command::new(&self.kubectl).arg("--kubeconfig").arg(admin).args(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn pid(&self, program: &str) -> String {
        std::fs::read_to_string(self.directory.join(format!("{program}.pid"))).unwrap_or_default()
    }
}

/// Links, cgroups, sockets and mounts of Linux nodes, and what runs in their process namespaces.
fn traces() -> Vec<String> {
    let mut traces = Vec::new();
    for directory in ["/sys/class/net", "/run/akri-krustlet", "/sys/fs/cgroup", "/sys/fs/cgroup/memory"] {
        let names = std::fs::read_dir(directory).into_iter().flatten().flatten();
        let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
        // Locks stay; whoever has one is a node.
        let names = names.filter(|name| {
            ["akri-node", "akri-pods", "akri-krustlet-"].iter().any(|prefix| name.starts_with(prefix))
                || name.ends_with(".run")
        });
        traces.extend(names.map(|name| format!("{directory}/{name}")));
    }
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    traces.extend(mounts.lines().filter(|mount| mount.contains("linux-node")).map(str::to_owned));
    traces
}

#[test]
fn two_linux_nodes_run_containers_and_leave_nothing_behind_however_they_end() {
    if std::env::var_os("SKIP_CLUSTER_TESTS").is_some() {
        println!("skipped: SKIP_CLUSTER_TESTS is set");
        return;
    }
    if let Err(why) = control_plane::linux_node::is_possible() {
        println!("skipped: {why}");
        return;
    }
    let parent = tempfile::tempdir().unwrap();
    let others = traces();
    let first = Scene::start(&parent.path().join("first"), "one");
    let second = Scene::start(&parent.path().join("second"), "two");
    assert_ne!(
        first.kubectl(&["get", "pod", "waits", "-o", "jsonpath={.status.podIP} {.status.hostIP}"]),
        second.kubectl(&["get", "pod", "waits", "-o", "jsonpath={.status.podIP} {.status.hostIP}"])
    );
    // A kubelet that ends is started again, and its pods run on.
    let kubelet = first.pid("kubelet");
    assert!(Command::new("kill").args(["-9", &kubelet]).status().unwrap().success());
    wait_for("the kubelet is not started again", || {
        !first.pid("kubelet").is_empty() && first.pid("kubelet") != kubelet
    });
    let restarts =
        first.kubectl(&["get", "pod", "waits", "-o", "jsonpath={.status.containerStatuses[0].restartCount}"]);
    assert_eq!(restarts, "0");

    // Killed: the kernel ends its processes, and the next node that starts takes away the rest.
    let inside = first.pid("linux-node");
    let control_plane = std::fs::read_to_string(first.directory.join("pid")).unwrap();
    assert!(Command::new("kill").args(["-9", control_plane.trim()]).status().unwrap().success());
    wait_for("its processes are still there", || !Path::new(&format!("/proc/{inside}")).exists());
    let third = Scene::start(&parent.path().join("third"), "three");
    for scene in [&second, &third] {
        run(&["down", scene.directory.to_str().unwrap()]);
    }
    let left: Vec<_> = traces().into_iter().filter(|trace| !others.contains(trace)).collect();
    assert!(left.is_empty(), "{left:#?}");
}
