//! `control-plane up|run|down DIR`.

use anyhow::{Context as _, bail};
use control_plane::{Cluster, Programs};
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
  control-plane build      only build or find the programs; prints their directory's kubectl

SIGNING_DURATION sets the life of the certificates that it signs (default 8760h).";

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let result = match arguments[..] {
        ["up", directory] => up(Path::new(directory)),
        ["down", directory] => down(Path::new(directory)),
        ["run", directory] => run(Path::new(directory)),
        ["build"] => Programs::find_or_build().and_then(|programs| {
            println!("{}", programs.path("kubectl")?.display());
            Ok(())
        }),
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

/// Serves until whoever started this goes, however it goes: the pipe on the standard input tells. A signal ends it, too, and
/// what it started; the API server alone would wait for an etcd that has gone.
fn run(directory: &Path) -> anyhow::Result<()> {
    let programs = Programs::find_or_build()?;
    let mut cluster = Cluster::open(directory)?;
    if let Ok(duration) = std::env::var("SIGNING_DURATION") {
        cluster.signing_duration = duration;
    }
    let signalled = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT] {
        signal_hook::flag::register(signal, signalled.clone())?;
    }
    let mut running = cluster.start(&programs)?;
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
fn up(directory: &Path) -> anyhow::Result<()> {
    let programs = Programs::find_or_build()?;
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
    println!("  a new node:    akri-krustlet run --bootstrap-file {}", cluster.bootstrap().display());
    println!("  end it:        control-plane down {}", cluster.directory().display());
    Ok(())
}

fn down(directory: &Path) -> anyhow::Result<()> {
    if !directory.join("ports.json").exists() {
        bail!("{} holds no control plane", directory.display());
    }
    let cluster = Cluster::open(directory)?;
    let Some(pid) = running_pid(&cluster) else {
        println!("not running");
        return Ok(());
    };
    // It holds the FIFO open itself, so its whole process group is ended, the programs in it.
    let group = rustix::process::Pid::from_raw(pid).context("malformed pid file")?;
    rustix::process::kill_process_group(group, rustix::process::Signal::KILL)?;
    let deadline = Instant::now() + Duration::from_secs(10);
    // Until the last of them has let go of its port.
    while rustix::process::test_kill_process_group(group).is_ok() {
        if Instant::now() > deadline {
            bail!("process {pid} does not end");
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
