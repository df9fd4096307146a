//! The network of components: what rules give, what they do not, and what a hostile guest makes of them. All of it on loopback.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test they are assertions")]

mod fixture;

use fixture::{HandlerPod, Node, wait_for};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Answers every four bytes with `pong`, until the test ends.
fn tcp_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut asked = [0; 4];
            let _ = stream.read_exact(&mut asked).and_then(|()| stream.write_all(b"pong"));
        }
    });
    address
}

/// A place that takes datagrams, and how many bytes it has got.
fn udp_server() -> (SocketAddr, Arc<AtomicU64>) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let (address, bytes) = (socket.local_addr().unwrap(), Arc::new(AtomicU64::new(0)));
    let counted = bytes.clone();
    std::thread::spawn(move || {
        let mut datagram = [0; 65_536];
        while let Ok(length) = socket.recv(&mut datagram) {
            counted.fetch_add(length as u64, Ordering::Relaxed);
        }
    });
    (address, bytes)
}

/// A node with a guest that has these rules, if any.
fn node(name: &str, rules: Option<&str>, arguments: &[&'static str]) -> Node {
    let node = Node::start_with(arguments);
    let mut pod = HandlerPod::typed(name, name, "typed-misbehave");
    pod.annotations.push(("akri-krustlet/step-deadline", "5s"));
    pod.annotations.extend(rules.map(|rules| ("akri-krustlet/network", rules)));
    node.add(&pod);
    node.wait_for_running(name);
    node
}

fn texts(tries: &[&str]) -> Vec<String> {
    tries.iter().map(|text| (*text).to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_reaches_what_its_pod_grants_and_is_told_no_elsewhere() {
    let (server, other, (udp, bytes)) = (tcp_server(), tcp_server(), udp_server());
    let rules = format!("# ours\ntcp {server}\nudp {udp}\ndns localhost\ntcp 0.0.0.0/0:{}\n", other.port());
    let mut node = node("reach", Some(&rules), &[]);
    let tries = texts(&[
        &format!("tcp {server}"),
        &format!("udp {udp}"),
        &format!("tcp {other}"),
        &format!("tcp [::ffff:127.0.0.1]:{}", other.port()),
        &format!("tcp 0.0.0.0:{}", other.port()),
        "tcp 169.254.169.254:80",
        "udp 239.255.255.250:3702",
        "name elsewhere.example",
        "listen 127.0.0.1:0",
        "listen 0.0.0.0:39174",
    ]);
    let found = node.outcomes("reach", &tries).await;
    let denied = "PermissionDenied";
    assert_eq!(found[..3], ["pong", "sent 4", denied], "a rule for all addresses is none for this machine's");
    for (what, outcome) in tries[3..].iter().zip(&found[3..]) {
        assert!(
            ["PermissionDenied", "InvalidInput", "Unsupported", "Uncategorized"].contains(&outcome.as_str()),
            "{what}: {outcome}"
        );
    }
    assert!(wait_for(|| bytes.load(Ordering::Relaxed) == 4));
    // The node says what was denied and why, once.
    node.wait_for_log(&format!("network: tcp connection to {other} denied: it is this machine's"));
    node.wait_for_log(r#"network: look-up of "elsewhere.example" denied: no rule of its pod gives it"#);
    node.outcomes("reach", &tries).await;
    let told = node.log().matches(&format!("tcp connection to {other} denied")).count();
    assert_eq!(told, 1);
    let log = node.log_of("reach");
    assert!(
        log.contains(
            "[akri-krustlet] network: udp datagram to 239.255.255.250:3702 denied: no rule of its pod gives it"
        ),
        "{log}"
    );
    node.assert_undisturbed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_leads_to_this_machine_opens_nothing() {
    let server = tcp_server();
    let rules = format!("tcp localhost:{}\n", server.port());
    let mut rebound = node("rebound", Some(&rules), &[]);
    let tries = texts(&["name localhost", &format!("tcp localhost:{}", server.port()), &format!("tcp {server}")]);
    let found = rebound.outcomes("rebound", &tries).await;
    assert!(found.iter().all(|outcome| !outcome.contains("127.0.0.1") && outcome != "pong"), "{found:?}");
    rebound.wait_for_log("network: localhost, which leads to 127.0.0.1, denied: it is this machine's");
    rebound.assert_undisturbed().await;
    // With a rule for the address it does.
    let rules = format!("tcp localhost:{port}\ntcp 127.0.0.1:{port}\n", port = server.port());
    let named = node("named", Some(&rules), &[]);
    let found = named.outcomes("named", &tries).await;
    assert_eq!(found, ["127.0.0.1", "pong", "pong"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_and_what_is_sent_are_bounded() {
    let (udp, bytes) = udp_server();
    let mut node = node("flood", Some(&format!("udp {udp}")), &[]);
    let found = node.outcomes("flood", &texts(&["sockets 10000"])).await;
    assert_eq!(found, ["32 made, 9968 refused"]);
    let details = serde_json::json!({"fault": "reach", "tries": [format!("flood {udp}")]}).to_string();
    let stream = node.discover("flood", &details).await.unwrap();
    let message = node.wait_for_unhealthy("flood");
    assert!(message.contains("took longer than 5 s"), "{message}");
    drop(stream);
    // Five seconds of what it may send in one, and what it may send at once; a second guest may have begun.
    let sent = bytes.load(Ordering::Relaxed);
    assert!((1 << 20..=64 << 20).contains(&sent), "{sent} bytes");
    node.assert_undisturbed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_grant_is_no_network_and_a_bad_grant_is_no_pod() {
    let mut node = node("none", None, &[]);
    let tries = texts(&["tcp 192.0.2.1:80", "udp 192.0.2.1:80", "name localhost", "listen 0.0.0.0:0", "sockets 1"]);
    let found = node.outcomes("none", &tries).await;
    assert_eq!(found[4], "0 made, 1 refused");
    assert!(found[..4].iter().all(|outcome| outcome == "PermissionDenied"), "{found:?}");
    // A grant is written well and meant, or the pod does not run.
    for (name, rules, host_network, message) in [
        (
            "badly-written",
            "tcp 10.0.0.1",
            true,
            "annotation akri-krustlet/network, line 1, \\\"tcp 10.0.0.1\\\": it has no ports",
        ),
        ("half-meant", "tcp 10.0.0.1:80", false, "spec.hostNetwork: true"),
    ] {
        let mut pod = HandlerPod::typed(name, name, "typed-misbehave");
        pod.annotations.push(("akri-krustlet/network", rules));
        let mut manifest: serde_json::Value = serde_json::from_str(&pod.manifest()).unwrap();
        manifest["spec"]["hostNetwork"] = host_network.into();
        node.write_manifest(&format!("{name}.json"), &manifest.to_string());
        node.wait_for_pod(name, message, |pod| pod["status"].to_string().contains(message));
    }
    node.assert_undisturbed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operators_ceiling_is_above_every_grant() {
    let (server, other) = (tcp_server(), tcp_server());
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ceiling");
    std::fs::write(&file, format!("# not there\ndeny {server}\n")).unwrap();
    let flag: &'static str = Box::leak(format!("--network-ceiling={}", file.display()).into_boxed_str());
    let rules = format!("tcp {server}\ntcp {other}\n");
    let node = node("below", Some(&rules), &[flag]);
    let found = node.outcomes("below", &texts(&[&format!("tcp {server}"), &format!("tcp {other}")])).await;
    assert_eq!(found, ["PermissionDenied", "pong"]);
    // A file that is no ceiling ends the start, in words.
    std::fs::write(&file, "deny 10.0.0.0/33\n").unwrap();
    let refused = node.command(&["run", "--manifests", directory.path().to_str().unwrap(), flag]);
    let message = String::from_utf8(refused.stderr).unwrap();
    assert!(message.contains("--network-ceiling") && message.contains("line 1"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn details_open_the_places_that_they_name() {
    let server = tcp_server();
    let rules = format!("tcp details\ntcp 127.0.0.1:{}\n", server.port());
    let mut node = node("details", Some(&rules), &[]);
    let found = node.outcomes("details", &texts(&[&format!("tcp {server}"), "tcp 127.0.0.1:1"])).await;
    assert_eq!(found, ["pong", "PermissionDenied"]);
    node.assert_undisturbed().await;
}
