//! The zeroconf handler on a network of its own, with python-zeroconf as the responder.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test they are assertions")]

mod fixture;

use fixture::namespace::in_namespace;
use fixture::neighbour::Neighbour;
use fixture::peers::{Peer, python};
use fixture::{DEADLINE, HandlerPod, Node, wait_for_ids};
use std::path::Path;

fn service(python: &Path, there: &Neighbour, name: &str, port: &str) -> Peer {
    Peer::start(python, "service.py", &["10.98.0.2", name, port], Some(there.pid()))
}

#[tokio::test(flavor = "multi_thread")]
async fn services_are_found_by_questions_and_by_what_they_announce() {
    let Some(python) = python() else { return };
    if !in_namespace("services_are_found_by_questions_and_by_what_they_announce") {
        return;
    }
    let there = Neighbour::behind(("lan0", "10.98.0.1/24"), "10.98.0.2/24");
    let _first = service(&python, &there, "one", "554");
    let mut node = Node::start();
    let mut pod = HandlerPod::typed("zeroconf", "", "zeroconf");
    pod.annotations.push(("akri-krustlet/network", "udp 224.0.0.251:5353\njoin 224.0.0.251:5353\n"));
    pod.annotations.push(("akri-krustlet/links", "*"));
    node.add(&pod);
    node.wait_for_socket("zeroconf");
    // The next question is an hour away: who comes and goes from here on has said so.
    let details = r#"{"kind": "_rtsp._tcp", "interval": 3600}"#;
    let mut stream = node.discover("zeroconf", details).await.unwrap();
    let message = tokio::time::timeout(DEADLINE, stream.message()).await.unwrap().unwrap().unwrap();
    assert_eq!(message.devices.len(), 1, "{message:?}");
    let device = &message.devices[0];
    assert_eq!(device.id, "one._rtsp._tcp.local");
    for (name, value) in
        [("HOST", "one.local"), ("ADDR", "10.98.0.2"), ("PORT", "554"), ("PATH", "/stream"), ("MODEL", "stand-in")]
    {
        assert_eq!(device.properties[&format!("AKRI_ZEROCONF_DEVICE_{name}")], value);
    }
    let second = service(&python, &there, "two", "8554");
    wait_for_ids(&mut stream, &["one._rtsp._tcp.local", "two._rtsp._tcp.local"]).await;
    second.end();
    wait_for_ids(&mut stream, &["one._rtsp._tcp.local"]).await;
    // Over a restart of the node nobody is lost.
    node.kill();
    node.run();
    let (_stream, ids) = node.first_list("zeroconf", details).await;
    assert_eq!(ids, ["one._rtsp._tcp.local"]);
    node.assert_undisturbed().await;
}
