//! Gives devices to pods, all that a pod asks for or none, and takes them back.

use crate::allocation::{AllocationError, ContainerRequest, PodDevices, PodRequest, Preferences, Provided};
use crate::devices::Devices;
use crate::plugin::Connection;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;
use tokio::time::Instant;

/// Between two tries at a device that its plugin still takes for used.
const ASK_AGAIN: Duration = Duration::from_secs(1);

impl Devices {
    /// Gives a pod the devices that it asks for. A pod that has them keeps them.
    ///
    /// # Errors
    /// Then it has none of them.
    pub async fn allocate(&self, request: &PodRequest) -> Result<(), AllocationError> {
        let deadline = Instant::now() + self.config.patience;
        let mut changes = self.turnover.subscribe();
        loop {
            changes.mark_unchanged();
            let preferences = self.preferences(request).await;
            let reserved = self.reserve(request, &preferences);
            let error = match reserved {
                Ok(()) => break,
                Err(error) => error,
            };
            let changed = async { changes.changed().await.is_ok() };
            let waited = error.may_pass() && tokio::time::timeout_at(deadline, changed).await == Ok(true);
            if !waited {
                return Err(error);
            }
        }
        loop {
            let Err(error) = self.complete(request).await else {
                self.lock().refused.remove(&request.uid);
                return Ok(());
            };
            let Some(until) = self.may_be_unnoticed(&request.uid).filter(|_| error.is_refusal()) else {
                self.release(&request.uid);
                return Err(error);
            };
            self.lock().refused.insert(request.uid.clone());
            tracing::debug!(pod = request.name, "{error}; it may not know yet that the device is free");
            tokio::time::sleep_until(until.min(Instant::now() + ASK_AGAIN)).await;
        }
    }

    /// Until when the plugins of devices that the pod waits for may take them for used, if they may now.
    fn may_be_unnoticed(&self, uid: &str) -> Option<Instant> {
        let unanswered = self.unanswered(uid);
        let mut state = self.lock();
        let now = Instant::now();
        let notice = self.config.notice;
        state.freed.retain(|_, freed| *freed + notice > now);
        let devices =
            unanswered.iter().flat_map(|(_, resource, ids)| ids.iter().map(|id| (resource.clone(), id.clone())));
        devices.filter_map(|device| state.freed.get(&device)).max().map(|freed| *freed + notice)
    }

    /// Marks devices as the pod's.
    fn reserve(&self, request: &PodRequest, preferences: &Preferences) -> Result<(), AllocationError> {
        let mut state = self.lock();
        let offers: BTreeMap<_, _> =
            state.resources.iter().map(|(name, resource)| (name.clone(), resource.offer())).collect();
        let taken = |resource: &str| {
            let others = state.pods.iter().filter(|(uid, _)| **uid != request.uid);
            others.flat_map(|(_, pod)| pod.ids(resource)).cloned().collect::<BTreeSet<_>>()
        };
        let earlier = state.pods.get(&request.uid);
        let socket = self.registration_socket();
        let chosen = PodDevices::choose(request, earlier, &offers, taken, preferences, &socket)?;
        state.pods.insert(request.uid.clone(), chosen);
        Ok(())
    }

    /// Asks the plugins about what was reserved, and remembers what they say.
    async fn complete(&self, request: &PodRequest) -> Result<(), AllocationError> {
        let unanswered = self.unanswered(&request.uid);
        if unanswered.is_empty() {
            return Ok(());
        }
        for (container, resource, ids) in unanswered {
            let connection = self.connection(&resource).ok_or_else(|| AllocationError::Plugin {
                resource: resource.clone(),
                call: "Allocate",
                message: "it has just gone".to_owned(),
                refused: false,
            })?;
            let provided = connection.allocate(&ids).await?;
            let mut state = self.lock();
            let pod = state.pods.get_mut(&request.uid);
            let container = pod.and_then(|pod| pod.containers.iter_mut().find(|other| other.name == container));
            if let Some(granted) = container.and_then(|container| container.granted.get_mut(&resource)) {
                granted.provided = Some(provided);
            }
        }
        self.write(&self.lock())?;
        // A plugin that gave a device does not say again what it gave: that must outlive a power cut.
        let path = self.config.checkpoint.clone();
        let failed = |path: &Path, source| AllocationError::Checkpoint { path: path.to_owned(), source };
        let synced = tokio::task::spawn_blocking({
            let path = path.clone();
            move || akri_krustlet_host::file::sync(&path)
        });
        synced.await.map_err(std::io::Error::other).flatten().map_err(|source| failed(&path, source))
    }

    fn unanswered(&self, uid: &str) -> Vec<(String, String, BTreeSet<String>)> {
        let state = self.lock();
        let containers = state.pods.get(uid).map(|pod| pod.containers.as_slice()).unwrap_or_default();
        let mut unanswered = Vec::new();
        for container in containers {
            let open = container.granted.iter().filter(|(_, granted)| granted.provided.is_none());
            unanswered.extend(open.map(|(name, granted)| (container.name.clone(), name.clone(), granted.ids.clone())));
        }
        unanswered
    }

    /// What plugins say of the choice, where they care. One that fails has none.
    async fn preferences(&self, request: &PodRequest) -> Preferences {
        let mut preferences = Preferences::new();
        for ContainerRequest { name, resources, .. } in &request.containers {
            for (resource, count) in resources {
                let Some((connection, free)) = self.choice(&request.uid, resource) else { continue };
                match connection.preferred(free, *count).await {
                    Ok(ids) => {
                        preferences.insert((name.clone(), resource.clone()), ids);
                    }
                    Err(error) => tracing::warn!("{error}; choosing without its preference"),
                }
            }
        }
        preferences
    }

    /// What a plugin that has preferences may choose from.
    fn choice(&self, uid: &str, resource: &str) -> Option<(Connection, Vec<String>)> {
        let state = self.lock();
        let known = state.resources.get(resource).filter(|known| known.plugin.has_preferences)?;
        let others = state.pods.iter().filter(|(other, _)| *other != uid);
        let taken: BTreeSet<&String> = others.flat_map(|(_, pod)| pod.ids(resource)).collect();
        let free = known.offer().healthy.into_iter().filter(|id| !taken.contains(id)).collect();
        Some((known.connection.clone()?, free))
    }

    fn connection(&self, resource: &str) -> Option<Connection> {
        self.lock().resources.get(resource)?.connection.clone()
    }

    /// What a container needs to use its devices. Of variables that several resources set, the first resource's counts.
    pub fn provided(&self, uid: &str, container: &str) -> Provided {
        let state = self.lock();
        let mut provided = Provided::default();
        let container = state.pods.get(uid).and_then(|pod| pod.container(container));
        for (resource, granted) in container.into_iter().flat_map(|container| &container.granted) {
            if let Some(of_resource) = &granted.provided {
                provided.merge(resource, of_resource);
            }
        }
        provided
    }

    /// Tells the plugins that want to know that a container is about to start.
    pub async fn pre_start(&self, uid: &str, container: &str) -> Result<(), AllocationError> {
        for (resource, connection, ids) in self.to_tell(uid, container) {
            let connection = connection.ok_or_else(|| AllocationError::Plugin {
                resource,
                call: "PreStartContainer",
                message: "it is away, and wants to know of each start".to_owned(),
                refused: false,
            })?;
            connection.pre_start(&ids).await?;
        }
        Ok(())
    }

    /// The plugins that want to know, with what the container has of them.
    fn to_tell(&self, uid: &str, container: &str) -> Vec<(String, Option<Connection>, BTreeSet<String>)> {
        let state = self.lock();
        let container = state.pods.get(uid).and_then(|pod| pod.container(container));
        let granted = container.into_iter().flat_map(|container| &container.granted);
        let wants = granted.filter_map(|(resource, granted)| {
            let known = state.resources.get(resource).filter(|known| known.plugin.pre_start)?;
            Some((resource.clone(), known.connection.clone(), granted.ids.clone()))
        });
        wants.collect()
    }

    /// The pod has ended: its devices are free.
    pub fn release(&self, uid: &str) {
        let mut state = self.lock();
        state.refused.remove(uid);
        let containers = state.pods.remove(uid).map(|pod| pod.containers).unwrap_or_default();
        let had_devices = containers.iter().any(|container| !container.granted.is_empty());
        // Of one that its plugin never gave there is nothing to notice.
        let granted = containers.into_iter().flat_map(|container| container.granted);
        let granted = granted.filter(|(_, granted)| granted.provided.is_some());
        let ids = granted.flat_map(|(resource, granted)| granted.ids.into_iter().map(move |id| (resource.clone(), id)));
        let now = Instant::now();
        let notice = self.config.notice;
        state.freed.retain(|_, freed| *freed + notice > now);
        state.freed.extend(ids.map(|device| (device, now)));
        if had_devices {
            if let Err(error) = self.write(&state) {
                tracing::error!("{error}");
            }
            drop(state);
            self.changed();
        }
    }

    /// Frees what pods have that do not exist any more.
    pub fn retain(&self, exists: impl Fn(&str) -> bool) {
        let gone: Vec<_> = self.lock().pods.keys().filter(|uid| !exists(uid)).cloned().collect();
        for uid in gone {
            tracing::info!(uid, "devices of a pod that is gone are free again");
            self.release(&uid);
        }
    }
}
