//! The machine goes down: systemd-logind, played by this test on a bus of its own, waits until the pods have ended.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test they are assertions")]

mod fixture;

use fixture::cluster::{Cluster, ClusterNode, Namespace, cluster};
use fixture::{condition, wait_for};
use serde_json::{Value, json};
use std::io::Read as _;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use zbus::object_server::SignalEmitter;

/// What logind was asked for, each with the end of a pipe whose other end the node holds.
type Inhibitors = Arc<Mutex<Vec<(Vec<String>, std::io::PipeReader)>>>;

struct Manager(Inhibitors);

#[zbus::interface(name = "org.freedesktop.login1.Manager")]
impl Manager {
    fn inhibit(&self, what: &str, who: &str, why: &str, mode: &str) -> zbus::OwnedFd {
        let (ours, theirs) = std::io::pipe().unwrap();
        let asked = [what, who, why, mode].map(str::to_owned).to_vec();
        self.0.lock().unwrap().push((asked, ours));
        std::os::fd::OwnedFd::from(theirs).into()
    }

    #[zbus(signal)]
    async fn prepare_for_shutdown(emitter: &SignalEmitter<'_>, start: bool) -> zbus::Result<()>;

    #[zbus(property, name = "InhibitDelayMaxUSec")]
    fn inhibit_delay_max(&self) -> u64 {
        60_000_000
    }
}

/// A system bus with a logind.
struct Machine {
    bus: Child,
    address: String,
    logind: zbus::Connection,
    inhibitors: Inhibitors,
    _directory: tempfile::TempDir,
}

impl Machine {
    async fn start() -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let address = format!("unix:path={}", directory.path().join("bus").display());
        let bus = Command::new("dbus-daemon")
            .args(["--session", "--nofork", "--nopidfile", &format!("--address={address}")])
            .stdin(Stdio::null())
            .spawn();
        let Ok(bus) = bus else {
            println!("skipped: there is no dbus-daemon");
            return None;
        };
        assert!(wait_for(|| directory.path().join("bus").exists()), "no bus");
        let inhibitors = Inhibitors::default();
        let logind = Self::logind(&address, &inhibitors).await;
        Some(Self { bus, address, logind, inhibitors, _directory: directory })
    }

    async fn logind(address: &str, inhibitors: &Inhibitors) -> zbus::Connection {
        let builder = zbus::connection::Builder::address(address).name("org.freedesktop.login1");
        builder.serve_at("/org/freedesktop/login1", Manager(inhibitors.clone())).build().await.unwrap()
    }

    async fn tell(&self, begins: bool) {
        let manager = self.logind.object_server().interface::<_, Manager>("/org/freedesktop/login1").await.unwrap();
        Manager::prepare_for_shutdown(manager.signal_emitter(), begins).await.unwrap();
    }

    fn inhibitors(&self) -> usize {
        self.inhibitors.lock().unwrap().len()
    }

    /// True when the node has let go of the last one.
    fn goes_down(&self) -> bool {
        let (_, pipe) = self.inhibitors.lock().unwrap().pop().unwrap();
        let (sender, ended) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut pipe = pipe;
            let _ = sender.send(pipe.read(&mut [0]).is_ok_and(|read| read == 0));
        });
        ended.recv_timeout(fixture::DEADLINE).unwrap_or(false)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.bus.kill();
        let _ = self.bus.wait();
    }
}

fn join(cluster: &Cluster, machine: &Machine, name: &str, arguments: &[&str]) -> ClusterNode {
    let mut node = ClusterNode::prepare(name).with(arguments);
    node.environment.push(("DBUS_SYSTEM_BUS_ADDRESS", machine.address.clone()));
    node.run(&cluster.bootstrap());
    node.wait_until_ready(cluster);
    node
}

/// A pod that ends half a second after it is asked to.
fn slow(node: &ClusterNode, name: &str, class: &str) -> Value {
    let mut pod = node.pod(name, "workload");
    let container = &mut pod["spec"]["containers"][0];
    container["args"] = json!(["input", "sleep:500", "print:ended by itself"]);
    container["stdin"] = true.into();
    pod["spec"]["priorityClassName"] = class.into();
    pod
}

fn ended_at(pod: &Value) -> &str {
    pod["status"]["containerStatuses"][0]["state"]["terminated"]["finishedAt"].as_str().unwrap()
}

fn is_shutting_down(cluster: &Cluster, node: &str) -> bool {
    let object = cluster.get("node", "", node).unwrap();
    let conditions = object["status"]["conditions"].as_array().unwrap();
    conditions
        .iter()
        .any(|one| one["type"] == "Ready" && one["status"] == "False" && one["message"] == "node is shutting down")
}

fn terminated(namespace: &Namespace<'_>, node: &ClusterNode, name: &str) -> Value {
    let pod = namespace.wait_for_pod(node, name, "terminated", |pod| pod["status"]["phase"] == "Failed");
    assert_eq!(pod["status"]["reason"], "Terminated", "{pod:#}");
    // A static pod's says besides when it is tried again.
    let message = pod["status"]["message"].as_str().unwrap();
    assert!(message.starts_with("Pod was terminated in response to imminent node shutdown."), "{message}");
    assert_eq!(condition(&pod, "DisruptionTarget"), Some(true), "{pod:#}");
    pod
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_end_in_order_before_the_machine_goes_down() {
    let Some(cluster) = cluster() else { return };
    let Some(machine) = Machine::start().await else { return };
    let namespace = cluster.namespace("goes-down");
    let node = join(cluster, &machine, "goes-down", &["--node-shutdown-grace-period-by-pod-priority", "0=20,1000=10"]);
    assert!(wait_for(|| machine.inhibitors() == 1), "{}", node.log());
    {
        let inhibitors = machine.inhibitors.lock().unwrap();
        let (asked, _) = &inhibitors[0];
        assert_eq!((asked[0].as_str(), asked[1].as_str(), asked[3].as_str()), ("shutdown", "akri-krustlet", "delay"));
    }
    cluster.apply(&json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "last"}, "value": 1000}));
    for (name, class) in [("first", ""), ("last", "last")] {
        namespace.apply(slow(&node, name, class));
        namespace.wait_until_ready(&node, name);
    }
    machine.tell(true).await;
    assert!(machine.goes_down(), "{}", node.log());
    // All of it was told before the machine was let go.
    assert!(is_shutting_down(cluster, "goes-down"));
    let (first, last) = (terminated(&namespace, &node, "first"), terminated(&namespace, &node, "last"));
    assert!(ended_at(&first) <= ended_at(&last), "{first:#} {last:#}");
    let log = node.log();
    let at = |what: &str| log.find(what).unwrap_or_else(|| panic!("{what}: {log}"));
    assert!(
        at("container completed pod=\"goes-down/first\"") < at("pod ends with the machine pod=\"goes-down/last\""),
        "{log}"
    );
    for name in ["first", "last"] {
        assert!(namespace.kubectl_ok(&["logs", name]).contains("ended by itself"));
    }
    // Nothing more is taken.
    namespace.apply(slow(&node, "late", ""));
    let late = namespace.wait_for_pod(&node, "late", "refused", |pod| pod["status"]["phase"] == "Failed");
    assert_eq!(late["status"]["reason"], "NodeShutdown");
    // It is called off: the node goes on, and waits with the next one.
    machine.tell(false).await;
    assert!(wait_for(|| machine.inhibitors() == 1), "{}", node.log());
    node.wait_until_ready(cluster);
    namespace.apply(slow(&node, "again", ""));
    namespace.wait_until_ready(&node, "again");
    machine.tell(true).await;
    assert!(machine.goes_down(), "{}", node.log());
    terminated(&namespace, &node, "again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_logind_that_starts_again_is_asked_again_and_static_pods_run_when_the_machine_is_back() {
    let Some(cluster) = cluster() else { return };
    let Some(mut machine) = Machine::start().await else { return };
    let namespace = cluster.namespace("comes-back");
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["--node-shutdown-grace-period", "20", "--manifests", folder.path().to_str().unwrap()];
    let mut node = join(cluster, &machine, "comes-back", &arguments);
    assert!(wait_for(|| machine.inhibitors() == 1), "{}", node.log());
    let mut pod = slow(&node, "static", "");
    pod["metadata"]["namespace"] = json!("comes-back");
    pod["spec"].as_object_mut().unwrap().remove("nodeName");
    std::fs::write(folder.path().join("pod.json"), pod.to_string()).unwrap();
    namespace.wait_until_ready(&node, "static-comes-back");
    // Another bus in its place.
    let _ = machine.bus.kill();
    let _ = machine.bus.wait();
    let _ = std::fs::remove_file(machine.address.strip_prefix("unix:path=").unwrap());
    machine.inhibitors.lock().unwrap().clear();
    node.wait_for_log("the system bus is gone");
    machine.bus = Command::new("dbus-daemon")
        .args(["--session", "--nofork", "--nopidfile", &format!("--address={}", machine.address)])
        .spawn()
        .unwrap();
    let path = std::path::PathBuf::from(machine.address.strip_prefix("unix:path=").unwrap());
    assert!(wait_for(|| path.exists()), "no bus");
    machine.logind = Machine::logind(&machine.address, &machine.inhibitors).await;
    assert!(wait_for(|| machine.inhibitors() == 1), "{}", node.log());
    machine.tell(true).await;
    assert!(machine.goes_down(), "{}", node.log());
    terminated(&namespace, &node, "static-comes-back");
    // The machine is back.
    assert_eq!(node.terminate(), Some(0));
    node.run(&cluster.bootstrap());
    namespace.wait_until_ready(&node, "static-comes-back");
}
