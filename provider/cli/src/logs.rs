//! `logs`: what a container has printed.

use crate::DirectoryArguments;
use akri_krustlet_host::DirectoryWatcher;
use akri_krustlet_node::DataDirectory;
use akri_krustlet_node::container_log::{ContainerLogReader, LogRequest};
use akri_krustlet_node::data_directory::StoredPod;
use akri_krustlet_runtime::log::{LogOptions, LogPrinter};
use anyhow::Context as _;
use std::io::Write as _;

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
    let (namespace, pod, container) = find(arguments, &data)?;
    let options = LogOptions {
        tail: arguments.tail.and_then(|lines| usize::try_from(lines).ok()),
        since: arguments.since.as_deref().map(since).transpose()?,
    };
    let (previous, follow) = (arguments.previous, arguments.follow);
    let request = LogRequest { namespace, pod, container, previous, follow, options };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match runtime.block_on(copy(arguments, request, data)) {
        // Nobody reads on: `logs ... | head`.
        Err(error) if error.downcast_ref::<std::io::Error>().is_some_and(is_broken_pipe) => Ok(()),
        printed => printed,
    }
}

async fn copy(arguments: &LogsArguments, request: LogRequest, data: DataDirectory) -> anyhow::Result<()> {
    let watcher = if request.follow { Some(DirectoryWatcher::start()?) } else { None };
    let mut reader = ContainerLogReader::open(request, data, watcher.as_ref())?;
    let mut printer = LogPrinter::new(arguments.timestamps);
    while let Some(parts) = reader.next().await? {
        let mut text = Vec::new();
        parts.iter().for_each(|part| printer.print(part, &mut text));
        let mut out = std::io::stdout().lock();
        out.write_all(&text)?;
        out.flush()?;
    }
    Ok(())
}

fn is_broken_pipe(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::BrokenPipe
}

/// Namespace, pod and container that the arguments name, as the node knows them.
fn find(arguments: &LogsArguments, data: &DataDirectory) -> anyhow::Result<(String, String, String)> {
    let (namespace, name) = arguments.pod.split_once('/').unwrap_or((&arguments.namespace, &arguments.pod));
    let pods = crate::stored_pods(data)?;
    let of_name = |stored: &&StoredPod| {
        stored.pod.metadata.name.as_deref() == Some(name) && stored.pod.metadata.namespace.as_deref() == Some(namespace)
    };
    let Some(StoredPod { status, .. }) = pods.iter().find(of_name) else {
        let key = |StoredPod { pod, .. }: &StoredPod| {
            let part = |part: &Option<String>| part.clone().unwrap_or_default();
            format!("{}/{}", part(&pod.metadata.namespace), part(&pod.metadata.name))
        };
        let names = pods.iter().map(key).collect::<Vec<_>>().join(", ");
        anyhow::bail!("no pod {namespace}/{name}; there are: {}", if names.is_empty() { "none" } else { &names });
    };
    // App containers come first.
    let containers = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
    let names: Vec<_> = containers.map(|container| container.name.clone()).collect();
    let container = match &arguments.container {
        Some(wanted) => names.iter().find(|name| *name == wanted),
        None => {
            if let Some(first) = names.first().filter(|_| names.len() > 1) {
                eprintln!("Defaulted container \"{first}\" out of: {}", names.join(", "));
            }
            names.first()
        }
    };
    let container =
        container.with_context(|| format!("pod {name} has no such container; it has: {}", names.join(", ")))?;
    Ok((namespace.to_owned(), name.to_owned(), container.clone()))
}

fn since(text: &str) -> anyhow::Result<jiff::Timestamp> {
    let span: jiff::SignedDuration =
        text.parse().with_context(|| format!("--since {text}: expected a duration such as 30s, 5m or 2h"))?;
    Ok(jiff::Timestamp::now().checked_sub(span)?)
}
