//! Lists of a thousand devices.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test they are assertions")]

mod fixture;

use fixture::namespace::in_namespace;
use fixture::neighbour::Neighbour;
use fixture::peers::{Peer, python};
use fixture::{HandlerPod, Node};

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_devices_are_one_list() {
    let Some(python) = python() else { return };
    if !in_namespace("a_thousand_devices_are_one_list") {
        return;
    }
    let there = Neighbour::behind(("lan0", "10.96.0.1/24"), "10.96.0.2/24");
    let peer = |script, arguments: &[&str]| Peer::start(&python, script, arguments, Some(there.pid()));
    let _list = peer("list.py", &["10.96.0.2", "8400", "1000"]);
    let _discovery = peer("opcua_server.py", &["10.96.0.2:4840", "lds", "DiscoveryServer", "1000"]);
    let mut node = Node::start();
    for (handler, rules) in [("http", "http details"), ("opcua", "tcp details\ndns *")] {
        let mut pod = HandlerPod { exchange: false, ..HandlerPod::typed(handler, "", handler) };
        pod.annotations.push(("akri-krustlet/network", rules));
        node.add(&pod);
    }
    let opcua = r#"{"opcuaDiscoveryMethod": {"standard": {"discoveryUrls": ["opc.tcp://10.96.0.2:4840/ua"]}}}"#;
    for (handler, details, first) in [
        ("http", "http://10.96.0.2:8400/discovery", "http://10.96.0.2:8400/device/0"),
        ("opcua", opcua, "opc.tcp://192.0.2.1:10000/ua"),
    ] {
        let (_stream, ids) = node.first_list(handler, details).await;
        assert_eq!((ids.len(), ids.iter().any(|id| id == first)), (1000, true), "{handler}: {ids:?}");
    }
    node.assert_undisturbed().await;
}
