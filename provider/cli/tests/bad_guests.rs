//! Guests that do what no guest should. In each test the node lives, another handler is undisturbed, and a message names
//! the cause.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test they are assertions")]

mod fixture;

use fixture::{HandlerPod, Node, next_ids, wait_for};

/// Runs a handler that does `fault` when a request comes, and returns why its answers are not used.
async fn complaint_of(fault: &str) -> String {
    let mut node = Node::start();
    node.add(&HandlerPod::fault("faulty", fault));
    node.wait_for_socket("faulty");
    let stream = node.discover("faulty", "a: 1").await.unwrap();
    let message = node.wait_for_unhealthy("faulty");
    node.assert_undisturbed().await;
    drop(stream);
    message
}

/// Runs a handler that does `fault` and then answers, and returns the ids it answered with.
async fn answer_after(fault: &str) -> Vec<String> {
    let mut node = Node::start();
    node.add(&HandlerPod::fault("faulty", fault));
    let (_stream, ids) = node.first_list("faulty", "a: 1").await;
    node.assert_undisturbed().await;
    ids
}

/// Runs a container that does `fault` as soon as it starts, and returns its terminated state.
async fn end_of(fault: &str, limits: &str) -> serde_json::Value {
    let mut node = Node::start();
    let mut pod = HandlerPod { handler: "", limits, restart_policy: "Never", ..HandlerPod::fault("faulty", fault) };
    pod.env.push(("FAULT_AT", "start"));
    node.add(&pod);
    let pod = node.wait_for_pod("faulty", "ended", |pod| {
        pod["status"]["containerStatuses"][0]["state"]["terminated"].is_object()
            && ["Failed", "Succeeded"].contains(&pod["status"]["phase"].as_str().unwrap_or_default())
    });
    node.assert_undisturbed().await;
    let mut state = pod["status"]["containerStatuses"][0]["state"]["terminated"].clone();
    state["phase"] = pod["status"]["phase"].clone();
    state
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trap_is_reported_with_the_functions_it_happened_in() {
    let end = end_of("trap", "{}").await;
    assert_eq!((&end["exitCode"], &end["phase"]), (&134.into(), &"Failed".into()));
    assert!(end["message"].as_str().unwrap().contains("innermost_function"), "{end}");
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_codes_are_the_containers() {
    let end = end_of("exit0", "{}").await;
    assert_eq!(
        (&end["exitCode"], &end["reason"], &end["phase"]),
        (&0.into(), &"Completed".into(), &"Succeeded".into())
    );
    let end = end_of("exit3", "{}").await;
    assert_eq!((&end["exitCode"], &end["reason"], &end["phase"]), (&3.into(), &"Error".into(), &"Failed".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_grows_to_its_memory_limit_is_oom_killed() {
    let end = end_of("grow", r#"{"memory":"16Mi"}"#).await;
    assert_eq!((&end["exitCode"], &end["reason"]), (&137.into(), &"OOMKilled".into()));
    assert!(end["message"].as_str().unwrap().contains("16384 KiB"), "{end}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_that_comes_late_is_told_and_ends_no_stream() {
    let node = Node::start();
    node.add(&HandlerPod::fault("faulty", "late-refusal"));
    node.wait_for_socket("faulty");
    let mut stream = node.discover("faulty", "a: 1").await.unwrap();
    assert!(node.wait_for_unhealthy("faulty").contains("no such thing"));
    let silence = std::time::Duration::from_millis(300);
    assert!(tokio::time::timeout(silence, stream.message()).await.is_err(), "the stream is open");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_the_host_saw_half_written_comes_when_it_is_whole() {
    // Written in place, as modules of 2021 do it: what the host took away too early is never written again.
    assert_eq!(answer_after("slow-answer").await, ["good"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn guests_that_loop_for_ever_delay_nobody_and_end_with_their_pod() {
    let mut node = Node::start();
    for name in ["spin0", "spin1", "spin2", "spin3"] {
        let mut pod = HandlerPod { handler: "", ..HandlerPod::fault(name, "spin") };
        pod.env.push(("FAULT_AT", "start"));
        node.add(&pod);
        node.wait_for_running(name);
    }
    for _ in 0..20 {
        node.assert_undisturbed().await;
    }
    for name in ["spin0", "spin1", "spin2", "spin3"] {
        node.remove_manifest(&format!("{name}.json"));
    }
    assert!(wait_for(|| node.pod("spin3").is_none() && node.pod("spin0").is_none()));
    assert_eq!(node.terminate(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_spins_on_its_request_leaves_its_stream_open() {
    let mut node = Node::start();
    node.add(&HandlerPod::fault("faulty", "spin"));
    node.wait_for_socket("faulty");
    let _stream = node.discover("faulty", "a: 1").await.unwrap();
    node.assert_undisturbed().await;
    assert_eq!(node.terminate(), Some(0), "the node ends whatever guests do");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_can_open_only_so_many_files() {
    let ids = answer_after("open-files").await;
    // 33 is EMFILE; the cap is 256 less what the guest has open already.
    let opened: usize = ids[0].split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!((200..=256).contains(&opened) && ids[0].ends_with("Some(33)"), "{ids:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_can_write_only_so_much() {
    let ids = answer_after("fill-disk").await;
    // 51 is ENOSPC.
    let written: usize = ids[0].split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!((14..=16).contains(&written) && ids[0].ends_with("Some(51)"), "{ids:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_output_is_bounded() {
    let mut node = Node::start();
    node.add(&HandlerPod::fault("faulty", "flood"));
    node.wait_for_socket("faulty");
    let _stream = node.discover("faulty", "a: 1").await.unwrap();
    let directory = node.path("data/logs");
    let logs = || -> u64 {
        let of_pod = std::fs::read_dir(&directory).unwrap().flatten();
        let of_pod = of_pod.filter(|entry| entry.file_name().to_string_lossy().contains("faulty"));
        of_pod
            .flat_map(|entry| std::fs::read_dir(entry.path().join("main")).unwrap().flatten())
            .map(|file| file.metadata().unwrap().len())
            .sum()
    };
    assert!(wait_for(|| logs() > 1 << 20), "the flood has begun");
    node.assert_undisturbed().await;
    assert!(logs() < 60 << 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_are_no_answers_are_named() {
    for (fault, words) in [
        ("torn", "not JSON"),
        ("large", "more than 3145728 bytes"),
        ("many", "1025 devices"),
        ("wrong-types", "has not the shape"),
        ("bad-property", "cannot be an environment variable"),
        ("privileged", "akri-krustlet/allowed-host-paths: /etc"),
    ] {
        let message = complaint_of(fault).await;
        assert!(message.contains(words), "{fault}: {message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_no_regular_file_is_not_followed() {
    let message = complaint_of("answer-symlink").await;
    assert!(message.contains("out.out is a symbolic link"), "{message}");
    let message = complaint_of("answer-directory").await;
    assert!(message.contains("out.out is a directory"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_replaces_its_request_by_a_link_harms_nobody() {
    assert_eq!(answer_after("request-symlink").await, ["a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_devices_with_one_id_the_first_is_kept_and_nameless_ones_are_left_out() {
    let node = Node::start();
    node.add(&HandlerPod::fault("faulty", "duplicate-ids"));
    let (_stream, ids) = node.first_list("faulty", "a: 1").await;
    assert_eq!(ids, ["a", "b"]);
    let message = node.wait_for_unhealthy("faulty");
    assert!(message.contains("\"a\"") && message.contains("empty id"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn host_paths_that_pod_and_operator_allow_are_passed_on() {
    let privileged = || {
        let mut pod = HandlerPod::fault("faulty", "privileged");
        pod.annotations.push(("akri-krustlet/allowed-host-paths", "/etc,/dev/mem"));
        pod
    };
    let node = Node::start_with(&["--allowed-host-paths", "/etc,/dev/mem"]);
    node.add(&privileged());
    let (_stream, ids) = node.first_list("faulty", "a: 1").await;
    assert_eq!(ids, ["a"]);

    let node = Node::start_with(&["--allowed-host-paths", "/dev/mem"]);
    node.add(&privileged());
    node.wait_for_socket("faulty");
    let _stream = node.discover("faulty", "a: 1").await.unwrap();
    let message = node.wait_for_unhealthy("faulty");
    assert!(message.contains("--allowed-host-paths /etc"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_of_another_namespace_does_not_take_over_a_handler() {
    let mut node = Node::start();
    node.add(&HandlerPod::new("own", "camera", "debug-echo"));
    let (_stream, ids) = node.first_list("camera", "descriptions: [a]").await;
    assert_eq!(ids, ["a"]);
    let mut other: serde_json::Value =
        serde_json::from_str(&HandlerPod::new("other", "camera", "debug-echo").manifest()).unwrap();
    other["metadata"]["namespace"] = "elsewhere".into();
    node.write_manifest("other.json", &other.to_string());
    node.wait_for_log("belongs to pods of namespace \"default\"");
    node.wait_for_log("--handler-namespaces camera=elsewhere");
    node.assert_undisturbed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_exits_on_its_request_is_replaced_and_the_stream_stays() {
    let mut node = Node::start();
    node.add(&HandlerPod::fault("faulty", "exit3"));
    node.wait_for_socket("faulty");
    let mut stream = node.discover("faulty", "a: 1").await.unwrap();
    let message = node.wait_for_unhealthy("faulty");
    assert!(message.contains("exited with code 3"), "{message}");
    node.assert_undisturbed().await;
    let ended = tokio::time::timeout(std::time::Duration::from_millis(100), stream.message()).await;
    assert!(ended.is_err(), "the stream is open: {ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_beyond_the_memory_limit_are_refused_in_words() {
    let node = Node::start();
    let pod = HandlerPod { limits: r#"{"memory":"1Mi"}"#, ..HandlerPod::new("small", "small", "debug-echo") };
    node.add(&pod);
    let (mut first, ids) = node.first_list("small", "descriptions: [a]").await;
    assert_eq!(ids, ["a"]);
    let mut others = Vec::new();
    let refused = loop {
        match node.discover("small", "descriptions: [b]").await {
            Ok(other) => others.push(other),
            Err(refused) => break refused,
        }
        assert!(others.len() < 20, "20 guests do not fit into a MiB");
    };
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted, "{refused:?}");
    assert!(refused.message().contains("resources.limits.memory"), "{refused:?}");
    assert_eq!(next_ids(&mut first).await, ["a"], "the streams that are there go on");
}
