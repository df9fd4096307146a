//! Certificates that live for seconds: the node renews its own and works on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test they are assertions")]

mod fixture;

use fixture::cluster::{ClusterNode, own_cluster};
use fixture::proxy::{Proxy, Way};
use fixture::wait_for;
use rustix::process::Signal;

/// Of each certificate.
const LIFE: &str = "15s";

#[test]
fn the_client_certificate_is_renewed_before_it_ends_and_nothing_is_interrupted() {
    let Some(cluster) = own_cluster(LIFE) else { return };
    let node = ClusterNode::join(&cluster, "renewing");
    let namespace = cluster.namespace("renewing");
    namespace.apply(node.fault_pod("before", "sleep"));
    namespace.wait_until_ready(&node, "before");
    let renewed = || node.log().matches("the node's client certificate is renewed").count();
    // By the third renewal, the first certificates have ended.
    assert!(wait_for(|| renewed() >= 3), "{}", node.log());
    namespace.apply(node.fault_pod("after", "sleep"));
    namespace.wait_until_ready(&node, "after");
    let before = namespace.pod("before").unwrap();
    assert_eq!(before["status"]["containerStatuses"][0]["restartCount"], 0);
    assert!(!node.log().contains("cannot keep this node registered"), "{}", node.log());
    assert!(!node.log().contains("cannot renew"), "{}", node.log());
}

#[test]
fn a_certificate_that_ended_while_the_api_server_was_away_is_replaced_with_the_bootstrap_token() {
    let Some(cluster) = own_cluster(LIFE) else { return };
    let proxy = Proxy::start(&cluster.server(), 1);
    let mut node = ClusterNode::prepare("ended");
    let bootstrap = proxy.kubeconfig(&cluster.bootstrap(), &node.path("bootstrap.conf"));
    node.run(&bootstrap);
    node.wait_until_ready(&cluster);
    let namespace = cluster.namespace("ended");
    namespace.apply(node.fault_pod("before", "sleep"));
    namespace.wait_until_ready(&node, "before");
    proxy.set(Way::Closed);
    node.wait_for_log("cannot ask for a certificate");
    node.wait_for_log("the node's client certificate has ended and there is no new one");
    proxy.set(Way::Open);
    node.wait_for_log("the node's client certificate is renewed");
    namespace.apply(node.fault_pod("after", "sleep"));
    namespace.wait_until_ready(&node, "after");
    let before = namespace.pod("before").unwrap();
    assert_eq!(before["status"]["containerStatuses"][0]["restartCount"], 0);
}

#[test]
fn a_certificate_that_ended_while_its_successor_waited_for_approval_is_replaced() {
    let Some(cluster) = own_cluster(LIFE) else { return };
    let node = ClusterNode::join(&cluster, "waiting");
    let namespace = cluster.namespace("waiting");
    namespace.apply(node.fault_pod("before", "sleep"));
    namespace.wait_until_ready(&node, "before");
    // It approves and signs.
    cluster.signal("kube-controller-manager", Signal::STOP);
    node.wait_for_log("the node's client certificate has ended and there is no new one");
    cluster.signal("kube-controller-manager", Signal::CONT);
    node.wait_for_log("the node's client certificate is renewed");
    namespace.apply(node.fault_pod("after", "sleep"));
    namespace.wait_until_ready(&node, "after");
    let before = namespace.pod("before").unwrap();
    assert_eq!(before["status"]["containerStatuses"][0]["restartCount"], 0);
}
