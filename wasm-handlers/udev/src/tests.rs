//! The handler in a world with a few devices.

use super::*;
use akri_handler::fake::{Opened, World};
use akri_handler::uevents::Uevent;

const CAMERA: &str = "/devices/pci0000:00/0000:00:14.0/usb1/1-1";

/// A device below /sys, with what its `uevent` file says, listed in its class or bus.
fn add(world: &World, listed: &str, devpath: &str, uevent: &str) {
    world.write(format!("/sys{devpath}/uevent"), uevent);
    let subsystem = listed.trim_start_matches("/sys/").split('/').nth(1).unwrap();
    let up = "../".repeat(devpath.matches('/').count());
    let of = listed.trim_start_matches("/sys/");
    world.link(format!("/sys{devpath}/subsystem"), &format!("{up}{}", of.trim_end_matches("/devices")));
    let name = devpath.rsplit('/').next().unwrap();
    let up = "../".repeat(of.matches('/').count() + 1);
    world.link(format!("{listed}/{name}"), &format!("{up}{}", &devpath[1..]));
    assert!(!subsystem.is_empty());
}

/// A USB camera with two video devices, a hub beside it whose name begins like the camera's, and two devices of memory.
fn world() -> World {
    let world = World::new();
    let usb = "/sys/bus/usb/devices";
    add(&world, "/sys/bus/pci/devices", "/devices/pci0000:00/0000:00:14.0", "DRIVER=xhci_hcd\n");
    add(&world, usb, "/devices/pci0000:00/0000:00:14.0/usb1", "DEVNAME=bus/usb/001/001\nMAJOR=189\nMINOR=0\n");
    add(&world, usb, CAMERA, "DEVNAME=bus/usb/001/002\nMAJOR=189\nMINOR=1\nDEVTYPE=usb_device\n");
    world.write(format!("/sys{CAMERA}/idVendor"), "046d\n");
    world.write(format!("/sys{CAMERA}/product"), "HD Webcam (C270)\n");
    add(&world, usb, &format!("{CAMERA}0"), "DEVNAME=bus/usb/001/010\nMAJOR=189\nMINOR=9\n");
    world.write(format!("/sys{CAMERA}0/idVendor"), "1d6b\n");
    add(&world, usb, &format!("{CAMERA}/1-1:1.0"), "DRIVER=uvcvideo\n");
    world.link(format!("/sys{CAMERA}/1-1:1.0/driver"), "../../../../../../bus/usb/drivers/uvcvideo");
    for number in ["0", "1"] {
        let devpath = format!("{CAMERA}/1-1:1.0/video4linux/video{number}");
        add(&world, "/sys/class/video4linux", &devpath, &format!("MAJOR=81\nMINOR={number}\nDEVNAME=video{number}\n"));
        world.write(format!("/sys{devpath}/index"), &format!("{number}\n"));
        let about = format!(
            "S:v4l/by-id/camera-{number}\nE:ID_V4L_CAPABILITIES=:capture:\nE:ID_INDEX={number}\nG:seat\nG:uaccess\n"
        );
        world.write(format!("/run/udev/data/c81:{number}"), &about);
    }
    add(&world, "/sys/class/mem", "/devices/virtual/mem/null", "MAJOR=1\nMINOR=3\nDEVNAME=null\nDEVMODE=0666\n");
    add(&world, "/sys/class/sound", "/devices/virtual/sound/a!b", "");
    world
}

fn open(world: &World, details: &str) -> Opened<Udev> {
    world.open(details).unwrap()
}

fn details(rules: &[&str], more: &str) -> String {
    let rules: Vec<_> = rules.iter().map(|rule| format!("\"{}\"", rule.replace('"', "\\\""))).collect();
    format!("{{\"udevRules\": [{}]{more}}}", rules.join(","))
}

/// The last parts of the ids that a rule finds.
fn found_by(rule: &str, more: &str) -> Vec<String> {
    let world = world();
    let devices = open(&world, &details(&[rule], more)).step().unwrap().devices.unwrap();
    let mut names: Vec<_> = devices.iter().map(|device| device.id.rsplit('/').next().unwrap().to_owned()).collect();
    names.sort();
    names
}

#[test]
fn rules_find_what_udev_7_says() {
    for (rule, expected) in [
        (r#"KERNEL=="video[0-9]*""#, &["video0", "video1"][..]),
        (r#"KERNEL=="video0", KERNEL=="video1""#, &[]),
        (r#"SUBSYSTEM=="video4linux|mem", KERNEL!="video1""#, &["null", "video0"]),
        (r#"ATTR{index}=="0""#, &["video0"]),
        (r#"ATTRS{idVendor}=="046d", SUBSYSTEM=="video4linux""#, &["video0", "video1"]),
        (r#"ATTRS{product}=="HD Webcam (C270)", KERNEL=="video1""#, &["video1"]),
        (r#"ATTRS{idVendor}=="046d", ATTRS{product}=="nothing""#, &[]),
        (r#"ENV{ID_INDEX}=="0", ENV{ID_V4L_CAPABILITIES}=="*capture*""#, &["video0"]),
        (r#"TAG=="seat", TAG=="uaccess", TAG!="x""#, &["video0", "video1"]),
        (r#"DRIVERS=="uvc*", ATTR{index}=="1""#, &["video1"]),
        // The interface has no file in /dev: the nearest above it has.
        (r#"DRIVER=="uvcvideo""#, &["1-1"]),
        (r#"DEVPATH=="/devices/virtual/mem/*""#, &["null"]),
        (r#"KERNEL=="a/b""#, &["a!b"]),
        (r#"ENV{DEVLINKS}=="/dev/v4l/by-id/camera-1""#, &["video1"]),
        (r#"ATTRS{idVendor}!="046d", SUBSYSTEM=="usb""#, &["1-10", "usb1"]),
        (r#"ATTRS{idVendor}=="04?d", KERNEL=="1-1""#, &["1-1"]),
        (r#"ATTRS{idVendor}=="04.*", KERNEL=="1-1""#, &["1-1"]),
        (r#"KERNEL=="video.*""#, &[]),
        (r#"SUBSYSTEM=="usb", DRIVER=="", KERNEL!="usb1""#, &["1-1", "1-10"]),
        (r#"SUBSYSTEM=="video4linux", ENV{NOT_THERE}=="""#, &["video0", "video1"]),
        (r#"SUBSYSTEM=="video4linux", ENV{NOT_THERE}!="""#, &[]),
        (r#"SUBSYSTEM=="mem|video4linux", KERNEL!="video.*""#, &["null"]),
    ] {
        assert_eq!(found_by(rule, ""), expected, "{rule}");
    }
}

#[test]
fn native_matching_is_that_of_libudevs_enumerator() {
    for (rule, expected) in [
        (r#"KERNEL=="video0", KERNEL=="null""#, &["null", "video0"][..]),
        (r#"ENV{ID_INDEX}=="1", ENV{MAJOR}=="1""#, &["null", "video1"]),
        (r#"SUBSYSTEM=="usb|video4linux""#, &[]),
        (r#"DEVPATH=="/devices/virtual/mem/null", SUBSYSTEM=="video4linux""#, &["video0", "video1"]),
        (r#"ENV{ID_IND*}=="1""#, &["video1"]),
        (r#"ATTRS{idVendor}=="04?6d", SUBSYSTEM=="video4linux""#, &["video0", "video1"]),
        (r#"ATTRS{idVendor}=="0?6d", SUBSYSTEM=="video4linux""#, &[]),
    ] {
        assert_eq!(found_by(rule, r#", "matching": "native""#), expected, "{rule}");
    }
}

#[test]
fn groups_are_those_of_paths_with_stable_numbers() {
    let world = world();
    let all = [r#"SUBSYSTEM=="video4linux""#, r#"SUBSYSTEM=="usb", KERNEL=="1-*""#];
    let devices = open(&world, &details(&all, r#", "groupRecursive": true"#)).step().unwrap().devices.unwrap();
    let ids: Vec<_> = devices.iter().map(|device| device.id.as_str()).collect();
    assert_eq!(ids, [CAMERA, &format!("{CAMERA}0")], "1-10 is not below 1-1");
    let properties: Vec<_> = devices[0].properties.iter().map(|(name, value)| format!("{name}={value}")).collect();
    assert_eq!(
        properties,
        [
            &format!("UDEV_DEVPATH={CAMERA}"),
            "UDEV_DEVNODE_0=/dev/bus/usb/001/002",
            "UDEV_DEVNODE_1=/dev/video0",
            "UDEV_DEVNODE_2=/dev/video1",
        ]
    );
    assert_eq!(devices[0].device_files.len(), 3);
}

#[test]
fn a_device_is_given_with_its_file_permissions_and_resources() {
    let world = world();
    let text = details(&[r#"KERNEL=="1-1""#], r#", "permissions": "rw""#);
    let properties = [("devicePluginResourceName", &b" kubevirt.io/cam-1 "[..])];
    let mut handler: Opened<Udev> = world.open_with(&text, properties).unwrap();
    let devices = handler.step().unwrap().devices.unwrap();
    let expected = Device::new(CAMERA)
        .property("UDEV_DEVPATH", CAMERA)
        .property("UDEV_DEVNODE", "/dev/bus/usb/001/002")
        .property("USB_RESOURCE_KUBEVIRT_IO_CAM-1", "1:2")
        .device_file("/dev/bus/usb/001/002", akri_handler::Permissions { read: true, write: true, mknod: false });
    assert_eq!(devices, [expected]);
}

#[test]
fn pci_devices_have_their_address_and_their_vfio_group() {
    let world = World::new();
    let devpath = "/devices/pci0000:00/0000:00:01.0/0000:01:00.0";
    add(&world, "/sys/bus/pci/devices", devpath, "");
    world.link(format!("/sys{devpath}/iommu_group"), "../../../../kernel/iommu_groups/7");
    let properties = [("devicePluginResourceName", &b"x.io/gpu"[..]), ("vfioPassthrough", &b"True"[..])];
    let mut handler: Opened<Udev> = world.open_with(&details(&[r#"SUBSYSTEM=="pci""#], ""), properties).unwrap();
    let devices = handler.step().unwrap().devices.unwrap();
    assert_eq!(devices[0].properties[1], ("PCI_RESOURCE_X_IO_GPU".to_owned(), "0000:01:00.0".to_owned()));
    let files: Vec<_> = devices[0].device_files.iter().map(|(path, ..)| path.as_str()).collect();
    assert_eq!(files, ["/dev/vfio/7", "/dev/vfio/vfio"]);
}

#[test]
fn what_comes_and_goes_is_told_at_once_and_a_storm_costs_two_scans_a_second() {
    let world = world();
    let mut handler = open(&world, &details(&[r#"SUBSYSTEM=="mem""#], ""));
    assert_eq!(handler.step().unwrap().devices.unwrap().len(), 1);
    world.advance(Duration::from_secs(1));
    add(&world, "/sys/class/mem", "/devices/virtual/mem/zero", "MAJOR=1\nMINOR=5\nDEVNAME=zero\n");
    let event = |subsystem: &str| Uevent { subsystem: subsystem.to_owned(), ..Uevent::default() };
    world.uevent(event("usb"));
    assert_eq!(handler.step().unwrap().devices, None, "not its subsystem");
    world.uevent(event("mem"));
    let step = handler.step().unwrap();
    assert_eq!(step.devices.unwrap().len(), 2);
    // udevd may not have finished.
    assert_eq!(step.wake_after, Some(SCANS));

    // Another event at once waits for its turn; what came meanwhile is found by one scan.
    add(&world, "/sys/class/mem", "/devices/virtual/mem/full", "MAJOR=1\nMINOR=7\nDEVNAME=full\n");
    let mut scans = 0;
    for _ in 0..1000 {
        world.uevent(event("mem"));
        world.advance(Duration::from_millis(1));
        let before = handler.0.scanned;
        let step = handler.step().unwrap();
        scans += u32::from(handler.0.scanned != before);
        assert!(step.devices.is_none_or(|devices| devices.len() == 3));
    }
    assert!((1..=2).contains(&scans), "{scans} scans in a second");
    world.advance(SCANS);
    world.lose_uevents(5);
    world.remove("/sys/class/mem/full");
    assert_eq!(handler.step().unwrap().devices.unwrap().len(), 2);
    world.advance(SCANS);
    let step = handler.step().unwrap();
    assert_eq!((step.devices, step.wake_after), (None, None), "nothing to do until something happens");
}

#[test]
fn what_udevd_finds_out_later_is_told() {
    let world = World::new();
    add(&world, "/sys/class/mem", "/devices/virtual/mem/null", "MAJOR=1\nMINOR=3\nDEVNAME=null\n");
    let mut handler = open(&world, &details(&[r#"SUBSYSTEM=="mem", ENV{ID}=="x""#], ""));
    assert_eq!(handler.step().unwrap().devices, Some(vec![]));
    // udevd starts: a scan for whatever else notices its database.
    world.advance(Duration::from_secs(1));
    world.write("/run/udev/data/c1:3", "E:ID=y\n");
    world.uevent(Uevent { subsystem: "mem".to_owned(), ..Uevent::default() });
    assert_eq!(handler.step().unwrap().devices, None);
    world.advance(SCANS);
    handler.step().unwrap();
    world.advance(Duration::from_secs(1));
    world.write("/run/udev/data/c1:3", "E:ID=x\n");
    world.change("/run/udev/data", "+usb:1-1");
    assert_eq!(handler.step().unwrap().devices, None, "not its subsystem");
    world.change("/run/udev/data", "c1:3");
    assert_eq!(handler.step().unwrap().devices.unwrap().len(), 1);
}

#[test]
fn properties_that_change_under_the_same_path_are_told() {
    let world = world();
    let mut handler = open(&world, &details(&[r#"KERNEL=="1-1""#], ""));
    handler.step().unwrap();
    world.advance(Duration::from_secs(1));
    world.write(format!("/sys{CAMERA}/uevent"), "DEVNAME=bus/usb/001/033\nMAJOR=189\nMINOR=32\n");
    world.uevent(Uevent { subsystem: "usb".to_owned(), ..Uevent::default() });
    let devices = handler.step().unwrap().devices.unwrap();
    assert!(devices[0].properties.contains(&("UDEV_DEVNODE".to_owned(), "/dev/bus/usb/001/033".to_owned())));
}

#[test]
fn what_the_user_must_change_is_said() {
    let world = world();
    for (text, what) in [
        (details(&[r#"KERNEL=="a""#, ""], ""), r#"udevRules[1] "": column 1: the rule is empty"#),
        (details(&[r#"ACTION=="add""#], ""), "ACTION is about what happens"),
        (details(&[], r#", "permissions": "x""#), "permissions: \"x\" is none of r, w, m"),
        (details(&[], r#", "permissions": "mr""#), "is none of"),
        ("{}".to_owned(), "udevRules"),
        (details(&[], r#", "matching": "odd""#), "odd"),
    ] {
        match world.open::<Udev>(&text) {
            Err(Error::InvalidDetails(said)) => assert!(said.contains(what), "{said}"),
            other => panic!("{text}: {:?}", other.err()),
        }
    }
    // None at all is no fault: nothing is looked for.
    assert_eq!(open(&world, &details(&[], "")).step().unwrap().devices, Some(vec![]));
    let empty = World::new();
    for rule in [r#"KERNEL=="a""#, r#"SUBSYSTEM=="usb""#] {
        let nothing = open(&empty, &details(&[rule], "")).step();
        assert!(matches!(nothing, Err(Error::Unavailable(what)) if what.contains("/sys cannot be read")));
    }
}

#[test]
fn a_day_of_plugging_leaves_nothing_behind() {
    let world = world();
    let mut udev = open(&world, &details(&[r#"SUBSYSTEM=="video4linux""#], ""));
    let mut found = 0;
    let mut plug = |number: u32| {
        let devpath = format!("/devices/platform/c{number}/video4linux/video9");
        add(&world, "/sys/class/video4linux", &devpath, "MAJOR=81\nMINOR=9\nDEVNAME=video9\n");
        for action in ["add", "remove"] {
            if action == "remove" {
                world.remove("/sys/class/video4linux/video9");
                world.remove(format!("/sys/devices/platform/c{number}"));
            }
            let subsystem = "video4linux".to_owned();
            world.uevent(Uevent {
                action: action.to_owned(),
                subsystem,
                devpath: devpath.clone(),
                ..Uevent::default()
            });
            // What was seen is told, at the latest with the look after it.
            for _ in 0..3 {
                let step = udev.step().unwrap();
                found += step.devices.as_ref().map_or(0, Vec::len);
                world.advance(step.wake_after.unwrap_or(Duration::from_secs(1)).min(Duration::from_secs(1)));
            }
        }
    };
    (0..50).for_each(&mut plug);
    let many = allocation_counter::measure(|| (50..1050).for_each(&mut plug));
    assert!(found > 1050, "{found}");
    assert!(many.count_total > 1000 && many.bytes_current < 16_384, "{many:?}");
}

/// Of real programs; each file says which.
#[test]
fn what_was_recorded_is_said_again() {
    akri_handler::fake::replay_all::<crate::Udev>("tests");
}
