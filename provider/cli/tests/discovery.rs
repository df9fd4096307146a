//! Discovery by WebAssembly handlers over their sockets.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test they are assertions")]

mod fixture;

use akri_krustlet_discovery::agent;
use akri_proto::v0::{ByteData, DiscoverRequest};
use fixture::{HandlerPod, Node, guest, ids, next_ids, wait_for, wait_for_ids};
use std::os::unix::fs::PermissionsExt as _;

const FOO: &str = r#"{"descriptions":["foo0","foo1"]}"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_answers_with_devices_and_follows_the_users_file() {
    let node = Node::start();
    let (mut stream, ids) = node.first_list("debugEcho", FOO).await;
    assert_eq!(ids, ["foo0", "foo1"]);
    let availability = node.exchange_file("witness", "debug-echo-availability.txt");
    std::fs::write(&availability, "OFFLINE").unwrap();
    wait_for_ids(&mut stream, &[]).await;
    let (_, late) = node.first_list("debugEcho", FOO).await;
    assert!(late.is_empty(), "a stream opened later sees the file too: {late:?}");
    std::fs::write(&availability, "back again").unwrap();
    wait_for_ids(&mut stream, &["foo0", "foo1"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_carry_their_properties_without_stray_quotes() {
    let node = Node::start();
    node.wait_for_socket("debugEcho");
    let mut stream = node.discover("debugEcho", "descriptions:\n- foo0\n").await.unwrap();
    let list = stream.message().await.unwrap().unwrap();
    assert_eq!(list.devices.len(), 1);
    let device = &list.devices[0];
    assert_eq!(device.id, "foo0");
    assert_eq!(device.properties.iter().collect::<Vec<_>>(), [(&"DEBUG_ECHO_DESCRIPTION".into(), &"foo0".into())]);
    assert!(device.mounts.is_empty() && device.device_specs.is_empty());
    let mode = std::fs::metadata(node.socket("debugEcho")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_with_different_details_each_get_their_own_devices() {
    let node = Node::start();
    let mut streams = Vec::new();
    for number in 0..10 {
        let (stream, ids) = node.first_list("debugEcho", &format!("descriptions: [d{number}]")).await;
        assert_eq!(ids, [format!("d{number}")]);
        streams.push(stream);
    }
    std::fs::write(node.exchange_file("witness", "debug-echo-availability.txt"), "OFFLINE").unwrap();
    for stream in &mut streams {
        wait_for_ids(stream, &[]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_details_become_invalid_argument() {
    let mut node = Node::start();
    node.assert_undisturbed().await;
    for (details, word) in [
        ("{}", "descriptions"),
        (r#"{"descriptions":[[1]]}"#, "descriptions"),
        // The guest has them, and says what it needs.
        ("", "descriptions"),
        ("http://127.0.0.1/devices", "descriptions"),
        ("- a", "descriptions"),
        ("a: [", "YAML"),
    ] {
        let status = node.discover("debugEcho", details).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::InvalidArgument, "{details}: {status:?}");
        assert!(status.message().contains(word), "{details}: {status:?}");
    }
    node.assert_undisturbed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_are_the_texts_that_the_configuration_has() {
    let node = Node::start();
    let details = "descriptions: [no, y, 10, 0012345, 5.10, 1e3, true, 1_000, ~, null, 0x1F, .5]";
    let (_stream, ids) = node.first_list("debugEcho", details).await;
    // In the order that the Agent gets them.
    assert_eq!(ids, [".5", "0012345", "0x1F", "10", "1_000", "1e3", "5.10", "no", "null", "true", "y", "~"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn properties_reach_the_guest() {
    let node = Node::start();
    node.wait_for_socket("debugEcho");
    let request = DiscoverRequest {
        discovery_details: FOO.to_owned(),
        discovery_properties: [("secret".to_owned(), ByteData { vec: Some(b"x".to_vec()) })].into(),
    };
    let mut stream = agent::discover(node.socket("debugEcho"), request).await.unwrap();
    assert_eq!(ids(stream.message().await.unwrap().unwrap()), ["foo0", "foo1"]);
    let requests: Vec<_> = find_files(&node.path("data"), "in.in");
    assert_eq!(requests.len(), 1);
    let expected = r#"{"descriptions":["foo0","foo1"],"discovery_properties":{"secret":"eA=="}}"#;
    assert_eq!(std::fs::read_to_string(&requests[0]).unwrap(), expected);
}

fn find_files(directory: &std::path::Path, name: &str) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(find_files(&path, name));
        } else if entry.file_name() == name {
            found.push(path);
        }
    }
    found
}

/// Over the modules of 2021: our stand-in always, the unmodified one if its path is given.
async fn serve_a_module_of_2021(image: String) {
    let mut node = Node::prepare();
    node.add(&HandlerPod { image, ..HandlerPod::new("seed", "debugEcho", "polling-echo") });
    // What the module writes when it starts must not undo this.
    let availability = node.exchange_file("seed", "debug-echo-availability.txt");
    std::fs::create_dir_all(availability.parent().unwrap()).unwrap();
    std::fs::write(&availability, "OFFLINE").unwrap();
    node.run();
    let (mut first, ids) = node.first_list("debugEcho", FOO).await;
    assert!(ids.is_empty(), "{ids:?}");
    assert_eq!(std::fs::read_to_string(&availability).unwrap(), "OFFLINE", "the user's file is the user's");
    std::fs::write(&availability, "ONLINE").unwrap();
    wait_for_ids(&mut first, &["foo0", "foo1"]).await;
    // A second guest starts while the first one's devices are there.
    let (mut second, ids) = node.first_list("debugEcho", r#"{"descriptions":["bar"]}"#).await;
    assert_eq!(ids, ["bar"]);
    std::fs::write(&availability, "OFFLINE").unwrap();
    wait_for_ids(&mut first, &[]).await;
    wait_for_ids(&mut second, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_module_that_polls_as_in_2021_answers_at_once() {
    serve_a_module_of_2021(format!("fs://{}", guest("polling-echo").display())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_unmodified_module_of_2021_answers_at_once() {
    match std::env::var("WASI_DEBUG_ECHO_2021") {
        Ok(module) => serve_a_module_of_2021(format!("fs://{module}")).await,
        Err(_) => eprintln!("skipped: WASI_DEBUG_ECHO_2021 does not name the module of 2021"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_pod_takes_over_the_streams_and_the_last_one_ends_them() {
    let node = Node::start();
    let (mut stream, ids) = node.first_list("debugEcho", FOO).await;
    assert_eq!(ids, ["foo0", "foo1"]);
    node.add(&HandlerPod::new("second", "debugEcho", "debug-echo"));
    node.wait_for_running("second");
    // Only the second pod's volume makes the devices go now.
    std::fs::write(node.exchange_file("second", "debug-echo-availability.txt"), "OFFLINE").unwrap();
    wait_for_ids(&mut stream, &[]).await;
    node.remove_manifest("second.json");
    wait_for_ids(&mut stream, &["foo0", "foo1"]).await;
    node.remove_manifest("witness.json");
    wait_for_ids(&mut stream, &[]).await;
    while let Some(list) = stream.message().await.unwrap() {
        assert!(list.devices.is_empty());
    }
    assert!(wait_for(|| !node.socket("debugEcho").exists()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_streams_opened_and_dropped_leave_nothing_behind() {
    let mut node = Node::start();
    node.assert_undisturbed().await;
    let mut streams = Vec::new();
    for number in 0..100 {
        streams.push(node.first_list("debugEcho", &format!("descriptions: [d{number}]")).await);
    }
    let streams_directory = find_files(&node.path("data"), "in.in")[0].parent().unwrap().parent().unwrap().to_owned();
    let directories = || {
        std::fs::read_dir(&streams_directory).unwrap().filter(|entry| entry.as_ref().unwrap().path().is_dir()).count()
    };
    assert!(directories() >= 100);
    drop(streams);
    assert!(wait_for(|| directories() == 1), "{} directories are left", directories());
    node.assert_undisturbed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_outlives_a_guest_that_traps_and_keeps_its_list() {
    let node = Node::start();
    node.add(&HandlerPod::fault("faulty", "good-then-trap"));
    let (mut stream, ids) = node.first_list("faulty", "a: 1").await;
    assert_eq!(ids, ["good"]);
    // Ends the guest's sleep: it goes on, and traps.
    std::fs::write(node.exchange_file("faulty", "wake"), "up").unwrap();
    let message = node.wait_for_unhealthy("faulty");
    assert!(message.contains("trapped") && message.contains("innermost_function"), "{message}");
    // The list of the new guest is the same, so nothing but repetitions is sent.
    assert_eq!(next_ids(&mut stream).await, ["good"]);
    let pod =
        node.wait_for_pod("faulty", "healthy again", |pod| fixture::condition(pod, "DiscoveryHealthy") == Some(true));
    assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0, "the container itself was not restarted");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_answer_is_reported_once_and_the_last_good_list_stays() {
    let node = Node::start();
    node.add(&HandlerPod::fault("faulty", "good-then-torn"));
    let (mut stream, ids) = node.first_list("faulty", "a: 1").await;
    assert_eq!(ids, ["good"]);
    std::fs::write(node.exchange_file("faulty", "wake"), "up").unwrap();
    let message = node.wait_for_unhealthy("faulty");
    assert!(message.contains("not JSON"), "{message}");
    assert_eq!(next_ids(&mut stream).await, ["good"]);
    assert_eq!(node.log().matches("the answer is not JSON").count(), 1);
}
