//! A node of a cluster.

use super::service::Service;
use super::{RunArguments, node_config, serve_metrics};
use crate::output::host_name;
use akri_krustlet_host::file::ReadFiles;
use akri_krustlet_node::cluster::machine::Capacity;
use akri_krustlet_node::cluster::node_object::NodeSettings;
use akri_krustlet_node::cluster::registration::Registration;
use akri_krustlet_node::cluster::serving::Serving;
use akri_krustlet_node::cluster::{Connection, EventRecorder, History, Identity, IdentitySource, labels};
use akri_krustlet_node::endpoint::{Endpoint, EndpointConfig};
use akri_krustlet_node::services::ClusterAccess;
use akri_krustlet_node::source::{ClusterSource, FolderSource, NodeSource};
use akri_krustlet_node::status::{ApiSink, MirrorSink, Mirrors};
use akri_krustlet_node::{DataDirectory, Node, quantity};
use akri_krustlet_runtime::network::NodeNetwork;
use anyhow::{Context as _, bail};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Flags that matter in a cluster only.
#[derive(Debug, clap::Args)]
pub(super) struct ClusterArguments {
    /// The value of the Node's label kubernetes.io/hostname, and its address of that type [default: the node's name]
    #[arg(long, env = "KRUSTLET_HOSTNAME", value_name = "NAME")]
    hostname: Option<String>,
    /// Where the node's HTTPS endpoint listens [default: all addresses]
    #[arg(long, env = "KRUSTLET_ADDRESS", value_name = "IP")]
    address: Option<IpAddr>,
    /// Port of the node's HTTPS endpoint, which the API server asks for logs
    #[arg(long, env = "KRUSTLET_PORT", value_name = "PORT", default_value_t = 3000)]
    port: u16,
    /// Labels for the Node object
    #[arg(long, env = "NODE_LABELS", value_name = "KEY=VALUE,...", default_value = "", hide_default_value = true)]
    node_labels: String,
    /// The Node's label kubernetes.io/os: `linux` lets the API server (1.36) take other requests and limits for pods that run, which it
    /// refuses for pods on nodes with another one
    #[arg(long, value_name = "OS", default_value_t, value_enum)]
    os_label: OsLabel,
    /// Most pods at once
    #[arg(long, env = "MAX_PODS", value_name = "N", default_value_t = 110)]
    max_pods: u32,
    /// What pods cannot have of the machine's cpu, memory and ephemeral-storage
    #[arg(long, value_name = "NAME=QUANTITY,...", default_value = "memory=100Mi", value_delimiter = ',')]
    system_reserved: Vec<String>,
    /// Certificate authorities whose certificates clients of the HTTPS endpoint may have
    /// [default: the cluster's, from the kubeconfig; k3s has another one for clients]
    #[arg(long, value_name = "FILE")]
    client_ca_file: Option<PathBuf>,
    /// Answer /healthz of the HTTPS endpoint to everybody
    #[arg(long)]
    anonymous_healthz: bool,
    /// Let pods of the cluster run modules from this machine's files (image fs:///path)
    #[arg(long, env = "KRUSTLET_ALLOW_LOCAL_MODULES")]
    allow_local_modules: bool,
}

/// What a node says of its operating system.
#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
enum OsLabel {
    /// As Krustlet's nodes say.
    #[default]
    #[value(name = "wasm32-wasi")]
    Wasi,
    /// As most nodes say.
    Linux,
}

impl std::fmt::Display for OsLabel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Wasi => "wasm32-wasi",
            Self::Linux => "linux",
        })
    }
}

pub(super) async fn run(
    arguments: &RunArguments,
    name: String,
    data: DataDirectory,
    network: Arc<NodeNetwork>,
    service: Service,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let flags = &arguments.cluster;
    if arguments.status_config_map.is_some() {
        bail!(
            "--status-config-map is for a node without a cluster of its own; this one joins one, which shows the statuses of its pods"
        );
    }
    let labels = labels::parse(&flags.node_labels)?;
    let reserved = reserved(&flags.system_reserved)?;
    let hostname = flags.hostname.clone().unwrap_or_else(|| name.clone());
    if !labels::is_value(&hostname) {
        let from = if flags.hostname.is_some() { "--hostname" } else { "the node's name" };
        bail!(
            "{from} {hostname:?} cannot be the value of the Node's label kubernetes.io/hostname, which has at most 63 letters, digits, `-`, `_`, `.`, and begins and ends with a letter or digit; choose one with --hostname"
        );
    }
    let source = identity_source(arguments)?;
    std::fs::create_dir_all(data.path()).with_context(|| data.path().display().to_string())?;
    let identity = tokio::select! {
        identity = Identity::take_up(&source, &name, data.path()) => identity?,
        () = shutdown.cancelled() => return Ok(()),
    };
    let connection = identity.connection.clone();
    let addresses = match &arguments.node_ip[..] {
        [] => vec![own_address(&connection, &data).await?],
        chosen => chosen.to_vec(),
    };
    let (node_object, watched) = watch::channel(None);
    let events = EventRecorder::start(connection.client(), &name);
    let mut config = node_config(arguments, &name, &addresses, &data, network)?;
    let settings = NodeSettings {
        os_label: flags.os_label.to_string(),
        name: name.clone(),
        hostname,
        machine: host_name(),
        addresses: addresses.clone(),
        port: flags.port,
        labels,
        max_pods: flags.max_pods,
        reserved,
        pressure: config.pressure.conditions(),
        machine_goes_down: config.machine_goes_down.subscribe(),
        data: data.path().to_owned(),
        instance: data.instance().with_context(|| {
            format!("cannot make the node's instance file in {}, which has to be writable", data.path().display())
        })?,
    };
    config.facts.allocatable = config.facts.allocatable.without(&settings.reserved);
    config.allow_local_modules = flags.allow_local_modules;
    akri_krustlet_node::cluster::protect_api_server(config.network.clone(), connection.server(), connection.client())
        .await;
    let static_pods_owner = watched.clone();
    let history = History::default();
    let access = ClusterAccess { client: connection.client(), node: watched, history: history.clone() };
    config.cluster = Some((access, events.clone()));
    let api = ApiSink::new(connection.client(), data.clone(), events);
    let mirrors = Mirrors::start(connection.client(), static_pods_owner, api.clone());
    let node = Node::new(config, Arc::new(MirrorSink::new(api, mirrors.clone()))).await?;
    let static_pods = arguments.manifests.as_deref().map(|folder| {
        let source = FolderSource::of_static_pods(folder, &name, node.watcher());
        source.with_context(|| format!("--manifests {}", folder.display()))
    });
    let static_pods = static_pods.transpose()?;
    serve_metrics(arguments, &node, &data);

    let serving = Serving {
        node: name.clone(),
        names: vec![settings.hostname.clone()],
        addresses: addresses.clone(),
        pki: data.path().join("pki"),
    };
    let (certificate, signed) = serving.start()?;
    let endpoint = Endpoint::listen(EndpointConfig {
        node: name.clone(),
        address: SocketAddr::new(flags.address.unwrap_or_else(|| any_address(&addresses)), flags.port),
        certificate: certificate.clone(),
        client_authorities_file: flags.client_ca_file.clone().map(|file| (file.clone(), ReadFiles::new([file]))),
        client_authorities: client_authorities(flags, &connection)?,
        anonymous_healthz: flags.anonymous_healthz,
        client: connection.client(),
        data: data.clone(),
        watcher: node.watcher(),
        metrics: node.metrics(),
        settings: configuration(flags, &settings),
    })
    .await?;

    let registration = Registration::new(connection.clone(), settings, node.provider(), node_object, history.clone());
    tokio::select! {
        claimed = registration.claim() => claimed?,
        () = shutdown.cancelled() => return Ok(()),
    }
    tracing::info!(
        node = name,
        server = connection.url(),
        endpoint = flags.port,
        data = %data.path().display(),
        handlers = %arguments.discovery_handlers_directory.display(),
        "the node joins the cluster"
    );
    service.is_ready("joined the cluster");
    let registration = tokio::spawn(registration.run(shutdown.clone()));
    tokio::spawn(endpoint.serve());
    tokio::spawn(serving.keep(certificate, signed, connection.clone()));
    tokio::spawn(identity.keep());
    let source = NodeSource::new(ClusterSource::new(connection.client(), &history, &name, data), static_pods, mirrors);
    node.run(source, shutdown).await;
    let _ = registration.await;
    Ok(())
}

fn identity_source(arguments: &RunArguments) -> anyhow::Result<IdentitySource> {
    if let Some(bootstrap) = &arguments.bootstrap_file {
        return Ok(IdentitySource::Bootstrap(bootstrap.clone()));
    }
    // KUBECONFIG is read here and not as the flag's default: with --manifests it means nothing.
    let from_environment = std::env::var_os("KUBECONFIG").filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(kubeconfig) = arguments.kubeconfig.clone().or(from_environment) {
        return Ok(IdentitySource::Kubeconfig(kubeconfig));
    }
    if std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() {
        bail!(
            "a service account of the cluster cannot be a node: the API server gives a node's rights to the user system:node:NAME only; \
             mount a bootstrap kubeconfig and name it with --bootstrap-file"
        );
    }
    bail!(
        "where do the pods come from? --bootstrap-file FILE joins a cluster with a bootstrap token, --kubeconfig FILE with the node's own \
         credentials, --manifests DIR runs the pods of a folder without a cluster"
    )
}

fn reserved(resources: &[String]) -> anyhow::Result<Capacity> {
    let mut reserved = Capacity { cpu_millis: 0, memory: 0, ephemeral_storage: 0 };
    for resource in resources.iter().filter(|resource| !resource.is_empty()) {
        let (name, amount) = resource
            .split_once('=')
            .with_context(|| format!("--system-reserved {resource}: expected NAME=QUANTITY"))?;
        let amount = quantity::parse(amount).with_context(|| format!("--system-reserved {resource}"))?;
        match name {
            "cpu" => reserved.cpu_millis = amount.millis(),
            "memory" => reserved.memory = amount.ceil(),
            "ephemeral-storage" => reserved.ephemeral_storage = amount.ceil(),
            _ => bail!("--system-reserved {resource}: expected cpu, memory or ephemeral-storage"),
        }
    }
    Ok(reserved)
}

/// How long the machine may take to find its way to the API server.
const ROUTE: Duration = Duration::from_secs(3);

/// The address from which this machine reaches the API server; while there is no way to that, the one that it had last, so that
/// a machine that starts without a network runs the pods that it remembers.
async fn own_address(connection: &Connection, data: &DataDirectory) -> anyhow::Result<IpAddr> {
    let found = match tokio::time::timeout(ROUTE, route(connection)).await {
        Ok(found) => found,
        Err(_) => Err(anyhow::anyhow!(
            "cannot look up the API server {} within {} s; name the node's address with --node-ip",
            connection.server().0,
            ROUTE.as_secs()
        )),
    };
    match (found, data.address()) {
        (Ok(address), last) => {
            if last != Some(address)
                && let Err(error) = data.store_address(address)
            {
                tracing::warn!(%error, "cannot remember the node's address; a start without a network will fail");
            }
            Ok(address)
        }
        (Err(error), Some(last)) => {
            tracing::warn!(
                "{error:#}; the node has the address that it had last, {last}: restart it if the network gives it another one"
            );
            Ok(last)
        }
        (Err(error), None) => Err(error),
    }
}

/// The address from which this machine reaches the API server. Nothing is sent.
async fn route(connection: &Connection) -> anyhow::Result<IpAddr> {
    let (host, port) = connection.server();
    let way_out = "name the node's address with --node-ip";
    let mut servers = tokio::net::lookup_host((host.as_str(), port))
        .await
        .with_context(|| format!("cannot look up the API server {host}; {way_out}"))?;
    let server = servers.next().with_context(|| format!("the API server {host} has no address; {way_out}"))?;
    let any = if server.is_ipv4() { IpAddr::from(Ipv4Addr::UNSPECIFIED) } else { IpAddr::from(Ipv6Addr::UNSPECIFIED) };
    let socket = tokio::net::UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await.with_context(|| format!("no route to the API server {server}; {way_out}"))?;
    Ok(socket.local_addr()?.ip())
}

fn any_address(addresses: &[IpAddr]) -> IpAddr {
    match addresses.iter().any(IpAddr::is_ipv6) {
        // Takes IPv4 as well.
        true => Ipv6Addr::UNSPECIFIED.into(),
        false => Ipv4Addr::UNSPECIFIED.into(),
    }
}

fn client_authorities(flags: &ClusterArguments, connection: &Connection) -> anyhow::Result<Vec<Vec<u8>>> {
    let Some(path) = &flags.client_ca_file else { return Ok(connection.authorities()) };
    let context = || format!("--client-ca-file {}", path.display());
    let pem = std::fs::read(path).with_context(context)?;
    akri_krustlet_node::cluster::certificate::authorities(&pem).with_context(context)
}

/// What `/configz` tells, in the words of a kubelet's configuration.
fn configuration(flags: &ClusterArguments, settings: &NodeSettings) -> serde_json::Value {
    serde_json::json!({"kubeletconfig": {
        "kind": "KubeletConfiguration", "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "port": settings.port, "maxPods": settings.max_pods,
        "systemReserved": {
            "cpu": format!("{}m", settings.reserved.cpu_millis),
            "memory": settings.reserved.memory.to_string(),
            "ephemeral-storage": settings.reserved.ephemeral_storage.to_string(),
        },
        "nodeStatusUpdateFrequency": "10s", "nodeStatusReportFrequency": "5m0s", "nodeLeaseDurationSeconds": 40,
        "rotateCertificates": true, "serverTLSBootstrap": true,
        "authentication": {"anonymous": {"enabled": false}, "webhook": {"enabled": true}},
        "authorization": {"mode": "Webhook"},
        "containerLogMaxSize": "10Mi", "containerLogMaxFiles": 5,
        "allowLocalModules": flags.allow_local_modules,
    }})
}
