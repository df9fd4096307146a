//! Pods of a real cluster, from the scheduler's hand to their end.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test they are assertions")]

mod fixture;

use fixture::cluster::{Cluster, ClusterNode, Namespace, cluster, manifests};
use fixture::{condition, guest, wait_for};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// One node for the tests that need no one of their own. Nothing drops it, so that a shell ends it when this process has
/// gone, which it sees by the end of its input.
fn shared_node(cluster: &Cluster) -> &'static ClusterNode {
    static NODE: OnceLock<ClusterNode> = OnceLock::new();
    NODE.get_or_init(|| {
        let mut node = ClusterNode::prepare("shared").with(&["--node-labels", "test=shared"]);
        node.run(&cluster.bootstrap());
        let ending = format!("cat; kill -9 {}", node.pid());
        let watching = Command::new("sh").args(["-c", &ending]).stdin(Stdio::piped()).spawn().unwrap();
        std::mem::forget(watching);
        node.wait_until_ready(cluster);
        node
    })
}

fn container(pod: &Value) -> &Value {
    &pod["status"]["containerStatuses"][0]
}

fn phase_is<'a>(phase: &'a str) -> impl Fn(&Value) -> bool + 'a {
    move |pod| pod["status"]["phase"] == phase
}

fn with(mut pod: Value, pointer: &str, value: Value) -> Value {
    let (parent, field) = pointer.rsplit_once('/').unwrap();
    pod.pointer_mut(parent).unwrap()[field] = value;
    pod
}

/// A workload whose pods the scheduler places on nodes of ours.
fn template(node: &ClusterNode, fault: &str, app: &str) -> Value {
    let mut pod = node.fault_pod("x", fault);
    pod["spec"].as_object_mut().unwrap().remove("nodeName");
    // Other nodes of this program's tests come and go.
    pod["spec"]["nodeSelector"]["test"] = json!("shared");
    json!({"metadata": {"labels": {"app": app}}, "spec": pod["spec"]})
}

#[test]
fn a_status_is_complete() {
    let Some(cluster) = cluster() else { return };
    let (node, namespace) = (shared_node(cluster), cluster.namespace("status"));
    namespace.apply(node.fault_pod("whole", "sleep"));
    let pod = namespace.wait_until_ready(node, "whole");
    let status = &pod["status"];
    assert_eq!((&status["phase"], &status["qosClass"]), (&json!("Running"), &json!("BestEffort")));
    for kind in ["PodScheduled", "Initialized", "ContainersReady", "Ready", "PodReadyToStartContainers"] {
        assert_eq!(condition(&pod, kind), Some(true), "{kind}: {status:#}");
    }
    for address in ["hostIP", "podIP"] {
        assert_eq!(status[address], "127.0.0.1", "{status:#}");
    }
    assert!(status["startTime"].is_string() && status["podIPs"][0]["ip"].is_string(), "{status:#}");
    let container = container(&pod);
    assert!(container["containerID"].as_str().unwrap().starts_with("wasmtime://"), "{container:#}");
    assert!(container["imageID"].as_str().unwrap().contains("sha256:"), "{container:#}");
    assert!(container["state"]["running"]["startedAt"].is_string(), "{container:#}");
    assert_eq!((&container["restartCount"], &container["started"]), (&json!(0), &json!(true)));
    for reason in ["Created", "Started"] {
        namespace.wait_for_event(node, "whole", reason);
    }
    namespace.kubectl_ok(&["label", "pod", "whole", "seen=again"]);
    namespace.kubectl_ok(&["delete", "pod", "whole", "--timeout=60s"]);
    let requests = cluster.requests_of("system:node:shared").into_iter().filter(|request| {
        let object = &request["objectRef"];
        request["verb"] == "patch" && object["subresource"] == "status" && object["name"] == "whole"
    });
    let patches: Vec<_> = requests.map(|request| request["requestObject"]["status"].clone()).collect();
    // Pending, its volumes are there, it runs; its deletion is noticed, its container has ended, it has ended: those that come while
    // one is under way are one.
    assert!((1..=6).contains(&patches.len()), "{patches:#?}");
    // What the API server has already is not sent again.
    let mut sent = BTreeMap::new();
    for patch in &patches {
        for (field, value) in patch.as_object().unwrap() {
            let conditions = value.as_array().filter(|_| field == "conditions");
            let parts = match conditions {
                Some(conditions) => conditions.iter().map(|one| (format!("condition {}", one["type"]), one)).collect(),
                None => vec![(field.clone(), value)],
            };
            for (part, value) in parts {
                assert_ne!(sent.insert(part.clone(), value), Some(value), "{part} is sent again: {patches:#?}");
            }
        }
    }
}

#[test]
fn deployments_roll_daemon_sets_spread_and_jobs_complete() {
    let Some(cluster) = cluster() else { return };
    let (node, namespace) = (shared_node(cluster), cluster.namespace("workloads"));
    let workload = |kind: &str, name: &str, mut spec: Value, fault: &str| {
        spec["template"] = template(node, fault, name);
        json!({"apiVersion": if kind == "Job" { "batch/v1" } else { "apps/v1" }, "kind": kind,
            "metadata": {"name": name}, "spec": spec})
    };
    let selector = |name: &str| json!({"matchLabels": {"app": name}});
    let mut job = workload("Job", "once", json!({"completions": 2, "parallelism": 2}), "exit0");
    job["spec"]["template"]["spec"]["restartPolicy"] = json!("Never");
    namespace.apply(job);
    namespace.apply(workload("DaemonSet", "everywhere", json!({"selector": selector("everywhere")}), "sleep"));
    let deployment = |fault: &str| {
        let spec = json!({"replicas": 2, "selector": selector("rolls")});
        let mut deployment = workload("Deployment", "rolls", spec, fault);
        deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = json!(0);
        deployment
    };
    namespace.apply(deployment("sleep"));
    namespace.kubectl_ok(&["rollout", "status", "deployment/rolls", "--timeout=60s"]);
    namespace.apply(deployment("other-sleep"));
    namespace.kubectl_ok(&["rollout", "status", "deployment/rolls", "--timeout=60s"]);
    namespace.kubectl_ok(&["rollout", "status", "daemonset/everywhere", "--timeout=60s"]);
    namespace.kubectl_ok(&["wait", "--for=condition=Complete", "job/once", "--timeout=60s"]);
    let pods: Value =
        serde_json::from_str(&namespace.kubectl_ok(&["get", "pods", "-l", "app=rolls", "-o", "json"])).unwrap();
    let running = pods["items"].as_array().unwrap().iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    assert_eq!(running.count(), 2);
}

#[test]
fn init_containers_run_in_order_and_the_restart_policy_is_kept() {
    let Some(cluster) = cluster() else { return };
    let (node, namespace) = (shared_node(cluster), cluster.namespace("restarts"));
    let mut pod = node.fault_pod("init", "sleep");
    let mut init = pod["spec"]["containers"][0].clone();
    init["env"][0]["value"] = json!("exit0");
    let names = ["first", "second"].map(|name| with(json!({ "c": init }), "/c/name", json!(name))["c"].clone());
    pod["spec"]["initContainers"] = json!(names);
    namespace.apply(pod);
    let pod = namespace.wait_until_ready(node, "init");
    let finished = |index: usize, field: &str| {
        let state = &pod["status"]["initContainerStatuses"][index]["state"]["terminated"];
        state[field].as_str().unwrap().to_owned()
    };
    assert!(finished(0, "finishedAt") <= finished(1, "startedAt"), "{:#}", pod["status"]);

    for (name, policy, fault, phase, code) in [
        ("never-fails", "Never", "exit3", "Failed", 3),
        ("never-succeeds", "Never", "exit0", "Succeeded", 0),
        ("on-failure-succeeds", "OnFailure", "exit0", "Succeeded", 0),
    ] {
        namespace.apply(with(node.fault_pod(name, fault), "/spec/restartPolicy", json!(policy)));
        let pod = namespace.wait_for_pod(node, name, phase, phase_is(phase));
        let ended = &container(&pod)["state"]["terminated"];
        assert_eq!(ended["exitCode"], code, "{pod:#}");
        assert_eq!(container(&pod)["restartCount"], 0);
        assert_eq!(condition(&pod, "Ready"), Some(false));
    }
    namespace.apply(node.fault_pod("always", "exit0"));
    let pod = namespace.wait_for_pod(node, "always", "backing off", |pod| {
        container(pod)["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    });
    assert_eq!(container(&pod)["restartCount"], 1);
    assert_eq!(container(&pod)["lastState"]["terminated"]["exitCode"], 0);
    namespace.wait_for_event(node, "always", "BackOff Back-off restarting failed container main");
}

#[test]
fn a_pod_has_its_grace_period_and_then_goes_whatever_its_guest_does() {
    let Some(cluster) = cluster() else { return };
    let (node, namespace) = (shared_node(cluster), cluster.namespace("deletion"));
    // It reads its standard input, whose end tells it.
    let reader = with(node.fault_pod("reader", "read-input"), "/spec/containers/0/stdin", json!(true));
    namespace.apply(with(reader, "/metadata/finalizers", json!(["test/keep"])));
    namespace.wait_until_ready(node, "reader");
    namespace.kubectl_ok(&["delete", "pod", "reader", "--wait=false", "--grace-period=50"]);
    let pod = namespace.wait_for_pod(node, "reader", "ended", |pod| container(pod)["state"]["terminated"].is_object());
    assert_eq!(container(&pod)["state"]["terminated"]["exitCode"], 0, "it ended by itself: {pod:#}");
    assert_eq!(pod["status"]["phase"], "Succeeded");
    // The finalizer keeps the object, and whoever set it removes it.
    namespace.kubectl_ok(&["patch", "pod", "reader", "--type=merge", "-p", r#"{"metadata":{"finalizers":null}}"#]);
    namespace.wait_until_gone(node, "reader");

    namespace.apply(with(node.fault_pod("spins", "spin"), "/spec/terminationGracePeriodSeconds", json!(1)));
    namespace.wait_until_ready(node, "spins");
    namespace.kubectl_ok(&["delete", "pod", "spins", "--timeout=20s"]);
    namespace.wait_for_event(node, "spins", "Killing Stopping container main");

    // A handler has nothing to bring to an end: it goes at once, with its default grace period of 30 s.
    namespace.apply(node.handler_pod("handler", "deletedEcho"));
    namespace.wait_until_ready(node, "handler");
    node.wait_for_socket("deletedEcho");
    namespace.kubectl_ok(&["delete", "pod", "handler", "--timeout=20s"]);
    assert!(wait_for(|| !node.socket("deletedEcho").exists()), "its socket goes too");

    // A second deletion shortens the first one's grace period.
    namespace.apply(node.fault_pod("patient", "sleep"));
    namespace.wait_until_ready(node, "patient");
    namespace.kubectl_ok(&["delete", "pod", "patient", "--wait=false", "--grace-period=600"]);
    namespace.kubectl_ok(&["delete", "pod", "patient", "--grace-period=1", "--timeout=20s"]);

    // While its image is being pulled.
    let mut pulling = node.fault_pod("pulling", "sleep");
    pulling["spec"]["containers"][0]["image"] = json!("127.0.0.1:1/never/there:v1");
    namespace.apply(pulling);
    namespace.wait_for_pod(node, "pulling", "pulling", |pod| container(pod)["state"]["waiting"].is_object());
    namespace.kubectl_ok(&["delete", "pod", "pulling", "--timeout=20s"]);
}

#[test]
fn a_pod_of_the_same_name_is_another_pod() {
    let Some(cluster) = cluster() else { return };
    let (node, namespace) = (shared_node(cluster), cluster.namespace("replaced"));
    namespace.apply(node.fault_pod("same", "sleep"));
    let first = namespace.wait_until_ready(node, "same");
    namespace.kubectl_ok(&["delete", "pod", "same", "--force", "--grace-period=0"]);
    namespace.apply(node.fault_pod("same", "sleep"));
    let second = namespace.wait_until_ready(node, "same");
    assert_ne!(first["metadata"]["uid"], second["metadata"]["uid"]);
    let stored = |pod: &Value| node.path("data/pods").join(pod["metadata"]["uid"].as_str().unwrap());
    assert!(wait_for(|| !stored(&first).exists()), "nothing of the first one is left");
    assert!(stored(&second).exists());
}

#[test]
fn a_pod_that_is_active_for_too_long_fails() {
    let Some(cluster) = cluster() else { return };
    let (node, namespace) = (shared_node(cluster), cluster.namespace("deadline"));
    let pod = with(node.fault_pod("overdue", "sleep"), "/spec/activeDeadlineSeconds", json!(1));
    namespace.apply(with(pod, "/spec/terminationGracePeriodSeconds", json!(0)));
    let pod = namespace.wait_for_pod(node, "overdue", "failed", phase_is("Failed"));
    assert_eq!(pod["status"]["reason"], "DeadlineExceeded", "{pod:#}");
}

#[test]
fn a_pod_that_does_not_belong_or_fit_is_turned_away_in_words() {
    let Some(cluster) = cluster() else { return };
    let (node, namespace) = (shared_node(cluster), cluster.namespace("admission"));
    let huge = json!({"requests": {"cpu": "1000"}});
    let fits_not = with(node.fault_pod("too-much", "sleep"), "/spec/containers/0/resources", huge);
    let elsewhere = with(node.fault_pod("elsewhere", "sleep"), "/spec/nodeSelector", json!({"disk": "ssd"}));
    let intolerant = with(node.fault_pod("intolerant", "sleep"), "/spec/tolerations", json!([]));
    let probe = json!({"tcpSocket": {"port": 80}});
    let probed = with(node.fault_pod("probed", "sleep"), "/spec/containers/0/readinessProbe", probe);
    let privileged = json!({"privileged": true});
    let privileged = with(node.fault_pod("privileged", "sleep"), "/spec/containers/0/securityContext", privileged);
    for (pod, reason, message) in [
        (fits_not, "OutOfcpu", "requested: 1000000"),
        (elsewhere, "NodeAffinity", "disk=ssd"),
        (intolerant, "TaintToleration", "kubernetes.io/arch=wasm32-wasi:NoExecute"),
        (probed, "FailedValidation", "readinessProbe"),
        (privileged, "FailedValidation", "privileged"),
    ] {
        let name = pod["metadata"]["name"].as_str().unwrap().to_owned();
        namespace.apply(pod);
        // A pod that tolerates nothing may be evicted by the taint's controller before it can be seen.
        let found = wait_for(|| namespace.pod(&name).is_none_or(|pod| pod["status"]["phase"] == "Failed"));
        assert!(found, "{name} is not turned away; log:\n{}", node.log());
        if let Some(pod) = namespace.pod(&name).filter(|pod| pod["status"]["reason"] != "Evicted") {
            let status = &pod["status"];
            assert_eq!(status["reason"], reason, "{status:#}");
            assert!(status["message"].as_str().unwrap().contains(message), "{status:#}");
        }
        namespace.wait_for_event(node, &name, message);
    }
}

#[test]
fn what_ran_is_taken_up_after_a_restart_and_what_ended_is_not_run_again() {
    let Some(cluster) = cluster() else { return };
    let (mut node, namespace) = (ClusterNode::join(cluster, "restarted"), cluster.namespace("restarted"));
    let ends = with(node.fault_pod("ends", "exit0"), "/spec/restartPolicy", json!("Never"));
    for pod in
        [ends, node.fault_pod("runs", "sleep"), node.fault_pod("goes", "sleep"), node.fault_pod("forced", "sleep")]
    {
        namespace.apply(pod);
    }
    namespace.apply(node.handler_pod("serves", "restartedEcho"));
    for name in ["runs", "goes", "forced", "serves"] {
        namespace.wait_until_ready(&node, name);
    }
    let ended = namespace.wait_for_pod(&node, "ends", "succeeded", phase_is("Succeeded"));
    node.kill();
    namespace.kubectl_ok(&["delete", "pod", "goes", "--wait=false"]);
    namespace.kubectl_ok(&["delete", "pod", "forced", "--force", "--grace-period=0"]);
    node.run(&cluster.bootstrap());
    for name in ["goes", "forced"] {
        namespace.wait_until_gone(&node, name);
    }
    let restarted = |pod: &Value| container(pod)["restartCount"] == 1 && condition(pod, "Ready") == Some(true);
    let pod = namespace.wait_for_pod(&node, "runs", "taken up", restarted);
    assert_eq!(container(&pod)["lastState"]["terminated"]["reason"], "Unknown", "{pod:#}");
    namespace.wait_for_pod(&node, "serves", "taken up", restarted);
    node.wait_for_socket("restartedEcho");
    assert_eq!(namespace.pod("ends").unwrap()["status"], ended["status"], "not touched");
    // A node that has lost all it knew knows what the API server tells it.
    node.kill();
    std::fs::remove_dir_all(node.path("data/pods")).unwrap();
    node.run(&cluster.bootstrap());
    namespace.wait_until_ready(&node, "runs");
    assert_eq!(namespace.pod("ends").unwrap()["status"], ended["status"], "not touched");
}

#[test]
fn a_node_is_cordoned_and_drained() {
    let Some(cluster) = cluster() else { return };
    let (node, namespace) = (ClusterNode::join(cluster, "drained"), cluster.namespace("drained"));
    let mut template = template(&node, "sleep", "drained");
    template["spec"]["nodeSelector"].as_object_mut().unwrap().remove("test");
    template["spec"]["terminationGracePeriodSeconds"] = json!(1);
    template["spec"]["affinity"] = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
        {"nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["drained"]}]}]}}});
    namespace.apply(json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
        "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "drained"}}, "template": template}}));
    namespace.kubectl_ok(&["rollout", "status", "deployment/d", "--timeout=60s"]);
    cluster.kubectl_ok(&["drain", "drained", "--timeout=60s"]);
    let pods = namespace.kubectl_ok(&["get", "pods", "--field-selector=spec.nodeName=drained", "-o", "name"]);
    assert_eq!(pods, "");
    cluster.kubectl_ok(&["uncordon", "drained"]);
    namespace.kubectl_ok(&["rollout", "status", "deployment/d", "--timeout=60s"]);
}

/// A manifest that users get, with the image that this test has.
fn manifest(namespace: &Namespace<'_>, file: &str) {
    let path = manifests().join("debug-echo").join(file);
    let text = std::fs::read_to_string(&path).unwrap();
    let image = format!("fs://{}", guest("debug-echo").display());
    let text = text.replace("registry.example/akri-krustlet/debug-echo:v0.1.0", &image);
    // Other nodes of this program's tests come and go.
    let selector = text.lines().find(|line| line.trim() == "kubernetes.io/arch: wasm32-wasi").unwrap();
    let text = text.replace(
        selector,
        &format!("{selector}\n{}", selector.replace("kubernetes.io/arch: wasm32-wasi", "test: shared")),
    );
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join(file), text).unwrap();
    namespace.kubectl_ok(&["apply", "-f", &directory.path().join(file).display().to_string()]);
}

#[test]
fn the_manifests_of_the_handler_work_as_they_are() {
    let Some(cluster) = cluster() else { return };
    let (node, namespace) = (shared_node(cluster), cluster.namespace("manifests"));
    manifest(&namespace, "pod.yaml");
    namespace.kubectl_ok(&["wait", "--for=condition=Ready", "pod/wasi-debug-echo", "--timeout=60s"]);
    node.wait_for_socket("debugEcho");
    manifest(&namespace, "daemonset.yaml");
    namespace.kubectl_ok(&["rollout", "status", "daemonset/akri-debug-echo-discovery-daemonset", "--timeout=60s"]);
    namespace.kubectl_ok(&["delete", "pod/wasi-debug-echo", "daemonset/akri-debug-echo-discovery-daemonset"]);
    // What Akri applies its Configurations with.
    cluster.define_configurations();
    manifest(&namespace, "configuration.yaml");
    for handler in ["debug-echo", "udev"] {
        let kustomized = cluster.kubectl_ok(&["kustomize", &manifests().join(handler).display().to_string()]);
        assert!(kustomized.contains("kind: DaemonSet") && kustomized.contains("kind: Configuration"), "{handler}");
    }
}

#[test]
fn every_field_of_the_api_is_in_the_table_of_what_is_honoured() {
    use akri_krustlet_node::support;
    let Some(cluster) = cluster() else { return };
    let schema: Value = serde_json::from_str(&cluster.kubectl_ok(&["get", "--raw", "/openapi/v3/api/v1"])).unwrap();
    let fields = |of: &str| {
        let properties = &schema["components"]["schemas"][format!("io.k8s.api.core.v1.{of}")]["properties"];
        let names: Vec<_> = properties.as_object().unwrap().keys().cloned().collect();
        assert!(!names.is_empty());
        names
    };
    let unknown: Vec<_> = fields("PodSpec").into_iter().filter(|field| !support::knows_of_pod(field)).collect();
    assert!(unknown.is_empty(), "fields of the pod: {unknown:?}");
    let of_context = |field: &String| !support::knows_of_pod(&format!("securityContext.{field}"));
    let unknown: Vec<_> = fields("PodSecurityContext").into_iter().filter(of_context).collect();
    assert!(unknown.is_empty(), "fields of its securityContext: {unknown:?}");
    let unknown: Vec<_> = fields("Container").into_iter().filter(|field| !support::knows_of_container(field)).collect();
    assert!(unknown.is_empty(), "fields of a container: {unknown:?}");
    for (list, schema) in [("securityContext", "SecurityContext"), ("lifecycle", "Lifecycle")] {
        let of_field = |field: &String| !support::knows_of_container(&format!("{list}.{field}"));
        let unknown: Vec<_> = fields(schema).into_iter().filter(of_field).collect();
        assert!(unknown.is_empty(), "fields of a container's {list}: {unknown:?}");
    }
}
