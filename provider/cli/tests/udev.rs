//! The udev handler on this machine: real devices of its /sys, real uevents, and beside it Akri's own handler where `NATIVE_UDEV`
//! names it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test they are assertions")]

mod fixture;

use akri_krustlet_discovery::agent;
use akri_proto::v0::{Device, DiscoverRequest, DiscoverResponse};
use fixture::namespace::{in_namespace, ip};
use fixture::native::NativeAlone;
use fixture::{DEADLINE, HandlerPod, Node, next_ids, wait_for_ids};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tonic::Streaming;

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

/// Rules for what any machine has, and some that match nothing.
const RULES: [&str; 64] = [
    r#"KERNEL=="null""#,
    r#"KERNEL=="n*ll""#,
    r#"KERNEL=="[nz]*""#,
    r#"KERNEL=="null", SUBSYSTEM=="mem""#,
    r#"SUBSYSTEM=="mem""#,
    r#"SUBSYSTEM=="me?""#,
    r#"SUBSYSTEM=="mem", KERNEL!="null""#,
    r#"SUBSYSTEM=="mem", KERNEL!="n.*""#,
    r#"SUBSYSTEM=="mem", SUBSYSTEM!="tty""#,
    r#"SUBSYSTEM!="mem""#,
    r#"SUBSYSTEM=="tty""#,
    r#"SUBSYSTEM=="tty", KERNEL=="tty[0-9]""#,
    r#"SUBSYSTEM=="tty", KERNEL=="tty[0-9]*""#,
    r#"SUBSYSTEM=="tty", KERNEL=="ttyS*""#,
    r#"SUBSYSTEM=="tty", KERNEL!="tty[0-9].*""#,
    r#"SUBSYSTEM=="net""#,
    r#"SUBSYSTEM=="net", KERNEL=="lo""#,
    r#"SUBSYSTEM=="net", ATTR{ifindex}=="1""#,
    r#"SUBSYSTEM=="net", ATTR{type}=="772""#,
    r#"SUBSYSTEM=="net", ATTR{address}=="00:00:00:00:00:00""#,
    r#"SUBSYSTEM=="net", ATTR{address}=="00:*", ATTR{mtu}=="65536""#,
    r#"SUBSYSTEM=="net", ATTR{mtu}!="65536""#,
    r#"SUBSYSTEM=="net", ATTR{no_such}!="1""#,
    r#"SUBSYSTEM=="net", ATTR{no_such}=="1""#,
    r#"SUBSYSTEM=="block""#,
    r#"SUBSYSTEM=="block", KERNEL=="loop*""#,
    r#"SUBSYSTEM=="block", ATTR{size}=="0""#,
    r#"SUBSYSTEM=="block", ATTR{removable}=="0", ATTR{ro}=="0""#,
    r#"SUBSYSTEM=="block", ENV{DEVTYPE}=="disk""#,
    r#"SUBSYSTEM=="block", ENV{DEVTYPE}=="part*""#,
    r#"SUBSYSTEM=="block", ENV{DEVTYPE}!="disk""#,
    r#"ENV{MAJOR}=="1""#,
    r#"ENV{MAJOR}=="1", SUBSYSTEM=="mem""#,
    r#"ENV{DEVNAME}=="/dev/null""#,
    r#"ENV{DEVNAME}=="/dev/z*""#,
    r#"ENV{MINOR}=="3", SUBSYSTEM=="mem""#,
    r#"ENV{NO_SUCH}=="x""#,
    r#"ENV{NO_SUCH}!="x", SUBSYSTEM=="mem""#,
    r#"ENV{MINOR}!="3", SUBSYSTEM=="mem""#,
    r#"TAG=="seat""#,
    r#"TAG!="seat", SUBSYSTEM=="mem""#,
    r#"TAGS=="seat""#,
    r#"DRIVER=="virtio_blk""#,
    r#"DRIVER=="virtio.*""#,
    r#"DRIVER!="virtio.*", SUBSYSTEM=="mem""#,
    r#"SUBSYSTEM=="pci""#,
    r#"SUBSYSTEM=="pci", ATTR{class}=="0x02*""#,
    r#"SUBSYSTEM=="pci", ATTR{vendor}=="0x1af4""#,
    r#"SUBSYSTEM=="virtio""#,
    r#"SUBSYSTEMS=="virtio", SUBSYSTEM=="block""#,
    r#"SUBSYSTEMS=="virtio", SUBSYSTEM=="net""#,
    r#"SUBSYSTEMS=="pci", SUBSYSTEM=="block""#,
    r#"SUBSYSTEMS!="pci", SUBSYSTEM=="net""#,
    r#"DRIVERS=="virtio_net", SUBSYSTEM=="net""#,
    r#"DRIVERS!="virtio_net", SUBSYSTEM=="net""#,
    r#"ATTRS{vendor}=="0x1af4", SUBSYSTEM=="net""#,
    r#"ATTRS{vendor}!="0x1af4", SUBSYSTEM=="mem""#,
    r#"KERNELS=="virtio[0-9].*", SUBSYSTEM=="net""#,
    r#"KERNELS=="null""#,
    r#"KERNELS!="null", SUBSYSTEM=="mem""#,
    r#"SUBSYSTEM=="misc""#,
    r#"SUBSYSTEM=="cpu""#,
    r#"SUBSYSTEM=="usb", KERNEL=="1-*""#,
    r#"SUBSYSTEM=="no_such_subsystem""#,
];

/// Where udev(7) means something else than libudev's enumerator does, and what ours finds then.
const MEANT: [(&str, &[&str]); 4] = [
    // Nothing has two names.
    (r#"KERNEL=="null", KERNEL=="zero""#, &[]),
    (r#"SUBSYSTEM=="mem|tty", KERNEL=="null""#, &["/devices/virtual/mem/null"]),
    (r#"DEVPATH=="/devices/virtual/mem/null""#, &["/devices/virtual/mem/null"]),
    (r#"ENV{DEVNAME}=="/dev/null", ENV{MINOR}=="3""#, &["/devices/virtual/mem/null"]),
];

/// The first list, or nothing if none comes soon: native says nothing where it finds nothing. `None` if the stream ends instead:
/// native panics at some rules.
async fn first(socket: PathBuf, details: String, patience: Duration) -> Option<Vec<Device>> {
    let request = DiscoverRequest { discovery_details: details, ..Default::default() };
    let mut stream: Streaming<DiscoverResponse> = agent::discover(socket, request).await.unwrap();
    let Ok(list) = tokio::time::timeout(patience, stream.message()).await else { return Some(Vec::new()) };
    let mut devices = list.unwrap()?.devices;
    devices.sort_by(|one, other| one.id.cmp(&other.id));
    Some(devices)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_rules_find_the_same_devices_as_akris_own_handler() {
    let Some(program) = std::env::var_os("NATIVE_UDEV").map(PathBuf::from) else {
        println!("skipped: NATIVE_UDEV does not name Akri's own udev handler");
        return;
    };
    let node = node();
    let (native, _) = NativeAlone::start_named(&program, "udev").await;
    let (mut found, mut panics, mut differences) = (0, 0, Vec::new());
    let with = |rule: &str, more: &str| details(&[rule], more);
    let meant = |rule: &str| MEANT.iter().find(|(meant, _)| *meant == rule).map(|(_, ids)| *ids);
    for rule in RULES.iter().copied().chain(MEANT.iter().map(|(rule, _)| *rule)) {
        let as_native = first(node.socket("udev"), with(rule, r#", "matching": "native""#), DEADLINE).await;
        // Where ours finds nothing, theirs is expected to say nothing.
        let nothing = as_native.as_ref().is_some_and(Vec::is_empty);
        let patience = if nothing { Duration::from_secs(1) } else { DEADLINE };
        let theirs = first(native.socket(), with(rule, ""), patience).await;
        let Some(theirs) = theirs else {
            println!("native ends its stream: {rule}");
            panics += 1;
            continue;
        };
        found += usize::from(!theirs.is_empty());
        let theirs = Some(theirs);
        if as_native != theirs {
            differences.push(format!("{rule} (native): theirs {theirs:?}, ours {as_native:?}"));
        }
        let ours = first(node.socket("udev"), with(rule, ""), DEADLINE).await;
        let ids: Vec<_> = ours.iter().flatten().map(|device| device.id.as_str()).collect();
        let is_right = match meant(rule) {
            Some(expected) => ids == expected && ours != theirs,
            None => ours == theirs,
        };
        if !is_right {
            differences.push(format!("{rule}: theirs {theirs:?}, ours {ours:?}"));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    assert!(panics < 8, "native has answered too little to say anything");
    assert!(found > 25, "{found} rules found something: too few to say anything");
}
