//! `logs`: what a container has printed.

use crate::DirectoryArguments;
use akri_krustlet_discovery::DirectoryWatcher;
use akri_krustlet_node::data_directory::StoredPod;
use akri_krustlet_node::{DataDirectory, PodObject};
use akri_krustlet_runtime::log::{LogLine, LogOptions, Logs};
use anyhow::Context as _;
use k8s_openapi::api::core::v1::ContainerStatus;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

/// Print what a container of a pod has printed, as kubectl logs does.
#[derive(Debug, clap::Args)]
pub(crate) struct LogsArguments {
    /// The pod's name, or NAMESPACE/NAME
    pod: String,
    /// The container [default: the pod's first]
    #[arg(long, short)]
    container: Option<String>,
    /// The pod's namespace
    #[arg(long, short, default_value = "default")]
    namespace: String,
    /// Go on printing until the container ends
    #[arg(long, short)]
    follow: bool,
    /// Only the last N lines; -1 for all
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    tail: Option<i64>,
    /// Only what is newer than this, e.g. 30s, 5m, 2h
    #[arg(long, value_name = "DURATION")]
    since: Option<String>,
    /// The container's life before its last restart
    #[arg(long, short)]
    previous: bool,
    /// With the time of each line
    #[arg(long)]
    timestamps: bool,
    #[command(flatten)]
    directories: DirectoryArguments,
}

pub(crate) fn logs(arguments: &LogsArguments) -> anyhow::Result<()> {
    let data = arguments.directories.data_directory()?;
    let (object, status) = find(arguments, &data)?;
    let restart = u32::try_from(status.restart_count).unwrap_or(0);
    let restart = match arguments.previous {
        true => restart.checked_sub(1).with_context(|| format!("container {} has not been restarted", status.name))?,
        false => restart,
    };
    let tail = arguments.tail.and_then(|lines| usize::try_from(lines).ok());
    let since = arguments.since.as_deref().map(since).transpose()?;
    let directory = data.container_logs(&object, &status.name);
    let reader = Logs::open(&directory, restart, LogOptions { tail, since });
    let mut reader = reader.with_context(|| format!("pod {} has not printed anything yet", object.key()))?;
    let printed = if arguments.follow && !arguments.previous {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let of_pod = data.pod(object.uid());
        runtime.block_on(follow(arguments, &data, &mut reader, &directory, &of_pod, restart))
    } else {
        print(arguments, reader.read_available()?)
    };
    match printed {
        // Nobody reads on: `logs ... | head`.
        Err(error) if error.downcast_ref::<std::io::Error>().is_some_and(is_broken_pipe) => Ok(()),
        printed => printed,
    }
}

fn is_broken_pipe(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::BrokenPipe
}

fn find(arguments: &LogsArguments, data: &DataDirectory) -> anyhow::Result<(PodObject, ContainerStatus)> {
    let (namespace, name) = arguments.pod.split_once('/').unwrap_or((&arguments.namespace, &arguments.pod));
    let pods = crate::stored_pods(data)?;
    let of_name = |stored: &StoredPod| {
        stored.pod.metadata.name.as_deref() == Some(name) && stored.pod.metadata.namespace.as_deref() == Some(namespace)
    };
    let key = |StoredPod { pod, .. }: &StoredPod| {
        let part = |part: &Option<String>| part.clone().unwrap_or_default();
        format!("{}/{}", part(&pod.metadata.namespace), part(&pod.metadata.name))
    };
    let names = pods.iter().map(key).collect::<Vec<_>>().join(", ");
    let stored = pods.into_iter().find(of_name);
    let StoredPod { pod, status } = stored.with_context(|| {
        format!("no pod {namespace}/{name}; there are: {}", if names.is_empty() { "none" } else { &names })
    })?;
    let containers: Vec<_> =
        status.container_statuses.into_iter().chain(status.init_container_statuses).flatten().collect();
    let known = containers.iter().map(|container| container.name.clone()).collect::<Vec<_>>().join(", ");
    let container = match &arguments.container {
        Some(name) => containers.into_iter().find(|container| container.name == *name),
        // App containers come first.
        None => {
            let first = containers.into_iter().next();
            if let Some(first) = first.as_ref().filter(|first| first.name != known) {
                eprintln!("Defaulted container \"{}\" out of: {known}", first.name);
            }
            first
        }
    };
    let container = container.with_context(|| format!("pod {name} has no such container; it has: {known}"))?;
    Ok((PodObject { api: Arc::new(pod), folder: None }, container))
}

fn since(text: &str) -> anyhow::Result<jiff::Timestamp> {
    let span: jiff::SignedDuration =
        text.parse().with_context(|| format!("--since {text}: expected a duration such as 30s, 5m or 2h"))?;
    Ok(jiff::Timestamp::now().checked_sub(span)?)
}

fn print(arguments: &LogsArguments, lines: Vec<LogLine>) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    for line in lines {
        if arguments.timestamps {
            write!(out, "{:.9} ", line.time)?;
        }
        writeln!(out, "{}", line.text)?;
    }
    out.flush()?;
    Ok(())
}

/// Prints until the container's status says that this life of it has ended.
async fn follow(
    arguments: &LogsArguments,
    data: &DataDirectory,
    reader: &mut Logs,
    logs: &Path,
    pod: &Path,
    restart: u32,
) -> anyhow::Result<()> {
    let watcher = DirectoryWatcher::start()?;
    let mut printed = watcher.watch(logs)?;
    let mut reported = watcher.watch(pod)?;
    loop {
        // Asked before reading: what was printed before the end is read after it is known.
        let runs = find(arguments, data).is_ok_and(|(_, status)| {
            let running = status.state.as_ref().is_some_and(|state| state.running.is_some());
            running && u32::try_from(status.restart_count) == Ok(restart)
        });
        print(arguments, reader.read_available()?)?;
        if !runs {
            return Ok(());
        }
        let gone = tokio::select! {
            changed = printed.changed() => changed.is_err(),
            changed = reported.changed() => changed.is_err(),
        };
        if gone {
            return Ok(());
        }
    }
}
