//! One device plugin: its list of devices, followed for as long as it is there, and calls to it.

use crate::allocation::{AllocationError, Provided, ProvidedMount};
use crate::config::Timeouts;
use crate::devices::Devices;
use akri_krustlet_host::{BackOff, Untrusted};
use akri_krustlet_metrics::counted;
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
/// Largest message that is taken from a plugin, in bytes; gRPC's own default, which a kubelet has, too.
const MOST_MESSAGE: usize = 4 << 20;

/// A connection to a plugin.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    client: DevicePluginClient<Untrusted<Channel>>,
    resource: String,
    timeouts: Timeouts,
}

impl Connection {
    async fn open(resource: &str, socket: PathBuf, timeouts: Timeouts) -> Result<Self, String> {
        let connect = akri_krustlet_host::socket::connect(socket);
        let timeout = timeouts.answer;
        let channel = tokio::time::timeout(timeout, connect)
            .await
            .map_err(|_| format!("no connection within {timeout:?}"))?
            .map_err(|error| describe(&error))?;
        let client = DevicePluginClient::new(channel).max_decoding_message_size(MOST_MESSAGE);
        Ok(Self { client, resource: resource.to_owned(), timeouts })
    }

    fn failed(&self, call: &'static str, message: String) -> AllocationError {
        AllocationError::Plugin { resource: self.resource.clone(), call, message, refused: false }
    }

    async fn answer<T>(
        &self,
        call: &'static str,
        timeout: Duration,
        answer: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T, AllocationError> {
        match tokio::time::timeout(timeout, answer).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(AllocationError::Plugin {
                resource: self.resource.clone(),
                call,
                message: format!("{}: {}", status.code(), status.message()),
                refused: true,
            }),
            Err(_) => Err(self.failed(call, format!("no answer within {timeout:?}"))),
        }
    }

    /// What a container needs to use these devices.
    pub(crate) async fn allocate(&self, ids: &BTreeSet<String>) -> Result<Provided, AllocationError> {
        let container = ContainerAllocateRequest { device_ids: ids.iter().cloned().collect() };
        let request = AllocateRequest { container_requests: vec![container] };
        let mut client = self.client.clone();
        let started = Instant::now();
        let response = self.answer("Allocate", self.timeouts.allocate, client.allocate(request)).await?;
        counted().plugin_allocations.observe([&self.resource], started.elapsed());
        let responses = response.container_responses;
        // One answer to one request; Akri's Agent gives one for each device of it.
        if responses.is_empty() || (responses.len() != 1 && responses.len() != ids.len()) {
            let message = format!("{} answers for one container with {} devices", responses.len(), ids.len());
            return Err(self.failed("Allocate", message));
        }
        let mut provided = Provided::default();
        for response in responses {
            let mut response = checked(response).map_err(|message| self.failed("Allocate", message))?;
            let of_akri = self.resource.starts_with("akri.sh/");
            response.mounts.iter_mut().for_each(|mount| mount.without_links = of_akri);
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
        let response = self
            .answer("GetPreferredAllocation", self.timeouts.answer, client.get_preferred_allocation(request))
            .await?;
        Ok(response.container_responses.into_iter().next().map(|response| response.device_ids).unwrap_or_default())
    }

    /// Called before a container starts.
    pub(crate) async fn pre_start(&self, ids: &BTreeSet<String>) -> Result<(), AllocationError> {
        let request = PreStartContainerRequest { device_ids: ids.iter().cloned().collect() };
        let mut client = self.client.clone();
        self.answer("PreStartContainer", self.timeouts.pre_start, client.pre_start_container(request)).await.map(|_| ())
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
    let is_path = |path: &str| !path.is_empty() && !path.split('/').any(|part| part == "..") && !path.contains('\0');
    for mount in &response.mounts {
        if !is_path(&mount.container_path) {
            return Err(format!(
                "container path {:?} of a mount must not be empty, and be without `..`",
                mount.container_path
            ));
        }
        if !is_path(&mount.host_path) || !mount.host_path.starts_with('/') {
            return Err(format!("host path {:?} of a mount must be absolute and without `..`", mount.host_path));
        }
    }
    // A relative path is one from the root, as for a kubelet.
    let mounts = response.mounts.into_iter().map(|mount| ProvidedMount {
        container_path: format!("/{}", mount.container_path.trim_start_matches('/')),
        host_path: mount.host_path,
        read_only: mount.read_only,
        without_links: false,
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
pub(crate) async fn follow(devices: Weak<Devices>, resource: String, socket: PathBuf, timeouts: Timeouts, life: u64) {
    let mut back_off = BackOff::new(BACK_OFF.0, BACK_OFF.1);
    let mut told = false;
    loop {
        let started = Instant::now();
        let ended = match Connection::open(&resource, socket.clone(), timeouts).await {
            Ok(connection) => follow_list(&devices, &resource, life, connection, &mut told).await,
            Err(error) => error,
        };
        let Some(known) = devices.upgrade() else { return };
        if started.elapsed() > BACK_OFF.1 {
            back_off.reset();
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
        let pause = back_off.pause();
        let next_try = if has_ended { lost + 3 * period } else { Instant::now() + pause };
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
    // Servers tell that there is a list when they send the first one, which may take a plugin as long as it takes to find its
    // devices. One that ends closes the connection.
    let mut list = match client.list_and_watch(Request::new(Empty {})).await {
        Ok(list) => list.into_inner(),
        Err(status) => return format!("ListAndWatch: {}: {}", status.code(), status.message()),
    };
    loop {
        let message = match list.message().await {
            Ok(Some(message)) => message,
            Ok(None) => return "its list of devices ended".to_owned(),
            Err(status) => return format!("its list of devices broke off: {}: {}", status.code(), status.message()),
        };
        let Some(devices) = devices.upgrade() else { return String::new() };
        if !devices.update(resource, life, message.devices, &connection) {
            return String::new();
        }
        *told = false;
        drop(devices);
        tokio::time::sleep(PACE).await;
    }
}
