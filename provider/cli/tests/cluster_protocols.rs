//! Devices of every protocol with Akri's own Agent (`AKRI_BIN`, `AKRI_CRDS`), and what befalls the Agent, the node, a handler and
//! the network: none of them is lost.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test they are assertions")]

mod fixture;

use fixture::akri::{Akri, programs};
use fixture::cluster::{Cluster, ClusterNode, cluster};
use fixture::neighbour::Neighbour;
use fixture::peers::{Peer, python};
use fixture::{HandlerPod, component, wait_for};
use serde_json::{Value, json};
use std::collections::BTreeMap;

const LINK: &str = "akri-test0";
const THERE: &str = "10.97.0.2";

/// Handler, what it may reach, and the details of its Configuration, whose poll comes after a second.
const PROTOCOLS: [(&str, &str, &str); 5] = [
    ("http", "http details", r#"{"url": "http://10.97.0.2:8400/discovery", "interval": 1}"#),
    (
        "onvif",
        "udp 239.255.255.250:3702\njoin 239.255.255.250:3702\nhttp http://[10.97.0.0/24]:1-65535/onvif/*",
        r#"{"interval": 1, "missedProbes": 50}"#,
    ),
    (
        "opcua",
        "tcp details\ndns *",
        r#"{"opcuaDiscoveryMethod": {"standard": {"discoveryUrls": ["opc.tcp://10.97.0.2:4855/"]}}, "interval": 1, "missedPolls": 50}"#,
    ),
    ("udev", "", r#"{"udevRules": ["SUBSYSTEM==\"net\", KERNEL==\"akri-test0\""]}"#),
    (
        "zeroconf",
        "udp 224.0.0.251:5353\njoin 224.0.0.251:5353",
        r#"{"kind": "_rtsp._tcp", "interval": 1, "missedQuestions": 50}"#,
    ),
];

struct Scene {
    akri: Akri,
    node: ClusterNode,
    cluster: &'static Cluster,
    there: Neighbour,
    _devices: Vec<Peer>,
}

impl Scene {
    fn start() -> Option<Self> {
        programs()?;
        let (cluster, python) = (cluster()?, python()?);
        if !rustix::process::geteuid().is_root() {
            println!("skipped: a link of this machine to a network of the test's own needs root");
            return None;
        }
        let there = Neighbour::behind((LINK, "10.97.0.1/24"), "10.97.0.2/24");
        let device = |script, arguments: &[&str]| {
            Peer::start(&python, script, &[&[THERE], arguments].concat(), Some(there.pid()))
        };
        let devices = vec![
            Peer::start(&python, "opcua_server.py", &["10.97.0.2:4855", "plc", "Server"], Some(there.pid())),
            device("list.py", &["8400", "2"]),
            // One that a network that goes does not end.
            Peer::start(&python, "cameras.py", &["10.97.0", "2", "1"], Some(there.pid())),
            device("service.py", &["one", "554"]),
        ];
        let mut node = ClusterNode::prepare("protocols").with(&["--handler-grace-period", "30"]);
        std::fs::create_dir_all(node.path("akri")).unwrap();
        node.run(&cluster.bootstrap());
        node.wait_until_ready(cluster);
        let akri = Akri::start(cluster, &node);
        let scene = Self { akri, node, cluster, there, _devices: devices };
        for (name, rules, details) in PROTOCOLS {
            scene.add_handler(name, rules);
            let details = json!({"name": name, "discoveryDetails": details});
            scene.cluster.apply(&json!({
                "apiVersion": "akri.sh/v0", "kind": "Configuration", "metadata": {"name": name},
                "spec": {"discoveryHandler": details, "capacity": 1},
            }));
        }
        Some(scene)
    }

    fn add_handler(&self, name: &str, rules: &str) {
        let mut pod = HandlerPod { exchange: false, ..HandlerPod::typed(name, "", name) };
        pod.annotations = vec![("akri-krustlet/links", "*")];
        match name {
            "udev" => {
                pod.annotations = vec![("akri-krustlet/uevents", "net")];
                pod.host_paths.push("/sys");
            }
            _ => pod.annotations.push(("akri-krustlet/network", rules)),
        }
        let mut pod: Value = serde_json::from_str(&pod.manifest()).unwrap();
        let of_node = self.node.pod_spec(&format!("fs://{}", component(name).display()));
        for field in ["nodeName", "tolerations", "automountServiceAccountToken"] {
            pod["spec"][field] = of_node[field].clone();
        }
        // Without a volume that none of them mounts.
        let volumes = pod["spec"]["volumes"].as_array_mut().unwrap();
        volumes.retain(|volume| volume["name"] != "exchange");
        self.cluster.apply(&pod);
        let is_ready = |pod: Value| fixture::condition(&pod, "Ready") == Some(true);
        let ready = wait_for(|| self.cluster.get("pod", "default", name).is_some_and(is_ready));
        assert!(ready, "handler pod {name} is not ready; log of the node:\n{}", self.node.log());
    }

    fn replace_handlers(&self) {
        for (name, rules, _) in PROTOCOLS {
            self.cluster.kubectl_ok(&["delete", "pod", name]);
            self.add_handler(name, rules);
        }
    }

    /// Name and UID of each Instance, once every protocol has its own.
    fn wait_for_all(&self) -> BTreeMap<String, String> {
        let number = |name| if name == "http" { 2 } else { 1 };
        PROTOCOLS.iter().flat_map(|(name, ..)| self.akri.wait_for_instances(name, number(*name))).collect()
    }

    fn instances(&self) -> BTreeMap<String, String> {
        PROTOCOLS.iter().flat_map(|(name, ..)| self.akri.instances(name)).collect()
    }

    /// Waits until these handlers are well, or are not.
    fn wait_until_healthy(&self, healthy: bool, names: &[&str]) {
        for name in names {
            let is_so = |pod: Value| fixture::condition(&pod, "DiscoveryHealthy") == Some(healthy);
            let reached = wait_for(|| self.cluster.get("pod", "default", name).is_some_and(is_so));
            assert!(reached, "{name} healthy {healthy}: {:#?}", self.cluster.get("pod", "default", name));
        }
    }

    /// How often each Instance's device plugin has registered.
    fn plugins(&self) -> Vec<usize> {
        let log = self.node.log();
        let registered = |instance: String| format!("a device plugin has registered resource=\"akri.sh/{instance}\"");
        self.instances().into_keys().map(|name| log.matches(&registered(name)).count()).collect()
    }

    /// After a restart of the node or of the Agent: the Agent may delete the Instances and make them again, and ends with their
    /// plugins. The Instances are those that were there.
    fn comes_back(&self, (registrations, plugins): (usize, Vec<usize>), names: &BTreeMap<String, String>, what: &str) {
        let all = || self.registrations() >= registrations + PROTOCOLS.len();
        assert!(wait_for(all), "{what}: log:\n{}", self.node.log());
        let served = || self.plugins().iter().zip(&plugins).filter(|(now, before)| now > before).count() == names.len();
        assert!(wait_for(served), "{what}: {:?} of {plugins:?}, log:\n{}", self.plugins(), self.node.log());
        assert!(self.wait_for_all().keys().eq(names.keys()), "{what}");
    }

    fn before(&self) -> (usize, Vec<usize>) {
        (self.registrations(), self.plugins())
    }

    fn registrations(&self) -> usize {
        self.node.log().matches("registered with the Agent").count()
    }
}

#[test]
fn devices_of_every_protocol_stay_whatever_befalls_agent_node_handlers_and_network() {
    let Some(mut scene) = Scene::start() else { return };
    let first = scene.wait_for_all();
    assert_eq!(first.len(), 6, "{first:?}");
    for turn in 0..3 {
        scene.replace_handlers();
        assert_eq!(scene.instances(), first, "handlers were replaced, turn {turn}");
    }
    for turn in 0..3 {
        let before = scene.before();
        scene.node.kill();
        scene.node.run(&scene.cluster.bootstrap());
        scene.comes_back(before, &first, &format!("the node was started again, turn {turn}"));
    }
    // The network goes, and what was found stays for as long as it may be missed. Who waits for answers to a group hears nobody, and
    // does not know more; who is refused a connection says so.
    let before = scene.wait_for_all();
    scene.there.ip("link set eth0 down");
    scene.wait_until_healthy(false, &["http", "opcua"]);
    scene.there.ip("link set eth0 up");
    scene.wait_until_healthy(true, &["http", "opcua"]);
    assert_eq!(scene.instances(), before, "the network was away");
    for turn in 0..3 {
        scene.akri.kill_agent();
        assert_eq!(scene.instances().len(), 6, "without an Agent, turn {turn}");
        let before = scene.before();
        scene.akri.start_agent();
        scene.comes_back(before, &first, &format!("the Agent was started again, turn {turn}"));
    }
}
