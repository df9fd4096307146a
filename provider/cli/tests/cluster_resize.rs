//! Requests and limits that change while pods run. What a kubelet does with them is in the comparison with one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test they are assertions")]

mod fixture;

use fixture::cluster::{Cluster, ClusterNode, Namespace, cluster};
use serde_json::{Value, json};

/// A node whose pods the API server lets be resized.
fn join(cluster: &Cluster, name: &str) -> ClusterNode {
    let mut node = ClusterNode::prepare(name).with(&["--os-label", "linux"]);
    node.run(&cluster.bootstrap());
    node.wait_until_ready(cluster);
    node
}

fn pod(node: &ClusterNode, name: &str, resources: Value) -> Value {
    let mut pod = node.fault_pod(name, "sleep");
    pod["spec"]["containers"][0]["resources"] = resources;
    pod
}

fn resize(namespace: &Namespace<'_>, name: &str, resources: Value) {
    let pod = namespace.pod(name).unwrap();
    let container = json!({"name": pod["spec"]["containers"][0]["name"], "resources": resources});
    let patch = json!({"spec": {"containers": [container]}}).to_string();
    namespace.kubectl_ok(&["patch", "pod", name, "--subresource", "resize", "-p", &patch]);
}

fn of(pod: &Value, condition: &str) -> Value {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.into_iter().flatten().find(|one| one["type"] == condition).cloned().unwrap_or_default()
}

fn container(pod: &Value) -> &Value {
    &pod["status"]["containerStatuses"][0]
}

#[test]
fn a_limit_below_what_a_guest_has_waits_until_it_is_another_one() {
    let Some(cluster) = cluster() else { return };
    let (node, namespace) = (join(cluster, "resized"), cluster.namespace("resized"));
    let memory = |limit: &str| json!({"requests": {"memory": "32Ki"}, "limits": {"memory": limit}});
    namespace.apply(pod(&node, "waits", memory("64Mi")));
    namespace.wait_until_ready(&node, "waits");
    resize(&namespace, "waits", memory("64Ki"));
    let is_refused = |pod: &Value| of(pod, "PodResizeInProgress")["reason"] == "Error";
    let refused = namespace.wait_for_pod(&node, "waits", "refused its limit", is_refused);
    let message = of(&refused, "PodResizeInProgress")["message"].as_str().unwrap().to_owned();
    assert!(message.contains("memory limit (65536) below current usage"), "{message}");
    assert_eq!(container(&refused)["resources"]["limits"]["memory"], "64Mi");
    namespace.wait_for_event(&node, "waits", "ResizeError");
    resize(&namespace, "waits", memory("32Mi"));
    let is_settled = |pod: &Value| {
        of(pod, "PodResizeInProgress").is_null() && container(pod)["resources"]["limits"]["memory"] == "32Mi"
    };
    let settled = namespace.wait_for_pod(&node, "waits", "resized", is_settled);
    assert_eq!(container(&settled)["restartCount"], 0);
    namespace.wait_for_event(&node, "waits", "ResizeCompleted");
}

#[test]
fn a_container_that_is_started_again_has_what_it_was_given() {
    let Some(cluster) = cluster() else { return };
    let (node, namespace) = (join(cluster, "crashes"), cluster.namespace("crashes"));
    let cpu = |cpu: &str| json!({"requests": {"cpu": "10m"}, "limits": {"cpu": cpu, "memory": "32Mi"}});
    let mut crashing = pod(&node, "crashes", cpu("500m"));
    // It ends when it finds the file, at each start.
    std::fs::create_dir_all(node.path("shared")).unwrap();
    let variables = crashing["spec"]["containers"][0]["env"].as_array_mut().unwrap();
    variables[0]["value"] = json!("await-file");
    variables.push(json!({"name": "FAULT_FILE", "value": "/shared/go"}));
    crashing["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "shared", "mountPath": "/shared"}]);
    crashing["spec"]["volumes"] = json!([{"name": "shared", "hostPath": {"path": node.path("shared")}}]);
    namespace.apply(crashing);
    namespace.wait_until_ready(&node, "crashes");
    resize(&namespace, "crashes", cpu("600m"));
    let has = |pod: &Value| container(pod)["resources"]["limits"] == cpu("600m")["limits"];
    namespace.wait_for_pod(&node, "crashes", "resized", has);
    std::fs::write(node.path("shared/go"), "").unwrap();
    let restarted = |pod: &Value| container(pod)["restartCount"].as_i64() > Some(0);
    let pod = namespace.wait_for_pod(&node, "crashes", "started again", restarted);
    assert!(has(&pod), "{:#}", pod["status"]);
}

#[test]
fn what_is_not_granted_is_asked_for_again_when_others_end_and_after_a_restart_of_the_node() {
    let Some(cluster) = cluster() else { return };
    let (mut node, namespace) = (join(cluster, "full-of-requests"), cluster.namespace("full-of-requests"));
    let allocatable = cluster.get("node", "", &node.name).unwrap()["status"]["allocatable"]["cpu"].clone();
    let allocatable = allocatable.as_str().unwrap();
    let millis: u32 = match allocatable.strip_suffix('m') {
        Some(millis) => millis.parse().unwrap(),
        None => allocatable.parse::<u32>().unwrap() * 1000,
    };
    let cpu = |millis: u32| json!({"requests": {"cpu": format!("{millis}m")}});
    namespace.apply(pod(&node, "large", cpu(millis - 200)));
    namespace.apply(pod(&node, "small", cpu(100)));
    for name in ["large", "small"] {
        namespace.wait_until_ready(&node, name);
    }
    resize(&namespace, "small", cpu(500));
    let is_deferred = |pod: &Value| of(pod, "PodResizePending")["reason"] == "Deferred";
    let deferred = namespace.wait_for_pod(&node, "small", "deferred", is_deferred);
    let message = of(&deferred, "PodResizePending")["message"].as_str().unwrap().to_owned();
    assert!(message.contains("resource: cpu, requested: 500, used: "), "{message}");
    namespace.wait_for_event(&node, "small", "ResizeDeferred");

    // Its next life knows what it had been granted.
    node.kill();
    node.run(&cluster.bootstrap());
    let restarted = |pod: &Value| container(pod)["restartCount"] == 1 && fixture::condition(pod, "Ready") == Some(true);
    let restarted = namespace.wait_for_pod(&node, "small", "taken up", restarted);
    assert!(is_deferred(&restarted), "{:#}", restarted["status"]);
    assert_eq!(container(&restarted)["resources"], cpu(100));

    namespace.kubectl_ok(&["delete", "pod", "large", "--timeout=60s"]);
    let is_granted = |pod: &Value| of(pod, "PodResizePending").is_null() && container(pod)["resources"] == cpu(500);
    let granted = namespace.wait_for_pod(&node, "small", "granted", is_granted);
    assert_eq!(container(&granted)["allocatedResources"], cpu(500)["requests"]);
    assert_eq!(container(&granted)["restartCount"], 1);
}

#[test]
fn a_pod_bounds_its_containers_together_and_can_be_resized_as_a_whole() {
    let Some(cluster) = cluster() else { return };
    let (node, namespace) = (join(cluster, "whole"), cluster.namespace("whole"));
    // Each takes more than half of what the pod may have.
    let mut both = node.fault_pod("both", "sleep");
    let container = |name: &str| json!({"name": name, "image": format!("fs://{}", fixture::guest("workload").display()), "args": ["memory:40", "print:has it", "forever"]});
    both["spec"]["containers"] = json!([container("one"), container("other")]);
    let of_pod =
        |memory: &str| json!({"requests": {"cpu": "100m", "memory": "32Mi"}, "limits": {"cpu": "1", "memory": memory}});
    both["spec"]["resources"] = of_pod("64Mi");
    namespace.apply(both);
    let state = |pod: &Value, what: &str| {
        let statuses = pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
        statuses.iter().filter(|status| !status.pointer(what).unwrap_or(&Value::Null).is_null()).count()
    };
    let killed = namespace.wait_for_pod(&node, "both", "short of memory", |pod| {
        state(pod, "/lastState/terminated") == 1 && pod["status"]["resources"] == of_pod("64Mi")
    });
    let reasons = killed["status"]["containerStatuses"].as_array().unwrap().iter();
    let mut reasons = reasons.filter_map(|status| status["lastState"]["terminated"]["reason"].as_str());
    assert_eq!(reasons.next(), Some("OOMKilled"), "{killed:#}");
    // More for both: the one that was refused gets its memory at its next start.
    let patch = json!({"spec": {"resources": of_pod("160Mi")}}).to_string();
    namespace.kubectl_ok(&["patch", "pod", "both", "--subresource", "resize", "-p", &patch]);
    namespace.wait_for_event(&node, "both", "ResizeCompleted");
    let resized = namespace.wait_until_ready(&node, "both");
    assert_eq!(resized["status"]["resources"], of_pod("160Mi"));
    assert_eq!(state(&resized, "/state/running"), 2);
    // Less than they have together is refused.
    let patch = json!({"spec": {"resources": of_pod("48Mi")}}).to_string();
    namespace.kubectl_ok(&["patch", "pod", "both", "--subresource", "resize", "-p", &patch]);
    let refused = namespace
        .wait_for_pod(&node, "both", "refused its limit", |pod| of(pod, "PodResizeInProgress")["reason"] == "Error");
    let message = of(&refused, "PodResizeInProgress")["message"].as_str().unwrap().to_owned();
    assert!(message.contains("pod memory limit (50331648) below current usage"), "{message}");
}

#[test]
fn a_guest_that_runs_has_what_its_pod_is_given_as_a_whole() {
    let Some(cluster) = cluster() else { return };
    let (node, namespace) = (join(cluster, "grows"), cluster.namespace("grows"));
    let mut grows = node.pod("grows", "workload");
    // It asks for more when the test has had time to grant it.
    grows["spec"]["containers"][0]["args"] = json!(["memory:30", "sleep:15000", "memory:60", "print:grew", "forever"]);
    let of_pod = |memory: &str| json!({"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": memory}});
    grows["spec"]["resources"] = of_pod("64Mi");
    namespace.apply(grows);
    namespace.wait_until_ready(&node, "grows");
    let patch = json!({"spec": {"resources": of_pod("160Mi")}}).to_string();
    namespace.kubectl_ok(&["patch", "pod", "grows", "--subresource", "resize", "-p", &patch]);
    namespace.wait_for_event(&node, "grows", "ResizeCompleted");
    let grew = || namespace.kubectl_ok(&["logs", "grows"]).contains("grew");
    assert!(fixture::wait_for(grew), "{}", node.log());
    assert_eq!(container(&namespace.pod("grows").unwrap())["restartCount"], 0);
    // One that said nothing of itself as a whole.
    let mut alone = node.pod("alone", "workload");
    alone["spec"]["containers"][0]["args"] = json!(["sleep:15000", "memory:40", "print:grew", "forever"]);
    // The API server changes no pod's class.
    alone["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "10m"}});
    namespace.apply(alone);
    namespace.wait_until_ready(&node, "alone");
    let patch = json!({"spec": {"resources": {"limits": {"memory": "16Mi"}}}}).to_string();
    let patched = namespace.kubectl(&["patch", "pod", "alone", "--subresource", "resize", "-p", &patch]);
    assert!(patched.status.success(), "{}", String::from_utf8_lossy(&patched.stderr));
    namespace.wait_for_pod(&node, "alone", "short of memory", |pod| {
        container(pod)["lastState"]["terminated"]["reason"] == "OOMKilled"
    });
}
