//! `run`: the node, alone or in a cluster.

mod cluster;
mod log;
mod service;
mod standalone;
mod traces;

use crate::DirectoryArguments;
use crate::output::host_name;
use akri_krustlet_devices::DevicesConfig;
use akri_krustlet_discovery::HandlersConfig;
use akri_krustlet_discovery::host_path::AllowList;
use akri_krustlet_images::{GarbageCollection, ImagePolicy, NodeCredentials};
use akri_krustlet_node::cluster::machine::{Capacity, Thresholds};
use akri_krustlet_node::eviction::{EvictionSettings, PressureWatch, Reclaim};
use akri_krustlet_node::fields::NodeFacts;
use akri_krustlet_node::machine_shutdown::ShutdownPeriods;
use akri_krustlet_node::metrics::{MetricsAddress, MetricsServer, NodeMetrics, Pages};
use akri_krustlet_node::{DataDirectory, DevicePlugins, Node, NodeConfig};
use akri_krustlet_runtime::RuntimeConfig;
use akri_krustlet_runtime::network::{NetworkCeiling, NodeNetwork};
use akri_krustlet_runtime::world::RecordTo;
use anyhow::{Context as _, bail};
use log::{LogFormat, LogLevel, log_level};
use service::Service;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Run the node: its pods, and the sockets of the discovery handlers in them. Ends on SIGTERM and SIGINT; the pods are taken
/// up again by the next start.
///
/// With --bootstrap-file or --kubeconfig it joins a cluster; with --manifests and without them it runs alone.
#[derive(Debug, clap::Args)]
pub(crate) struct RunArguments {
    /// File with these settings, YAML with the flags' names; files FILE.d/*.yaml change some of them. The command line and the
    /// environment count before it
    #[arg(long, env = "AKRI_KRUSTLET_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// How the node's own log on standard error is written; a line each, or a JSON object each (see docs/operate.md)
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t)]
    log_format: LogFormat,
    /// What the node logs: error, warn, info, debug or trace, or a list of TARGET=LEVEL
    #[arg(long, env = "RUST_LOG", value_name = "LEVEL", default_value = "info,kube_client=off", hide_default_value = true, value_parser = log_level)]
    log_level: String,
    /// Folder of Pod manifests (*.yaml, *.json): all pods of a node without a cluster; in a cluster static pods, which run beside its
    /// own and which it shows as mirror pods. Watched: a file added starts its pods, a changed one replaces them, a removed one
    /// stops them
    #[arg(long, value_name = "DIR")]
    manifests: Option<PathBuf>,
    /// Kubeconfig whose user is this node (system:node:NAME). With --bootstrap-file it need not exist and is not used
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Kubeconfig with a bootstrap token, with which the node asks the cluster for its own certificate
    #[arg(long, env = "KRUSTLET_BOOTSTRAP_FILE", value_name = "FILE")]
    bootstrap_file: Option<PathBuf>,
    /// The node's name [default: the host's name, in lower case]
    #[arg(long, env = "KRUSTLET_NODE_NAME", value_name = "NAME")]
    node_name: Option<String>,
    /// The node's addresses, the first one first: pods see them as status.hostIPs, the API server asks for logs there
    /// [default: the one from which the API server is reached; without a cluster 127.0.0.1]
    #[arg(long, env = "KRUSTLET_NODE_IP", value_name = "IP", value_delimiter = ',')]
    node_ip: Vec<IpAddr>,
    #[command(flatten)]
    directories: DirectoryArguments,
    /// Where discovery handlers and Akri's Agent have their sockets
    #[arg(long, env = "DISCOVERY_HANDLERS_DIRECTORY", value_name = "DIR", default_value = "/var/lib/akri")]
    discovery_handlers_directory: PathBuf,
    /// Directory of kubelet.sock, at which device plugins register, and of their sockets; in a directory pod-resources beside
    /// it is the socket that tells which pod has which device. Must not be that of a kubelet that runs
    /// [default: /var/lib/kubelet/device-plugins if nobody else serves it; without a cluster none]
    #[arg(long, env = "KRUSTLET_DEVICE_PLUGINS_DIR", value_name = "DIR")]
    device_plugins_directory: Option<PathBuf>,
    /// Where to tell which pod has which device, if not there
    #[arg(long, value_name = "PATH")]
    pod_resources_socket: Option<PathBuf>,
    /// A resource whose device plugin is gone counts 0 after this time, and is removed after twice of it, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..))]
    device_plugin_grace_period: u64,
    /// How long a device plugin may take to prepare devices for a container (Allocate), in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..))]
    device_allocation_timeout: u64,
    /// How long a handler's streams stay open after its last pod is gone, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    handler_grace_period: u64,
    /// Which namespace's pods may serve the discovery handler of a name [default: those of the namespace that served it first]
    #[arg(long, value_name = "NAME=NAMESPACE,...", value_delimiter = ',')]
    handler_namespaces: Vec<String>,
    /// Host paths that the devices of discovery handlers may name in mounts and device_specs, if their pods' annotation
    /// akri-krustlet/allowed-host-paths names them too: /dev/video*,/run/udev [default: none]
    #[arg(long, value_name = "PATHS", default_value = "", hide_default_value = true, value_parser = host_paths)]
    allowed_host_paths: AllowList,
    /// What no guest may reach or serve, whatever its pod grants it (annotation akri-krustlet/network): a file with lines
    /// `deny ADDRESS[:PORTS]` and `deny NAME`, or with rules as the annotation's, which are all that can be had then [default: none]
    #[arg(long, value_name = "FILE")]
    network_ceiling: Option<PathBuf>,
    /// Without a cluster of its own, tell the statuses of the pods to the cluster that this process runs in: into this ConfigMap,
    /// with the service account of the process's pod, or the kubeconfig that KUBECONFIG names [default: not]
    #[arg(long, value_name = "NAMESPACE/NAME", requires = "manifests", value_parser = namespaced_name)]
    status_config_map: Option<(String, String)>,
    /// Serve metrics to this machine's processes, by plain HTTP: 127.0.0.1:PORT or unix:/PATH. In a cluster the node's HTTPS
    /// endpoint serves them to those who may read them [default: not]
    #[arg(long, value_name = "ADDRESS")]
    metrics_address: Option<MetricsAddress>,
    /// Send traces to a collector, by OTLP over gRPC without TLS: pods' starts with pulls and compiles, calls of handlers and their steps
    /// [default: not]
    #[arg(long, value_name = "HOST:PORT", value_parser = traces::endpoint)]
    tracing_endpoint: Option<String>,
    /// So many of a million traces
    #[arg(long, value_name = "N", default_value_t = 1_000_000, requires = "tracing_endpoint",
        value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    tracing_sampling_rate_per_million: u32,
    /// Serve a web page of what the node is at to this machine's processes, read-only: handlers, devices, containers, logs, events.
    /// At the address of --metrics-address [default then: 127.0.0.1:9464]
    #[arg(long)]
    web: bool,
    /// Docker config.json with credentials for registries, for all pods; a pod's imagePullSecrets come first
    #[arg(long, env = "KRUSTLET_REGISTRY_CREDENTIALS", value_name = "FILE")]
    registry_credentials: Option<PathBuf>,
    /// Registries (HOST or HOST:PORT) that are spoken to without TLS
    #[arg(long, env = "KRUSTLET_INSECURE_REGISTRIES", value_name = "HOSTS", value_delimiter = ',')]
    insecure_registries: Vec<String>,
    /// Which images are run: a file that names registries and repositories, and the keys that their images have to be signed by
    /// (cosign sign --key), or that they are named by digest; docs/operate.md has its format [default: all]
    #[arg(long, env = "KRUSTLET_IMAGE_POLICY", value_name = "FILE")]
    image_policy: Option<PathBuf>,
    /// What must be left of the machine; if less is, the node says so in its conditions, takes no more pods that would be the
    /// next to go, and evicts pods: those that take more than they asked for first, then by priority. For pid.available it only
    /// says so, since guests have no processes. Signals: memory.available, nodefs.available, nodefs.inodesFree, pid.available
    #[arg(
        long,
        value_name = "SIGNAL<AMOUNT,...",
        default_value = "memory.available<100Mi,nodefs.available<10%,nodefs.inodesFree<5%,pid.available<10%"
    )]
    eviction_hard: Thresholds,
    /// What must be left besides, once it was too little, before evictions end
    #[arg(long, value_name = "SIGNAL=AMOUNT,...", default_value = "", hide_default_value = true)]
    eviction_minimum_reclaim: Reclaim,
    /// How long a shortage is told in the node's conditions after it was seen last, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    eviction_pressure_transition_period: u64,
    /// Percent of the data directory's disk in use at which images that no pod runs are removed
    #[arg(long, value_name = "PERCENT", default_value_t = 85, value_parser = clap::value_parser!(u8).range(0..=100))]
    image_gc_high_threshold: u8,
    /// Percent in use at which that ends
    #[arg(long, value_name = "PERCENT", default_value_t = 80, value_parser = clap::value_parser!(u8).range(0..=100))]
    image_gc_low_threshold: u8,
    /// How long an image is kept after its last use
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    image_gc_minimum_age: u64,
    /// How often the disk is looked at for that
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..))]
    image_gc_period: u64,
    /// How long containers with a standard input, which see its end when the node ends, may take for their own, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    shutdown_grace_period: u64,
    /// When the machine goes down, how long its pods may take to end, in seconds: systemd-logind has it wait, the Node is not Ready, and
    /// the pods are Failed with reason Terminated, so that their controllers make others. 0: they end with the machine, and run
    /// again when it is back
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    node_shutdown_grace_period: u64,
    /// Of that, how long is for the critical pods (priority 2000000000 and more), which end after all others
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    node_shutdown_grace_period_critical_pods: u64,
    /// In place of both, periods by priority: pods of that priority and more, up to the next one; the lowest end first
    #[arg(long, value_name = "PRIORITY=SECONDS,...", default_value = "", hide_default_value = true,
        conflicts_with_all = ["node_shutdown_grace_period", "node_shutdown_grace_period_critical_pods"])]
    node_shutdown_grace_period_by_pod_priority: ShutdownPeriods,
    /// End as by a signal when the standard input ends: with whoever has started this
    #[arg(long, hide = true)]
    until_input_ends: bool,
    /// Write down what the newest stream's handler sees and says
    #[arg(long, value_name = "FILE", hide = true)]
    record: Option<PathBuf>,
    /// With what is secret
    #[arg(long, requires = "record", hide = true)]
    record_secrets: bool,
    #[command(flatten, next_help_heading = "In a cluster")]
    cluster: cluster::ClusterArguments,
}

impl RunArguments {
    /// Whether the node has no cluster.
    fn is_alone(&self) -> bool {
        // KUBECONFIG is not asked: its user may have it for other things.
        self.manifests.is_some() && self.bootstrap_file.is_none() && self.kubeconfig.is_none()
    }
}

pub(crate) fn run(arguments: &RunArguments) -> anyhow::Result<()> {
    #[allow(unsafe_code, reason = "it is for whoever has no threads yet")]
    // SAFETY: this program has none but the first before it runs a node.
    unsafe {
        akri_krustlet_host::resting_memory::have_few_heaps();
    }
    // The node's own work is short; guests have threads of their own.
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores.min(4))
        .thread_name("node")
        .max_blocking_threads(16)
        .enable_all()
        .build()
        .context("cannot start the node's threads")?;
    {
        let _entered = runtime.enter();
        let name = node_name(arguments)?;
        let spans = arguments.tracing_endpoint.as_deref();
        let spans = spans.map(|endpoint| traces::layer(endpoint, arguments.tracing_sampling_rate_per_million, &name));
        let (spans, traces) = spans.transpose()?.unzip();
        let level = log::start(arguments.log_format, &arguments.log_level, spans)?;
        raise_open_files();
        runtime.block_on(run_node(arguments, name, level))?;
        // With what has not been sent.
        drop(traces);
    }
    // Streams end here, with the process. A guest may still be in a system call that never returns.
    std::process::exit(0)
}

async fn run_node(arguments: &RunArguments, name: String, level: LogLevel) -> anyhow::Result<()> {
    let shutdown = shutdown_on_signals()?;
    if arguments.until_input_ends {
        let shutdown = shutdown.clone();
        std::thread::Builder::new().name("input".to_owned()).spawn(move || {
            let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
            shutdown.cancel();
        })?;
    }
    tokio::spawn(akri_krustlet_host::resting_memory::let_go_at_rest());
    tokio::spawn(akri_krustlet_host::resting_memory::give_back_between_steps());
    let data = arguments.directories.data_directory()?;
    check_addresses(&arguments.node_ip)?;
    let network = Arc::new(NodeNetwork::new(network_ceiling(arguments.network_ceiling.as_deref())?));
    let service = Service::start(arguments, level, network.clone())?;
    if let Some(manifests) = arguments.manifests.as_ref().filter(|_| arguments.is_alone()) {
        return standalone::run(arguments, manifests, name, data, network, service, shutdown).await;
    }
    cluster::run(arguments, name, data, network, service, shutdown).await
}

/// How often an address for metrics that is not to be had is tried.
const METRICS_RETRY: Duration = Duration::from_secs(30);

/// Where the web page is, unless the user says another place.
const WEB: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9464);

/// Serves what the node tells this machine: at the address that its user names, and to `top` by a socket in the data directory. Somebody else may have
/// taken a place; the node works without.
fn serve_metrics(arguments: &RunArguments, node: &Node, data: &DataDirectory) {
    let of_user = match (&arguments.metrics_address, arguments.web) {
        (None, true) => Some(MetricsAddress::Loopback(WEB)),
        (address, _) => address.clone(),
    };
    let pages = Pages { overview: arguments.web, web: arguments.web };
    let of_user = of_user.map(|address| (pages, address, "--metrics-address"));
    let of_top =
        (Pages { overview: true, web: false }, MetricsAddress::Unix(data.overview_socket()), "the socket of `top`");
    for (pages, address, what) in of_user.into_iter().chain([of_top]) {
        if let (MetricsAddress::Loopback(address), true) = (&address, pages.web) {
            tracing::info!("what the node is at: http://{address}/");
        }
        tokio::spawn(serve_page(node.metrics(), pages, address, what));
    }
}

async fn serve_page(metrics: Arc<NodeMetrics>, pages: Pages, address: MetricsAddress, what: &str) {
    let mut is_told = false;
    loop {
        match MetricsServer::listen(&address, metrics.clone(), pages).await {
            Ok(server) => return server.serve().await,
            Err(error) if !std::mem::replace(&mut is_told, true) => {
                let every = METRICS_RETRY.as_secs();
                tracing::error!("{what}: {error}; tried again every {every} s, the node runs without");
            }
            Err(_) => {}
        }
        tokio::time::sleep(METRICS_RETRY).await;
    }
}

/// What does not depend on where the pods come from.
fn node_config(
    arguments: &RunArguments,
    name: &str,
    addresses: &[IpAddr],
    data: &DataDirectory,
    network: Arc<NodeNetwork>,
) -> anyhow::Result<NodeConfig> {
    let registry_credentials = match &arguments.registry_credentials {
        Some(path) => NodeCredentials::of_file(path.clone())
            .with_context(|| format!("--registry-credentials {}", path.display()))?,
        None => NodeCredentials::default(),
    };
    let image_policy = match &arguments.image_policy {
        Some(path) => ImagePolicy::of_file(std::path::absolute(path)?).context("--image-policy")?,
        None => ImagePolicy::default(),
    };
    let record = arguments.record.clone().map(|path| RecordTo { path, secrets: arguments.record_secrets });
    Ok(NodeConfig {
        image_policy,
        facts: NodeFacts {
            name: name.to_owned(),
            addresses: addresses.iter().map(IpAddr::to_string).collect(),
            allocatable: Capacity::read(data.path()).unwrap_or_default(),
        },
        runtime: RuntimeConfig { record, ..RuntimeConfig::new(data.modules()) },
        data: data.clone(),
        handlers: HandlersConfig {
            grace_period: Duration::from_secs(arguments.handler_grace_period),
            namespaces: handler_namespaces(&arguments.handler_namespaces)?,
            host_paths: arguments.allowed_host_paths.clone(),
            ..HandlersConfig::new(
                name,
                std::path::absolute(&arguments.discovery_handlers_directory)?,
                data.last_lists(),
                data.handler_owners(),
            )
        },
        devices: device_plugins(arguments, data)?,
        network,
        insecure_registries: arguments.insecure_registries.clone(),
        registry_credentials,
        allow_local_modules: false,
        image_gc: GarbageCollection {
            high_threshold: arguments.image_gc_high_threshold,
            low_threshold: arguments.image_gc_low_threshold,
            minimum_age: Duration::from_secs(arguments.image_gc_minimum_age),
            period: Duration::from_secs(arguments.image_gc_period),
        },
        pressure: Arc::new(PressureWatch::new(
            data.path().to_owned(),
            EvictionSettings {
                thresholds: arguments.eviction_hard.clone(),
                minimum_reclaim: arguments.eviction_minimum_reclaim.clone(),
                transition_period: Duration::from_secs(arguments.eviction_pressure_transition_period),
            },
        )),
        shutdown_grace_period: Duration::from_secs(arguments.shutdown_grace_period),
        shutdown_periods: shutdown_periods(arguments)?,
        machine_goes_down: watch::Sender::new(false),
        cluster: None,
    })
}

fn shutdown_periods(arguments: &RunArguments) -> anyhow::Result<ShutdownPeriods> {
    if !arguments.node_shutdown_grace_period_by_pod_priority.is_empty() {
        return Ok(arguments.node_shutdown_grace_period_by_pod_priority.clone());
    }
    let (all, critical) = (arguments.node_shutdown_grace_period, arguments.node_shutdown_grace_period_critical_pods);
    ShutdownPeriods::of_all(Duration::from_secs(all), Duration::from_secs(critical))
        .map_err(|error| anyhow::anyhow!("--node-shutdown-grace-period-critical-pods: {error}"))
}

fn network_ceiling(file: Option<&Path>) -> anyhow::Result<NetworkCeiling> {
    let Some(file) = file else { return Ok(NetworkCeiling::default()) };
    let failed = || format!("--network-ceiling {}", file.display());
    let text = std::fs::read_to_string(file).with_context(failed)?;
    text.parse().with_context(failed)
}

fn host_paths(text: &str) -> Result<AllowList, String> {
    AllowList::parse(text)
        .map_err(|entry| format!("{entry:?} is not an absolute path without `..`, or one with a `*` at its end"))
}

fn namespaced_name(text: &str) -> Result<(String, String), String> {
    let is_name = akri_krustlet_node::manifest::is_dns_subdomain;
    let pair = text.split_once('/').filter(|(namespace, name)| is_name(namespace) && is_name(name));
    pair.map(|(namespace, name)| (namespace.to_owned(), name.to_owned()))
        .ok_or_else(|| "expected NAMESPACE/NAME".to_owned())
}

fn handler_namespaces(pairs: &[String]) -> anyhow::Result<BTreeMap<String, String>> {
    let mut namespaces = BTreeMap::new();
    for pair in pairs.iter().filter(|pair| !pair.is_empty()) {
        let (name, namespace) = pair
            .split_once('=')
            .filter(|(name, namespace)| !name.is_empty() && akri_krustlet_node::manifest::is_dns_subdomain(namespace))
            .with_context(|| format!("--handler-namespaces {pair}: expected NAME=NAMESPACE"))?;
        if namespaces.insert(name.to_owned(), namespace.to_owned()).is_some_and(|other| other != namespace) {
            bail!("--handler-namespaces {pair}: {name} is given to two namespaces; a name has one");
        }
    }
    Ok(namespaces)
}

fn device_plugins(arguments: &RunArguments, data: &DataDirectory) -> anyhow::Result<DevicePlugins> {
    let (directory, required) = match &arguments.device_plugins_directory {
        Some(directory) => (std::path::absolute(directory)?, true),
        None if arguments.is_alone() => return Ok(DevicePlugins::None),
        None => (PathBuf::from("/var/lib/kubelet/device-plugins"), false),
    };
    let mut config = DevicesConfig::new(directory, data.devices());
    config.grace_period = Duration::from_secs(arguments.device_plugin_grace_period);
    config.timeouts.allocate = Duration::from_secs(arguments.device_allocation_timeout);
    if let Some(socket) = &arguments.pod_resources_socket {
        config.pod_resources_socket = Some(socket.clone());
    }
    Ok(if required { DevicePlugins::Required(config) } else { DevicePlugins::IfFree(config) })
}

/// The name, which must be one that an object of the API can have.
fn node_name(arguments: &RunArguments) -> anyhow::Result<String> {
    let (name, from) = match &arguments.node_name {
        Some(name) => (name.clone(), "--node-name"),
        None => (host_name(), "the host's name"),
    };
    if !akri_krustlet_node::manifest::is_dns_subdomain(&name) {
        bail!(
            "{from} {name:?} cannot be a node's name: lower-case letters, digits, `-` and `.`, at most 253, beginning and ending with a letter or digit; choose one with --node-name"
        );
    }
    Ok(name)
}

/// A pod has one address of each family.
fn check_addresses(addresses: &[IpAddr]) -> anyhow::Result<()> {
    let list = || addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",");
    if let Some(address) = addresses.iter().find(|address| address.is_unspecified() || address.is_multicast()) {
        bail!("--node-ip {}: {address} is no address of a machine", list());
    }
    let of_family = |ipv4: bool| addresses.iter().filter(|address| address.is_ipv4() == ipv4).count();
    if of_family(true) > 1 || of_family(false) > 1 {
        bail!(
            "--node-ip {}: one IPv4 address and one IPv6 address at most; name the ones that the API server reaches",
            list()
        );
    }
    Ok(())
}

/// The first signal asks the node to end, the second one ends it.
fn shutdown_on_signals() -> anyhow::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let shutdown = CancellationToken::new();
    let on_signal = shutdown.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        service::is_stopping();
        on_signal.cancel();
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        std::process::exit(1);
    });
    Ok(shutdown)
}

/// Guests, streams and log files all need file descriptors.
fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}
