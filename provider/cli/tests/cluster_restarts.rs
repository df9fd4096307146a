//! The node is killed, upgraded, drained, cordoned, deleted: every pod ends as the API says, and nothing is left behind.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test they are assertions")]

mod fixture;

use akri_krustlet_discovery::agent::{self, RegistrationSocket};
use akri_proto::v0::DiscoverRequest;
use fixture::cluster::{ClusterNode, Namespace, cluster};
use fixture::{DEADLINE, Random, next_ids, wait_for};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// A pod that counts its runs in a file of its name.
fn counting(node: &ClusterNode, name: &str, policy: &str, millis: u64, code: u32) -> Value {
    let mut pod = node.fault_pod(name, "count-runs");
    let volume = json!({"path": node.path("runs"), "type": "DirectoryOrCreate"});
    pod["spec"]["restartPolicy"] = json!(policy);
    pod["spec"]["terminationGracePeriodSeconds"] = json!(0);
    pod["spec"]["volumes"] = json!([{"name": "v", "hostPath": volume}, {"name": "own", "emptyDir": {}}]);
    let container = &mut pod["spec"]["containers"][0];
    container["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}, {"name": "own", "mountPath": "/own"}]);
    let env = container["env"].as_array_mut().unwrap();
    env.push(json!({"name": "FAULT_FILE", "value": format!("/v/{name}")}));
    env.push(json!({"name": "FAULT_MILLIS", "value": millis.to_string()}));
    env.push(json!({"name": "FAULT_CODE", "value": code.to_string()}));
    pod
}

fn runs(node: &ClusterNode, name: &str) -> Vec<String> {
    let text = std::fs::read_to_string(node.path("runs").join(name)).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn entries(directory: std::path::PathBuf) -> usize {
    std::fs::read_dir(directory).map_or(0, Iterator::count)
}

fn restart_counts(namespace: &Namespace<'_>) -> BTreeMap<String, i64> {
    let list: Value = serde_json::from_str(&namespace.kubectl_ok(&["get", "pods", "-o", "json"])).unwrap();
    let pods = list["items"].as_array().unwrap().iter();
    pods.map(|pod| {
        let count = pod["status"]["containerStatuses"][0]["restartCount"].as_i64().unwrap_or(0);
        (pod["metadata"]["uid"].as_str().unwrap().to_owned(), count)
    })
    .collect()
}

#[test]
fn a_node_that_is_killed_at_any_moment_repeats_and_loses_nothing() {
    let Some(cluster) = cluster() else { return };
    let mut random = Random(fixture::seed());
    let mut node = ClusterNode::join(cluster, "killed");
    let namespace = cluster.namespace("killed");
    // What is always there.
    namespace.apply(counting(&node, "witness", "Never", 1, 0));
    namespace.wait_for_pod(&node, "witness", "done", |pod| pod["status"]["phase"] == "Succeeded");
    namespace.kubectl_ok(&["delete", "pod", "witness"]);
    let modules = entries(node.path("data/modules"));
    let mut expected = BTreeMap::new();
    let mut counts = BTreeMap::new();
    for cycle in 0..50 {
        let name = format!("cycle-{cycle}");
        let code = u32::from(random.below(4) == 0);
        let policy = ["Never", "OnFailure"][random.below(2) as usize];
        // One that fails is run again until it is deleted.
        let code = if policy == "OnFailure" { 0 } else { code };
        namespace.apply(counting(&node, &name, policy, random.below(300), code));
        expected.insert(name.clone(), (policy, code));
        if random.below(3) == 0 {
            std::thread::sleep(Duration::from_millis(random.below(400)));
            node.kill();
            if random.below(4) == 0 {
                namespace.kubectl_ok(&["delete", "pod", &name, "--wait=false"]);
                expected.remove(&name);
            }
            node.run(&cluster.bootstrap());
        } else if random.below(6) == 0 {
            namespace.kubectl_ok(&["delete", "pod", &name, "--wait=false"]);
            expected.remove(&name);
        }
        let now = restart_counts(&namespace);
        for (uid, count) in &now {
            assert!(counts.get(uid).is_none_or(|before| before <= count), "restart counts only grow");
        }
        counts = now;
    }
    for (name, (policy, code)) in &expected {
        let ended = |pod: &Value| ["Succeeded", "Failed"].iter().any(|phase| pod["status"]["phase"] == *phase);
        let pod = namespace.wait_for_pod(&node, name, "at its end", ended);
        let runs = runs(&node, name);
        let (started, finished) = (
            runs.iter().filter(|line| *line == "started").count(),
            runs.iter().filter(|line| *line == "ended").count(),
        );
        let restarts = pod["status"]["containerStatuses"][0]["restartCount"].as_u64().unwrap() as usize;
        let phase = pod["status"]["phase"].as_str().unwrap();
        match *policy {
            "Never" => {
                assert!(started <= 1, "{name} is run once: {runs:?}");
                // Cut off in its run, it has failed; one that told its end may have been killed before the node could note it.
                match phase {
                    "Succeeded" => assert!(finished == 1 && *code == 0, "{name}: {pod:#}"),
                    _ => assert!(*code == 1 || started == 0 || restarts == 0, "{name}: {pod:#}"),
                }
            }
            _ => {
                assert_eq!(phase, "Succeeded", "{name}: {pod:#}");
                assert!(started <= restarts + 1, "{name}: {started} runs, {restarts} restarts");
                assert!(finished >= 1, "{name}: {runs:?}");
            }
        }
    }
    // Nothing is left of those that go.
    namespace.kubectl_ok(&["delete", "pods", "--all", "--wait=false"]);
    let pods = || namespace.kubectl_ok(&["get", "pods", "-o", "name"]);
    assert!(wait_for(|| pods().is_empty()), "{}; log:\n{}", pods(), node.log());
    let left = || {
        let pods = std::fs::read_dir(node.path("data/pods")).unwrap().flatten();
        let files = |pod: std::path::PathBuf| std::fs::read_dir(pod).into_iter().flatten().flatten();
        pods.map(|pod| (pod.file_name(), files(pod.path()).map(|file| file.file_name()).collect::<Vec<_>>()))
            .collect::<Vec<_>>()
    };
    assert!(wait_for(|| left().is_empty()), "files of pods are left: {:?}; log:\n{}", left(), node.log());
    assert!(wait_for(|| entries(node.path("data/logs")) == 0), "logs of pods are left");
    assert_eq!(entries(node.path("data/modules")), modules, "compiled modules are left");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_is_replaced_under_running_pods_takes_them_over() {
    let Some(cluster) = cluster() else { return };
    let mut node = ClusterNode::prepare("upgraded");
    // As a package manager does it: the running program's file is replaced by another one.
    let install = |program: &Path| {
        std::fs::copy(fixture::PROGRAM, program.with_extension("new")).unwrap();
        std::fs::rename(program.with_extension("new"), program).unwrap();
    };
    node.program = node.path("akri-krustlet");
    install(&node.program);
    std::fs::create_dir_all(node.path("akri")).unwrap();
    let mut agent = RegistrationSocket::serve(&node.path("akri")).unwrap();
    node.run(&cluster.bootstrap());
    node.wait_until_ready(cluster);
    let namespace = cluster.namespace("upgraded");
    namespace.apply(node.handler_pod("handler", "debugEcho"));
    namespace.apply(node.fault_pod("worker", "sleep"));
    for name in ["handler", "worker"] {
        namespace.wait_until_ready(&node, name);
    }
    let request =
        || DiscoverRequest { discovery_details: r#"{"descriptions":["foo0"]}"#.to_owned(), ..Default::default() };
    for restarts in 1..=3 {
        tokio::time::timeout(DEADLINE, agent.next()).await.unwrap().unwrap();
        let mut stream = agent::discover(node.socket("debugEcho"), request()).await.unwrap();
        // The first list is never empty: an Agent would take the Instances away, and their brokers.
        assert_eq!(next_ids(&mut stream).await, ["foo0"]);
        install(&node.program);
        assert_eq!(next_ids(&mut stream).await, ["foo0"], "what runs is not disturbed");
        assert_eq!(node.terminate(), Some(0));
        node.run(&cluster.bootstrap());
        for name in ["handler", "worker"] {
            namespace.wait_for_pod(&node, name, "ready again", |pod| {
                let container = &pod["status"]["containerStatuses"][0];
                container["restartCount"] == restarts && container["ready"] == true
            });
        }
    }
    assert_eq!(node.log().matches("compiling the module").count(), 2, "what is compiled is used on");
}

#[test]
fn a_node_is_drained_cordoned_and_deleted_like_any_other() {
    let Some(cluster) = cluster() else { return };
    let mut node = ClusterNode::prepare("drained").with(&["--node-labels", "test=drained"]);
    node.run(&cluster.bootstrap());
    node.wait_until_ready(cluster);
    let namespace = cluster.namespace("drained");
    let mut template = node.fault_pod("x", "sleep");
    let spec = template["spec"].as_object_mut().unwrap();
    spec.remove("nodeName");
    spec["nodeSelector"] = json!({"test": "drained"});
    spec.insert("terminationGracePeriodSeconds".to_owned(), json!(1));
    namespace.apply(json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "work"}, "spec": {
        "replicas": 3, "selector": {"matchLabels": {"app": "work"}},
        "template": {"metadata": {"labels": {"app": "work"}}, "spec": template["spec"]}}}));
    let of_phase = |phase: &str| {
        let selector = format!("status.phase={phase}");
        let text =
            namespace.kubectl_ok(&["get", "pods", "-l", "app=work", "--field-selector", &selector, "-o", "name"]);
        text.lines().count()
    };
    assert!(wait_for(|| of_phase("Running") == 3), "log:\n{}", node.log());
    cluster.kubectl_ok(&["cordon", "drained"]);
    // A restart of the node does not undo it.
    node.kill();
    node.run(&cluster.bootstrap());
    node.wait_until_ready(cluster);
    assert_eq!(cluster.get("node", "default", "drained").unwrap()["spec"]["unschedulable"], true);
    cluster.kubectl_ok(&["drain", "drained", "--timeout=60s", "--delete-emptydir-data"]);
    assert_eq!((of_phase("Running"), of_phase("Pending")), (0, 3));
    cluster.kubectl_ok(&["uncordon", "drained"]);
    assert!(wait_for(|| of_phase("Running") == 3), "log:\n{}", node.log());
    // A node object that somebody deletes is made again, with its labels; its pods go, and come again.
    let uid = || cluster.get("node", "default", "drained").map(|node| node["metadata"]["uid"].clone());
    let before = uid();
    cluster.kubectl_ok(&["delete", "node", "drained"]);
    assert!(wait_for(|| uid().is_some_and(|uid| Some(uid) != before)), "log:\n{}", node.log());
    node.wait_until_ready(cluster);
    assert_eq!(cluster.get("node", "default", "drained").unwrap()["metadata"]["labels"]["test"], "drained");
    assert!(wait_for(|| of_phase("Running") == 3), "log:\n{}", node.log());
}

#[test]
fn a_pod_makes_room_for_one_of_higher_priority() {
    let Some(cluster) = cluster() else { return };
    let mut node = ClusterNode::prepare("preempted").with(&["--node-labels", "test=preempted", "--max-pods", "1"]);
    node.run(&cluster.bootstrap());
    node.wait_until_ready(cluster);
    let namespace = cluster.namespace("preempted");
    cluster.apply(&json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "high"},
        "value": 1000}));
    let pod = |name: &str| {
        let mut pod = node.fault_pod(name, "sleep");
        let spec = pod["spec"].as_object_mut().unwrap();
        spec.remove("nodeName");
        spec["nodeSelector"] = json!({"test": "preempted"});
        spec.insert("terminationGracePeriodSeconds".to_owned(), json!(1));
        pod
    };
    namespace.apply(pod("low"));
    namespace.wait_until_ready(&node, "low");
    let mut high = pod("high");
    high["spec"]["priorityClassName"] = json!("high");
    namespace.apply(high);
    namespace.wait_until_ready(&node, "high");
    namespace.wait_until_gone(&node, "low");
}

#[test]
fn a_machine_that_is_short_of_memory_evicts_the_least_important_pod_first() {
    let Some(cluster) = cluster() else { return };
    let arguments = ["--node-labels", "test=pressed", "--eviction-hard", "memory.available<8Ei,nodefs.available<0%"];
    let mut node = ClusterNode::prepare("pressed").with(&arguments);
    node.run(&cluster.bootstrap());
    node.wait_until_ready(cluster);
    let has_pressure = || {
        let node = cluster.get("node", "default", "pressed").unwrap();
        fixture::condition(&node, "MemoryPressure") == Some(true)
    };
    assert!(wait_for(has_pressure));
    let namespace = cluster.namespace("pressed");
    cluster.apply(&json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass",
        "metadata": {"name": "important"}, "value": 2000}));
    let mut important = node.fault_pod("important", "sleep");
    important["spec"]["priorityClassName"] = json!("important");
    let tolerations = important["spec"]["tolerations"].as_array_mut().unwrap();
    tolerations.push(json!({"key": "node.kubernetes.io/memory-pressure", "operator": "Exists"}));
    // Bound by hand, since the scheduler gives the node nothing now.
    let names = ["important", "other"];
    let mut other = important.clone();
    other["metadata"]["name"] = json!("other");
    other["spec"].as_object_mut().unwrap().remove("priorityClassName");
    namespace.apply(important);
    namespace.apply(other);
    for name in names {
        let evicted = |pod: &Value| pod["status"]["reason"] == "Evicted";
        let pod = namespace.wait_for_pod(&node, name, "evicted", evicted);
        assert_eq!(pod["status"]["phase"], "Failed");
        let message = pod["status"]["message"].as_str().unwrap();
        assert!(message.starts_with("The node was low on resource: memory. "), "{message}");
        // A Job does not count it as the pod's failure.
        let conditions = pod["status"]["conditions"].as_array().unwrap();
        let disrupted = conditions.iter().find(|condition| condition["type"] == "DisruptionTarget").unwrap();
        assert_eq!(
            (disrupted["status"].as_str(), disrupted["reason"].as_str()),
            (Some("True"), Some("TerminationByKubelet"))
        );
    }
    // Who would be the next to go is not taken.
    let mut refused = node.fault_pod("refused", "sleep");
    refused["spec"]["tolerations"] = json!([{"key": "kubernetes.io/arch", "operator": "Exists"}]);
    namespace.apply(refused);
    let refused = namespace.wait_for_pod(&node, "refused", "refused", |pod| pod["status"]["phase"] == "Failed");
    assert_eq!(
        (&refused["status"]["reason"], &refused["status"]["message"]),
        (&json!("Evicted"), &json!("The node had condition: [MemoryPressure]. "))
    );
    let evicted_at = |name: &str| {
        let log = node.log();
        log.lines().position(|line| line.contains("evicted:") && line.contains(&format!("pressed/{name}"))).unwrap()
    };
    assert!(evicted_at("other") < evicted_at("important"), "log:\n{}", node.log());
}

#[test]
fn a_pod_that_writes_more_than_its_limit_is_evicted_and_what_it_wrote_is_gone() {
    let Some(cluster) = cluster() else { return };
    let mut node = ClusterNode::prepare("greedy").with(&["--eviction-hard", fixture::NEVER_SHORT]);
    node.run(&cluster.bootstrap());
    node.wait_until_ready(cluster);
    let namespace = cluster.namespace("greedy");
    let mut frugal = node.fault_pod("frugal", "sleep");
    let mut greedy = node.fault_pod("greedy", "flood");
    for pod in [&mut frugal, &mut greedy] {
        pod["spec"]["containers"][0]["resources"] = json!({"limits": {"ephemeral-storage": "500Ki"}});
        pod["spec"]["volumes"] = json!([{"name": "v", "emptyDir": {}}]);
        pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
    }
    namespace.apply(frugal);
    namespace.apply(greedy);
    let evicted = namespace.wait_for_pod(&node, "greedy", "evicted", |pod| pod["status"]["reason"] == "Evicted");
    let message = evicted["status"]["message"].as_str().unwrap();
    let name = evicted["spec"]["containers"][0]["name"].as_str().unwrap();
    assert_eq!(message, format!("Container {name} exceeded its local ephemeral storage limit \"500Ki\". "));
    let conditions = evicted["status"]["conditions"].to_string();
    assert!(!conditions.contains("DisruptionTarget"), "it is the pod's own doing: {conditions}");
    let directory = node.path("data/pods").join(evicted["metadata"]["uid"].as_str().unwrap());
    assert!(wait_for(|| !directory.join("volumes").exists()), "its volumes go with it, not with its object");
    namespace.wait_until_ready(&node, "frugal");
}
