//! One device plugin: its list of devices, followed for as long as it is there, and calls to it.

use crate::allocation::{AllocationError, Provided, ProvidedMount};
use crate::devices::Devices;
use akri_proto::v1beta1::device_plugin_client::DevicePluginClient;
use akri_proto::v1beta1::{
    AllocateRequest, ContainerAllocateRequest, ContainerAllocateResponse, ContainerPreferredAllocationRequest, Empty,
    PreStartContainerRequest, PreferredAllocationRequest,
};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Weak;
use std::time::Duration;
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Request, Status};

/// A plugin is not reconnected to more often than this, doubling to the second.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));
/// Pause between two lists that are read, so that a plugin that sends without end costs little: its stream fills up.
const PACE: Duration = Duration::from_millis(20);
/// Largest message that is taken from a plugin, in bytes.
const MOST_MESSAGE: usize = 4 << 20;
/// Most devices of one resource.
pub(crate) const MOST_DEVICES: usize = 10_000;

/// A connection to a plugin.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    client: DevicePluginClient<Channel>,
    resource: String,
    /// How long it may take to answer.
    timeout: Duration,
}

impl Connection {
    async fn open(resource: &str, socket: PathBuf, timeout: Duration) -> Result<Self, String> {
        let connect = akri_krustlet_host::socket::connect(socket);
        let channel = tokio::time::timeout(timeout, connect)
            .await
            .map_err(|_| format!("no connection within {timeout:?}"))?
            .map_err(|error| describe(&error))?;
        let client = DevicePluginClient::new(channel).max_decoding_message_size(MOST_MESSAGE);
        Ok(Self { client, resource: resource.to_owned(), timeout })
    }

    fn failed(&self, call: &'static str, message: String) -> AllocationError {
        AllocationError::Plugin { resource: self.resource.clone(), call, message, refused: false }
    }

    async fn answer<T>(
        &self,
        call: &'static str,
        answer: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T, AllocationError> {
        match tokio::time::timeout(self.timeout, answer).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(AllocationError::Plugin {
                resource: self.resource.clone(),
                call,
                message: format!("{}: {}", status.code(), status.message()),
                refused: true,
            }),
            Err(_) => Err(self.failed(call, format!("no answer within {:?}", self.timeout))),
        }
    }

    /// What a container needs to use these devices.
    pub(crate) async fn allocate(&self, ids: &BTreeSet<String>) -> Result<Provided, AllocationError> {
        let container = ContainerAllocateRequest { device_ids: ids.iter().cloned().collect() };
        let request = AllocateRequest { container_requests: vec![container] };
        let mut client = self.client.clone();
        let response = self.answer("Allocate", client.allocate(request)).await?;
        let responses = response.container_responses;
        // One answer to one request; Akri's Agent gives one for each device of it.
        if responses.is_empty() || (responses.len() != 1 && responses.len() != ids.len()) {
            let message = format!("{} answers for one container with {} devices", responses.len(), ids.len());
            return Err(self.failed("Allocate", message));
        }
        let mut provided = Provided::default();
        for response in responses {
            let response = checked(response).map_err(|message| self.failed("Allocate", message))?;
            provided.merge(&self.resource, &response);
        }
        if !provided.conflicts.is_empty() {
            tracing::debug!(resource = self.resource, conflicts = ?provided.conflicts, "devices with different variables");
        }
        Ok(provided)
    }

    /// Which of the free devices the plugin would rather give.
    pub(crate) async fn preferred(&self, free: Vec<String>, count: u64) -> Result<Vec<String>, AllocationError> {
        let container = ContainerPreferredAllocationRequest {
            available_device_ids: free,
            must_include_device_ids: Vec::new(),
            allocation_size: i32::try_from(count).unwrap_or(i32::MAX),
        };
        let request = PreferredAllocationRequest { container_requests: vec![container] };
        let mut client = self.client.clone();
        let response = self.answer("GetPreferredAllocation", client.get_preferred_allocation(request)).await?;
        Ok(response.container_responses.into_iter().next().map(|response| response.device_ids).unwrap_or_default())
    }

    /// Called before a container starts.
    pub(crate) async fn pre_start(&self, ids: &BTreeSet<String>) -> Result<(), AllocationError> {
        let request = PreStartContainerRequest { device_ids: ids.iter().cloned().collect() };
        let mut client = self.client.clone();
        self.answer("PreStartContainer", client.pre_start_container(request)).await.map(|_| ())
    }
}

/// What a plugin says must be something that a container can have.
fn checked(response: ContainerAllocateResponse) -> Result<Provided, String> {
    let is_name = |name: &str| !name.is_empty() && !name.contains(['=', '\0']);
    for (name, value) in &response.envs {
        if !is_name(name) || value.contains('\0') {
            return Err(format!("{name:?} cannot be an environment variable"));
        }
    }
    let is_path =
        |path: &str| path.starts_with('/') && !path.split('/').any(|part| part == "..") && !path.contains('\0');
    for mount in &response.mounts {
        for path in [&mount.container_path, &mount.host_path] {
            if !is_path(path) {
                return Err(format!("mount path {path:?} must be absolute and without `..`"));
            }
        }
    }
    let mounts = response.mounts.into_iter().map(|mount| ProvidedMount {
        container_path: mount.container_path,
        host_path: mount.host_path,
        read_only: mount.read_only,
    });
    Ok(Provided {
        envs: response.envs,
        mounts: mounts.collect(),
        device_nodes: response.devices.into_iter().map(|device| device.host_path).collect(),
        cdi_devices: response.cdi_devices.into_iter().map(|device| device.name).collect(),
        conflicts: Vec::new(),
    })
}

/// An error with its cause, in which tonic hides what happened.
pub(crate) fn describe(error: &tonic::transport::Error) -> String {
    let cause = std::error::Error::source(error).map(|source| format!(": {source}")).unwrap_or_default();
    format!("{error}{cause}")
}

/// Follows a plugin's list until the plugin is replaced, or has been away for so long that its resource is removed.
pub(crate) async fn follow(devices: Weak<Devices>, resource: String, socket: PathBuf, timeout: Duration, life: u64) {
    let mut pause = BACK_OFF.0;
    let mut told = false;
    loop {
        let started = Instant::now();
        let ended = match Connection::open(&resource, socket.clone(), timeout).await {
            Ok(connection) => follow_list(&devices, &resource, life, connection, &mut told).await,
            Err(error) => error,
        };
        let Some(known) = devices.upgrade() else { return };
        if started.elapsed() > BACK_OFF.1 {
            pause = BACK_OFF.0;
        }
        let Some(lost) = known.lost(&resource, life) else { return };
        // A plugin that took its socket away has ended and registers if it comes again.
        let has_ended = !socket.exists();
        match std::mem::replace(&mut told, true) {
            true => {}
            false if has_ended => tracing::info!(resource, "the device plugin is gone, and so is its socket"),
            false => {
                tracing::warn!(resource, socket = %socket.display(), "the device plugin is gone: {ended}");
            }
        }
        let period = known.config().grace_period;
        drop(known);
        let next_try = if has_ended { lost + 3 * period } else { Instant::now() + pause };
        pause = (pause * 2).min(BACK_OFF.1);
        for (at, removes) in [(lost + period, false), (lost + 2 * period, true)] {
            if at > next_try {
                break;
            }
            tokio::time::sleep_until(at).await;
            let Some(known) = devices.upgrade() else { return };
            if removes {
                known.remove(&resource, life);
                return;
            }
            known.changed();
        }
        tokio::time::sleep_until(next_try).await;
    }
}

async fn follow_list(
    devices: &Weak<Devices>,
    resource: &str,
    life: u64,
    connection: Connection,
    told: &mut bool,
) -> String {
    let mut client = connection.client.clone();
    let list = tokio::time::timeout(connection.timeout, client.list_and_watch(Request::new(Empty {}))).await;
    let mut list = match list {
        Ok(Ok(list)) => list.into_inner(),
        Ok(Err(status)) => return format!("ListAndWatch: {}: {}", status.code(), status.message()),
        Err(_) => return format!("ListAndWatch: no answer within {:?}", connection.timeout),
    };
    loop {
        let message = match list.message().await {
            Ok(Some(message)) => message,
            Ok(None) => return "its list of devices ended".to_owned(),
            Err(status) => return format!("its list of devices broke off: {}: {}", status.code(), status.message()),
        };
        let Some(devices) = devices.upgrade() else { return String::new() };
        if message.devices.len() > MOST_DEVICES {
            let count = message.devices.len();
            tracing::warn!(resource, "a list of {count} devices is not taken, {MOST_DEVICES} at most are");
        } else if !devices.update(resource, life, message.devices, &connection) {
            return String::new();
        }
        *told = false;
        drop(devices);
        tokio::time::sleep(PACE).await;
    }
}
