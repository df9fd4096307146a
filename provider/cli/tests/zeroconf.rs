//! The zeroconf handler on a network of its own, with python-zeroconf and Avahi as responders.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test they are assertions")]

mod fixture;

use fixture::namespace::in_namespace;
use fixture::neighbour::Neighbour;
use fixture::peers::{Peer, python};
use fixture::{DEADLINE, HandlerPod, Node, wait_for_ids};
use std::path::Path;
use std::process::Command;

fn service(python: &Path, there: &Neighbour, name: &str, port: &str) -> Peer {
    Peer::start(python, "service.py", &["10.98.0.2", name, port], Some(there.pid()))
}

fn node() -> Node {
    let node = Node::start();
    let mut pod = HandlerPod::typed("zeroconf", "", "zeroconf");
    pod.annotations.push(("akri-krustlet/network", "udp 224.0.0.251:5353\njoin 224.0.0.251:5353\n"));
    pod.annotations.push(("akri-krustlet/links", "*"));
    node.add(&pod);
    node.wait_for_socket("zeroconf");
    node
}

#[tokio::test(flavor = "multi_thread")]
async fn services_are_found_by_questions_and_by_what_they_announce() {
    let Some(python) = python() else { return };
    if !in_namespace("services_are_found_by_questions_and_by_what_they_announce") {
        return;
    }
    let there = Neighbour::behind(("lan0", "10.98.0.1/24"), "10.98.0.2/24");
    let _first = service(&python, &there, "one", "554");
    let mut node = node();
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

/// Avahi's configuration and what it writes have fixed places, so it gets a view of the machine in which they are its own.
const IN_MOUNT_NAMESPACE: &str = r#"
    mount -t tmpfs tmpfs /run && mount --bind "$0/services" /etc/avahi/services &&
    exec avahi-daemon --file "$0/avahi.conf" --no-drop-root --no-chroot --no-rlimits 2>&1"#;

/// Avahi with one service in another namespace; it says goodbye when it is ended.
fn avahi(there: &Neighbour, directory: &Path) -> Option<Peer> {
    if !Path::new("/etc/avahi/services").exists() {
        println!("skipped: avahi-daemon is not installed (Debian: apt-get install avahi-daemon)");
        return None;
    }
    let write = |name: &str, text: &str| std::fs::write(directory.join(name), text).unwrap();
    write("avahi.conf", "[server]\nhost-name=printer\nuse-ipv6=no\nenable-dbus=no\n");
    std::fs::create_dir(directory.join("services")).unwrap();
    let service = "<service-group><name>front desk</name><service><type>_ipp._tcp</type><port>631</port>\
                   <txt-record>pdl=application/pdf</txt-record><txt-record>Color=T</txt-record></service></service-group>";
    write("services/printer.service", service);
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/proc/{}/ns/net", there.pid()));
    command.args(["unshare", "--mount", "sh", "-c", IN_MOUNT_NAMESPACE]).arg(directory);
    Some(Peer::run(&mut command, "successfully established"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_of_avahi_is_found_and_its_goodbye_heard() {
    if !in_namespace("a_service_of_avahi_is_found_and_its_goodbye_heard") {
        return;
    }
    let there = Neighbour::behind(("lan0", "10.98.0.1/24"), "10.98.0.2/24");
    let directory = tempfile::tempdir().unwrap();
    let Some(avahi) = avahi(&there, directory.path()) else { return };
    let node = node();
    let details = r#"{"kind": "_ipp._tcp", "interval": 3600}"#;
    let mut stream = node.discover("zeroconf", details).await.unwrap();
    let message = tokio::time::timeout(DEADLINE, stream.message()).await.unwrap().unwrap().unwrap();
    let [device] = &message.devices[..] else { panic!("{message:?}") };
    assert_eq!(device.id, "front desk._ipp._tcp.local");
    for (name, value) in
        [("HOST", "printer.local"), ("ADDR", "10.98.0.2"), ("PORT", "631"), ("PDL", "application/pdf"), ("COLOR", "T")]
    {
        assert_eq!(device.properties[&format!("AKRI_ZEROCONF_DEVICE_{name}")], value, "{device:?}");
    }
    avahi.end();
    wait_for_ids(&mut stream, &[]).await;
}
