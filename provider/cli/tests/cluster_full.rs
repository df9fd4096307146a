//! Much of everything: a full disk, many pods at once, many pods in a row.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test they are assertions")]

mod fixture;

use fixture::cluster::{ClusterNode, Namespace, cluster};
use fixture::registry::{Access, Registry};
use fixture::wait_for;
use serde_json::{Value, json};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A small filesystem, which goes with this.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(directory: &Path) -> Option<Self> {
        std::fs::create_dir_all(directory).unwrap();
        let arguments = ["-t", "tmpfs", "-o", "size=24m", "tmpfs"];
        let mounted = Command::new("mount").args(arguments).arg(directory).output();
        if !mounted.is_ok_and(|output| output.status.success()) {
            println!("skipped: a filesystem of a test's own needs root");
            return None;
        }
        Some(Self(directory.to_owned()))
    }

    /// Takes all that is left.
    fn fill(&self) -> PathBuf {
        let path = self.0.join("filler");
        let mut file = std::fs::File::create(&path).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_told_and_when_there_is_room_again_all_goes_on() {
    let Some(cluster) = cluster() else { return };
    let registry = Registry::start(Access::Public);
    let image = registry.push_module("module:v1", &std::fs::read(fixture::guest("misbehave")).unwrap()).await;
    let mut node = ClusterNode::prepare("full-disk").with(&["--insecure-registries", &registry.address]);
    let Some(disk) = SmallDisk::mount(&node.path("data")) else { return };
    node.run(&cluster.bootstrap());
    node.wait_until_ready(cluster);
    let namespace = cluster.namespace("full-disk");
    let mut talks = node.fault_pod("talks", "print");
    talks["spec"]["containers"][0]["env"][0]["value"] = json!("exit3");
    let mut pulled = node.fault_pod("pulled", "sleep");
    pulled["spec"]["containers"][0]["image"] = json!(image);
    for (name, fault) in [("stays", "sleep"), ("floods", "flood")] {
        namespace.apply(node.fault_pod(name, fault));
        namespace.wait_until_ready(&node, name);
    }
    let filler = disk.fill();
    // One that has to be compiled, one that has to be pulled, and one that writes logs and statuses all the time.
    namespace.apply(node.handler_pod("late", "late"));
    namespace.apply(pulled);
    namespace.apply(talks);
    for name in ["late", "pulled"] {
        namespace.wait_for_event(&node, name, "No space left on device");
    }
    assert!(node.is_running());
    for name in ["stays", "floods"] {
        assert_eq!(namespace.pod(name).unwrap()["status"]["phase"], "Running");
    }
    std::fs::remove_file(filler).unwrap();
    for name in ["late", "pulled"] {
        namespace.wait_until_ready(&node, name);
    }
    namespace.wait_for_pod(&node, "talks", "restarted", |pod| {
        pod["status"]["containerStatuses"][0]["restartCount"].as_i64().is_some_and(|count| count >= 1)
    });
    for name in ["stays", "floods"] {
        assert_eq!(namespace.pod(name).unwrap()["status"]["containerStatuses"][0]["restartCount"], 0);
    }
}

/// A disk in a file, which can fail.
struct FailingDisk {
    image: PathBuf,
    directory: PathBuf,
}

impl FailingDisk {
    /// `None` where there can be none.
    fn mount(image: &Path, directory: &Path) -> Option<Self> {
        std::fs::create_dir_all(directory).unwrap();
        std::fs::File::create(image).unwrap().set_len(64 << 20).unwrap();
        let disk = Self { image: image.to_owned(), directory: directory.to_owned() };
        let made = Command::new("mkfs.ext4").arg("-q").arg(image).output().is_ok_and(|output| output.status.success());
        if !made || !disk.mount_again("rw") {
            println!("skipped: a disk in a file needs root, loop devices and mkfs.ext4");
            return None;
        }
        Some(disk)
    }

    fn mount_again(&self, how: &str) -> bool {
        let options = format!("loop,errors=remount-ro,{how}");
        Command::new("mount")
            .args(["-o", &options])
            .args([&self.image, &self.directory])
            .output()
            .unwrap()
            .status
            .success()
    }

    fn unmount(&self) {
        let unmounted = wait_for(|| Command::new("umount").arg(&self.directory).output().unwrap().status.success());
        assert!(unmounted);
        // What it finds to mend is no failure.
        let _ = Command::new("e2fsck").args(["-f", "-y"]).arg(&self.image).output();
    }

    /// As the kernel does it when it reads nonsense.
    fn fail(&self) {
        let device = Command::new("losetup").args(["-n", "-O", "NAME", "-j"]).arg(&self.image).output().unwrap();
        let device = String::from_utf8(device.stdout).unwrap();
        let trigger = format!("/sys/fs/ext4/{}/trigger_fs_error", device.trim().trim_start_matches("/dev/"));
        std::fs::write(trigger, "a test").unwrap();
        assert!(wait_for(|| std::fs::write(self.directory.join("probe"), "").is_err()));
    }
}

impl Drop for FailingDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.directory).output();
    }
}

#[test]
fn a_disk_that_becomes_read_only_is_told_and_what_runs_runs_on() {
    let Some(cluster) = cluster() else { return };
    let mut node = ClusterNode::prepare("read-only");
    let Some(disk) = FailingDisk::mount(&node.path("disk"), &node.path("data")) else { return };
    node.run(&cluster.bootstrap());
    node.wait_until_ready(cluster);
    let namespace = cluster.namespace("read-only");
    namespace.apply(node.fault_pod("stays", "sleep"));
    namespace.apply(node.handler_pod("handler", "readOnly"));
    for name in ["stays", "handler"] {
        namespace.wait_until_ready(&node, name);
    }
    disk.fail();
    namespace.apply(node.fault_pod("late", "sleep"));
    node.wait_for_log("Read-only file system");
    assert!(node.is_running());
    assert!(fixture::serves(&node.socket("readOnly")));
    for name in ["stays", "handler"] {
        let pod = namespace.wait_until_ready(&node, name);
        assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0);
    }
    // A start says what it needs.
    node.kill();
    fixture::unmount(&node.path("data/memory"));
    disk.unmount();
    assert!(disk.mount_again("ro"));
    node.run(&cluster.bootstrap());
    assert_ne!(node.wait(), Some(0));
    let log = node.log();
    let last = log.lines().last().unwrap_or_default();
    assert!(last.contains("Read-only file system") && last.contains("data"), "{last}");
    // Mended.
    disk.unmount();
    assert!(disk.mount_again("rw"));
    node.run(&cluster.bootstrap());
    for name in ["stays", "handler", "late"] {
        namespace.wait_for_pod(&node, name, "ready", |pod| {
            fixture::condition(pod, "Ready") == Some(true)
                && pod["status"]["containerStatuses"][0]["state"]["running"].is_object()
        });
    }
    assert_eq!(node.terminate(), Some(0));
    fixture::unmount(&node.path("data/memory"));
    disk.unmount();
}

fn list(pods: impl Iterator<Item = Value>) -> Value {
    json!({"apiVersion": "v1", "kind": "List", "metadata": {}, "items": pods.collect::<Vec<_>>()})
}

fn pods_of(node: &ClusterNode, namespace: &Namespace<'_>, numbers: std::ops::Range<usize>) -> Value {
    list(numbers.map(|number| {
        let mut pod = node.fault_pod(&format!("p{number}"), "sleep");
        pod["metadata"]["namespace"] = json!(namespace.name);
        pod["spec"]["terminationGracePeriodSeconds"] = json!(0);
        pod
    }))
}

fn ready(namespace: &Namespace<'_>) -> usize {
    let list: Value = serde_json::from_str(&namespace.kubectl_ok(&["get", "pods", "-o", "json"])).unwrap();
    let pods = list["items"].as_array().unwrap().iter();
    pods.filter(|pod| fixture::condition(pod, "Ready") == Some(true)).count()
}

fn delete_all(namespace: &Namespace<'_>, node: &ClusterNode) {
    namespace.kubectl_ok(&["delete", "pods", "--all", "--wait=false"]);
    let none = || namespace.kubectl_ok(&["get", "pods", "-o", "name"]).is_empty();
    assert!(wait_for(none), "log:\n{}", node.log());
}

/// Open files, threads, and private memory in bytes.
fn taken(node: &ClusterNode) -> (usize, usize, u64) {
    let count = |what: &str| std::fs::read_dir(format!("/proc/{}/{what}", node.pid())).unwrap().count();
    let smaps = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", node.pid())).unwrap();
    let dirty = smaps.lines().find(|line| line.starts_with("Private_Dirty")).unwrap();
    let kibibytes: u64 = dirty.split_whitespace().nth(1).unwrap().parse().unwrap();
    (count("fd"), count("task"), kibibytes << 10)
}

#[test]
fn many_pods_at_once_and_in_a_row_leave_nothing_behind() {
    let Some(cluster) = cluster() else { return };
    let node = ClusterNode::join(cluster, "many");
    let namespace = cluster.namespace("many");
    let user = format!("system:node:{}", node.name);
    let writes = || {
        let requests = cluster.requests_of(&user);
        let is_write = |request: &&Value| {
            ["create", "patch", "update", "delete"].iter().any(|verb| request["verb"] == *verb)
                && ["pods", "events"].iter().any(|resource| request["objectRef"]["resource"] == *resource)
        };
        requests.iter().filter(is_write).count()
    };
    // The first round takes what a node of 110 pods needs.
    cluster.apply(&pods_of(&node, &namespace, 0..110));
    assert!(wait_for(|| ready(&namespace) == 110), "{} ready; log:\n{}", ready(&namespace), node.log());
    let each = writes() as f64 / 110.0;
    println!("{each:.1} writes to the API server for each pod");
    assert!(each <= 6.0, "{each}");
    delete_all(&namespace, &node);
    assert!(wait_for(|| std::fs::read_dir(node.path("data/pods")).unwrap().count() == 0));
    let before = taken(&node);
    for from in (0..500).step_by(100) {
        cluster.apply(&pods_of(&node, &namespace, from..from + 100));
        assert!(wait_for(|| ready(&namespace) == 100), "{} ready; log:\n{}", ready(&namespace), node.log());
        delete_all(&namespace, &node);
    }
    // Threads that are kept for a while and connections that are idle come and go.
    let returned = || {
        let (files, threads, memory) = taken(&node);
        files <= before.0 + 4 && threads <= before.1 + 4 && memory <= before.2 + (8 << 20)
    };
    let has_returned = wait_for(returned);
    println!("before and after 500 pods: {before:?}, {:?}", taken(&node));
    assert!(has_returned, "open files, threads, memory: {before:?} before, {:?} after", taken(&node));
}
