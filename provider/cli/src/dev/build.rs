//! Building a module, as its author would.

use super::project::Project;
use crate::output::spinner;
use anyhow::Context as _;
use std::io::IsTerminal as _;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::process::Command;

/// Lines of a failed build that are kept.
const MOST_LINES: usize = 2000;

/// What became of a build.
#[derive(Debug)]
pub(super) enum Built {
    /// After this time there is a module.
    Yes(Duration),
    /// What the tool said.
    No(String),
}

/// Runs the project's build to its end; ends it if that is not waited for.
pub(super) async fn build(project: &Project) -> anyhow::Result<Built> {
    let (program, arguments) = project.build.split_first().context("there is nothing that builds the module")?;
    let started = Instant::now();
    let mut command = Command::new(program);
    command.args(arguments).current_dir(&project.directory).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    if std::io::stderr().is_terminal() {
        command.env("CARGO_TERM_COLOR", "always");
    }
    // Makefiles of projects call this program, which need not be in PATH.
    if std::env::var_os("AKRI_KRUSTLET").is_none()
        && let Ok(program) = std::env::current_exe()
        && program.is_file()
    {
        command.env("AKRI_KRUSTLET", program);
    }
    // What cargo or a test sets for a build of its own is not for this one.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("CARGO_PKG") || name.starts_with("CARGO_BIN") || name == "CARGO_MANIFEST_DIR" {
            command.env_remove(&*name);
        }
    }
    let mut child = command.spawn().with_context(|| match program.as_str() {
        "cargo" => "cargo is not there (https://rustup.rs installs it), or is not in PATH".to_owned(),
        program => format!("{program} cannot be run"),
    })?;
    let progress = spinner("building".to_owned());
    let shown = |line: &str| progress.set_message(format!("building: {}", line.trim()));
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let (out, err) = tokio::join!(lines(out, &shown), lines(err, &shown));
    let status = child.wait().await.context("waiting for the build")?;
    progress.finish_and_clear();
    if !status.success() {
        let mut text = [err, out].concat().join("\n");
        if text.contains("target may not be installed") {
            text.push_str("\nThe target is not installed: rustup target add wasm32-wasip2");
        }
        return Ok(Built::No(text));
    }
    if !project.module.is_file() {
        let what = format!(
            "the build succeeded, and there is no module at {}, which {} names",
            project.module.display(),
            project.manifest.display()
        );
        return Ok(Built::No(what));
    }
    Ok(Built::Yes(started.elapsed()))
}

async fn lines(from: Option<impl AsyncRead + Unpin>, each: &(dyn Fn(&str) + Sync)) -> Vec<String> {
    let mut kept = Vec::new();
    let Some(from) = from else { return kept };
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    while from.read_until(b'\n', &mut line).await.is_ok_and(|read| read > 0) {
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        each(&text);
        if kept.len() < MOST_LINES {
            kept.push(text);
        }
        line.clear();
    }
    kept
}
