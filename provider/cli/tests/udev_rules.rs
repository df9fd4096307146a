//! The udev handler beside Akri's own (where `NATIVE_UDEV` names it), rule by rule: on this machine, and on machines that have been
//! written down.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test they are assertions")]

mod fixture;

use akri_krustlet_discovery::agent;
use akri_proto::v0::{ByteData, Device, DiscoverRequest, DiscoverResponse};
use fixture::bed::Bed;
use fixture::namespace::in_namespace;
use fixture::native::NativeAlone;
use fixture::{DEADLINE, HandlerPod, Node};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tonic::Streaming;

fn node(sys: Option<PathBuf>) -> Node {
    let node = Node::start_with(&["--allowed-host-paths", "/dev"]);
    node.add(&HandlerPod {
        annotations: vec![("akri-krustlet/uevents", "*"), ("akri-krustlet/allowed-host-paths", "/dev")],
        host_paths: ["/sys", "/run/udev/data"].into_iter().filter(|path| Path::new(path).exists()).collect(),
        sys,
        limits: r#"{"memory": "64Mi"}"#,
        ..HandlerPod::typed("udev", "", "udev")
    });
    node.wait_for_socket("udev");
    node
}

fn native() -> Option<PathBuf> {
    let program = std::env::var_os("NATIVE_UDEV").map(PathBuf::from);
    if program.is_none() {
        println!("skipped: NATIVE_UDEV does not name Akri's own udev handler");
    }
    program
}

fn details(rule: &str, more: &str) -> String {
    format!("{{\"udevRules\": {}{more}}}", serde_json::to_string(&[rule]).unwrap())
}

const AS_NATIVE: &str = r#", "matching": "native""#;

/// The first list, or nothing if none comes soon: native says nothing where it finds nothing. `None` if the stream ends instead:
/// native panics at some rules.
async fn first(socket: PathBuf, request: DiscoverRequest, patience: Duration) -> Option<Vec<Device>> {
    let mut stream: Streaming<DiscoverResponse> = agent::discover(socket, request).await.unwrap();
    let Ok(list) = tokio::time::timeout(patience, stream.message()).await else { return Some(Vec::new()) };
    let mut devices = list.unwrap()?.devices;
    devices.sort_by(|one, other| one.id.cmp(&other.id));
    Some(devices)
}

/// One rule, asked of ours as udev(7) and as native means it, and of native where there is one.
struct Answers {
    ours: Vec<Device>,
    as_native: Vec<Device>,
    /// `None` if it ends its stream.
    native: Option<Vec<Device>>,
}

async fn ask(node: &Node, native: Option<&NativeAlone>, rule: &str, more: &str) -> Answers {
    let request = |more: &str| DiscoverRequest {
        discovery_details: details(rule, more),
        discovery_properties: VFIO.map(|(name, value)| (name.to_owned(), ByteData { vec: Some(value.into()) })).into(),
    };
    let ours = first(node.socket("udev"), request(more), DEADLINE).await.unwrap();
    let as_native = first(node.socket("udev"), request(&format!("{more}{AS_NATIVE}")), DEADLINE).await.unwrap();
    // Where ours finds nothing, theirs is expected to say nothing.
    let patience = if as_native.is_empty() { Duration::from_secs(1) } else { DEADLINE };
    let native = match native {
        Some(native) => first(native.socket(), request(more), patience).await,
        None => Some(as_native.clone()),
    };
    Answers { ours, as_native, native }
}

/// In every request; nothing but PCI and USB devices have to do with it.
const VFIO: [(&str, &str); 2] = [("devicePluginResourceName", "example.com/device"), ("vfioPassthrough", "true")];

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

#[tokio::test(flavor = "multi_thread")]
async fn the_same_rules_find_the_same_devices_of_this_machine_as_akris_own_handler() {
    let Some(program) = native() else { return };
    let node = node(None);
    let (native, _) = NativeAlone::start_named(&program, "udev").await;
    let (mut found, mut panics, mut differences) = (0, 0, Vec::new());
    let meant = |rule: &str| MEANT.iter().find(|(meant, _)| *meant == rule).map(|(_, ids)| *ids);
    for rule in RULES.iter().copied().chain(MEANT.iter().map(|(rule, _)| *rule)) {
        let Answers { ours, as_native, native: theirs } = ask(&node, Some(&native), rule, "").await;
        let Some(theirs) = theirs else {
            println!("native ends its stream: {rule}");
            panics += 1;
            continue;
        };
        found += usize::from(!theirs.is_empty());
        if as_native != theirs {
            differences.push(format!("{rule} (native): theirs {theirs:?}, ours {as_native:?}"));
        }
        let ids: Vec<_> = ours.iter().map(|device| device.id.as_str()).collect();
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

/// What a rule finds on a machine that has been written down.
struct Case {
    rule: &'static str,
    /// The last parts of the ids, in the order of their paths.
    found: &'static str,
    native: Native,
}

/// What Akri's own handler makes of it.
enum Native {
    /// The same.
    Same,
    /// Something else, see docs/udev.md.
    Other,
    /// It panics, and its stream ends.
    Ends,
}

const fn same(rule: &'static str, found: &'static str) -> Case {
    Case { rule, found, native: Native::Same }
}

const fn other(rule: &'static str, found: &'static str) -> Case {
    Case { rule, found, native: Native::Other }
}

const fn ends(rule: &'static str, found: &'static str) -> Case {
    Case { rule, found, native: Native::Ends }
}

/// A hub with two cameras and a keyboard.
const CAMERAS: &[Case] = &[
    same(r#"KERNEL=="video[0-9]*""#, "video0 video1 video2"),
    same(r#"KERNEL=="video*", ATTR{index}=="0""#, "video0 video2"),
    same(r#"SUBSYSTEM=="video4linux", ENV{ID_V4L_CAPABILITIES}=="*:capture:*""#, "video0 video2"),
    same(r#"SUBSYSTEM=="video4linux", ATTRS{idVendor}=="046d""#, "video0 video1"),
    ends(r#"SUBSYSTEM=="video4linux", ATTRS{product}=="HD Webcam (C270)""#, "video0 video1"),
    other(r#"ENV{DEVTYPE}=="usb_device", ATTRS{idVendor}=="04*""#, "1-1 1-2"),
    same(r#"SUBSYSTEM=="input", KERNEL=="event*", ATTRS{idVendor}=="04.*""#, "event3"),
    same(r#"TAG=="uaccess""#, "1-1 video0 video1 1-10 video2"),
    same(r#"TAG=="uaccess", SUBSYSTEM=="usb""#, "1-1 1-10"),
    same(r#"TAGS=="uaccess", SUBSYSTEM=="video4linux""#, "video0 video1 video2"),
    same(r#"DRIVER=="uvcvideo""#, "1-1 1-10"),
    same(r#"DRIVERS=="uvcvideo", SUBSYSTEM=="video4linux""#, "video0 video1 video2"),
    same(r#"DRIVER!="usb", SUBSYSTEM=="usb""#, "1-1 1-10"),
    same(r#"SUBSYSTEM=="usb", ENV{DEVTYPE}=="usb_device""#, "usb1 1-1 1-10 1-2"),
    same(r#"SUBSYSTEM=="sound""#, "1-1 pcmC1D0c"),
    same(r#"SUBSYSTEM=="input", ENV{ID_INPUT_KEYBOARD}=="1""#, "1-2 event3"),
    same(r#"ENV{ID_MODEL}=="HD_Webcam", ENV{ID_SERIAL}=="2F8A11""#, "1-1"),
    other(r#"ENV{ID_MODEL}=="HD_Webcam", ENV{DEVTYPE}=="usb_interface""#, ""),
    other(r#"ENV{ID_MO*}=="Root_Hub""#, ""),
    other(r#"SUBSYSTEM=="usb|video4linux", KERNEL=="1-1*""#, "1-1 1-10"),
    other(r#"DEVPATH=="/devices/pci0000:00/0000:00:14.0/usb1/1-10""#, "1-10"),
    ends(r#"ATTR{product}=="UVC Camera & Light, 5+1""#, "1-10"),
    same(r#"KERNELS=="1-10", SUBSYSTEM=="video4linux""#, "video2"),
    same(r#"KERNELS!="1-10", SUBSYSTEM=="video4linux""#, "video0 video1"),
    same(r#"SUBSYSTEMS=="usb", SUBSYSTEM=="video4linux""#, "video0 video1 video2"),
    same(r#"ATTRS{idVendor}=="0ac8", ATTRS{idProduct}=="3420", SUBSYSTEM=="video4linux""#, "video2"),
    other(r#"ATTRS{idVendor}=="0ac8", ATTRS{idProduct}=="0002", SUBSYSTEM=="video4linux""#, ""),
];

/// A small board with radios on serial ports and a card.
const STICKS: &[Case] = &[
    same(r#"SUBSYSTEM=="tty""#, "ttyAMA0 ttyUSB0 ttyACM0 ttyUSB1"),
    same(r#"KERNEL=="ttyUSB[0-9]*""#, "1-1.2 ttyUSB0 1-1.4 ttyUSB1"),
    same(r#"SUBSYSTEM=="tty", KERNEL=="ttyUSB*""#, "ttyUSB0 ttyUSB1"),
    same(r#"SUBSYSTEM=="tty", ENV{ID_VENDOR_ID}=="10c4""#, "ttyUSB0 ttyUSB1"),
    same(r#"SUBSYSTEM=="tty", ATTRS{idVendor}=="10c4", ATTRS{serial}=="0002""#, "ttyUSB1"),
    ends(r#"SUBSYSTEM=="tty", ATTRS{product}=="CP2102N #1 @ 115200""#, "ttyUSB0"),
    ends(r#"SUBSYSTEM=="tty", ATTRS{product}=="Z-Wave=Stick""#, "ttyACM0"),
    same(r#"SUBSYSTEM=="tty", KERNEL!="ttyAMA.*""#, "ttyUSB0 ttyACM0 ttyUSB1"),
    same(r#"SUBSYSTEM=="tty", KERNEL!="ttyAMA0""#, "ttyUSB0 ttyACM0 ttyUSB1"),
    same(r#"SUBSYSTEM=="tty", DRIVERS=="cp210x""#, "ttyUSB0 ttyUSB1"),
    same(r#"SUBSYSTEM=="tty", DRIVERS!="cp210x""#, "ttyAMA0 ttyACM0"),
    same(r#"SUBSYSTEM=="tty", TAG=="systemd""#, "ttyAMA0 ttyUSB0 ttyACM0 ttyUSB1"),
    same(r#"SUBSYSTEM=="tty", TAG!="systemd""#, ""),
    same(r#"SUBSYSTEM=="tty", SUBSYSTEMS=="usb-serial""#, "ttyUSB0 ttyUSB1"),
    same(r#"SUBSYSTEM=="usb-serial""#, "1-1.2 1-1.4"),
    same(r#"SUBSYSTEM=="usb", ATTR{bDeviceClass}=="09""#, "1-1"),
    other(r#"SUBSYSTEM=="usb", ATTR{idVendor}=="10c4|0658""#, "1-1.2 1-1.3 1-1.4"),
    same(r#"SUBSYSTEM=="usb", ATTR{idVendor}!="0424""#, "usb1 1-1.2 1-1.3 1-1.4"),
    same(r#"SUBSYSTEM=="block", ENV{DEVTYPE}=="partition""#, "mmcblk0p1"),
    same(r#"SUBSYSTEM=="block", ATTR{removable}=="0""#, "mmcblk0"),
    same(r#"SUBSYSTEM=="block", ATTRS{cid}=="0353.*""#, "mmcblk0 mmcblk0p1"),
    same(r#"SUBSYSTEM=="mmc""#, "mmc0:aaaa"),
    same(r#"ENV{ID_FS_LABEL}=="bootfs""#, "mmcblk0p1"),
    same(r#"TAG=="systemd", KERNEL=="ttyA*""#, "ttyAMA0 ttyACM0"),
];

/// A server with a card to be passed on to a guest.
const SERVER: &[Case] = &[
    same(r#"SUBSYSTEM=="pci", ATTR{vendor}=="0x10de""#, "0000:01:00.0 0000:01:00.1"),
    same(r#"SUBSYSTEM=="pci", ATTR{class}=="0x0302*""#, "0000:01:00.0"),
    same(r#"SUBSYSTEM=="pci", DRIVER=="vfio-pci""#, "0000:01:00.0 0000:01:00.1"),
    same(r#"SUBSYSTEM=="pci", DRIVER=="vfio.*""#, "0000:01:00.0 0000:01:00.1"),
    other(r#"SUBSYSTEM=="pci", DRIVER=="e100??""#, "0000:00:1f.6"),
    same(r#"SUBSYSTEM=="pci", ENV{PCI_SLOT_NAME}=="0000:01:00.1""#, "0000:01:00.1"),
    same(r#"SUBSYSTEM=="pci", ENV{PCI_ID}=="10DE:*""#, "0000:01:00.0 0000:01:00.1"),
    same(r#"SUBSYSTEM=="block""#, "nvme0n1 nvme0n1p1"),
    same(r#"SUBSYSTEM=="block", ATTRS{model}=="SSD 970.*""#, "nvme0n1 nvme0n1p1"),
    ends(r#"SUBSYSTEM=="block", ATTRS{model}=="SSD 970 PRO (512GB)""#, "nvme0n1 nvme0n1p1"),
    same(r#"SUBSYSTEM=="net""#, "eno1 lo"),
    same(r#"SUBSYSTEM=="net", ATTR{operstate}=="up""#, "eno1"),
    same(r#"SUBSYSTEM=="net", ATTR{address}!="00:00:00:00:00:00""#, "eno1"),
    same(r#"SUBSYSTEM=="net", DRIVERS=="e1000e""#, "eno1"),
    same(r#"SUBSYSTEM=="net", ENV{ID_NET_NAME_ONBOARD}=="eno?""#, "eno1"),
    same(r#"SUBSYSTEM=="tpm", ATTR{tpm_version_major}=="2""#, "tpm0"),
    same(r#"SUBSYSTEM=="nvme""#, "nvme0"),
    same(r#"SUBSYSTEM=="block", SUBSYSTEMS=="nvme""#, "nvme0n1 nvme0n1p1"),
    same(r#"SUBSYSTEM=="block", SUBSYSTEMS=="pci""#, "nvme0n1 nvme0n1p1"),
    same(r#"SUBSYSTEM=="net", SUBSYSTEMS!="pci""#, "lo"),
    same(r#"TAG=="systemd""#, "tpm0 nvme0n1 nvme0n1p1"),
    same(r#"SUBSYSTEM=="block", ENV{ID_FS_TYPE}=="ext4""#, "nvme0n1p1"),
    same(r#"SUBSYSTEM=="block", ENV{ID_FS_TYPE}!="ext4""#, "nvme0n1"),
    other(r#"SUBSYSTEM=="block", SUBSYSTEM=="net""#, ""),
];

fn names(devices: &[Device]) -> String {
    let names: Vec<_> = devices.iter().map(|device| device.id.rsplit('/').next().unwrap()).collect();
    names.join(" ")
}

async fn compare_on(bed: &str, cases: &[Case]) {
    let Some(bed) = Bed::start(bed) else { return };
    let node = node(Some(bed.sys()));
    let native = match native() {
        Some(program) => Some(NativeAlone::start_with(&program, "udev", &bed.environment()).await.0),
        None => None,
    };
    let mut differences = Vec::new();
    for Case { rule, found, native: expected } in cases {
        let Answers { ours, as_native, native: theirs } = ask(&node, native.as_ref(), rule, "").await;
        if names(&ours) != *found {
            differences.push(format!("{rule}: {:?} instead of {found:?}", names(&ours)));
        }
        let is_expected = match (expected, &theirs) {
            (Native::Same, Some(theirs)) => *theirs == ours && *theirs == as_native,
            (Native::Other, Some(theirs)) => *theirs != ours && *theirs == as_native,
            (Native::Ends, None) => true,
            (Native::Ends, Some(_)) => native.is_none(),
            (_, None) => false,
        };
        if !is_expected {
            differences.push(format!("{rule}: theirs {theirs:?}, ours {ours:?}, as native {as_native:?}"));
        }
    }
    // Of a group the parts are compared: in theirs they are in another order from list to list.
    let more = r#", "groupRecursive": true, "permissions": "r""#;
    let parts = |devices: &[Device]| -> Vec<_> {
        let parts = |device: &Device| {
            let files: BTreeSet<_> =
                device.device_specs.iter().map(|spec| (spec.host_path.clone(), spec.permissions.clone())).collect();
            (device.id.clone(), device.properties.values().cloned().collect::<BTreeSet<_>>(), files)
        };
        devices.iter().map(parts).collect()
    };
    for rule in [r#"SUBSYSTEM=="tty""#, r#"SUBSYSTEM=="block""#, r#"SUBSYSTEM=="usb", KERNEL=="1-1.[0-9]""#] {
        let Answers { ours, native: theirs, .. } = ask(&node, native.as_ref(), rule, more).await;
        let theirs = theirs.unwrap();
        if parts(&ours) != parts(&theirs) {
            differences.push(format!("{rule}, in groups: theirs {theirs:?}, ours {ours:?}"));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_find_cameras_as_akris_own_handler_does() {
    if in_namespace("rules_find_cameras_as_akris_own_handler_does") {
        compare_on("cameras", CAMERAS).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_find_sticks_as_akris_own_handler_does() {
    if in_namespace("rules_find_sticks_as_akris_own_handler_does") {
        compare_on("sticks", STICKS).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_find_cards_as_akris_own_handler_does() {
    if in_namespace("rules_find_cards_as_akris_own_handler_does") {
        compare_on("server", SERVER).await;
    }
}
