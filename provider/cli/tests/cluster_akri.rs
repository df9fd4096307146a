//! With Akri's own Agent and Controller: what befalls one part costs the others nothing. `AKRI_BIN` and `AKRI_CRDS` name them;
//! agent.rs, restarts.rs and discovery.rs hold the node's own part of it with a stand-in.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test they are assertions")]

mod fixture;

use fixture::akri::Akri;
use fixture::cluster::{Cluster, ClusterNode, cluster};
use fixture::wait_for;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A node with a handler of the name of the test, and the Agent.
struct Scene {
    akri: Akri,
    node: ClusterNode,
    name: &'static str,
    cluster: &'static Cluster,
    /// Each Agent has a finalizer on all Configurations, those of other tests too, and takes it along into its death.
    _alone: MutexGuard<'static, ()>,
}

impl Scene {
    fn start(name: &'static str, arguments: &[&str]) -> Option<Self> {
        fixture::akri::programs()?;
        let cluster = cluster()?;
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let labels = format!("test={name}");
        let mut node = ClusterNode::prepare(name).with(&["--node-labels", &labels]).with(arguments);
        std::fs::create_dir_all(node.path("akri")).unwrap();
        node.run(&cluster.bootstrap());
        node.wait_until_ready(cluster);
        let akri = Akri::start(cluster, &node);
        let scene = Self { akri, node, name, cluster, _alone: alone };
        scene.add_handler();
        Some(scene)
    }

    fn add_handler(&self) {
        self.cluster.apply(&self.handler());
        let is_ready = |pod: Value| fixture::condition(&pod, "Ready") == Some(true);
        let ready = wait_for(|| self.cluster.get("pod", "default", self.name).is_some_and(is_ready));
        assert!(ready, "handler pod {} is not ready; log of the node:\n{}", self.name, self.node.log());
    }

    fn delete_handler(&self) {
        self.cluster.kubectl_ok(&["delete", "pod", self.name]);
    }

    fn handler(&self) -> Value {
        let mut pod = self.node.handler_pod(self.name, self.name);
        let exchange = json!({"path": self.exchange(), "type": "DirectoryOrCreate"});
        pod["spec"]["volumes"] = json!([{"name": "exchange", "hostPath": exchange}]);
        pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "exchange", "mountPath": "/tmp/wde-dir"}]);
        pod
    }

    fn exchange(&self) -> PathBuf {
        self.node.path("exchange")
    }

    fn set_online(&self, online: bool) {
        let word = if online { "ONLINE" } else { "OFFLINE" };
        std::fs::write(self.exchange().join("debug-echo-availability.txt"), word).unwrap();
    }

    fn registrations(&self) -> usize {
        self.node.log().matches("registered with the Agent").count()
    }

    /// How often each Instance's device plugin has registered.
    fn plugins(&self, instances: &[String]) -> Vec<usize> {
        let log = self.node.log();
        let registered = |instance| format!("a device plugin has registered resource=\"akri.sh/{instance}\"");
        instances.iter().map(|instance| log.matches(&registered(instance)).count()).collect()
    }

    fn broker_says(&self, broker: &str, device: &str) {
        let line = format!("Pod is running and using debugEcho device named: {device}\n");
        let says = || self.cluster.kubectl(&["logs", broker]).stdout.ends_with(line.as_bytes());
        assert!(wait_for(says), "{:?}", self.cluster.kubectl(&["logs", broker]));
    }
}

#[test]
fn twenty_restarts_of_the_agent_keep_every_instance_and_broker() {
    let Some(mut scene) = Scene::start("agent-restarts", &[]) else { return };
    scene.akri.configure(scene.name, scene.name, &["foo0", "foo1"], Some(&scene.node));
    let names: Vec<_> = scene.akri.wait_for_instances(scene.name, 2).into_keys().collect();
    let brokers = scene.akri.wait_for_brokers(scene.name, 2);
    assert_eq!(scene.registrations(), 1);
    for life in 2..=21 {
        scene.akri.kill_agent();
        // Without an Agent the brokers run on.
        assert_eq!(scene.akri.brokers(scene.name), brokers);
        let before = scene.plugins(&names);
        scene.akri.start_agent();
        assert!(wait_for(|| scene.registrations() == life), "log:\n{}", scene.node.log());
        // A new Agent may delete the Instances and make them again, and their brokers with them; it ends with their plugins.
        let served = || scene.plugins(&names).iter().zip(&before).all(|(now, before)| now > before);
        assert!(wait_for(served), "life {life}: log:\n{}", scene.node.log());
        assert!(scene.akri.wait_for_instances(scene.name, 2).into_keys().eq(names.iter().cloned()));
        assert_eq!(scene.akri.wait_for_brokers(scene.name, 2), brokers, "life {life}");
        assert_eq!(scene.registrations(), life, "one registration in each life of the Agent");
    }
    for broker in &brokers {
        let device = if broker.contains("8120fe") { "foo0" } else { "foo1" };
        scene.broker_says(broker, device);
    }
}

#[test]
fn a_handler_that_is_deleted_replaced_or_crashes_keeps_its_instances() {
    let Some(scene) = Scene::start("handler-replaced", &["--handler-grace-period", "60"]) else { return };
    scene.akri.configure(scene.name, scene.name, &["foo0", "foo1"], Some(&scene.node));
    let before = scene.akri.wait_for_instances(scene.name, 2);
    let brokers = scene.akri.wait_for_brokers(scene.name, 2);
    let uids = |brokers: &[String]| {
        let uid = |broker: &String| scene.cluster.get("pod", "default", broker).unwrap()["metadata"]["uid"].clone();
        brokers.iter().map(uid).collect::<Vec<_>>()
    };
    let broker_uids = uids(&brokers);
    let assert_kept = |when: &str| {
        assert_eq!(scene.akri.instances(scene.name), before, "{when}");
        assert_eq!(uids(&scene.akri.brokers(scene.name)), broker_uids, "{when}");
        assert_eq!(scene.registrations(), 1, "{when}");
    };
    for replacement in 0..20 {
        scene.delete_handler();
        assert_kept("without a handler");
        scene.add_handler();
        assert_kept(&format!("replacement {replacement}"));
    }
    scene.delete_handler();
    let mut crashing = scene.handler();
    let container = &mut crashing["spec"]["containers"][0];
    container["image"] = json!(format!("fs://{}", fixture::guest("misbehave").display()));
    let env = container["env"].as_array_mut().unwrap();
    env.extend([json!({"name": "FAULT", "value": "exit3"}), json!({"name": "FAULT_AT", "value": "start"})]);
    scene.cluster.apply(&crashing);
    let backs_off = || {
        let pod = scene.cluster.get("pod", "default", scene.name);
        pod.is_some_and(|pod| pod["status"].to_string().contains("CrashLoopBackOff"))
    };
    assert!(wait_for(backs_off), "log of the node:\n{}", scene.node.log());
    assert_kept("crash loop");
    // The list of a handler that works again is used.
    scene.delete_handler();
    scene.set_online(false);
    scene.add_handler();
    scene.akri.wait_for_instances(scene.name, 0);
}

#[test]
fn twenty_configurations_of_one_handler_do_not_disturb_each_other() {
    let Some(scene) = Scene::start("configurations", &[]) else { return };
    let name = |number: usize| format!("many-{number:02}");
    for number in 0..20 {
        scene.akri.configure(&name(number), scene.name, &[&format!("device{number}")], None);
    }
    let all = |numbers: std::ops::Range<usize>| {
        numbers.map(|number| scene.akri.wait_for_instances(&name(number), 1)).collect::<Vec<_>>()
    };
    let before = all(0..20);
    assert_eq!(scene.registrations(), 1);
    scene.cluster.kubectl_ok(&["delete", "configuration", &name(19)]);
    scene.akri.wait_for_instances(&name(19), 0);
    // What becomes of it is told to all of those that are left, and they are still the same ones.
    scene.set_online(false);
    for number in 0..19 {
        scene.akri.wait_for_instances(&name(number), 0);
    }
    scene.set_online(true);
    let after = all(0..19);
    assert!(before.iter().zip(&after).all(|(before, after)| before.keys().eq(after.keys())));
    assert!(scene.akri.instances(&name(19)).is_empty());
    scene.cluster.kubectl_ok(&["delete", "configuration", &name(0)]);
    scene.akri.wait_for_instances(&name(0), 0);
    assert_eq!(all(1..19), after[1..], "a deleted Configuration touches no other one");
}

/// Requests to the API server for Instances, by verb, as it counts them itself.
fn instance_requests(cluster: &Cluster) -> BTreeMap<String, u64> {
    let metrics = cluster.kubectl_ok(&["get", "--raw", "/metrics"]);
    let mut counts = BTreeMap::new();
    for line in metrics.lines().filter(|line| line.starts_with("apiserver_request_total{")) {
        let label = |name: &str| line.split_once(&format!("{name}=\""))?.1.split('"').next();
        let (Some("instances"), Some(verb)) = (label("resource"), label("verb")) else { continue };
        let count: f64 = line.rsplit(' ').next().unwrap().parse().unwrap();
        *counts.entry(verb.to_owned()).or_default() += count as u64;
    }
    counts
}

#[test]
fn fifty_configurations_lose_no_device_over_outages_of_devices_and_agent() {
    let Some(mut scene) = Scene::start("busy-agent", &[]) else { return };
    let name = |number: usize| format!("busy-{number:02}");
    // Their handler never comes: the Agent tries in vain, ever again.
    for number in 0..10 {
        scene.akri.configure(&format!("dead-{number}"), "no-such-handler", &["x"], None);
    }
    for number in 0..50 {
        scene.akri.configure(&name(number), scene.name, &[&format!("device{number}")], None);
    }
    let present =
        |scene: &Scene| scene.akri.instances_of_all().into_iter().filter(|name| name.starts_with("busy-")).count();
    let becomes = |scene: &Scene, number: usize, patience: u64| {
        let start = Instant::now();
        while present(scene) != number {
            let missing = number.abs_diff(present(scene));
            assert!(start.elapsed() < Duration::from_secs(patience), "{missing} of 50 differ after {patience} s");
            std::thread::sleep(Duration::from_millis(200));
        }
        start.elapsed()
    };
    let first = becomes(&scene, 50, 180);
    let before = instance_requests(scene.cluster);
    scene.set_online(false);
    let gone = becomes(&scene, 0, 180);
    scene.akri.kill_agent();
    scene.set_online(true);
    scene.akri.start_agent();
    let back = becomes(&scene, 50, 180);
    // Off and on again, faster than the Agent can follow.
    scene.set_online(false);
    assert!(wait_for(|| present(&scene) < 50));
    scene.set_online(true);
    let again = becomes(&scene, 50, 180);
    // Those that the Agent still deletes go and come back: in the end, all of them stay.
    let mut quiet = Instant::now();
    let mut settling = instance_requests(scene.cluster);
    while quiet.elapsed() < Duration::from_secs(30) {
        std::thread::sleep(Duration::from_secs(1));
        if present(&scene) != 50 {
            assert!(wait_for(|| present(&scene) == 50), "a device is lost");
            (quiet, settling) = (Instant::now(), instance_requests(scene.cluster));
        }
    }
    let after = instance_requests(scene.cluster);
    let since = |earlier: &BTreeMap<String, u64>, later: &BTreeMap<String, u64>| -> BTreeMap<String, u64> {
        let of = |(verb, count): (&String, &u64)| (verb.clone(), count - earlier.get(verb).unwrap_or(&0));
        later.iter().map(of).collect()
    };
    println!(
        "50 Instances {first:.1?} after their Configurations, gone after {gone:.1?}, back after {back:.1?} with a new Agent, again after {again:.1?}"
    );
    println!(
        "requests for Instances: {:?}; in 30 s after that: {:?}",
        since(&before, &settling),
        since(&settling, &after)
    );
    let writes: u64 =
        since(&settling, &after).into_iter().filter(|(verb, _)| verb == "APPLY").map(|(_, count)| count).sum();
    assert!(writes < 50, "{writes} writes: lists are repeated though every Instance is there");
}

#[test]
fn a_device_that_goes_takes_its_broker_along_and_brings_it_back() {
    let Some(scene) = Scene::start("device-gone", &[]) else { return };
    scene.akri.configure(scene.name, scene.name, &["foo0"], Some(&scene.node));
    let instances: Vec<_> = scene.akri.wait_for_instances(scene.name, 1).into_keys().collect();
    for _ in 0..3 {
        let brokers = scene.akri.wait_for_brokers(scene.name, 1);
        scene.broker_says(&brokers[0], "foo0");
        scene.set_online(false);
        scene.akri.wait_for_instances(scene.name, 0);
        scene.akri.wait_for_brokers(scene.name, 0);
        scene.set_online(true);
        assert!(scene.akri.wait_for_instances(scene.name, 1).into_keys().eq(instances.iter().cloned()));
    }
}

#[test]
fn three_brokers_that_want_one_slot_are_served_one_after_the_other() {
    let Some(scene) = Scene::start("one-slot", &[]) else { return };
    scene.akri.configure(scene.name, scene.name, &["foo0"], None);
    scene.akri.wait_for_instances(scene.name, 1);
    let mut waiting = vec!["slot-a", "slot-b", "slot-c"];
    for name in &waiting {
        let mut pod = scene.node.pod(name, "debug-echo-broker");
        let spec = pod["spec"].as_object_mut().unwrap();
        spec.remove("nodeName");
        spec["nodeSelector"] = json!({"test": scene.name});
        spec.insert("terminationGracePeriodSeconds".to_owned(), json!(0));
        // Any device of the Configuration.
        let slot = json!({format!("akri.sh/{}", scene.name): "1"});
        spec["containers"][0]["resources"] = json!({"requests": slot, "limits": slot});
        scene.cluster.apply(&pod);
    }
    let phase = |name: &str| scene.cluster.get("pod", "default", name).unwrap()["status"]["phase"].clone();
    while !waiting.is_empty() {
        let running = || waiting.iter().position(|name| phase(name) == "Running");
        // The Agent frees a slot 20 to 30 s after its pod is gone.
        assert!(wait_for(|| running().is_some()), "log:\n{}", scene.node.log());
        let name = waiting.remove(running().unwrap());
        scene.broker_says(name, "foo0");
        assert!(waiting.iter().all(|name| phase(name) == "Pending"), "one has the slot");
        scene.cluster.kubectl_ok(&["delete", "pod", name]);
    }
}

/// The Agent's plugin of a Configuration gives a slot once. A kubelet asks it for each container, and so does this node: a pod
/// whose init container and main container both ask is refused. Both may ask for the Instance itself.
#[test]
fn an_init_and_a_main_container_share_an_instance_and_not_a_configuration() {
    let Some(scene) = Scene::start("init-and-main", &[]) else { return };
    scene.akri.configure(scene.name, scene.name, &["foo0", "foo1"], None);
    let instance = scene.akri.wait_for_instances(scene.name, 2).into_keys().next().unwrap();
    let pod = |name: &str, resource: &str| {
        let mut pod = scene.node.pod(name, "debug-echo-broker");
        let slot = json!({format!("akri.sh/{resource}"): "1"});
        let spec = pod["spec"].as_object_mut().unwrap();
        spec.insert("terminationGracePeriodSeconds".to_owned(), json!(0));
        spec["containers"][0]["resources"] = json!({"requests": slot, "limits": slot});
        let mut init = scene.node.fault_pod("init", "exit0")["spec"]["containers"][0].take();
        init["name"] = json!("init");
        init["resources"] = json!({"requests": slot, "limits": slot});
        spec.insert("initContainers".to_owned(), json!([init]));
        pod
    };
    let becomes = |name: &str, what: &dyn Fn(&Value) -> bool| {
        let reached = wait_for(|| scene.cluster.get("pod", "default", name).is_some_and(|pod| what(&pod)));
        let pod = scene.cluster.get("pod", "default", name).unwrap();
        assert!(reached, "{pod:#?}\nlog:\n{}\nAgent:\n{}", scene.node.log(), scene.akri.log());
        pod
    };
    scene.cluster.apply(&pod("of-instance", &instance));
    becomes("of-instance", &|pod| fixture::condition(pod, "Ready") == Some(true));
    let device = if instance.contains("8120fe") { "foo0" } else { "foo1" };
    scene.broker_says("of-instance", device);
    scene.cluster.apply(&pod("of-configuration", scene.name));
    let refused = becomes("of-configuration", &|pod| pod["status"]["phase"] == "Failed");
    assert_eq!(refused["status"]["reason"], "UnexpectedAdmissionError");
    assert!(refused["status"]["message"].as_str().unwrap().contains("Unable to claim slot"), "{refused}");
    scene.cluster.kubectl_ok(&["delete", "pod", "of-instance", "of-configuration"]);
}

#[test]
fn twenty_restarts_of_the_node_keep_every_instance_and_broker() {
    let Some(mut scene) = Scene::start("node-restarts", &[]) else { return };
    scene.akri.configure(scene.name, scene.name, &["foo0", "foo1"], Some(&scene.node));
    let names: Vec<_> = scene.akri.wait_for_instances(scene.name, 2).into_keys().collect();
    let brokers = scene.akri.wait_for_brokers(scene.name, 2);
    for restart in 1..=20 {
        scene.node.kill();
        scene.node.run(&scene.cluster.bootstrap());
        assert!(wait_for(|| scene.registrations() == restart + 1), "log:\n{}", scene.node.log());
        let running = || {
            let container = |broker: &String| {
                let pod = scene.cluster.get("pod", "default", broker)?;
                Some(pod["status"]["containerStatuses"][0]["state"]["running"]["startedAt"].as_str()?.to_owned())
            };
            brokers.iter().all(|broker| container(broker).is_some())
        };
        assert!(wait_for(running), "restart {restart}: log:\n{}", scene.node.log());
        assert!(scene.akri.wait_for_instances(scene.name, 2).into_keys().eq(names.iter().cloned()));
        assert_eq!(scene.akri.wait_for_brokers(scene.name, 2), brokers, "restart {restart}");
    }
}
