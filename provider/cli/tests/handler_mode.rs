//! Handlers without a node of their own: a node alone, in a pod of an ordinary node, that tells the cluster what becomes of them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test they are assertions")]

mod fixture;

use fixture::cluster::{Namespace, cluster, manifests};
use fixture::{HandlerPod, Node, wait_for};
use serde_json::Value;

#[tokio::test(flavor = "multi_thread")]
async fn the_cluster_is_told_which_handler_is_healthy_with_the_smallest_rights() {
    let Some(cluster) = cluster() else { return };
    // With the DaemonSet, for which this cluster has no node.
    cluster.kubectl_ok(&["apply", "-k", manifests().join("handler-mode").to_str().unwrap()]);
    let namespace = Namespace { cluster, name: "akri-krustlet-status".to_owned() };
    let token = cluster.kubectl_ok(&["create", "token", "akri-krustlet", "-n", "akri"]);

    let mut node = Node::prepare();
    let kubeconfig = node.path("kubeconfig");
    let config: Value =
        serde_json::from_str(&cluster.kubectl_ok(&["config", "view", "--raw", "--minify", "--flatten", "-o", "json"]))
            .unwrap();
    let mut own = config.clone();
    own["users"][0]["user"] = serde_json::json!({"token": token.trim()});
    std::fs::write(&kubeconfig, own.to_string()).unwrap();
    node.environment.push(("KUBECONFIG", kubeconfig));
    node.arguments = vec!["--status-config-map", "akri-krustlet-status/akri-krustlet-edge"];
    node.add(&HandlerPod::new("witness", "debugEcho", "debug-echo"));
    node.add(&HandlerPod { handler: "torn", ..HandlerPod::fault("torn", "torn") });
    node.run();
    node.wait_for_socket("torn");
    let map = || cluster.get("configmap", "akri-krustlet-status", "akri-krustlet-edge");
    let entry = |pod: &str| map().and_then(|map| Some(map["data"][format!("default.{pod}")].as_str()?.to_owned()));
    let is = |pod: &str, text: &str| wait_for(|| entry(pod).is_some_and(|entry| entry.contains(text)));
    assert!(is("witness", "ready: true"), "{:?}\n{}", map(), node.log());

    let _stream = node.discover("torn", "{}").await.unwrap();
    assert!(is("torn", "trouble: \"") && is("torn", "JSON"), "{:?}", map());
    let told = || {
        let events = namespace.kubectl_ok(&["get", "events", "-o", "json"]);
        events.contains("DiscoveryUnhealthy") && events.contains("default/torn: ")
    };
    assert!(wait_for(told), "{}", namespace.kubectl_ok(&["get", "events"]));

    node.remove_manifest("torn.json");
    assert!(wait_for(|| entry("torn").is_none()), "{:?}", map());
    assert!(entry("witness").is_some());
    // It can do nothing else.
    let account = "--as=system:serviceaccount:akri:akri-krustlet";
    let can = |namespace: &str, verb: &str, what: &str| {
        let output = cluster.kubectl(&["auth", "can-i", verb, what, "-n", namespace, account]);
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    assert_eq!(can("akri-krustlet-status", "patch", "configmaps"), "yes");
    assert_eq!(can("akri", "patch", "configmaps"), "no", "it can change what other nodes run");
    for (verb, what) in [("get", "secrets"), ("get", "pods"), ("delete", "configmaps"), ("get", "nodes")] {
        assert_eq!(can("akri-krustlet-status", verb, what), "no", "{verb} {what}");
    }
}

#[test]
fn where_the_cluster_is_not_to_be_had_that_is_said() {
    let mut node = Node::prepare();
    node.environment.push(("KUBECONFIG", node.path("missing")));
    node.arguments = vec!["--status-config-map", "handler-mode/status"];
    node.run();
    node.wait_for_log("--status-config-map: KUBECONFIG: ");
    assert!(wait_for(|| !node.is_running()));
}
