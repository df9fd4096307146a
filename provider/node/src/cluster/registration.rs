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

use super::History;
use super::connection::{Connection, code, describe, version, watch_back_off};
use super::lease::{ClaimError, NodeLease};
use super::node_object::{NodeObject, NodeSettings, comparable, merged};
use crate::provider::WasmProvider;
use akri_krustlet_host::changed;
use futures::{StreamExt as _, pin_mut};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeStatus};
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::runtime::WatchStreamExt as _;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How often the lease is renewed; a kubelet's default.
const RENEWAL: Duration = Duration::from_secs(10);
/// How often an unchanged status is sent; a kubelet's default.
const STATUS: Duration = Duration::from_secs(300);

/// A status that was sent this long ago was not overwritten by a race.
const SETTLED: Duration = Duration::from_secs(1);

/// Changes of devices within this time are told at once.
const COALESCED: Duration = Duration::from_millis(100);

/// Keeps the Node. Its latest state can be watched.
#[derive(Debug)]
pub struct Registration {
    connection: Arc<Connection>,
    object: NodeObject,
    lease: NodeLease,
    provider: Arc<WasmProvider>,
    node: watch::Sender<Option<Arc<Node>>>,
    history: History,
}

impl Registration {
    /// Of a node with these settings.
    /// `node` is told the Node whenever the API server tells it.
    pub fn new(
        connection: Arc<Connection>,
        settings: NodeSettings,
        provider: Arc<WasmProvider>,
        node: watch::Sender<Option<Arc<Node>>>,
        history: History,
    ) -> Self {
        let address = settings.addresses.first().map(IpAddr::to_string).unwrap_or_default();
        let lease = NodeLease {
            name: settings.name.clone(),
            instance: settings.instance.clone(),
            host: format!("{} ({address})", settings.machine),
        };
        let object = NodeObject::new(settings, provider.clone());
        Self { connection, object, lease, provider, node, history }
    }

    fn nodes(&self) -> Api<Node> {
        Api::all(self.connection.client())
    }

    fn name(&self) -> &str {
        &self.lease.name
    }

    /// Makes sure that no other machine is the node of this name.
    pub async fn claim(&self) -> Result<(), ClaimError> {
        self.lease.claim(|| self.connection.client()).await
    }

    /// Keeps the Node until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let (nodes, name) = (self.nodes(), self.name().to_owned());
        let watch = move || kube::runtime::watcher::watch_object(nodes.clone(), &name).backoff(watch_back_off());
        let own = self.history.follow(watch);
        pin_mut!(own);
        let mut beat = tokio::time::interval(RENEWAL);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut heart = Heart {
            lease: None,
            lease_version: 0,
            sent: None,
            sent_at: Instant::now(),
            version: 0,
            stale: false,
            outage: false,
        };
        let mut failing_watch = false;
        let mut goes_down = Some(self.object.settings.machine_goes_down.clone());
        let mut amounts = self.provider.devices().map(|devices| devices.amounts());
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                _ = beat.tick() => self.beat(&mut heart, true).await,
                () = changed(&mut goes_down) => self.beat(&mut heart, false).await,
                () = changed(&mut amounts) => {
                    tokio::time::sleep(COALESCED).await;
                    self.beat(&mut heart, false).await;
                }
                change = own.next() => match change {
                    Some(Ok(Some(node))) => {
                        failing_watch = false;
                        // Others write conditions too: the controller that takes the node for dead, for one.
                        let is_news = version(&node.metadata) > heart.version;
                        heart.stale = is_news && heart.sent.is_some() && self.object.differs(&node);
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
                            // The lease goes with it.
                            (heart.sent, heart.lease, heart.lease_version) = (None, None, 0);
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
        let status = self.object.status();
        let comparable = comparable(&status);
        if heart.sent.is_none() {
            self.register(&status).await?;
        }
        // After an outage, whatever was made of the status meanwhile.
        let is_due = heart.stale || heart.outage || heart.sent_at.elapsed() >= STATUS;
        if is_due || heart.sent.as_ref() != Some(&comparable) {
            heart.version = match self.send_status(&status).await {
                // A backup was restored that is older than the Node.
                Err(error) if code(&error) == Some(404) => {
                    self.register(&status).await?;
                    self.send_status(&status).await?
                }
                sent => sent?,
            };
            (heart.sent, heart.sent_at, heart.stale) = (Some(comparable), Instant::now(), false);
        }
        if renews {
            let client = self.connection.client();
            let known = match heart.lease.take() {
                Some(known) => Some(known),
                // Its last renewal failed, or is the first one.
                None => self.lease.found(&client).await?,
            };
            let found = known.as_ref().map_or(0, |lease| version(&lease.metadata));
            if found < heart.lease_version {
                self.history.went_back();
                (heart.version, heart.stale) = (0, true);
            }
            let lease = self.lease.renew(&client, known).await?;
            heart.lease_version = version(&lease.metadata);
            heart.lease = Some(lease);
        }
        Ok(())
    }

    /// Creates the Node, or brings what a node may change of its metadata up to date.
    async fn register(&self, status: &NodeStatus) -> Result<(), kube::Error> {
        let wanted = self.object.object(status).await;
        let Some(existing) = self.nodes().get_opt(self.name()).await? else {
            match self.nodes().create(&PostParams::default(), &wanted).await {
                Ok(_) => tracing::info!(node = self.name(), "the node is registered"),
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
                node = self.name(),
            );
        }
        let missing = |(key, value): &(&String, &String)| {
            existing.metadata.labels.as_ref().and_then(|labels| labels.get(*key)) != Some(*value)
        };
        let labels: BTreeMap<_, _> = wanted.metadata.labels.iter().flatten().filter(missing).collect();
        if !labels.is_empty() {
            let patch = json!({"metadata": {"labels": labels}});
            self.nodes().patch(self.name(), &PatchParams::default(), &Patch::Merge(&patch)).await?;
        }
        tracing::info!(node = self.name(), "the node is registered, its object was there");
        Ok(())
    }

    /// The version of the Node that has the status.
    async fn send_status(&self, status: &NodeStatus) -> Result<u64, kube::Error> {
        let mut value = serde_json::to_value(status).map_err(kube::Error::SerdeError)?;
        let conditions = status.conditions.clone().unwrap_or_default();
        value["conditions"] =
            serde_json::to_value(merged(conditions, self.node.borrow().as_deref())).map_err(kube::Error::SerdeError)?;
        let removed = self.object.removed_resources();
        for name in &removed {
            value["capacity"][name] = Value::Null;
            value["allocatable"][name] = Value::Null;
        }
        let patch = json!({ "status": value });
        let node = self.nodes().patch_status(self.name(), &PatchParams::default(), &Patch::Merge(&patch)).await?;
        if let Some(devices) = self.provider.devices() {
            devices.removal_is_told(&removed);
        }
        Ok(version(&node.metadata))
    }
}

/// What is remembered between beats.
struct Heart {
    lease: Option<Lease>,
    /// Its version, when it was written last.
    lease_version: u64,
    /// The status that was sent last, without its times.
    sent: Option<Value>,
    sent_at: Instant,
    /// Of the Node, since.
    version: u64,
    /// The API server has another status than that.
    stale: bool,
    outage: bool,
}
