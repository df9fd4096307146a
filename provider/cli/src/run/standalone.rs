//! A node alone: its pods are in a folder of manifests, their statuses in the data directory.

use super::service::Service;
use super::{RunArguments, node_config, serve_metrics};
use akri_krustlet_node::cluster::Connection;
use akri_krustlet_node::source::FolderSource;
use akri_krustlet_node::status::{ConfigMapSink, FileSink, StatusSink};
use akri_krustlet_node::{DataDirectory, Node};
use akri_krustlet_runtime::network::NodeNetwork;
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
    network: Arc<NodeNetwork>,
    service: Service,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let mut addresses = arguments.node_ip.clone();
    if addresses.is_empty() {
        addresses.push(IpAddr::V4(Ipv4Addr::LOCALHOST));
    }
    let config = node_config(arguments, &name, &addresses, &data, network)?;
    let sink: Arc<dyn StatusSink> = match &arguments.status_config_map {
        Some((namespace, map)) => {
            let client = Connection::client_of_environment().await;
            let client = client.map_err(anyhow::Error::msg).context("--status-config-map")?;
            Arc::new(ConfigMapSink::start(client, &name, (namespace, map), data.clone()))
        }
        None => Arc::new(FileSink::new(data.clone())),
    };
    let node = Node::new(config, sink).await?;
    serve_metrics(arguments, &node, &data);
    let source = FolderSource::open(manifests, node.watcher())
        .with_context(|| format!("folder of manifests {}", manifests.display()))?;
    tracing::info!(
        node = name,
        manifests = %manifests.display(),
        data = %data.path().display(),
        handlers = %arguments.discovery_handlers_directory.display(),
        "the node runs"
    );
    service.is_ready("running the pods of the folder");
    node.run(source, shutdown).await;
    Ok(())
}
