//! `control-plane up|run|down DIR`.

use anyhow::{Context as _, bail};
use control_plane::{Cluster, Programs, linux_node};
use signal_hook::consts::{SIGINT, SIGTERM};
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const USAGE: &str = "\
A Kubernetes control plane of its own on this machine, for demos and tests.

Usage:
  control-plane up DIR     start one in the background, with its files in DIR; or the one that DIR holds already
  control-plane down DIR   end it; `up` continues it later
  control-plane run DIR    run one until the standard input ends (what tests use)
  control-plane image DIR IMAGE PROGRAM
                           give its Linux node an image of one static program, for imagePullPolicy Never
  control-plane build      only build or find the programs; prints their directory's kubectl
  control-plane build tools   helm, metrics-server and oras, too

Options:
  --linux-node NAME        (up, run) an ordinary node, too: kubelet, containerd and runc in namespaces of their own
  --linux-node             (build) the programs of such a node, too

SIGNING_DURATION sets the life of the certificates that it signs (default 8760h). RUNC names another runc than that of PATH,
WASM_SHIM a containerd shim that the Linux node offers as the runtime `wasm`.";

fn main() -> ExitCode {
    let mut arguments: Vec<_> = std::env::args().skip(1).collect();
    let linux_node = arguments.iter().position(|argument| argument == "--linux-node").map(|at| {
        let is_name = arguments.first().is_some_and(|command| command != "build") && at + 1 < arguments.len();
        let name = is_name.then(|| arguments.remove(at + 1));
        arguments.remove(at);
        name
    });
    let name = linux_node.clone().flatten();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let result = match (&arguments[..], &linux_node) {
        (["up", directory], None | Some(Some(_))) => up(Path::new(directory), name.as_deref()),
        (["run", directory], None | Some(Some(_))) => run(Path::new(directory), name.as_deref()),
        (["down", directory], None) => down(Path::new(directory)),
        (["image", directory, image, program], None) => add_image(Path::new(directory), image, Path::new(program)),
        (["build"], None | Some(None)) => build(linux_node.is_some(), false),
        (["build", "tools"], None | Some(None)) => build(linux_node.is_some(), true),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn programs(with_linux_node: bool) -> anyhow::Result<Programs> {
    let programs = Programs::find_or_build()?;
    if with_linux_node { programs.with_linux_node() } else { Ok(programs) }
}

fn build(with_linux_node: bool, with_tools: bool) -> anyhow::Result<()> {
    if with_linux_node {
        linux_node::is_possible().map_err(anyhow::Error::msg)?;
    }
    let mut programs = programs(with_linux_node)?;
    if with_tools {
        programs = programs.with_cluster_tools()?;
    }
    println!("{}", programs.path("kubectl")?.display());
    Ok(())
}

fn add_image(directory: &Path, image: &str, program: &Path) -> anyhow::Result<()> {
    linux_node::add_image(&existing(directory)?, &programs(true)?, image, program)
}

/// Serves until whoever started this goes, however it goes: the pipe on the standard input tells. A signal ends it, too, and
/// what it started; the API server alone would wait for an etcd that has gone.
fn run(directory: &Path, linux_node: Option<&str>) -> anyhow::Result<()> {
    // Told before anything starts.
    if linux_node.is_some() {
        linux_node::is_possible().map_err(anyhow::Error::msg)?;
    }
    let programs = programs(linux_node.is_some())?;
    let mut cluster = Cluster::open(directory)?;
    if let Ok(duration) = std::env::var("SIGNING_DURATION") {
        cluster.signing_duration = duration;
    }
    let signalled = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT] {
        signal_hook::flag::register(signal, signalled.clone())?;
    }
    let mut running = cluster.start(&programs)?;
    if let Some(name) = linux_node {
        running.add_linux_node(&programs, name)?;
    }
    println!("ready");
    let (ended, end) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        let _ = ended.send(());
    });
    while end.recv_timeout(Duration::from_millis(200)) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
        if signalled.load(Ordering::Relaxed) {
            break;
        }
        running.keep_up()?;
    }
    Ok(())
}

/// Starts `run` in the background. What keeps it running is a FIFO in the directory that it holds open itself.
fn up(directory: &Path, linux_node: Option<&str>) -> anyhow::Result<()> {
    let programs = programs(linux_node.is_some())?;
    let cluster = Cluster::open(directory)?;
    if let Some(pid) = running_pid(&cluster) {
        bail!("{} runs already (pid {pid}); end it with `control-plane down`", cluster.directory().display());
    }
    let fifo = cluster.directory().join("running");
    if !fifo.exists() {
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, mode).with_context(|| fifo.display().to_string())?;
    }
    let held = std::fs::File::options().read(true).write(true).open(&fifo)?;
    let log = std::fs::File::create(cluster.directory().join("control-plane.log"))?;
    let mut child = Command::new(std::env::current_exe()?)
        .arg("run")
        .arg(cluster.directory())
        .args(linux_node.iter().flat_map(|name| ["--linux-node", name]))
        .stdin(held)
        .stdout(Stdio::piped())
        .stderr(log)
        .process_group(0)
        .spawn()?;
    std::fs::write(cluster.directory().join("pid"), child.id().to_string())?;
    let started = Instant::now();
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("no output")?).read_line(&mut line)?;
    if line.trim() != "ready" {
        let _ = child.wait();
        let log = std::fs::read_to_string(cluster.directory().join("control-plane.log")).unwrap_or_default();
        bail!("the control plane did not start: {}", log.trim());
    }
    println!("Kubernetes runs after {:.1} s at {}", started.elapsed().as_secs_f64(), cluster.server());
    println!("  administrator: export KUBECONFIG={}", cluster.admin().display());
    println!("  kubectl:       {}", programs.path("kubectl")?.display());
    if let Some(name) = linux_node {
        println!("  a Linux node:  {name}");
    }
    println!("  a new node:    akri-krustlet run --bootstrap-file {}", cluster.bootstrap().display());
    println!("  end it:        control-plane down {}", cluster.directory().display());
    Ok(())
}

fn existing(directory: &Path) -> anyhow::Result<Cluster> {
    if !directory.join("ports.json").exists() {
        bail!("{} holds no control plane", directory.display());
    }
    Cluster::open(directory)
}

fn down(directory: &Path) -> anyhow::Result<()> {
    let cluster = existing(directory)?;
    let Some(pid) = running_pid(&cluster) else {
        println!("not running");
        return Ok(());
    };
    // It ends what it started, and gives back what a Linux node has taken of the machine; if it cannot, its process group is
    // ended, the programs in it.
    let process = rustix::process::Pid::from_raw(pid).context("malformed pid file")?;
    rustix::process::kill_process(process, rustix::process::Signal::TERM)?;
    let started = Instant::now();
    let mut killed = false;
    // Until the last of them has let go of its port.
    while rustix::process::test_kill_process_group(process).is_ok() {
        if started.elapsed() > Duration::from_secs(60) {
            bail!("process {pid} does not end");
        }
        if started.elapsed() > Duration::from_secs(30) && !std::mem::replace(&mut killed, true) {
            rustix::process::kill_process_group(process, rustix::process::Signal::KILL)?;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let _ = std::fs::remove_file(cluster.directory().join("pid"));
    println!("ended");
    Ok(())
}

fn running_pid(cluster: &Cluster) -> Option<i32> {
    let pid: i32 = std::fs::read_to_string(cluster.directory().join("pid")).ok()?.trim().parse().ok()?;
    // Another process may have the number by now.
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let directory = cluster.directory().to_string_lossy().into_owned();
    String::from_utf8_lossy(&command).contains(&directory).then_some(pid)
}
