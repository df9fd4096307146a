//! What the Node object says of this node, and what of it others have written.

use super::machine::{Capacity, Pressure, os_image, read};
use crate::provider::{RUNTIME_VERSION, WasmProvider};
use akri_krustlet_devices::Amount;
use akri_krustlet_images::ListedImage;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeStatus, NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kubelet::provider::Provider as _;
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::watch;

/// The Kubernetes release whose API and rules the node follows; told as the kubelet's version, which skew checks read.
pub const KUBERNETES_VERSION: &str = "v1.36.3";

/// Images that are told at most, as by a kubelet.
const MOST_IMAGES: usize = 50;

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
    /// Value of its label `kubernetes.io/os`.
    pub os_label: String,
    /// Labels besides its own.
    pub labels: BTreeMap<String, String>,
    /// Most pods.
    pub max_pods: u32,
    /// What is kept from pods.
    pub reserved: Capacity,
    /// What the machine is short of.
    pub pressure: watch::Receiver<Pressure>,
    /// The machine is about to go down.
    pub machine_goes_down: watch::Receiver<bool>,
    /// The data directory, whose filesystem is the node's storage.
    pub data: PathBuf,
    /// Which installation this is; another one of the same name is another node.
    pub instance: String,
}

/// The Node object.
#[derive(Debug)]
pub struct NodeObject {
    /// What it says.
    pub settings: NodeSettings,
    provider: Arc<WasmProvider>,
    /// Does not change while the node runs.
    info: NodeSystemInfo,
}

impl NodeObject {
    /// Of a node with these settings.
    pub fn new(settings: NodeSettings, provider: Arc<WasmProvider>) -> Self {
        Self { settings, provider, info: node_info() }
    }

    /// The whole object, as the node creates it.
    pub async fn object(&self, status: &NodeStatus) -> Node {
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
        labels.insert("kubernetes.io/arch".to_owned(), architecture);
        labels.insert("kubernetes.io/os".to_owned(), self.settings.os_label.clone());
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

    /// Its status now.
    pub fn status(&self) -> NodeStatus {
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
                match *settings.machine_goes_down.borrow() {
                    true => condition("Ready", "False", "KubeletNotReady", "node is shutting down"),
                    false => condition("Ready", "True", "KubeletReady", "the node takes WebAssembly pods"),
                },
            ]),
            addresses: Some(addresses.map(|(kind, address)| NodeAddress { type_: kind.to_owned(), address }).collect()),
            daemon_endpoints: Some(NodeDaemonEndpoints {
                kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(settings.port) }),
            }),
            node_info: Some(self.info.clone()),
            images: Some(self.images()),
            declared_features: Some(DECLARED_FEATURES.map(str::to_owned).to_vec()),
            ..NodeStatus::default()
        }
    }

    /// Whether a condition of ours has another status or reason there.
    pub fn differs(&self, node: &Node) -> bool {
        let known = node.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        let is_known = |ours: &NodeCondition| {
            known
                .iter()
                .any(|known| (&known.type_, &known.status, &known.reason) == (&ours.type_, &ours.status, &ours.reason))
        };
        !self.status().conditions.iter().flatten().all(is_known)
    }

    /// Resources of device plugins that went, which the Node must not go on to show.
    pub fn removed_resources(&self) -> Vec<String> {
        let Some(devices) = self.provider.devices() else { return Vec::new() };
        let amounts = devices.amounts();
        let amounts = amounts.borrow();
        amounts.iter().filter(|(_, amount)| amount.is_none()).map(|(name, _)| name.clone()).collect()
    }

    /// Resources of device plugins, of each the capacity or what is allocatable of it.
    fn images(&self) -> Vec<ContainerImage> {
        let as_told = |image: ListedImage| ContainerImage {
            names: Some(image.names),
            size_bytes: i64::try_from(image.size).ok(),
        };
        self.provider.images().into_iter().take(MOST_IMAGES).map(as_told).collect()
    }

    fn device_resources(&self, which: impl Fn(&Amount) -> usize) -> Vec<(String, Quantity)> {
        let Some(devices) = self.provider.devices() else { return Vec::new() };
        let amounts = devices.amounts();
        let amounts = amounts.borrow();
        let there = amounts.iter().filter_map(|(name, amount)| Some((name.clone(), amount.as_ref()?)));
        there.map(|(name, amount)| (name, Quantity(which(amount).to_string()))).collect()
    }
}

/// Without it the API server resizes no pod as a whole.
const DECLARED_FEATURES: [&str; 1] = ["InPlacePodLevelResourcesVerticalScaling"];

/// Our conditions, and those that others have set on the Node, since a list is replaced as a whole. A transition time
/// is kept where the status is the same.
pub fn merged(ours: Vec<NodeCondition>, known: Option<&Node>) -> Vec<NodeCondition> {
    let known = known.and_then(|node| node.status.as_ref()?.conditions.clone()).unwrap_or_default();
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
pub fn comparable(status: &NodeStatus) -> Value {
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
        container_runtime_version: RUNTIME_VERSION.to_owned(),
        kubelet_version: KUBERNETES_VERSION.to_owned(),
        kernel_version: rustix::system::uname().release().to_string_lossy().into_owned(),
        os_image: os_image().unwrap_or_default(),
        boot_id: read("/proc/sys/kernel/random/boot_id").unwrap_or_default(),
        system_uuid: read("/sys/class/dmi/id/product_uuid").unwrap_or_else(|| machine_id.clone()),
        machine_id,
        ..NodeSystemInfo::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn conditions_of_others_stay_and_a_transition_is_as_old_as_the_status() {
        let old = Time("2026-01-01T00:00:00Z".parse().unwrap());
        let known = |kind: &str, status: &str| NodeCondition {
            last_transition_time: Some(old.clone()),
            ..condition(kind, status, "Before", "")
        };
        let status = NodeStatus {
            conditions: Some(vec![
                known("Ready", "True"),
                known("DiskPressure", "True"),
                known("NetworkUnavailable", "False"),
            ]),
            ..NodeStatus::default()
        };
        let node = Node { status: Some(status), ..Node::default() };
        let ours = || vec![condition("Ready", "True", "Now", ""), condition("DiskPressure", "False", "Now", "")];
        let all = merged(ours(), Some(&node));
        let told: Vec<_> = all
            .iter()
            .map(|condition| {
                let is_old = condition.last_transition_time.as_ref() == Some(&old);
                (condition.type_.as_str(), condition.status.as_str(), condition.reason.as_deref().unwrap(), is_old)
            })
            .collect();
        assert_eq!(
            told,
            [
                ("NetworkUnavailable", "False", "Before", true),
                ("Ready", "True", "Now", true),
                ("DiskPressure", "False", "Now", false),
            ]
        );
        assert_eq!(merged(ours(), None).len(), 2);
    }

    #[test]
    fn a_status_is_news_if_more_has_changed_than_times_and_amounts_in_messages() {
        let status = |reason: &str, message: &str| NodeStatus {
            conditions: Some(vec![condition("Ready", "True", reason, message)]),
            ..NodeStatus::default()
        };
        assert_eq!(comparable(&status("A", "12 MB are left")), comparable(&status("A", "11 MB are left")));
        assert_ne!(comparable(&status("A", "")), comparable(&status("B", "")));
        let bare = json!([{"type": "Ready", "status": "True", "reason": "A"}]);
        assert_eq!(comparable(&status("A", "x"))["conditions"], bare);
    }
}
