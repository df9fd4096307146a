//! What the machine tells components: uevents, multicast, links and directories, each by grant. Each test has a network namespace
//! of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test they are assertions")]

mod fixture;

use akri_proto::v0::DiscoverResponse;
use fixture::namespace::{group_sender, in_namespace, ip, link_pair};
use fixture::{HandlerPod, Node, next_ids, wait_for};
use serde_json::{Value, json};
use tonic::Streaming;

const GROUP: &str = "239.255.255.250:3702";

/// All that the test guest imports.
fn granted(name: &'static str) -> HandlerPod<'static> {
    HandlerPod {
        annotations: vec![
            ("akri-krustlet/uevents", "net, mem"),
            ("akri-krustlet/links", "cam*, lo"),
            ("akri-krustlet/network", "join 239.255.255.250:3702 on cam0\njoin 239.255.255.251:1-9"),
        ],
        exchange: true,
        ..HandlerPod::typed(name, name, "event-echo")
    }
}

fn node(pod: &HandlerPod<'_>) -> Node {
    let node = Node::start();
    node.add(pod);
    node
}

async fn follow(node: &Node, handler: &str, details: &Value) -> Streaming<DiscoverResponse> {
    node.wait_for_socket(handler);
    node.discover(handler, &details.to_string()).await.unwrap()
}

/// Reads on until a list has all of these; the whole list.
async fn wait_for_all(stream: &mut Streaming<DiscoverResponse>, expected: &[&str]) -> Vec<String> {
    loop {
        let ids = next_ids(stream).await;
        if expected.iter().all(|id| ids.iter().any(|found| found == id)) {
            return ids;
        }
    }
}

fn steps(ids: &[String]) -> u32 {
    ids.iter().find_map(|id| id.strip_prefix("steps ")).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_handler_follows_makes_it_step() {
    if !in_namespace("what_a_handler_follows_makes_it_step") {
        return;
    }
    link_pair(("cam0", "10.9.0.1/24"), ("far0", "10.9.0.2/24"));
    let mut node = node(&granted("follower"));
    let details = json!({"uevents": ["net"], "watch": ["/tmp/wde-dir"], "groups": [GROUP], "links": true});
    let mut stream = follow(&node, "follower", &details).await;
    let ids = next_ids(&mut stream).await;
    assert_eq!(ids, ["link cam0", "link lo", "steps 1"], "of those that are granted");

    ip("link add br7 type bridge");
    let ids = wait_for_all(&mut stream, &["uevent add /devices/virtual/net/br7"]).await;
    assert!(steps(&ids) > 1);
    std::fs::write(node.exchange_file("follower", "note"), "x").unwrap();
    wait_for_all(&mut stream, &["changed /tmp/wde-dir/note", "entry /tmp/wde-dir/note"]).await;

    let sender = group_sender("10.9.0.2");
    sender.send_to(b"hello", GROUP).unwrap();
    let said = format!("datagram {} cam0 hello", sender.local_addr().unwrap());
    let ids = wait_for_all(&mut stream, &[&said]).await;
    assert!(steps(&ids) < 40, "{ids:?}: for a handful of events");
    node.assert_undisturbed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_says_something_to_its_group_and_hears_a_link_that_comes_back() {
    if !in_namespace("a_handler_says_something_to_its_group_and_hears_a_link_that_comes_back") {
        return;
    }
    link_pair(("cam0", "10.9.0.1/24"), ("far0", "10.9.0.2/24"));
    let node = node(&granted("talker"));
    // As whoever follows a group has to: others on the machine do so, too.
    let receiver = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None).unwrap();
    receiver.set_reuse_address(true).unwrap();
    receiver.bind(&"0.0.0.0:3702".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    let receiver = std::net::UdpSocket::from(receiver);
    receiver.join_multicast_v4(&"239.255.255.250".parse().unwrap(), &"10.9.0.2".parse().unwrap()).unwrap();
    receiver.set_read_timeout(Some(fixture::DEADLINE)).unwrap();
    let details = json!({"groups": [GROUP], "say": "anybody?", "uevents": ["net"]});
    let mut stream = follow(&node, "talker", &details).await;
    next_ids(&mut stream).await;
    let mut said = [0; 100];
    let (length, from) = receiver.recv_from(&mut said).unwrap();
    assert_eq!((&said[..length], from), (&b"anybody?"[..], "10.9.0.1:3702".parse().unwrap()));

    drop(receiver);
    ip("link delete cam0");
    // A link that has gone is no fault of the handler's; its group cannot be spoken to.
    let is_unhealthy = || fixture::condition(&node.pod("talker").unwrap(), "DiscoveryHealthy") == Some(false);
    assert!(wait_for(|| {
        ip("link add br7 type bridge");
        ip("link delete br7");
        is_unhealthy()
    }));
    let trouble = node.wait_for_unhealthy("talker");
    assert!(trouble.contains("no granted network link carries multicast"), "{trouble}");
    link_pair(("cam0", "10.9.0.1/24"), ("far0", "10.9.0.2/24"));
    let sender = group_sender("10.9.0.2");
    let said = format!("datagram {} cam0 back", sender.local_addr().unwrap());
    let expected = [said.as_str()];
    let heard = async {
        loop {
            sender.send_to(b"back", GROUP).unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        () = heard => {}
        _ = wait_for_all(&mut stream, &expected) => {}
    }
    assert!(wait_for(|| {
        let pod = node.pod("talker").unwrap();
        fixture::condition(&pod, "DiscoveryHealthy") == Some(true)
    }));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_granted_is_refused_by_name_with_the_line_to_add() {
    if !in_namespace("what_is_not_granted_is_refused_by_name_with_the_line_to_add") {
        return;
    }
    let node = Node::start();
    let without = |name: &'static str, missing: &str| {
        let mut pod = granted(name);
        pod.annotations.retain(|(annotation, _)| *annotation != missing);
        pod.exchange = missing != "volume";
        pod
    };
    let cases = [
        (
            "no-uevents",
            "akri-krustlet/uevents",
            "akri:host/uevents@0.1.0",
            "monitor.open",
            "akri-krustlet/uevents: SUB",
        ),
        ("no-links", "akri-krustlet/links", "akri:host/links@0.1.0", "list", "akri-krustlet/links: LINKS"),
        ("no-join", "akri-krustlet/network", "akri:host/multicast@0.1.0", "listener.join", "join GROUP:PORT"),
        ("no-volume", "volume", "akri:host/watch@0.1.0", "watch.open", "a volume that the container mounts"),
    ];
    for (name, missing, interface, function, line) in cases {
        node.add(&without(name, missing));
        let mut said = String::new();
        let refused = wait_for(|| {
            said = node.pod(name).map(|pod| pod.to_string()).unwrap_or_default();
            [interface, function, line].iter().all(|part| said.contains(part))
        });
        assert!(refused, "{name}: {said}\n{}", node.log());
    }
    let mut pod = granted("no-names");
    pod.annotations[0].1 = "us*";
    node.add(&pod);
    let said = || node.pod("no-names").map(|pod| pod.to_string()).unwrap_or_default();
    assert!(wait_for(|| said().contains("akri-krustlet/uevents") && said().contains("is no name")), "{}", said());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_gets_no_more_than_its_pod_grants() {
    if !in_namespace("a_handler_gets_no_more_than_its_pod_grants") {
        return;
    }
    link_pair(("cam0", "10.9.0.1/24"), ("far0", "10.9.0.2/24"));
    let mut node = node(&granted("greedy"));
    let details = json!({
        "uevents": ["net", "usb"], "watch": ["/etc", "/tmp/wde-dir/../..", "/tmp/wde-dir/missing"], "list_errors": true,
        "groups": [format!("{GROUP} on lo"), "239.255.255.250:3703", "10.9.0.2:3702", "239.255.255.251:9 on nothing"],
        "forget_monitors": 20,
    });
    let mut stream = follow(&node, "greedy", &details).await;
    let ids = next_ids(&mut stream).await;
    let errors: Vec<_> = ids.iter().filter_map(|id| id.strip_prefix("error: ")).collect();
    let has = |parts: [&str; 2]| errors.iter().any(|error| parts.iter().all(|part| error.contains(part)));
    assert!(has(["uevents of [\"net\", \"usb\"]", "does not grant all"]), "{errors:#?}");
    assert!(has(["uevents of []", "too many monitors"]), "{errors:#?}");
    assert!(has(["changes of /etc", "in no volume"]), "{errors:#?}");
    assert!(has(["changes of /tmp/wde-dir/../..", "in no volume"]), "{errors:#?}");
    assert!(has(["changes of /tmp/wde-dir/missing", "no directory"]), "{errors:#?}");
    assert!(has(["239.255.255.250:3702", "does not grant it"]), "{errors:#?}");
    assert!(has(["239.255.255.250:3703", "does not grant it"]), "{errors:#?}");
    assert!(has(["10.9.0.2:3702", "no multicast group"]), "{errors:#?}");
    assert!(has(["239.255.255.251:9", "no granted network link"]), "{errors:#?}");
    node.wait_for_log("network: multicast group 239.255.255.250:3703 denied: no rule `join` of its pod gives it");
    node.assert_undisturbed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_of_uevents_is_a_few_steps_and_a_guest_that_traps_among_them_is_replaced() {
    const WRITTEN: u32 = 20_000;
    if !in_namespace("a_burst_of_uevents_is_a_few_steps_and_a_guest_that_traps_among_them_is_replaced") {
        return;
    }
    let mounted = std::process::Command::new("mount").args(["-t", "sysfs", "sysfs", "/sys"]).status();
    ip("link add br7 type bridge");
    let file = "/sys/class/net/br7/uevent";
    if let Err(error) = std::fs::write(file, "change") {
        println!("skipped: {file} cannot be written here: {error} (mount: {mounted:?})");
        return;
    }
    let mut node = node(&granted("busy"));
    node.add(&granted("trapping"));
    let mut busy = follow(&node, "busy", &json!({"uevents": ["net"]})).await;
    let mut trapping = follow(&node, "trapping", &json!({"uevents": ["net"], "trap_every": 5})).await;
    next_ids(&mut busy).await;
    next_ids(&mut trapping).await;
    let threads = || std::fs::read_dir(format!("/proc/{}/task", node.pid())).unwrap().count();
    let before = threads();
    for _ in 0..WRITTEN {
        std::fs::write(file, "change").unwrap();
    }
    ip("link add br8 type bridge");
    let ids = loop {
        let ids = next_ids(&mut busy).await;
        if ids.iter().any(|id| id.starts_with("lost uevents") || id == "uevent add /devices/virtual/net/br8") {
            break ids;
        }
    };
    // Each takes up to 256 of them, or is told how many were lost.
    assert!(steps(&ids) < WRITTEN / 20, "{ids:?}");
    assert!(threads() <= before + 2, "{before} threads before, {} after", threads());
    node.wait_for_log("guest of a stream trapped");
    let trouble = node.wait_for_unhealthy("trapping");
    assert!(trouble.contains("as it was asked to") || trouble.contains("trapped"), "{trouble}");
    node.assert_undisturbed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_directory_is_listed_a_piece_at_a_time() {
    const ENTRIES: usize = 30_000;
    if !in_namespace("a_large_directory_is_listed_a_piece_at_a_time") {
        return;
    }
    let mut node = Node::start();
    let mut pod = granted("lister");
    pod.limits = r#"{"memory": "32Mi"}"#;
    pod.annotations.push(("akri-krustlet/step-deadline", "60s"));
    node.add(&pod);
    node.wait_for_running("lister");
    // What waits for somebody else when it is opened is not opened, by whatever name.
    let fifo = node.exchange_file("lister", "fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RWXU).unwrap();
    std::os::unix::fs::symlink("fifo", node.exchange_file("lister", "link")).unwrap();
    std::fs::write(node.exchange_file("lister", "file"), vec![7; 300_000]).unwrap();
    let paths = ["/tmp/wde-dir/fifo", "/tmp/wde-dir/link", "/tmp/wde-dir/file", "/tmp/wde-dir/missing"];
    let (_stream, ids) = node.first_list("lister", &json!({"read": paths}).to_string()).await;
    let expected = ["fifo: PermissionDenied", "file: 300000", "link: PermissionDenied", "missing: NotFound"];
    assert_eq!(ids[..4], expected.map(|what| format!("read /tmp/wde-dir/{what}")));
    let directory = node.exchange_file("lister", "many");
    std::fs::create_dir(&directory).unwrap();
    for number in 0..ENTRIES {
        std::fs::write(directory.join(format!("entry-{number}")), "").unwrap();
    }
    let (_stream, ids) = node.first_list("lister", r#"{"count": "/tmp/wde-dir/many"}"#).await;
    assert!(ids.contains(&format!("entries {ENTRIES}")), "{ids:?}");
    node.assert_undisturbed().await;
}
