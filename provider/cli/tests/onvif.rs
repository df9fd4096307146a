//! The ONVIF handler on a network of its own, with WSDiscovery from PyPI and a stand-in for a camera's device service, and beside
//! Akri's own handler where `NATIVE_ONVIF` names it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test they are assertions")]

mod fixture;

use akri_krustlet_discovery::agent;
use akri_proto::v0::{ByteData, Device, DiscoverRequest, DiscoverResponse};
use fixture::namespace::in_namespace;
use fixture::native::NativeAlone;
use fixture::neighbour::Neighbour;
use fixture::peers::{Peer, python};
use fixture::{DEADLINE, HandlerPod, Node};
use futures::FutureExt as _;
use std::collections::HashMap;
use std::path::Path;
use tonic::Streaming;

/// A camera in another namespace, and its uuid.
fn camera(python: &Path, there: &Neighbour, port: u16, authentication: &str) -> (Peer, String) {
    let port = port.to_string();
    let arguments: Vec<_> = ["10.99.0.2", &port].into_iter().chain(authentication.split(' ')).collect();
    let peer = Peer::start(python, "camera.py", &arguments, Some(there.pid()));
    let uuid = peer.said.strip_prefix("ready ").unwrap().to_lowercase();
    (peer, uuid)
}

fn node() -> Node {
    let node = Node::start();
    let mut pod = HandlerPod::typed("onvif", "", "onvif");
    pod.annotations.push((
        "akri-krustlet/network",
        "udp 239.255.255.250:3702\njoin 239.255.255.250:3702\nhttp http://[10.99.0.0/24]:1-65535\n",
    ));
    pod.annotations.push(("akri-krustlet/links", "*"));
    node.add(&pod);
    node.wait_for_socket("onvif");
    node
}

/// A Configuration with a name and a password for all cameras.
fn request(details: &str) -> DiscoverRequest {
    let value = |text: &str| ByteData { vec: Some(text.as_bytes().to_vec()) };
    let properties = [("username_default", "admin"), ("password_default", "secret")];
    DiscoverRequest {
        discovery_details: details.to_owned(),
        discovery_properties: properties.map(|(name, text)| (name.to_owned(), value(text))).into(),
    }
}

async fn next(stream: &mut Streaming<DiscoverResponse>) -> HashMap<String, Device> {
    let message = tokio::time::timeout(DEADLINE, stream.message()).await.expect("a list comes").unwrap().unwrap();
    message.devices.into_iter().map(|device| (device.id.clone(), device)).collect()
}

/// Reads on until a list has these devices.
async fn wait_for(stream: &mut Streaming<DiscoverResponse>, ids: &[&String]) -> HashMap<String, Device> {
    loop {
        let devices = next(stream).await;
        if devices.len() == ids.len() && ids.iter().all(|id| devices.contains_key(*id)) {
            return devices;
        }
    }
}

fn id(port: u16, uuid: &str) -> String {
    format!("http://10.99.0.2:{port}/onvif/device_service-{uuid}")
}

#[tokio::test(flavor = "multi_thread")]
async fn cameras_are_found_by_probes_and_by_what_they_say() {
    let Some(python) = python() else { return };
    if !in_namespace("cameras_are_found_by_probes_and_by_what_they_say") {
        return;
    }
    let there = Neighbour::behind(("cam0", "10.99.0.1/24"), "10.99.0.2/24");
    let (_first, first_uuid) = camera(&python, &there, 8001, "none");
    let mut node = node();
    // The next probe is an hour away: who comes and goes from here on has said so.
    let details = r#"{"interval": 3600}"#;
    let mut stream = agent::discover(node.socket("onvif"), request(details)).await.unwrap();
    let first_id = id(8001, &first_uuid);
    let devices = wait_for(&mut stream, &[&first_id]).await;
    let properties = &devices[&first_id].properties;
    assert_eq!(properties["ONVIF_DEVICE_SERVICE_URL"], "http://10.99.0.2:8001/onvif/device_service");
    assert_eq!(properties["ONVIF_DEVICE_UUID"], first_uuid);
    assert_eq!(properties["ONVIF_DEVICE_IP_ADDRESS"], "10.99.0.2");
    assert_eq!(properties["ONVIF_DEVICE_MAC_ADDRESS"], "00:11:22:33:44:01");
    let (second, second_uuid) = camera(&python, &there, 8002, "token");
    let second_id = id(8002, &second_uuid);
    let devices = wait_for(&mut stream, &[&first_id, &second_id]).await;
    assert_eq!(devices[&second_id].properties["ONVIF_DEVICE_MAC_ADDRESS"], "00:11:22:33:44:02", "by its own clock");
    second.end();
    wait_for(&mut stream, &[&first_id]).await;
    let (_third, third_uuid) = camera(&python, &there, 8003, "digest");
    let third_id = id(8003, &third_uuid);
    let devices = wait_for(&mut stream, &[&first_id, &third_id]).await;
    assert_eq!(devices[&third_id].properties["ONVIF_DEVICE_MAC_ADDRESS"], "00:11:22:33:44:03");
    // Over a restart of the node nobody is lost.
    node.kill();
    node.run();
    node.wait_for_socket("onvif");
    let mut again = agent::discover(node.socket("onvif"), request(details)).await.unwrap();
    let devices = next(&mut again).await;
    assert!(devices.len() == 2 && devices.contains_key(&first_id) && devices.contains_key(&third_id), "{devices:?}");
    node.assert_undisturbed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_is_away_for_a_moment_loses_no_camera() {
    let Some(python) = python() else { return };
    if !in_namespace("a_link_that_is_away_for_a_moment_loses_no_camera") {
        return;
    }
    let there = Neighbour::behind(("cam0", "10.99.0.1/24"), "10.99.0.2/24");
    let (camera, uuid) = camera(&python, &there, 8001, "none");
    let node = node();
    let mut stream =
        agent::discover(node.socket("onvif"), request(r#"{"interval": 1, "missedProbes": 2}"#)).await.unwrap();
    let id = id(8001, &uuid);
    wait_for(&mut stream, &[&id]).await;
    fixture::namespace::ip("link set cam0 down");
    let message = node.wait_for_unhealthy("onvif");
    assert!(message.contains("no granted network link carries multicast"), "{message}");
    fixture::namespace::ip("link set cam0 up");
    node.wait_for_pod("onvif", "healthy", |pod| fixture::condition(pod, "DiscoveryHealthy") == Some(true));
    // What came meanwhile are repetitions.
    while let Some(message) = stream.message().now_or_never() {
        assert_eq!(fixture::ids(message.unwrap().unwrap()), [id.as_str()]);
    }
    // A camera that ends without a word goes after the probes that it may miss.
    drop(camera);
    wait_for(&mut stream, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_cameras_are_found_as_by_akris_own_handler() {
    let Some(program) = std::env::var_os("NATIVE_ONVIF") else {
        println!("skipped: NATIVE_ONVIF does not name Akri's onvif-discovery-handler");
        return;
    };
    let Some(python) = python() else { return };
    if !in_namespace("the_same_cameras_are_found_as_by_akris_own_handler") {
        return;
    }
    let there = Neighbour::behind(("cam0", "10.99.0.1/24"), "10.99.0.2/24");
    fixture::namespace::ip("route add 239.0.0.0/8 dev cam0");
    // Akri's own handler does not declare the prefix of the type that it asks for.
    let (_one, uuid) = camera(&python, &there, 8001, "none lenient");
    let (_other, _) = camera(&python, &there, 8002, "none lenient");
    let node = node();
    let (native, _) = NativeAlone::start_named(Path::new(&program), "onvif").await;
    for details in [
        "{}".to_owned(),
        r#"{"discoveryTimeoutSeconds": 2, "ipAddresses": {"action": "Exclude", "items": []}}"#.to_owned(),
        r#"{"discoveryTimeoutSeconds": 2, "scopes": {"action": "Include", "items": ["onvif://www.onvif.org/name/stand-in"]}}"#.to_owned(),
        format!(r#"{{"discoveryTimeoutSeconds": 2, "uuids": {{"action": "Exclude", "items": ["{uuid}"]}}}}"#),
        r#"{"discoveryTimeoutSeconds": 2, "macAddresses": {"action": "Include", "items": ["00:11:22:33:44:02"]}}"#.to_owned(),
    ] {
        let mut of_native = agent::discover(native.socket(), request(&details)).await.unwrap();
        let theirs = next(&mut of_native).await;
        let mut ours = agent::discover(node.socket("onvif"), request(&details)).await.unwrap();
        loop {
            if next(&mut ours).await == theirs {
                break;
            }
        }
    }
}
