//! The OPC UA handler beside real servers (asyncua, from PyPI), and beside Akri's own handler where `NATIVE_OPCUA` names it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test they are assertions")]

mod fixture;

use akri_krustlet_discovery::agent;
use akri_proto::v0::DiscoverRequest;
use fixture::native::NativeAlone;
use fixture::peers::{Peer, python};
use fixture::{HandlerPod, Node, condition, ids, next_ids, wait_for_ids};
use futures::FutureExt as _;
use std::path::Path;

fn free_ports<const N: usize>() -> [u16; N] {
    std::array::from_fn(|_| control_plane::port::free().unwrap())
}

fn server(python: &Path, port: u16, name: &str, kind: &str, discovery: Option<&str>) -> Peer {
    let port = port.to_string();
    let arguments: Vec<_> = [&port, name, kind].into_iter().chain(discovery).collect();
    Peer::start(python, "opcua_server.py", &arguments, None)
}

fn node(ports: &[u16]) -> Node {
    let node = Node::start();
    let mut pod = HandlerPod::typed("opcua", "", "opcua");
    let ports = ports.iter().map(u16::to_string).collect::<Vec<_>>().join(",");
    let rules = format!("tcp 127.0.0.1:{ports}\ndns *\n");
    pod.annotations.push(("akri-krustlet/network", &rules));
    node.add(&pod);
    node.wait_for_socket("opcua");
    node
}

fn details(ports: &[u16], more: &str) -> String {
    let urls: Vec<_> = ports.iter().map(|port| format!("opc.tcp://127.0.0.1:{port}/")).collect();
    format!("{{\"opcuaDiscoveryMethod\": {{\"standard\": {{\"discoveryUrls\": {urls:?}}}}}, \"interval\": 1{more}}}")
}

fn url(port: u16) -> String {
    format!("opc.tcp://127.0.0.1:{port}/ua")
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_are_found_and_stay_while_they_are_missed_for_a_moment() {
    let Some(python) = python() else { return };
    let [one, other, dead] = free_ports();
    let _one = server(&python, one, "one", "Server", None);
    let first = server(&python, other, "other", "Server", None);
    let mut node = node(&[one, other, dead]);
    let details = details(&[one, other, dead], r#", "missedPolls": 1"#);
    let (_stream, found) = node.first_list("opcua", &details).await;
    let (here, there) = (url(one), url(other));
    let mut both = [here.as_str(), there.as_str()];
    both.sort_unstable();
    assert_eq!(found, both);
    // The one that is dead is named, and costs the others nothing.
    let message = node.wait_for_unhealthy("opcua");
    assert!(message.contains(&format!("127.0.0.1:{dead}: nobody listens there")), "{message}");
    // Over a restart of the node they are there.
    let complaints = |node: &Node| node.log().matches(&format!("127.0.0.1:{dead}: nobody listens there")).count();
    let before = complaints(&node);
    node.kill();
    node.run();
    let (mut again, found) = node.first_list("opcua", &details).await;
    assert_eq!(found, both);
    // Until the handler has found them itself they are what was known before.
    assert!(fixture::wait_for(|| complaints(&node) > before), "{}", node.log());
    first.end();
    wait_for_ids(&mut again, &[&here]).await;
    let _second = server(&python, other, "other", "Server", None);
    wait_for_ids(&mut again, &both).await;
    node.assert_undisturbed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_away_while_the_node_starts_again_is_not_lost() {
    let Some(python) = python() else { return };
    let [one, other] = free_ports();
    let _one = server(&python, one, "one", "Server", None);
    let first = server(&python, other, "other", "Server", None);
    let mut node = node(&[one, other]);
    let details = details(&[one, other], r#", "missedPolls": 0"#);
    let (_stream, both) = node.first_list("opcua", &details).await;
    assert_eq!(both.len(), 2);
    node.kill();
    first.end();
    node.run();
    let (mut again, found) = node.first_list("opcua", &details).await;
    assert_eq!(found, both);
    // It is missed, and stays.
    let message = node.wait_for_unhealthy("opcua");
    assert!(message.contains(&format!("127.0.0.1:{other}: nobody listens there")), "{message}");
    let _second = server(&python, other, "other", "Server", None);
    node.wait_for_pod("opcua", "healthy", |pod| condition(pod, "DiscoveryHealthy") == Some(true));
    // What has come until now.
    let lists = std::iter::from_fn(|| again.message().now_or_never());
    let lists: Vec<_> = lists.map(|list| ids(list.unwrap().unwrap())).collect();
    assert!(!lists.is_empty() && lists.iter().all(|list| *list == both), "in none it was gone: {lists:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_have_registered_are_found_at_the_discovery_server() {
    let Some(python) = python() else { return };
    let [discovery, plant, both] = free_ports();
    let at = format!("opc.tcp://127.0.0.1:{discovery}/ua");
    let _discovery = server(&python, discovery, "lds", "DiscoveryServer", None);
    let _plant = server(&python, plant, "plant", "Server", Some(&at));
    let _both = server(&python, both, "both", "ClientAndServer", Some(&at));
    let node = node(&[discovery]);
    let found = url(plant);
    let mut now = Vec::new();
    // Until both have registered; the one that is also a client is found only where the Configuration says so.
    let kinds = r#", "applicationTypes": ["Server", "ClientAndServer"]"#;
    for (details, expected) in [
        (details(&[discovery], ""), vec![found.clone()]),
        (details(&[discovery], kinds), {
            let mut all = vec![found.clone(), url(both)];
            all.sort();
            all
        }),
    ] {
        let mut stream = node.discover("opcua", &details).await.unwrap();
        while now != expected {
            now = next_ids(&mut stream).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_servers_are_found_as_by_akris_own_handler() {
    let Some(program) = std::env::var_os("NATIVE_OPCUA") else {
        println!("skipped: NATIVE_OPCUA does not name Akri's opcua-discovery-handler");
        return;
    };
    let Some(python) = python() else { return };
    let [discovery, plant, line, client] = free_ports();
    let at = format!("opc.tcp://127.0.0.1:{discovery}/ua");
    let _servers = [
        server(&python, discovery, "lds", "DiscoveryServer", None),
        server(&python, plant, "plant", "Server", Some(&at)),
        server(&python, line, "line", "Server", Some(&at)),
        server(&python, client, "both", "ClientAndServer", Some(&at)),
    ];
    let node = node(&[discovery, plant, line, client]);
    let (native, _) = NativeAlone::start_named(Path::new(&program), "opcua").await;
    for (ports, more) in [
        (vec![plant], ""),
        (vec![plant, line], ""),
        (vec![discovery], ""),
        (vec![discovery, plant], ""),
        (vec![client, plant], ""),
        (vec![plant, line], r#", "applicationNames": {"items": ["plant"]}"#),
        (vec![plant, line], r#", "applicationNames": {"items": ["plant"], "action": "Exclude"}"#),
    ] {
        let details = details(&ports, more);
        let request = DiscoverRequest { discovery_details: details.clone(), ..Default::default() };
        let mut of_native = agent::discover(native.socket(), request).await.unwrap();
        let message = tokio::time::timeout(fixture::DEADLINE, of_native.message()).await.unwrap().unwrap().unwrap();
        let mut theirs = ids(message);
        theirs.sort();
        theirs.dedup();
        let mut ours = node.discover("opcua", &details).await.unwrap();
        let mut found = Vec::new();
        while found != theirs {
            found = next_ids(&mut ours).await;
        }
    }
}
