//! Certificates that live for seconds: the node renews its own and works on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test they are assertions")]

mod fixture;

use fixture::cluster::{Cluster, ClusterNode};
use fixture::wait_for;

#[test]
fn the_client_certificate_is_renewed_before_it_ends_and_nothing_is_interrupted() {
    if std::env::var_os("SKIP_CLUSTER_TESTS").is_some() {
        println!("skipped: SKIP_CLUSTER_TESTS is set");
        return;
    }
    let cluster = Cluster::start("15s");
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
