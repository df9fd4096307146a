//! The node's object in the API: registered, kept alive by its lease, its status told when it changes.
//!
//! # Flow
//! 1. [`Registration::claim`] makes sure that no other machine is the node of this name.
//! 2. [`Registration::run`] creates or updates the Node, renews its lease every 10 s, and sends its status when it changed,
//!    or every 5 min.
//! 3. It watches its own Node: one that somebody deletes is registered again at once; its labels and taints decide which
//!    pods are admitted.
//! 4. On shutdown nothing is told: most ends are restarts that take a second, and after 40 s the cluster notices by the lease.
//!    Pods are never deleted.

use super::connection::{Connection, FIRST_ANSWER, code, describe, version, watch_back_off};
use super::machine::{Capacity, Pressure, os_image, read};
use crate::provider::WasmProvider;
use akri_krustlet_devices::Amount;
use futures::{StreamExt as _, pin_mut};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{
    DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeStatus, NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, OwnerReference, Time};
use kube::api::{Api, ObjectMeta, Patch, PatchParams, PostParams};
use kube::runtime::WatchStreamExt as _;
use kubelet::provider::Provider as _;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The Kubernetes release whose API and rules the node follows; told as the kubelet's version, which skew checks read.
pub const KUBERNETES_VERSION: &str = "v1.36.3";

/// How often the lease is renewed, and how long it counts; a kubelet's defaults.
const RENEWAL: Duration = Duration::from_secs(10);
const LEASE_SECONDS: i32 = 40;
/// How often an unchanged status is sent; a kubelet's default.
const STATUS: Duration = Duration::from_secs(300);

/// A status that was sent this long ago was not overwritten by a race.
const SETTLED: Duration = Duration::from_secs(1);

/// Changes of devices within this time are told at once.
const COALESCED: Duration = Duration::from_millis(100);

/// Annotations of the lease: which installation holds it.
const INSTANCE: &str = "akri-krustlet/instance";
const HOST: &str = "akri-krustlet/host";

/// What the Node object says.
#[derive(Clone, Debug)]
pub struct NodeSettings {
    /// Its name.
    pub name: String,
    /// The name by which its pods know it, `kubernetes.io/hostname`.
    pub hostname: String,
    /// The machine's own name, for people.
    pub machine: String,
    /// Its addresses, the first one first.
    pub addresses: Vec<IpAddr>,
    /// Port of its HTTPS endpoint.
    pub port: u16,
    /// Labels besides its own.
    pub labels: BTreeMap<String, String>,
    /// Most pods.
    pub max_pods: u32,
    /// What is kept from pods.
    pub reserved: Capacity,
    /// What the machine is short of.
    pub pressure: watch::Receiver<Pressure>,
    /// The data directory, whose filesystem is the node's storage.
    pub data: PathBuf,
    /// Which installation this is; another one of the same name is another node.
    pub instance: String,
}

/// Why the node may not be the node of this name.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// Another machine is.
    #[error(
        "another node named {name} runs on {host} and renewed its lease {age} s ago; stop it, or choose another --node-name"
    )]
    Taken {
        /// The name.
        name: String,
        /// Where it says it runs.
        host: String,
        /// Seconds.
        age: i64,
    },
}

/// Keeps the Node. Its latest state can be watched.
#[derive(Debug)]
pub struct Registration {
    connection: Arc<Connection>,
    settings: NodeSettings,
    provider: Arc<WasmProvider>,
    node: watch::Sender<Option<Arc<Node>>>,
    /// Does not change while the node runs.
    info: NodeSystemInfo,
}

impl Registration {
    /// Of a node with these settings.
    /// `node` is told the Node whenever the API server tells it.
    pub fn new(
        connection: Arc<Connection>,
        settings: NodeSettings,
        provider: Arc<WasmProvider>,
        node: watch::Sender<Option<Arc<Node>>>,
    ) -> Self {
        Self { connection, settings, provider, node, info: node_info() }
    }

    fn nodes(&self) -> Api<Node> {
        Api::all(self.connection.client())
    }

    fn leases(&self) -> Api<Lease> {
        Api::namespaced(self.connection.client(), "kube-node-lease")
    }

    /// Makes sure that no other machine holds this name. One that has just stopped is waited for; an API server that does
    /// not answer is no reason not to start.
    pub async fn claim(&self) -> Result<(), ClaimError> {
        let mut seen: Option<Timestamp> = None;
        loop {
            let asked = tokio::time::timeout(FIRST_ANSWER, self.leases().get_opt(&self.settings.name)).await;
            let lease = match asked {
                Ok(Ok(Some(lease))) => lease,
                Ok(Ok(None)) => return Ok(()),
                failed => {
                    let what = failed.map_or_else(
                        |_| format!("no answer within {} s", FIRST_ANSWER.as_secs()),
                        |error| error.err().map(|error| describe(&error)).unwrap_or_default(),
                    );
                    tracing::warn!("cannot see whether another node has this name: {what}");
                    // One that had it a moment ago may have it still, until its lease has run out.
                    let holds =
                        |seen: Timestamp| Timestamp::now().as_second() - seen.as_second() < i64::from(LEASE_SECONDS);
                    if seen.is_some_and(holds) {
                        tokio::time::sleep(Duration::from_secs(1)).await;
                        continue;
                    }
                    return Ok(());
                }
            };
            let Some((age, renewed)) = self.holder_age(&lease) else { return Ok(()) };
            if seen.is_some_and(|seen| renewed > seen) {
                return Err(self.taken(&lease, age));
            }
            if seen.is_none() {
                tracing::warn!(
                    "a node named {} on {} renewed its lease {age} s ago; waiting until it is clear that it has gone",
                    self.settings.name,
                    annotation(&lease, HOST)
                );
            }
            seen = Some(renewed);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// Seconds since another installation renewed the lease, and when; `None` if it is ours or has run out.
    fn holder_age(&self, lease: &Lease) -> Option<(i64, Timestamp)> {
        let instance = annotation(lease, INSTANCE);
        let renewed = lease.spec.as_ref()?.renew_time.as_ref()?.0;
        let age = Timestamp::now().as_second() - renewed.as_second();
        let holds = !instance.is_empty() && instance != self.settings.instance && age < i64::from(LEASE_SECONDS);
        holds.then_some((age, renewed))
    }

    fn taken(&self, lease: &Lease, age: i64) -> ClaimError {
        ClaimError::Taken { name: self.settings.name.clone(), host: annotation(lease, HOST), age }
    }

    /// Keeps the Node until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let own = kube::runtime::watcher::watch_object(self.nodes(), &self.settings.name).backoff(watch_back_off());
        pin_mut!(own);
        let mut beat = tokio::time::interval(RENEWAL);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut heart =
            Heart { lease: None, sent: None, sent_at: Instant::now(), version: 0, stale: false, outage: false };
        let mut failing_watch = false;
        let mut amounts = self.provider.devices().map(|devices| devices.amounts());
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                _ = beat.tick() => self.beat(&mut heart, true).await,
                () = changed(&mut amounts) => {
                    tokio::time::sleep(COALESCED).await;
                    self.beat(&mut heart, false).await;
                }
                change = own.next() => match change {
                    Some(Ok(Some(node))) => {
                        failing_watch = false;
                        // Others write conditions too: the controller that takes the node for dead, for one.
                        let is_news = version(&node.metadata) > heart.version;
                        heart.stale = is_news && heart.sent.is_some() && self.differs(&node);
                        self.node.send_replace(Some(Arc::new(node)));
                        // At once, but not in a race with whoever writes them: then with the next renewal.
                        if heart.stale && heart.sent_at.elapsed() >= SETTLED {
                            tracing::info!("the API server has other conditions of this node; they are set right");
                            self.beat(&mut heart, false).await;
                        }
                    }
                    Some(Ok(None)) => {
                        failing_watch = false;
                        if self.node.send_replace(None).is_some() {
                            tracing::warn!("somebody deleted this node's object; registering again");
                            (heart.sent, heart.lease) = (None, None);
                            self.beat(&mut heart, true).await;
                        }
                    }
                    Some(Err(error)) => {
                        if !std::mem::replace(&mut failing_watch, true) {
                            tracing::warn!("cannot watch this node's object: {error}");
                        }
                    }
                    None => tokio::time::sleep(RENEWAL).await,
                },
            }
        }
    }

    /// One beat: the Node exists, its status is right, its lease is renewed if it is time.
    async fn beat(&self, heart: &mut Heart, renews: bool) {
        let result = self.try_beat(heart, renews).await;
        match result {
            Ok(()) if heart.outage => {
                heart.outage = false;
                tracing::info!("the API server answers again");
            }
            Ok(()) => {}
            Err(error) => {
                // The lease may have changed under us, or the answer been lost: look before the next try.
                heart.lease = None;
                if !std::mem::replace(&mut heart.outage, true) {
                    tracing::error!(
                        server = self.connection.url(),
                        "cannot keep this node registered: {}; trying every {} s, pods run on",
                        describe(&error),
                        RENEWAL.as_secs()
                    );
                }
            }
        }
    }

    async fn try_beat(&self, heart: &mut Heart, renews: bool) -> Result<(), kube::Error> {
        let status = self.status();
        let comparable = comparable(&status);
        if heart.sent.is_none() {
            self.register(&status).await?;
        }
        // After an outage, whatever was made of the status meanwhile.
        let is_due = heart.stale || heart.outage || heart.sent_at.elapsed() >= STATUS;
        if is_due || heart.sent.as_ref() != Some(&comparable) {
            heart.version = self.send_status(&status).await?;
            (heart.sent, heart.sent_at, heart.stale) = (Some(comparable), Instant::now(), false);
        }
        if renews {
            heart.lease = Some(self.renew(heart.lease.take()).await?);
        }
        Ok(())
    }

    /// Creates the Node, or brings what a node may change of its metadata up to date.
    async fn register(&self, status: &NodeStatus) -> Result<(), kube::Error> {
        let wanted = self.object(status).await;
        let Some(existing) = self.nodes().get_opt(&self.settings.name).await? else {
            match self.nodes().create(&PostParams::default(), &wanted).await {
                Ok(_) => tracing::info!(node = self.settings.name, "the node is registered"),
                Err(error) if code(&error) == Some(409) => {}
                Err(error) => return Err(error),
            }
            return Ok(());
        };
        let has = |taint: &k8s_openapi::api::core::v1::Taint| {
            let taints = existing.spec.as_ref().and_then(|spec| spec.taints.as_ref());
            taints.into_iter().flatten().any(|other| other.key == taint.key && other.effect == taint.effect)
        };
        for taint in wanted.spec.iter().flat_map(|spec| spec.taints.iter().flatten()).filter(|taint| !has(taint)) {
            tracing::warn!(
                "the Node has no taint {key}={value}:{effect}, without which pods for other machines are scheduled here, and a node may not add it itself: kubectl taint node {node} {key}={value}:{effect}",
                key = taint.key,
                value = taint.value.as_deref().unwrap_or_default(),
                effect = taint.effect,
                node = self.settings.name,
            );
        }
        let missing = |(key, value): &(&String, &String)| {
            existing.metadata.labels.as_ref().and_then(|labels| labels.get(*key)) != Some(*value)
        };
        let labels: BTreeMap<_, _> = wanted.metadata.labels.iter().flatten().filter(missing).collect();
        if !labels.is_empty() {
            let patch = json!({"metadata": {"labels": labels}});
            self.nodes().patch(&self.settings.name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
        }
        tracing::info!(node = self.settings.name, "the node is registered, its object was there");
        Ok(())
    }

    /// Whether a condition of ours has another status or reason there.
    fn differs(&self, node: &Node) -> bool {
        let known = node.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        let is_known = |ours: &NodeCondition| {
            known
                .iter()
                .any(|known| (&known.type_, &known.status, &known.reason) == (&ours.type_, &ours.status, &ours.reason))
        };
        !self.status().conditions.iter().flatten().all(is_known)
    }

    /// The version of the Node that has the status.
    async fn send_status(&self, status: &NodeStatus) -> Result<u64, kube::Error> {
        let mut value = serde_json::to_value(status).map_err(kube::Error::SerdeError)?;
        let conditions = status.conditions.clone().unwrap_or_default();
        value["conditions"] = serde_json::to_value(self.merged(conditions)).map_err(kube::Error::SerdeError)?;
        let removed = self.removed_resources();
        for name in &removed {
            value["capacity"][name] = Value::Null;
            value["allocatable"][name] = Value::Null;
        }
        let patch = json!({ "status": value });
        let node =
            self.nodes().patch_status(&self.settings.name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
        if let Some(devices) = self.provider.devices() {
            devices.removal_is_told(&removed);
        }
        Ok(version(&node.metadata))
    }

    /// Resources of device plugins that went, which the Node must not go on to show.
    fn removed_resources(&self) -> Vec<String> {
        let Some(devices) = self.provider.devices() else { return Vec::new() };
        let amounts = devices.amounts();
        let amounts = amounts.borrow();
        amounts.iter().filter(|(_, amount)| amount.is_none()).map(|(name, _)| name.clone()).collect()
    }

    /// Resources of device plugins, of each the capacity or what is allocatable of it.
    fn device_resources(&self, which: impl Fn(&Amount) -> usize) -> Vec<(String, Quantity)> {
        let Some(devices) = self.provider.devices() else { return Vec::new() };
        let amounts = devices.amounts();
        let amounts = amounts.borrow();
        let there = amounts.iter().filter_map(|(name, amount)| Some((name.clone(), amount.as_ref()?)));
        there.map(|(name, amount)| (name, Quantity(which(amount).to_string()))).collect()
    }

    /// Our conditions, and those that others have set on the Node, since a list is replaced as a whole. A transition time
    /// is kept where the status is the same.
    fn merged(&self, ours: Vec<NodeCondition>) -> Vec<NodeCondition> {
        let known = self.node.borrow().clone();
        let known = known.as_ref().and_then(|node| node.status.as_ref()?.conditions.clone()).unwrap_or_default();
        let mut merged: Vec<_> =
            known.iter().filter(|theirs| ours.iter().all(|ours| ours.type_ != theirs.type_)).cloned().collect();
        merged.extend(ours.into_iter().map(|mut condition| {
            let same = known.iter().find(|known| known.type_ == condition.type_ && known.status == condition.status);
            if let Some(same) = same {
                condition.last_transition_time.clone_from(&same.last_transition_time);
            }
            condition
        }));
        merged
    }

    async fn renew(&self, lease: Option<Lease>) -> Result<Lease, kube::Error> {
        let now = MicroTime(Timestamp::now());
        let lease = match lease {
            Some(lease) => Some(lease),
            None => self.leases().get_opt(&self.settings.name).await?,
        };
        let Some(mut lease) = lease else {
            return self.leases().create(&PostParams::default(), &self.new_lease(now).await).await;
        };
        if let Some((age, _)) = self.holder_age(&lease) {
            tracing::error!("{}", self.taken(&lease, age));
        }
        lease.metadata.annotations.get_or_insert_default().extend(self.lease_annotations());
        lease.metadata.managed_fields = None;
        let spec = lease.spec.get_or_insert_default();
        spec.renew_time = Some(now);
        spec.holder_identity = Some(self.settings.name.clone());
        spec.lease_duration_seconds = Some(LEASE_SECONDS);
        self.leases().replace(&self.settings.name, &PostParams::default(), &lease).await
    }

    async fn new_lease(&self, now: MicroTime) -> Lease {
        // With an owner, the lease goes with the Node.
        let node = self.nodes().get_opt(&self.settings.name).await.ok().flatten();
        let owner = node.and_then(|node| node.metadata.uid).map(|uid| OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            name: self.settings.name.clone(),
            uid,
            ..OwnerReference::default()
        });
        Lease {
            metadata: ObjectMeta {
                name: Some(self.settings.name.clone()),
                namespace: Some("kube-node-lease".to_owned()),
                annotations: Some(self.lease_annotations()),
                owner_references: owner.map(|owner| vec![owner]),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.settings.name.clone()),
                lease_duration_seconds: Some(LEASE_SECONDS),
                renew_time: Some(now),
                ..LeaseSpec::default()
            }),
        }
    }

    fn lease_annotations(&self) -> BTreeMap<String, String> {
        let address = self.settings.addresses.first().map(IpAddr::to_string).unwrap_or_default();
        let host = format!("{} ({address})", self.settings.machine);
        BTreeMap::from([(INSTANCE.to_owned(), self.settings.instance.clone()), (HOST.to_owned(), host)])
    }

    async fn object(&self, status: &NodeStatus) -> Node {
        let mut builder = kubelet::node::Node::builder();
        builder.set_name(&self.settings.name);
        if let Err(error) = self.provider.node(&mut builder).await {
            tracing::error!(%error, "the provider does not describe its node");
        }
        // What Krustlet's contract says of the node: in the API's version of today.
        let built = serde_json::to_value(builder.build().into_inner()).unwrap_or_default();
        let mut node: Node = serde_json::from_value(built).unwrap_or_default();
        let labels = node.metadata.labels.get_or_insert_default();
        let architecture = WasmProvider::ARCH.to_owned();
        labels.insert("kubernetes.io/arch".to_owned(), architecture.clone());
        labels.insert("kubernetes.io/os".to_owned(), architecture);
        labels.insert("kubernetes.io/hostname".to_owned(), self.settings.hostname.clone());
        labels.insert("type".to_owned(), "krustlet".to_owned());
        labels.extend(self.settings.labels.clone());
        if let Some(spec) = &mut node.spec {
            spec.pod_cidr = None;
            spec.pod_cidrs = None;
        }
        node.status = Some(status.clone());
        node
    }

    fn status(&self) -> NodeStatus {
        let settings = &self.settings;
        let pressure = settings.pressure.borrow().clone();
        let capacity = Capacity::read(&settings.data).ok();
        let free = capacity.clone().map(|all| all.without(&settings.reserved));
        let resources = |capacity: Option<Capacity>, devices: Vec<(String, Quantity)>| {
            let capacity = capacity?;
            let cpu = match capacity.cpu_millis % 1000 {
                0 => (capacity.cpu_millis / 1000).to_string(),
                _ => format!("{}m", capacity.cpu_millis),
            };
            let mut resources = BTreeMap::from([
                ("cpu".to_owned(), Quantity(cpu)),
                ("memory".to_owned(), Quantity(format!("{}Ki", capacity.memory >> 10))),
                ("ephemeral-storage".to_owned(), Quantity(format!("{}Ki", capacity.ephemeral_storage >> 10))),
                ("pods".to_owned(), Quantity(settings.max_pods.to_string())),
            ]);
            resources.extend(devices);
            Some(resources)
        };
        let pressed = |kind: &str, what: &Option<String>, fine: (&str, &str), bad: &str| match what {
            Some(message) => condition(kind, "True", bad, message),
            None => condition(kind, "False", fine.0, fine.1),
        };
        let addresses = settings.addresses.iter().map(|address| ("InternalIP", address.to_string()));
        let addresses = addresses.chain([("Hostname", settings.hostname.clone())]);
        NodeStatus {
            capacity: resources(capacity, self.device_resources(|amount| amount.capacity)),
            allocatable: resources(free, self.device_resources(|amount| amount.allocatable)),
            conditions: Some(vec![
                pressed(
                    "MemoryPressure",
                    &pressure.memory,
                    ("KubeletHasSufficientMemory", "the node has sufficient memory available"),
                    "KubeletHasInsufficientMemory",
                ),
                pressed(
                    "DiskPressure",
                    &pressure.disk,
                    ("KubeletHasNoDiskPressure", "the node has sufficient space for its data"),
                    "KubeletHasDiskPressure",
                ),
                pressed(
                    "PIDPressure",
                    &pressure.pid,
                    ("KubeletHasSufficientPID", "the node has sufficient processes available"),
                    "KubeletHasInsufficientPID",
                ),
                condition("Ready", "True", "KubeletReady", "the node takes WebAssembly pods"),
            ]),
            addresses: Some(addresses.map(|(kind, address)| NodeAddress { type_: kind.to_owned(), address }).collect()),
            daemon_endpoints: Some(NodeDaemonEndpoints {
                kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(settings.port) }),
            }),
            node_info: Some(self.info.clone()),
            ..NodeStatus::default()
        }
    }
}

/// Resolves when there are other devices than before.
async fn changed<T>(amounts: &mut Option<watch::Receiver<T>>) {
    let told = match amounts {
        Some(amounts) => amounts.changed().await.is_ok(),
        None => false,
    };
    if !told {
        std::future::pending().await
    }
}

/// What is remembered between beats.
struct Heart {
    lease: Option<Lease>,
    /// The status that was sent last, without its times.
    sent: Option<Value>,
    sent_at: Instant,
    /// Of the Node, since.
    version: u64,
    /// The API server has another status than that.
    stale: bool,
    outage: bool,
}

fn annotation(lease: &Lease, name: &str) -> String {
    let annotations = lease.metadata.annotations.as_ref();
    annotations.and_then(|annotations| annotations.get(name)).cloned().unwrap_or_default()
}

fn condition(kind: &str, status: &str, reason: &str, message: &str) -> NodeCondition {
    let now = Some(Time(Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default()));
    NodeCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_heartbeat_time: now.clone(),
        last_transition_time: now,
    }
}

/// The status without what changes all the time: the times, and the amounts in messages.
fn comparable(status: &NodeStatus) -> Value {
    let mut value = serde_json::to_value(status).unwrap_or_default();
    if let Some(conditions) = value.get_mut("conditions").and_then(Value::as_array_mut) {
        for condition in conditions.iter_mut().filter_map(Value::as_object_mut) {
            for field in ["lastHeartbeatTime", "lastTransitionTime", "message"] {
                condition.remove(field);
            }
        }
    }
    value
}

fn node_info() -> NodeSystemInfo {
    let machine_id = read("/etc/machine-id").unwrap_or_default();
    NodeSystemInfo {
        architecture: WasmProvider::ARCH.to_owned(),
        operating_system: WasmProvider::ARCH.to_owned(),
        container_runtime_version: crate::provider::RUNTIME_VERSION.to_owned(),
        kubelet_version: KUBERNETES_VERSION.to_owned(),
        kernel_version: rustix::system::uname().release().to_string_lossy().into_owned(),
        os_image: os_image().unwrap_or_default(),
        boot_id: read("/proc/sys/kernel/random/boot_id").unwrap_or_default(),
        system_uuid: read("/sys/class/dmi/id/product_uuid").unwrap_or_else(|| machine_id.clone()),
        machine_id,
        ..NodeSystemInfo::default()
    }
}
