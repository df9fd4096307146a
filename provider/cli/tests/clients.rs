//! gRPC libraries of other languages, which call a socket's server by its path: each socket of the node answers them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test they are assertions")]

mod fixture;

use fixture::{Node, serves, wait_for};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The version that is tried; newer ones do the same.
const GRPCIO: &str = "grpcio==1.76.0";

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients")
}

/// What the command says if it fails, or that there is no such program.
fn run(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.success() { Ok(said) } else { Err(format!("{command:?}: {said}")) }
}

/// Nothing where there is no Go.
fn go_client() -> Result<PathBuf, String> {
    run(Command::new("go").arg("version"))?;
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("go-client");
    let built =
        run(Command::new("go").args(["build", "-o"]).arg(&program).arg(".").current_dir(directory().join("go")));
    built.unwrap_or_else(|said| panic!("{said}"));
    Ok(program)
}

/// A Python that has grpcio; nothing where there is none to be had.
fn python() -> Result<PathBuf, String> {
    let environment = Path::new(env!("CARGO_TARGET_TMPDIR")).join(GRPCIO);
    let python = environment.join("bin/python");
    if run(Command::new(&python).args(["-c", "import grpc"])).is_err() {
        run(Command::new("python3").args(["-m", "venv"]).arg(&environment))?;
        run(Command::new(&python).args(["-m", "pip", "install", "--quiet", GRPCIO]))?;
    }
    Ok(python)
}

/// Calls all sockets of a node with the client.
fn calls_all_sockets(client: &mut Command) -> String {
    let node = Node::start();
    node.wait_for_running("witness");
    let sockets =
        [node.path("plugins/kubelet.sock"), node.path("pod-resources/kubelet.sock"), node.socket("debugEcho")];
    assert!(sockets.iter().all(|socket| wait_for(|| serves(socket))), "{sockets:?}");
    run(client.args(sockets)).unwrap_or_else(|said| panic!("{said}\n{}", node.log()))
}

#[test]
fn clients_in_go_may_call_the_server_by_its_path() {
    match go_client() {
        Ok(client) => println!("{}", calls_all_sockets(&mut Command::new(client))),
        Err(reason) => println!("skipped: there is no Go client: {reason}"),
    }
}

#[test]
fn clients_in_python_may_call_the_server_by_its_path() {
    match python() {
        Ok(python) => {
            let said = calls_all_sockets(Command::new(python).arg(directory().join("python/client.py")));
            assert!(said.contains("all answered"), "{said}");
        }
        Err(reason) => println!("skipped: there is no Python client: {reason}"),
    }
}
