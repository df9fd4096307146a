//! Figures of what the author of a handler waits for.

use crate::fixture::{self, PROGRAM, component};
use crate::{Row, ms, percentile};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

/// Saves of a source, each of one line.
const SAVES: usize = 10;
/// Calls of `step`, after one that compiles.
const STEPS: usize = 50;
const DEADLINE: Duration = Duration::from_secs(600);

pub fn measure() -> Vec<Row> {
    eprintln!("step ...");
    let mut rows = vec![step(), allocations()];
    eprintln!("a new handler, and saves of it ...");
    rows.extend(dev());
    eprintln!("a new handler in JavaScript ...");
    rows.extend(in_javascript());
    rows
}

fn step() -> Row {
    let call = || {
        let mut command = Command::new(PROGRAM);
        command.arg("step").arg(component("debug-echo-typed")).args(["--details", "descriptions: [a]"]);
        let started = Instant::now();
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        started.elapsed()
    };
    call();
    let mut times: Vec<_> = (0..STEPS).map(|_| call()).collect();
    let p50 = percentile(&mut times, 50);
    Row {
        figure: "`step`: exec to its end, one step, the module compiled before, p50 of 50",
        ours: ms(p50),
        native: "-".to_owned(),
        bar: "<= 50 ms",
        holds: Some(p50 <= Duration::from_millis(50)),
    }
}

/// The node's allocations at steps of the udev handler: the first, and two of a uevent after which the list is as it was.
fn allocations() -> Row {
    let event = ["--event", "change /devices/virtual/mem/null SUBSYSTEM=mem"];
    let output = Command::new(PROGRAM)
        .arg("step")
        .arg(component("udev"))
        .args(["--details", r#"{"udevRules": ["SUBSYSTEM==\"mem\""]}"#, "--grant-needs", "-o", "json"])
        .args(event)
        .args(event)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let steps: Vec<_> =
        said["steps"].as_array().unwrap().iter().map(|step| step["allocations"].as_u64().unwrap()).collect();
    let [first, second, third] = <[u64; 3]>::try_from(steps).unwrap();
    Row {
        figure: "udev, `/dev/null` and its like: allocations of the node at the first step; at the next two, the list as before",
        ours: format!("{first}; {second}, {third}"),
        native: "-".to_owned(),
        bar: "<= 1/10 of the first",
        holds: Some(second.max(third) * 10 <= first),
    }
}

/// `dev` in a project, line by line.
struct Dev {
    process: Child,
    lines: Receiver<String>,
}

impl Dev {
    fn start(project: &Path) -> Self {
        let mut command = Command::new(PROGRAM);
        command.arg("dev").arg(project).stdout(Stdio::piped());
        for name in ["CARGO_TARGET_DIR", "RUSTFLAGS", "CARGO_INCREMENTAL"] {
            command.env_remove(name);
        }
        let mut process = command.spawn().unwrap();
        let lines = fixture::lines_of(&mut process);
        Self { process, lines }
    }

    /// Waits for a line, and says when it came.
    fn wait(&self, is_right: impl Fn(&str) -> bool) -> Instant {
        loop {
            let line = self.lines.recv_timeout(DEADLINE).expect("`dev` says what it is asked for");
            if is_right(&line) {
                return Instant::now();
            }
        }
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.process);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
        let _ = self.process.wait();
    }
}

/// A new handler's project, at work; when it had its first list, and how much of that was `new-handler`.
fn new_handler(project: &Path, language: &str) -> (Dev, Duration, Duration) {
    let started = Instant::now();
    let made =
        Command::new(PROGRAM).args(["new-handler", "meter", "--language", language]).arg(project).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let made_in = started.elapsed();
    let dev = Dev::start(project);
    let first = dev.wait(|line| line.contains("METER_DEVICE=two")) - started;
    (dev, first, made_in)
}

fn in_javascript() -> Option<Row> {
    if !Command::new("npm").arg("--version").stdout(Stdio::null()).status().is_ok_and(|status| status.success()) {
        eprintln!("skipped: there is no npm");
        return None;
    }
    let directory = tempfile::tempdir().unwrap();
    let (_dev, first, made_in) = new_handler(&directory.path().join("meter"), "js");
    Some(Row {
        figure: "a new handler in JavaScript: the same (npm's packages from its registry)",
        ours: format!("{:.1} s ({} ms of it `new-handler`)", first.as_secs_f64(), made_in.as_millis()),
        native: "-".to_owned(),
        bar: "<= 30 s",
        holds: Some(first <= Duration::from_secs(30)),
    })
}

fn dev() -> Vec<Row> {
    let directory = tempfile::tempdir().unwrap();
    let project = directory.path().join("meter");
    let (dev, first, made_in) = new_handler(&project, "rust");
    let source = project.join("src/lib.rs");
    let text = std::fs::read_to_string(&source).unwrap();
    let mut times: Vec<_> = (0..SAVES)
        .map(|number| {
            let marked =
                text.replace("property(DEVICE, line)", &format!("property(DEVICE, format!(\"{number}-{{line}}\"))"));
            assert_ne!(marked, text);
            let saved = Instant::now();
            std::fs::write(&source, marked).unwrap();
            dev.wait(|line| line.contains(&format!("METER_DEVICE={number}-two"))) - saved
        })
        .collect();
    let p50 = percentile(&mut times, 50);
    vec![
        Row {
            figure: "a new handler in Rust: `new-handler`, then `dev`, to its first list (crates in the registry's cache)",
            ours: format!("{:.1} s ({} ms of it `new-handler`)", first.as_secs_f64(), made_in.as_millis()),
            native: "-".to_owned(),
            bar: "<= 120 s",
            holds: Some(first <= Duration::from_secs(120)),
        },
        Row {
            figure: "`dev`: a source saved to the new list, the stream open, p50 of 10",
            ours: format!("{:.2} s", p50.as_secs_f64()),
            native: "-".to_owned(),
            bar: "<= 5 s",
            holds: Some(p50 <= Duration::from_secs(5)),
        },
    ]
}
