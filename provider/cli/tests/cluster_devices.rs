//! Devices of device plugins, as pods of a real cluster get them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test they are assertions")]

mod fixture;
#[path = "../../devices/tests/plugin/mod.rs"]
mod plugin;

use fixture::cluster::{Cluster, ClusterNode, Namespace, cluster};
use fixture::wait_for;
use plugin::{Answer, Plugin, device};
use serde_json::{Value, json};
use std::path::PathBuf;

fn plugins(node: &ClusterNode) -> PathBuf {
    node.path("plugins")
}

/// A node that takes no pods but those that ask for it.
fn join(cluster: &Cluster, name: &str, arguments: &[&str]) -> ClusterNode {
    let labels = format!("test={name}");
    let mut node = ClusterNode::prepare(name).with(&["--node-labels", &labels]).with(arguments);
    node.run(&cluster.bootstrap());
    node.wait_until_ready(cluster);
    node
}

/// What the Node object says of a resource: capacity and allocatable.
fn amount(cluster: &Cluster, node: &ClusterNode, resource: &str) -> (Option<String>, Option<String>) {
    let object = cluster.get("node", "default", &node.name).unwrap();
    let of = |list: &str| object["status"][list][resource].as_str().map(str::to_owned);
    (of("capacity"), of("allocatable"))
}

fn wait_for_amount(cluster: &Cluster, node: &ClusterNode, resource: &str, expected: Option<(&str, &str)>) {
    let expected = (expected.map(|(all, _)| all.to_owned()), expected.map(|(_, free)| free.to_owned()));
    let told = wait_for(|| amount(cluster, node, resource) == expected);
    assert!(told, "{resource}: {:?}, not {expected:?}; log:\n{}", amount(cluster, node, resource), node.log());
}

/// A pod that the scheduler places on the node, asking for devices.
fn pod(node: &ClusterNode, name: &str, fault: &str, resources: &[(&str, u32)]) -> Value {
    let mut pod = node.fault_pod(name, fault);
    let spec = &mut pod["spec"];
    spec.as_object_mut().unwrap().remove("nodeName");
    spec["nodeSelector"] = json!({"test": node.name});
    spec["terminationGracePeriodSeconds"] = json!(0);
    let resources: serde_json::Map<_, _> =
        resources.iter().map(|(name, count)| ((*name).to_owned(), json!(count.to_string()))).collect();
    spec["containers"][0]["resources"] = json!({"requests": resources, "limits": resources});
    pod
}

fn log(namespace: &Namespace<'_>, pod: &str) -> String {
    namespace.kubectl_ok(&["logs", pod])
}

#[tokio::test(flavor = "multi_thread")]
async fn the_node_tells_its_devices_and_forgets_those_that_stay_away() {
    let Some(cluster) = cluster() else { return };
    let node = join(cluster, "told-devices", &["--device-plugin-grace-period", "1"]);
    let plugin = Plugin::start(&plugins(&node), "example.com/a", &["1", "2"]).await;
    wait_for_amount(cluster, &node, "example.com/a", Some(("2", "2")));
    plugin.set(vec![device("1", true), device("2", false), device("3", false)]);
    wait_for_amount(cluster, &node, "example.com/a", Some(("3", "1")));
    // Sixty at once are one message or two, not sixty.
    let user = format!("system:node:{}", node.name);
    let patches = || {
        let requests = cluster.requests_of(&user);
        requests
            .iter()
            .filter(|request| request["verb"] == "patch" && request["objectRef"]["resource"] == "nodes")
            .count()
    };
    let before = patches();
    let many: Vec<_> = (0..60).map(|n| Plugin::serve(&plugins(&node), &format!("example.com/n{n}"), &["1"])).collect();
    for plugin in &many {
        plugin.register().await.unwrap();
    }
    wait_for_amount(cluster, &node, "example.com/n59", Some(("1", "1")));
    wait_for_amount(cluster, &node, "example.com/n0", Some(("1", "1")));
    let told = patches() - before;
    assert!(told <= 12, "{told} requests for 60 resources");
    // Gone for good, without a zero that stays for ever.
    drop((many, plugin));
    wait_for_amount(cluster, &node, "example.com/a", None);
    wait_for_amount(cluster, &node, "example.com/n59", None);
}

#[tokio::test(flavor = "multi_thread")]
async fn brokers_get_what_their_devices_bring_and_wait_for_them_where_there_are_none() {
    let Some(cluster) = cluster() else { return };
    let node = join(cluster, "brokers", &[]);
    let namespace = cluster.namespace("brokers");
    let one = Plugin::serve(&plugins(&node), "example.com/one", &["only"]);
    let shared = node.path("shared");
    std::fs::create_dir(&shared).unwrap();
    std::fs::write(shared.join("file.conf"), "of the host").unwrap();
    one.set_extra(&shared.join("file.conf"), "/etc/device/file.conf", true);
    one.register().await.unwrap();
    let two = Plugin::start(&plugins(&node), "example.com/two", &["x", "y"]).await;
    wait_for_amount(cluster, &node, "example.com/one", Some(("1", "1")));
    wait_for_amount(cluster, &node, "example.com/two", Some(("2", "2")));
    // Two resources in one container; the pod's own variables count.
    let mut both = pod(&node, "both", "environment", &[("example.com/one", 1), ("example.com/two", 2)]);
    both["spec"]["containers"][0]["env"].as_array_mut().unwrap().push(json!({"name": "DEVICE_two", "value": "mine"}));
    namespace.apply(both);
    namespace.wait_until_ready(&node, "both");
    assert!(wait_for(|| log(&namespace, "both").contains("DEVICE_one=only\n")));
    let printed = log(&namespace, "both");
    assert!(printed.contains("DEVICE=only\n") && printed.contains("DEVICE_two=mine\n"), "{printed}");
    for message in [
        "the devices of this container set variables to different values, the first counts: DEVICE (of example.com/two)",
        "a WebAssembly guest cannot open device nodes; it runs without /dev/video0",
        "CDI devices are for container runtimes; the guest runs without example.com/camera=0",
    ] {
        namespace.wait_for_event(&node, "both", &format!("DeviceNotGiven {message}"));
    }
    // Capacity 1, three that want it: served one after the other.
    let waiting = ["w0", "w1", "w2"];
    for name in waiting {
        let mut pod = pod(&node, name, "use-file", &[("example.com/one", 1)]);
        let env = pod["spec"]["containers"][0]["env"].as_array_mut().unwrap();
        env.push(json!({"name": "FAULT_FILE", "value": "/etc/device/file.conf"}));
        namespace.apply(pod);
    }
    let running = || {
        let running =
            waiting.iter().filter(|name| namespace.pod(name).is_some_and(|pod| pod["status"]["phase"] == "Running"));
        running.copied().collect::<Vec<_>>()
    };
    assert!(running().is_empty());
    namespace.kubectl_ok(&["delete", "pod", "both", "--wait=false"]);
    for _ in waiting {
        assert!(wait_for(|| running().len() == 1), "log:\n{}", node.log());
        let name = running()[0];
        assert!(wait_for(|| log(&namespace, name).contains("write:")));
        let printed = log(&namespace, name);
        assert!(printed.contains("read: Ok(\"of the host\")"), "{printed}");
        assert!(!printed.contains("write: Ok"), "read-only is honoured: {printed}");
        namespace.kubectl_ok(&["delete", "pod", name]);
    }
    assert_eq!(one.allocated().len(), 4);
    assert_eq!(two.allocated().len(), 1);
    assert_eq!(std::fs::read(shared.join("file.conf")).unwrap(), b"of the host");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_is_not_to_be_had_is_told_by_the_pods_end() {
    let Some(cluster) = cluster() else { return };
    let node = join(cluster, "no-devices", &[]);
    let namespace = cluster.namespace("no-devices");
    let plugin = Plugin::start(&plugins(&node), "example.com/a", &["1"]).await;
    wait_for_amount(cluster, &node, "example.com/a", Some(("1", "1")));
    plugin.set_answer(Answer::Fail);
    namespace.apply(pod(&node, "refused", "sleep", &[("example.com/a", 1)]));
    let refused = namespace.wait_for_pod(&node, "refused", "refused", |pod| pod["status"]["phase"] == "Failed");
    assert_eq!(refused["status"]["reason"], "UnexpectedAdmissionError");
    let message = refused["status"]["message"].as_str().unwrap();
    assert!(
        message.contains("the device plugin of example.com/a: Allocate") && message.contains("out of order"),
        "{message}"
    );
    namespace.wait_for_event(&node, "refused", "UnexpectedAdmissionError the device plugin of example.com/a");
    // Past the scheduler, to a resource that nobody has.
    let mut unknown = pod(&node, "unknown", "sleep", &[("example.com/nothing", 1)]);
    unknown["spec"]["nodeName"] = json!(node.name);
    namespace.apply(unknown);
    let unknown = namespace.wait_for_pod(&node, "unknown", "refused", |pod| pod["status"]["phase"] == "Failed");
    assert!(unknown["status"]["message"].as_str().unwrap().contains("no device plugin offers"), "{unknown:#}");
    plugin.set_answer(Answer::Normal);
    namespace.apply(pod(&node, "served", "sleep", &[("example.com/a", 1)]));
    namespace.wait_until_ready(&node, "served");
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_restarts_of_the_node_give_no_device_twice_and_lose_none() {
    let Some(cluster) = cluster() else { return };
    let mut node = join(cluster, "restarted", &[]);
    let namespace = cluster.namespace("restarted");
    let plugin = Plugin::start(&plugins(&node), "example.com/a", &["1", "2", "3"]).await;
    wait_for_amount(cluster, &node, "example.com/a", Some(("3", "3")));
    for name in ["first", "second"] {
        namespace.apply(pod(&node, name, "environment", &[("example.com/a", 1)]));
        namespace.wait_until_ready(&node, name);
    }
    let has = |name: &str| {
        let printed = log(&namespace, name);
        printed.lines().find_map(|line| line.strip_prefix("DEVICE=")).map(str::to_owned)
    };
    assert!(wait_for(|| has("first").is_some() && has("second").is_some()));
    let before = (has("first"), has("second"));
    assert_ne!(before.0, before.1);
    for restart in 1..=20 {
        node.kill();
        node.run(&cluster.bootstrap());
        for name in ["first", "second"] {
            namespace.wait_for_pod(&node, name, "running again", |pod| {
                let status = &pod["status"]["containerStatuses"][0];
                status["restartCount"] == restart && status["state"]["running"].is_object()
            });
        }
        assert!(wait_for(|| (has("first"), has("second")) == before), "after restart {restart}");
        assert_eq!(plugin.allocated().len(), 2, "nothing is asked for again");
    }
    // A pod that is deleted while the node is away gives its device back.
    node.kill();
    namespace.kubectl_ok(&["delete", "pod", "second", "--grace-period=5", "--wait=false"]);
    node.run(&cluster.bootstrap());
    namespace.wait_until_gone(&node, "second");
    namespace.apply(pod(&node, "second", "environment", &[("example.com/a", 1)]));
    namespace.wait_until_ready(&node, "second");
    assert!(wait_for(|| has("second").is_some_and(|device| Some(device) != has("first"))));
    let before = (has("first"), has("second"));
    // The third one is still to be had, and no more.
    namespace.apply(pod(&node, "third", "environment", &[("example.com/a", 1)]));
    namespace.wait_until_ready(&node, "third");
    assert!(wait_for(|| has("third").is_some()));
    assert!(has("third") != before.0 && has("third") != before.1);
    let mut fourth = pod(&node, "fourth", "sleep", &[("example.com/a", 1)]);
    fourth["spec"]["nodeName"] = json!(node.name);
    namespace.apply(fourth);
    let fourth = namespace.wait_for_pod(&node, "fourth", "refused", |pod| pod["status"]["phase"] == "Failed");
    assert!(
        fourth["status"]["reason"].as_str().unwrap().contains("example.com/a")
            || fourth["status"]["reason"] == "UnexpectedAdmissionError"
    );
}
