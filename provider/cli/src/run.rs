//! `run`: the node.

use crate::DirectoryArguments;
use crate::output::host_name;
use akri_krustlet_discovery::HandlersConfig;
use akri_krustlet_node::environment::NodeFacts;
use akri_krustlet_node::source::FolderSource;
use akri_krustlet_node::status::FileSink;
use akri_krustlet_node::{Node, NodeConfig};
use akri_krustlet_runtime::RuntimeConfig;
use anyhow::Context as _;
use std::io::IsTerminal as _;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// Run the node: its pods, and the sockets of the discovery handlers in them. Ends on SIGTERM and SIGINT; the pods are taken
/// up again by the next start.
#[derive(Debug, clap::Args)]
pub(crate) struct RunArguments {
    /// Folder of Pod manifests (*.yaml, *.json). Watched: a file added starts its pods, a changed one replaces them, a
    /// removed one stops them
    #[arg(long, value_name = "DIR")]
    manifests: Option<PathBuf>,
    /// The node's name [default: the host's name, in lower case]
    #[arg(long, env = "KRUSTLET_NODE_NAME", value_name = "NAME")]
    node_name: Option<String>,
    /// The node's address, which pods see as status.hostIP
    #[arg(long, env = "KRUSTLET_NODE_IP", value_name = "IP", default_value = "127.0.0.1")]
    node_ip: IpAddr,
    #[command(flatten)]
    directories: DirectoryArguments,
    /// Where discovery handlers and Akri's Agent have their sockets
    #[arg(long, env = "DISCOVERY_HANDLERS_DIRECTORY", value_name = "DIR", default_value = "/var/lib/akri")]
    discovery_handlers_directory: PathBuf,
    /// How long a handler's streams stay open after its last pod is gone, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    handler_grace_period: u64,
}

pub(crate) fn run(arguments: &RunArguments) -> anyhow::Result<()> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
    raise_open_files();
    // The node's own work is short; guests have threads of their own.
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores.min(4))
        .thread_name("node")
        .max_blocking_threads(16)
        .enable_all()
        .build()
        .context("cannot start the node's threads")?;
    runtime.block_on(run_node(arguments))?;
    // Streams end here, with the process. A guest may still be in a system call that never returns.
    std::process::exit(0)
}

async fn run_node(arguments: &RunArguments) -> anyhow::Result<()> {
    let Some(manifests) = &arguments.manifests else {
        anyhow::bail!(
            "name a folder of Pod manifests with --manifests DIR (joining a cluster comes with a later version)"
        );
    };
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let data = arguments.directories.data_directory()?;
    let handlers = HandlersConfig {
        grace_period: Duration::from_secs(arguments.handler_grace_period),
        ..HandlersConfig::new(std::path::absolute(&arguments.discovery_handlers_directory)?)
    };
    let name = arguments.node_name.clone().unwrap_or_else(host_name);
    let config = NodeConfig {
        facts: NodeFacts { name: name.clone(), ip: arguments.node_ip.to_string() },
        runtime: RuntimeConfig::new(data.modules()),
        data: data.clone(),
        handlers,
    };
    let sink = Arc::new(FileSink::new(data.clone()));
    let node = Node::new(config, sink)?;
    let source = FolderSource::open(manifests, node.watcher())
        .with_context(|| format!("folder of manifests {}", manifests.display()))?;
    tracing::info!(
        node = name,
        manifests = %manifests.display(),
        data = %data.path().display(),
        handlers = %arguments.discovery_handlers_directory.display(),
        "the node runs"
    );
    let shutdown = CancellationToken::new();
    let on_signal = shutdown.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        on_signal.cancel();
        // A second signal means it.
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        std::process::exit(1);
    });
    node.run(source, shutdown).await;
    Ok(())
}

/// Guests, streams and log files all need file descriptors.
fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}
