//! A project of a new handler, as somebody makes it who has never seen this one: built, tested, run, asked.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test they are assertions")]

mod fixture;

use fixture::{DEADLINE, Node, PROGRAM, ids, wait_for};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;

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
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "cargo {arguments:?}: {}{}", said(&output.stdout), said(&output.stderr));
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
    // As its README has it: what was built for the tests is in another place here.
    std::os::unix::fs::symlink(&target, project.join("target")).unwrap();
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
    drop(node);
    // The same without a node.
    let (module, pod) = ("target/wasm32-wasip2/release/my_file.wasm", "manifests/pod.yaml");
    let mut step = Command::new(PROGRAM);
    step.args(["step", module, "--pod", pod, "--details", "@details.yaml"]).current_dir(&project);
    let step = fixture::output(&mut step);
    let said = String::from_utf8_lossy(&step.stdout).into_owned() + &String::from_utf8_lossy(&step.stderr);
    assert!(step.status.success() && said.contains("MY_FILE_DEVICE=three"), "{said}");
    work_on(&project, directory.path());
}

/// `dev`, in a project that was built before: each line that it says, until one is right.
struct Dev {
    process: Child,
    lines: mpsc::Receiver<String>,
    said: Vec<String>,
}

impl Dev {
    fn start(project: &Path, temporary: &Path, arguments: &[&str]) -> Self {
        let mut command = Command::new(PROGRAM);
        command.arg("dev").arg(project).args(arguments).env("TMPDIR", temporary).stdout(Stdio::piped());
        command.env_remove("CARGO_TARGET_DIR").env_remove("RUSTFLAGS");
        let mut process = command.spawn().unwrap();
        let lines = fixture::lines_of(&mut process);
        Self { process, lines, said: Vec::new() }
    }

    fn wait(&mut self, is_right: impl Fn(&str) -> bool) -> String {
        loop {
            let Ok(line) = self.lines.recv_timeout(2 * DEADLINE) else { panic!("it said: {:#?}", self.said) };
            self.said.push(line.clone());
            if is_right(&line) {
                return line;
            }
        }
    }

    fn wait_for(&mut self, about: &str, text: &str) -> String {
        self.wait(|line| line.starts_with(about) && line.contains(text))
    }

    fn end(mut self) {
        let pid = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        let mut status = None;
        assert!(wait_for(|| {
            status = self.process.try_wait().unwrap();
            status.is_some()
        }));
        assert_eq!(status.unwrap().code(), Some(0), "{:#?}", self.said);
    }
}

/// Also when a test fails; its node ends with it.
impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn edit(file: &Path, old: &str, new: &str) {
    let text = std::fs::read_to_string(file).unwrap();
    assert!(text.contains(old), "{old}: {text}");
    std::fs::write(file, text.replace(old, new)).unwrap();
}

fn work_on(project: &Path, scratch: &Path) {
    let temporary = scratch.join("temporary");
    std::fs::create_dir(&temporary).unwrap();
    let source = project.join("src/lib.rs");
    let recording = project.join("tests/second.rec");
    let mut dev = Dev::start(project, &temporary, &["--record", &recording.display().to_string()]);
    dev.wait_for("build", "the module has");
    dev.wait_for("handler", "my-file has registered");
    dev.wait(|line| line.contains("MY_FILE_DEVICE=three"));
    dev.wait_for("log", "1 devices");
    // A save is built and taken, and the stream goes on: the same device, changed.
    edit(&source, "property(DEVICE, line)", "property(DEVICE, line.to_uppercase())");
    dev.wait(|line| line.starts_with('~') && line.contains("MY_FILE_DEVICE=THREE"));
    dev.wait_for("list", "after the save");
    // A build that fails changes nothing, and the next one is taken.
    edit(&source, "line.to_uppercase()", "line.to_nonsense()");
    dev.wait(|line| line.contains("to_nonsense"));
    dev.wait_for("build", "the next save tries again");
    edit(&source, "line.to_nonsense()", "line.to_lowercase()");
    dev.wait(|line| line.starts_with('~') && line.contains("MY_FILE_DEVICE=three"));
    // Its world, and what it is asked.
    std::fs::write(project.join("devices/devices.txt"), "three\nfour\n").unwrap();
    dev.wait(|line| line.starts_with('+') && line.contains("MY_FILE_DEVICE=four"));
    std::fs::write(project.join("details.yaml"), "file: 1\n").unwrap();
    dev.wait_for("handler", "it refused: InvalidArgument");
    std::fs::write(project.join("details.yaml"), "file: devices.txt\n").unwrap();
    // What it needs and its pod does not give is offered.
    edit(&source, "volumes: [", "links: [\"cam*\"], volumes: [");
    std::fs::write(project.join("details.yaml"), "file: other.txt\n").unwrap();
    std::fs::write(project.join("devices/other.txt"), "six\n").unwrap();
    // Both were saved.
    dev.wait(|line| line.contains("MY_FILE_DEVICE=six"));
    dev.wait_for("grant", "add to");
    dev.wait(|line| line.trim() == "annotation akri-krustlet/links: cam*");
    dev.wait_for("log", "its module needs what its pod does not give");
    std::fs::write(project.join("details.yaml"), "file: devices.txt\n").unwrap();
    dev.wait(|line| line.contains("MY_FILE_DEVICE=four"));
    std::fs::write(project.join("devices/devices.txt"), "four\nfive\n").unwrap();
    dev.wait(|line| line.contains("MY_FILE_DEVICE=five"));
    dev.end();
    // What it saw since it was asked last is a test from now on.
    let recorded = std::fs::read_to_string(&recording).unwrap();
    for part in ["handler my-file", "changed /etc/devices devices.txt", "MY_FILE_DEVICE=\"five\""] {
        assert!(recorded.contains(part), "{part}: {recorded}");
    }
    let test = |is_right: bool| {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        command.args(["test", "--quiet"]).current_dir(project).env("CARGO_TARGET_DIR", scratch.join("target"));
        let output = command.env_remove("RUSTFLAGS").output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.success(), is_right, "{said}");
        said
    };
    test(true);
    std::fs::write(&recording, recorded.replace("MY_FILE_DEVICE=\"five\"", "MY_FILE_DEVICE=\"FIVE\"")).unwrap();
    let said = test(false);
    assert!(said.contains("tests/second.rec: what the handler says is not what it said"), "{said}");
    std::fs::write(&recording, recorded).unwrap();
    let mut step = Command::new(PROGRAM);
    step.args(["step", "target/wasm32-wasip2/release/my_file.wasm", "--replay", "tests/second.rec"]);
    let step = fixture::output(step.current_dir(project));
    assert!(step.status.success(), "{}", String::from_utf8_lossy(&step.stderr));
    assert_eq!(std::fs::read_dir(&temporary).unwrap().count(), 0, "nothing is left behind");
    let said = |arguments: &[&str]| {
        let output = Command::new(PROGRAM).arg("dev").args(arguments).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let empty = temporary.display().to_string();
    assert!(said(&["/nonexistent"]).contains("/nonexistent: No such file"));
    assert!(said(&[&empty]).contains("a project has the manifest of its pod there"));
    std::fs::create_dir(temporary.join("manifests")).unwrap();
    assert!(said(&[&empty]).contains("there is no manifest in it"));
    std::fs::copy(project.join("manifests/pod.yaml"), temporary.join("manifests/pod.yaml")).unwrap();
    assert!(said(&[&empty]).contains("there is neither a Cargo.toml nor a Makefile; say with --build"));
    // Whatever builds it, in whatever language.
    let module = project.join("target/wasm32-wasip2/release/my_file.wasm");
    let copy =
        format!("mkdir -p target/wasm32-wasip2/release && cp {} target/wasm32-wasip2/release/", module.display());
    std::fs::create_dir(temporary.join("devices")).unwrap();
    std::fs::write(temporary.join("devices/devices.txt"), "five\n").unwrap();
    let details = project.join("details.yaml").display().to_string();
    let mut dev = Dev::start(&temporary, scratch, &["--build", &copy, "--details", &details]);
    dev.wait(|line| line.contains("MY_FILE_DEVICE=five"));
    std::fs::write(temporary.join("devices/devices.txt"), "seven\n").unwrap();
    dev.wait(|line| line.contains("MY_FILE_DEVICE=seven"));
    assert_eq!(dev.said.iter().filter(|line| line.starts_with("build")).count(), 1, "{:#?}", dev.said);
    dev.end();
}

#[test]
fn what_is_there_is_not_touched_and_nothing_is_left_of_what_failed() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("meter")).unwrap();
    for (arguments, message) in [
        (&["meter"][..], "is not touched"),
        (&["Meter"], "lower-case"),
        (&["other", "--language", "cobol"], "possible values: rust, js, python"),
        (&["other", "--language", "js", "--protocol", "http"], "takes no wasi:http"),
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
