//! The udev handler on this machine: real devices of its /sys, and real uevents.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test they are assertions")]

mod fixture;

use fixture::namespace::{in_namespace, ip};
use fixture::{DEADLINE, HandlerPod, Node, next_ids, wait_for_ids};
use std::path::Path;

fn node() -> Node {
    let node = Node::start_with(&["--allowed-host-paths", "/dev"]);
    node.add(&HandlerPod {
        annotations: vec![("akri-krustlet/uevents", "*"), ("akri-krustlet/allowed-host-paths", "/dev")],
        host_paths: ["/sys", "/run/udev/data"].into_iter().filter(|path| Path::new(path).exists()).collect(),
        limits: r#"{"memory": "64Mi"}"#,
        ..HandlerPod::typed("udev", "", "udev")
    });
    node.wait_for_socket("udev");
    node
}

fn details(rules: &[&str], more: &str) -> String {
    format!("{{\"udevRules\": {}{more}}}", serde_json::to_string(rules).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_comes_is_there_and_one_that_goes_is_not() {
    if !in_namespace("a_device_that_comes_is_there_and_one_that_goes_is_not") {
        return;
    }
    let mounted = std::process::Command::new("mount").args(["-t", "sysfs", "sysfs", "/sys"]).status();
    ip("link add br7 type bridge");
    if !Path::new("/sys/class/net/br7").exists() {
        println!("skipped: /sys of a network namespace cannot be mounted here: {mounted:?}");
        return;
    }
    let mut node = node();
    let rule = r#"SUBSYSTEM=="net", KERNEL=="br*", ATTR{bridge/stp_state}=="0""#;
    let (mut stream, ids) = node.first_list("udev", &details(&[rule], "")).await;
    assert_eq!(ids, ["/devices/virtual/net/br7"]);
    for _ in 0..3 {
        ip("link add br8 type bridge");
        wait_for_ids(&mut stream, &["/devices/virtual/net/br7", "/devices/virtual/net/br8"]).await;
        ip("link delete br8");
        wait_for_ids(&mut stream, &["/devices/virtual/net/br7"]).await;
    }
    // Over a restart of the node, what is there stays.
    node.kill();
    node.run();
    let (_stream, ids) = node.first_list("udev", &details(&[rule], "")).await;
    assert_eq!(ids, ["/devices/virtual/net/br7"]);
    let refused = node.discover("udev", &details(&[r#"KERNEL=="a" NAME=="b""#], "")).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    assert!(refused.message().contains("column 13: expected a comma"), "{refused}");
    let refused = node.discover("udev", &details(&[], r#", "permissions": "x""#)).await.unwrap_err();
    assert!(refused.message().contains("permissions"), "{refused}");
    node.assert_undisturbed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_is_given_with_its_file() {
    let node = node();
    let request = details(&[r#"SUBSYSTEM=="mem", KERNEL=="null""#], r#", "permissions": "rw""#);
    let mut stream = node.discover("udev", &request).await.unwrap();
    let list = tokio::time::timeout(DEADLINE, stream.message()).await.unwrap().unwrap().unwrap();
    let [device] = &list.devices[..] else { panic!("{list:?}") };
    assert_eq!(device.id, "/devices/virtual/mem/null");
    assert_eq!(device.properties["UDEV_DEVNODE"], "/dev/null");
    assert_eq!(device.properties["UDEV_DEVPATH"], device.id);
    assert_eq!(
        (device.device_specs[0].host_path.as_str(), device.device_specs[0].permissions.as_str()),
        ("/dev/null", "rw")
    );
    // Nothing is found, and that is said: native says nothing.
    let mut nothing = node.discover("udev", &details(&[r#"KERNEL=="no-such-device""#], "")).await.unwrap();
    assert!(next_ids(&mut nothing).await.is_empty());
}
