//! A control plane comes up, is used, and leaves nothing behind.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "a test")]

use std::path::Path;
use std::process::{Command, Output};

const PROGRAM: &str = env!("CARGO_BIN_EXE_control-plane");

fn control_plane(command: &str, directory: &Path) -> Output {
    Command::new(PROGRAM).arg(command).arg(directory).output().unwrap()
}

#[test]
fn a_control_plane_comes_up_goes_down_and_continues() {
    if std::env::var_os("SKIP_CLUSTER_TESTS").is_some() {
        println!("skipped: SKIP_CLUSTER_TESTS is set");
        return;
    }
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("cluster");
    let built = Command::new(PROGRAM).arg("build").output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let kubectl = String::from_utf8(built.stdout).unwrap();
    let kubectl = |arguments: &[&str]| {
        let admin = directory.join("admin.conf");
        let output = Command::new(kubectl.trim()).arg("--kubeconfig").arg(admin).args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let up = control_plane("up", &directory);
    assert!(up.status.success(), "{}", String::from_utf8_lossy(&up.stderr));
    kubectl(&["create", "configmap", "kept"]);
    assert!(!control_plane("up", &directory).status.success(), "a second one in the same directory is refused");
    assert!(control_plane("down", &directory).status.success());
    assert!(control_plane("up", &directory).status.success());
    assert!(kubectl(&["get", "configmap", "kept"]).contains("kept"));
    assert!(control_plane("down", &directory).status.success());
    assert!(!control_plane("down", &parent.path().join("other")).status.success());
}
