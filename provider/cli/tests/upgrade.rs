//! A node's program replaced by another one, again and again, while handlers are asked. `make upgrade-test` names the last release by
//! PROGRAM_BEFORE, and asks for 50 times; without it, this program replaces itself.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test they are assertions")]

mod fixture;

use fixture::{DEADLINE, HandlerPod, Node, PROGRAM, ids, wait_for};
use std::path::PathBuf;

const FOO: &str = r#"{"descriptions":["foo0","foo1"]}"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_new_program_takes_up_the_pods_the_lists_and_the_data_of_the_one_before() {
    let before = std::env::var_os("PROGRAM_BEFORE").map(PathBuf::from);
    if before.is_none() {
        println!(
            "PROGRAM_BEFORE names no other program: this one replaces itself (make upgrade-test names the last release)"
        );
    }
    let programs = [before.unwrap_or_else(|| PROGRAM.into()), PROGRAM.into()];
    let upgrades = std::env::var("UPGRADES").map_or(8, |text| text.parse().unwrap());
    let mut node = Node::prepare();
    node.program = Some(programs[0].clone());
    node.add(&HandlerPod::new("witness", "debugEcho", "debug-echo"));
    node.add(&HandlerPod::typed("typed", "typed", "debug-echo-typed"));
    node.run();
    node.wait_for_socket("typed");
    node.wait_for_socket("debugEcho");
    let uid = |node: &Node| node.wait_for_running("witness")["metadata"]["uid"].clone();
    let first = uid(&node);
    for upgrade in 1..=upgrades {
        // As an Agent does it: a stream that ends with its node is asked for again, and what it says first is in force.
        let mut streams = Vec::new();
        for handler in ["debugEcho", "typed"] {
            let mut stream = node.discover(handler, FOO).await.unwrap();
            let list = tokio::time::timeout(DEADLINE, stream.message()).await.unwrap().unwrap().unwrap();
            assert_eq!(ids(list), ["foo0", "foo1"], "{handler}, after {upgrade} programs: {}", node.log());
            streams.push(stream);
        }
        assert_eq!(uid(&node), first, "after {upgrade} programs");
        // In turn as a service is stopped, and as a machine that loses its power.
        match upgrade % 2 {
            0 => node.kill(),
            _ => assert_eq!(node.terminate(), Some(0), "{}", node.log()),
        }
        // A stream whose node is gone ends without an empty list, which would cost its devices.
        for mut stream in streams {
            while let Ok(Some(list)) = stream.message().await {
                assert_eq!(ids(list), ["foo0", "foo1"]);
            }
        }
        node.program = Some(programs[upgrade % 2].clone());
        node.run();
        assert!(wait_for(|| fixture::serves(&node.socket("typed")) && fixture::serves(&node.socket("debugEcho"))));
    }
    let log = node.log();
    assert!(
        !log.contains("cannot be read") && !log.contains("is unusable") || std::env::var_os("PROGRAM_BEFORE").is_some(),
        "{log}"
    );
    // A newer one's data is left as it is.
    node.terminate();
    std::fs::write(node.path("data/format"), "2\n").unwrap();
    node.run();
    node.wait_for_log("written by a newer akri-krustlet (format 2, this one reads up to 1)");
    assert!(wait_for(|| !node.is_running()));
}
