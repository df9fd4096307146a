//! A node alone: its pods are in a folder of manifests, their statuses in the data directory.

use super::{RunArguments, node_config};
use akri_krustlet_node::source::FolderSource;
use akri_krustlet_node::status::FileSink;
use akri_krustlet_node::{DataDirectory, Node};
use anyhow::Context as _;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

pub(super) async fn run(
    arguments: &RunArguments,
    manifests: &Path,
    name: String,
    data: DataDirectory,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let mut addresses = arguments.node_ip.clone();
    if addresses.is_empty() {
        addresses.push(IpAddr::V4(Ipv4Addr::LOCALHOST));
    }
    let config = node_config(arguments, &name, &addresses, &data)?;
    let node = Node::new(config, Arc::new(FileSink::new(data.clone()))).await?;
    let source = FolderSource::open(manifests, node.watcher())
        .with_context(|| format!("folder of manifests {}", manifests.display()))?;
    tracing::info!(
        node = name,
        manifests = %manifests.display(),
        data = %data.path().display(),
        handlers = %arguments.discovery_handlers_directory.display(),
        "the node runs"
    );
    node.run(source, shutdown).await;
    Ok(())
}
