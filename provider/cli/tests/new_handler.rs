//! A project of a new handler, as somebody makes it who has never seen this one: built, tested, run, asked.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test they are assertions")]

mod fixture;

use fixture::{Node, PROGRAM, ids, wait_for};
use std::path::Path;
use std::process::{Command, Output};

fn new_handler(directory: &Path, arguments: &[&str]) -> Output {
    Command::new(PROGRAM).current_dir(directory).arg("new-handler").args(arguments).output().unwrap()
}

/// cargo in a project, with a target directory that all of them share. It needs the registry of crates, or what it had of that.
fn cargo(project: &Path, target: &Path, arguments: &[&str]) {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    // Not those of this test's own build.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if name.starts_with("CARGO_PKG") || ["CARGO_MANIFEST_DIR", "RUSTFLAGS"].contains(&name.as_str()) {
            command.env_remove(name);
        }
    }
    let output = command.current_dir(project).args(arguments).env("CARGO_TARGET_DIR", target).output().unwrap();
    assert!(output.status.success(), "cargo {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_handler_builds_passes_its_tests_and_finds_its_first_devices() {
    let directory = tempfile::tempdir().unwrap();
    let target = directory.path().join("target");
    for protocol in ["file", "http", "udp", "tcp", "uevents"] {
        let name = format!("my-{protocol}");
        let made = new_handler(directory.path(), &[&name, "--protocol", protocol]);
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        cargo(&directory.path().join(&name), &target, &["test", "--quiet"]);
    }
    let project = directory.path().join("my-file");
    cargo(&project, &target, &["build", "--release", "--quiet", "--target", "wasm32-wasip2"]);
    // As its README has it, but for the place.
    let built = project.join("target/wasm32-wasip2/release");
    std::fs::create_dir_all(&built).unwrap();
    std::fs::copy(target.join("wasm32-wasip2/release/my_file.wasm"), built.join("my_file.wasm")).unwrap();
    let mut node = Node::prepare();
    std::fs::remove_dir(node.path("manifests")).unwrap();
    std::os::unix::fs::symlink(project.join("manifests"), node.path("manifests")).unwrap();
    node.run();
    node.wait_for_socket("my-file");
    let details = std::fs::read_to_string(project.join("details.yaml")).unwrap();
    let mut stream = node.discover("my-file", &details).await.unwrap();
    assert_eq!(ids(stream.message().await.unwrap().unwrap()), ["one", "two"]);
    std::fs::write(project.join("devices/devices.txt"), "three\n").unwrap();
    assert_eq!(ids(stream.message().await.unwrap().unwrap()), ["three"]);
    assert!(wait_for(|| node.log_of("my-file").contains("1 devices")), "{}", node.log_of("my-file"));
}

#[test]
fn what_is_there_is_not_touched_and_nothing_is_left_of_what_failed() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("meter")).unwrap();
    for (arguments, message) in [
        (&["meter"][..], "is not touched"),
        (&["Meter"], "lower-case"),
        (&["other", "--language", "cobol"], "possible values: rust"),
        (&["other", "missing/other"], "cannot be made"),
    ] {
        let refused = new_handler(directory.path(), arguments);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && said.contains(message), "{arguments:?}: {said}");
    }
    let left: Vec<_> = std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["meter"]);
    assert_eq!(std::fs::read_dir(directory.path().join("meter")).unwrap().count(), 0);
}
