//! Which plugins there are: they register, tell their devices, go and come back.

use crate::checkpoint::Plugin;
use crate::config::DevicesConfig;
use crate::devices::{DeviceState, Devices, Resource};
use crate::plugin::{self, Connection};
use crate::registry;
use akri_krustlet_metrics::counted;
use akri_proto::v1beta1::RegisterRequest;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::time::Instant;

/// Most resources; Akri has one for each Instance and each Configuration.
const MOST_RESOURCES: usize = 1000;

impl Devices {
    /// A plugin registers a resource; an earlier one of it is replaced.
    pub(crate) fn register(self: &Arc<Self>, request: RegisterRequest) -> Result<(), String> {
        let RegisterRequest { version, endpoint, resource_name, options } = request;
        if version != registry::VERSION {
            return Err(format!("version {version:?} is not served, {} is", registry::VERSION));
        }
        if !registry::is_resource_name(&resource_name) {
            return Err(format!(
                "{resource_name:?} is no name of a device resource: DOMAIN/NAME, and not of kubernetes.io"
            ));
        }
        if endpoint.is_empty() || endpoint.contains(['/', '\0']) || endpoint == registry::SOCKET || endpoint == ".." {
            return Err(format!("endpoint {endpoint:?} must be the name of a socket in the directory of kubelet.sock"));
        }
        {
            let state = self.lock();
            if state.resources.len() >= MOST_RESOURCES && !state.resources.contains_key(&resource_name) {
                return Err(format!("{MOST_RESOURCES} resources are registered, no more are taken"));
            }
        }
        let options = options.unwrap_or_default();
        let plugin = Plugin {
            endpoint,
            pre_start: options.pre_start_required,
            has_preferences: options.get_preferred_allocation_available,
        };
        tracing::info!(resource = resource_name, endpoint = plugin.endpoint, "a device plugin has registered");
        counted().plugin_registrations.add([&resource_name]);
        self.attach(&resource_name, plugin);
        let state = self.lock();
        if let Err(error) = self.write(&state) {
            // It would only have to register again after a restart.
            tracing::error!("{error}");
        }
        Ok(())
    }

    pub(crate) fn attach(self: &Arc<Self>, resource: &str, plugin: Plugin) {
        let socket = self.config.plugins_directory.join(&plugin.endpoint);
        let mut state = self.lock();
        state.lives += 1;
        let life = state.lives;
        // Its devices stay until the new plugin tells its own.
        let (devices, has_told, gone_since) = match state.resources.get_mut(resource) {
            Some(old) => (std::mem::take(&mut old.devices), old.has_told, old.gone_since),
            None => Default::default(),
        };
        let follower =
            tokio::spawn(plugin::follow(Arc::downgrade(self), resource.to_owned(), socket, self.config.timeouts, life));
        let new = Resource { plugin, life, devices, connection: None, has_told, gone_since, follower: Some(follower) };
        state.resources.insert(resource.to_owned(), new);
    }

    pub(crate) fn config(&self) -> &DevicesConfig {
        &self.config
    }

    /// A plugin's list; false if it is not the resource's plugin any more.
    pub(crate) fn update(
        &self,
        resource: &str,
        life: u64,
        list: Vec<akri_proto::v1beta1::Device>,
        connection: &Connection,
    ) -> bool {
        {
            let mut state = self.lock();
            let Some(known) = state.resources.get_mut(resource).filter(|known| known.life == life) else {
                return false;
            };
            let state_of = |device: &akri_proto::v1beta1::Device| DeviceState {
                healthy: device.health == "Healthy",
                numa_nodes: device.topology.iter().flat_map(|near| near.nodes.iter().map(|node| node.id)).collect(),
            };
            known.devices = list.iter().map(|device| (device.id.clone(), state_of(device))).collect();
            known.gone_since = None;
            known.has_told = true;
            known.connection = Some(connection.clone());
        }
        self.changed();
        true
    }

    /// The connection to a plugin is gone; since when the resource is without one.
    pub(crate) fn lost(&self, resource: &str, life: u64) -> Option<Instant> {
        let since = {
            let mut state = self.lock();
            let known = state.resources.get_mut(resource).filter(|known| known.life == life)?;
            known.connection = None;
            *known.gone_since.get_or_insert_with(Instant::now)
        };
        self.changed();
        Some(since)
    }

    /// The plugin stays away: the resource is forgotten.
    pub(crate) fn remove(&self, resource: &str, life: u64) {
        {
            let mut state = self.lock();
            if state.resources.get(resource).is_none_or(|known| known.life != life) {
                return;
            }
            tracing::info!(resource, "the device plugin stays away: its resource is removed");
            if let Some(mut known) = state.resources.remove(resource) {
                // It is the follower that calls.
                known.follower = None;
            }
            if let Err(error) = self.write(&state) {
                tracing::error!("{error}");
            }
        }
        self.changed();
    }

    /// Tells those who wait for devices, and the amounts if they are others than before.
    pub(crate) fn changed(&self) {
        self.turnover.send_replace(());
        let grace_period = self.config.grace_period;
        let state = self.lock();
        // One whose plugin has not told its devices yet is not shown.
        let known = state.resources.iter().filter(|(_, resource)| resource.has_told);
        let now: BTreeMap<_, _> =
            known.map(|(name, resource)| (name.clone(), Some(resource.amount(grace_period)))).collect();
        drop(state);
        self.amounts.send_if_modified(|amounts| {
            let mut new: BTreeMap<_, _> = amounts.keys().map(|name| (name.clone(), None)).collect();
            new.extend(now);
            let is_other = *amounts != new;
            *amounts = new;
            is_other
        });
    }
}
