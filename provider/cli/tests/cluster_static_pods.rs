//! Static pods: a folder of manifests on a node of a cluster, and the mirror pods by which the cluster shows them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test they are assertions")]

mod fixture;

use fixture::cluster::{Cluster, ClusterNode, Namespace, cluster};
use fixture::{condition, wait_for};
use serde_json::{Value, json};

/// A node of a cluster with a folder of manifests, in which nothing is yet.
fn join(cluster: &Cluster, name: &str) -> ClusterNode {
    let node = ClusterNode::prepare(name);
    std::fs::create_dir(node.path("static")).unwrap();
    let folder = node.path("static").display().to_string();
    let mut node = node.with(&["--manifests", &folder]);
    node.run(&cluster.bootstrap());
    node.wait_until_ready(cluster);
    node
}

/// A pod that prints and runs on.
fn pod(node: &ClusterNode, namespace: &Namespace<'_>, name: &str, text: &str) -> Value {
    let mut pod = node.fault_pod(name, "sleep");
    pod["metadata"]["namespace"] = json!(namespace.name);
    let env = pod["spec"]["containers"][0]["env"].as_array_mut().unwrap();
    env.push(json!({"name": "TEXT", "value": text}));
    pod["spec"].as_object_mut().unwrap().remove("nodeName");
    pod
}

fn write(node: &ClusterNode, pod: &Value) {
    let name = pod["metadata"]["name"].as_str().unwrap();
    let new = node.path(&format!("static/{name}.new"));
    std::fs::write(&new, pod.to_string()).unwrap();
    std::fs::rename(new, node.path(&format!("static/{name}.json"))).unwrap();
}

fn uid(pod: &Value) -> &str {
    pod["metadata"]["uid"].as_str().unwrap()
}

fn hash(pod: &Value) -> &str {
    pod["metadata"]["annotations"]["kubernetes.io/config.mirror"].as_str().unwrap()
}

fn container(pod: &Value) -> (&str, i64) {
    let status = &pod["status"]["containerStatuses"][0];
    (status["containerID"].as_str().unwrap(), status["restartCount"].as_i64().unwrap())
}

#[test]
fn a_static_pod_is_shown_by_a_mirror_pod_that_follows_it() {
    let Some(cluster) = cluster() else { return };
    let namespace = cluster.namespace("static");
    let node = join(cluster, "mirrors");
    write(&node, &pod(&node, &namespace, "a", "one"));
    let first = namespace.wait_until_ready(&node, "a-mirrors");
    let owner = &first["metadata"]["ownerReferences"][0];
    assert_eq!((&owner["kind"], &owner["name"]), (&json!("Node"), &json!("mirrors")));
    assert_eq!(first["metadata"]["annotations"]["kubernetes.io/config.source"], "file");
    assert_eq!(first["spec"]["nodeName"], "mirrors");
    // What kubectl does with a pod of the cluster, it does with this one.
    namespace.kubectl_ok(&["logs", "a-mirrors"]);
    let description = namespace.kubectl_ok(&["describe", "pod", "a-mirrors"]);
    assert!(description.contains("Started"), "{description}");
    // Its end is not the static pod's.
    namespace.kubectl_ok(&["delete", "pod", "a-mirrors", "--wait=false"]);
    let again = namespace.wait_for_pod(&node, "a-mirrors", "another one", |pod| {
        uid(pod) != uid(&first) && condition(pod, "Ready") == Some(true)
    });
    assert_eq!((hash(&again), container(&again)), (hash(&first), container(&first)), "the same guest runs on");
    // Another manifest is another pod.
    write(&node, &pod(&node, &namespace, "a", "two"));
    let changed = namespace.wait_for_pod(&node, "a-mirrors", "that of the changed manifest", |pod| {
        hash(pod) != hash(&first) && condition(pod, "Ready") == Some(true)
    });
    assert_ne!(container(&changed).0, container(&first).0);
    std::fs::remove_file(node.path("static/a.json")).unwrap();
    namespace.wait_until_gone(&node, "a-mirrors");
    assert!(!node.log().contains("the API server refuses"), "{}", node.log());
}

#[test]
fn what_changed_while_the_node_was_down_is_set_right() {
    let Some(cluster) = cluster() else { return };
    let namespace = cluster.namespace("static-later");
    let mut node = join(cluster, "later");
    for name in ["goes", "changes", "stays"] {
        write(&node, &pod(&node, &namespace, name, "one"));
    }
    let before = ["goes", "changes", "stays"].map(|name| namespace.wait_until_ready(&node, &format!("{name}-later")));
    node.kill();
    std::fs::remove_file(node.path("static/goes.json")).unwrap();
    write(&node, &pod(&node, &namespace, "changes", "two"));
    node.run(&cluster.bootstrap());
    namespace.wait_until_gone(&node, "goes-later");
    namespace.wait_for_pod(&node, "changes-later", "that of the changed manifest", |pod| {
        hash(pod) != hash(&before[1]) && condition(pod, "Ready") == Some(true)
    });
    let stayed = namespace.wait_for_pod(&node, "stays-later", "running again", |pod| {
        container(pod).1 == 1 && condition(pod, "Ready") == Some(true)
    });
    assert_eq!(uid(&stayed), uid(&before[2]), "the same mirror pod");
    // A pod of the same name that is none of ours is left alone, and the node says why its own is not seen.
    namespace.apply(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "taken-later"},
        "spec": {"containers": [{"name": "c", "image": "x"}], "nodeSelector": {"nobody": "has-it"}, "automountServiceAccountToken": false}}));
    write(&node, &pod(&node, &namespace, "taken", "one"));
    node.wait_for_log("the mirror pod is not made yet");
    assert!(node.log().contains("already exists"), "{}", node.log());
    namespace.kubectl_ok(&["delete", "pod", "taken-later", "--grace-period=0", "--force"]);
    namespace.wait_until_ready(&node, "taken-later");
    // Without its folder, the node has no static pods; their mirror pods go.
    node.kill();
    std::fs::remove_dir_all(node.path("static")).unwrap();
    std::fs::create_dir(node.path("static")).unwrap();
    node.run(&cluster.bootstrap());
    for name in ["changes-later", "stays-later", "taken-later"] {
        namespace.wait_until_gone(&node, name);
    }
}

#[test]
fn a_static_pod_that_needs_the_api_is_refused_in_words() {
    let Some(cluster) = cluster() else { return };
    let namespace = cluster.namespace("static-refused");
    let node = join(cluster, "refused");
    let mut secret = pod(&node, &namespace, "secret", "one");
    secret["spec"]["volumes"] = json!([{"name": "v", "secret": {"secretName": "x"}}]);
    write(&node, &secret);
    write(&node, &pod(&node, &namespace, "good", "one"));
    node.wait_for_log("secret.json:1: static pod secret-refused refers to a Secret");
    namespace.wait_until_ready(&node, "good-refused");
    assert!(namespace.pod("secret-refused").is_none());
    // A namespace that is not there yet.
    let mut homeless = pod(&node, &namespace, "homeless", "one");
    homeless["metadata"]["namespace"] = json!("static-not-yet");
    write(&node, &homeless);
    for number in 0..4 {
        let mut other = homeless.clone();
        other["metadata"]["name"] = json!(format!("homeless-{number}"));
        write(&node, &other);
    }
    node.wait_for_log("the mirror pod is not made yet");
    // Those that can be made do not wait for them.
    for number in 0..4 {
        write(&node, &pod(&node, &namespace, &format!("good-{number}"), "one"));
        namespace.wait_until_ready(&node, &format!("good-{number}-refused"));
    }
    let runs = || node.log().contains("pod added pod=\"static-not-yet/homeless-refused\"");
    assert!(wait_for(runs), "{}", node.log());
    cluster.namespace("static-not-yet").wait_until_ready(&node, "homeless-refused");
}
