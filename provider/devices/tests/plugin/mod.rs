//! A device plugin whose devices and answers a test chooses.
#![allow(dead_code, reason = "every test file uses another part")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "in a test they are assertions")]

pub mod random;

use akri_krustlet_host::socket::{SocketFile, connect, listen};
use akri_proto::v1beta1::device_plugin_server::{DevicePlugin, DevicePluginServer};
use akri_proto::v1beta1::registration_client::RegistrationClient;
use akri_proto::v1beta1::{
    AllocateRequest, AllocateResponse, CdiDevice, ContainerAllocateResponse, ContainerPreferredAllocationResponse,
    Device, DevicePluginOptions, DeviceSpec, Empty, ListAndWatchResponse, Mount, PreStartContainerRequest,
    PreStartContainerResponse, PreferredAllocationRequest, PreferredAllocationResponse, RegisterRequest,
};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use tokio::sync::watch;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::{UnixListenerStream, WatchStream};
use tonic::{Request, Response, Status};

/// How the plugin answers Allocate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Answer {
    /// One answer to one container.
    #[default]
    Normal,
    /// One answer to each device, as Akri's Agent does.
    PerDevice,
    /// An error.
    Fail,
    /// Never.
    Hang,
    /// A variable that no environment can hold.
    Nonsense,
    /// No answer in the answer.
    Nothing,
}

/// A plugin on its own socket. It ends when dropped.
pub struct Plugin {
    pub resource: String,
    endpoint: String,
    directory: PathBuf,
    shared: Arc<Shared>,
    /// Its connections end with it, as with a process.
    runtime: Option<tokio::runtime::Runtime>,
    _file: SocketFile,
}

struct Shared {
    name: String,
    devices: watch::Sender<Vec<Device>>,
    options: Mutex<DevicePluginOptions>,
    answer: Mutex<Answer>,
    /// What each answer has besides its variables.
    extra: Mutex<ContainerAllocateResponse>,
    allocated: Mutex<Vec<Vec<String>>>,
    started: Mutex<Vec<Vec<String>>>,
    lists: Mutex<usize>,
}

pub fn device(id: &str, healthy: bool) -> Device {
    let health = if healthy { "Healthy" } else { "Unhealthy" };
    Device { id: id.to_owned(), health: health.to_owned(), topology: None }
}

impl Plugin {
    /// Serves a resource with these healthy devices; it is not registered yet.
    pub fn serve(directory: &Path, resource: &str, devices: &[&str]) -> Self {
        let name = resource.rsplit('/').next().unwrap().to_owned();
        let endpoint = format!("{name}.sock");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (listener, file) = {
            let _in_runtime = runtime.enter();
            listen(&directory.join(&endpoint)).unwrap()
        };
        let shared = Arc::new(Shared {
            name,
            devices: watch::Sender::new(devices.iter().map(|id| device(id, true)).collect()),
            options: Mutex::default(),
            answer: Mutex::default(),
            extra: Mutex::default(),
            allocated: Mutex::default(),
            started: Mutex::default(),
            lists: Mutex::default(),
        });
        let service = DevicePluginServer::from_arc(Arc::new(Service(shared.clone())));
        runtime.spawn(async move {
            let server = tonic::transport::Server::builder().add_service(service);
            server.serve_with_incoming(UnixListenerStream::new(listener)).await.unwrap();
        });
        Self {
            resource: resource.to_owned(),
            endpoint,
            directory: directory.to_owned(),
            shared,
            runtime: Some(runtime),
            _file: file,
        }
    }

    /// Serves and registers.
    pub async fn start(directory: &Path, resource: &str, devices: &[&str]) -> Self {
        let plugin = Self::serve(directory, resource, devices);
        plugin.register().await.unwrap();
        plugin
    }

    pub async fn register(&self) -> Result<(), Status> {
        let options = *self.shared.options.lock().unwrap();
        register(&self.directory, "v1beta1", &self.endpoint, &self.resource, options).await
    }

    pub fn set(&self, devices: Vec<Device>) {
        self.shared.devices.send_replace(devices);
    }

    pub fn set_options(&self, pre_start_required: bool, get_preferred_allocation_available: bool) {
        *self.shared.options.lock().unwrap() =
            DevicePluginOptions { pre_start_required, get_preferred_allocation_available };
    }

    pub fn set_answer(&self, answer: Answer) {
        *self.shared.answer.lock().unwrap() = answer;
    }

    /// Adds a mount, a device node and a CDI device to each answer.
    pub fn set_extra(&self, host_path: &Path, container_path: &str, read_only: bool) {
        let mount =
            Mount { container_path: container_path.to_owned(), host_path: host_path.display().to_string(), read_only };
        let spec = DeviceSpec {
            container_path: "/dev/video0".to_owned(),
            host_path: "/dev/video0".to_owned(),
            permissions: "rw".to_owned(),
        };
        *self.shared.extra.lock().unwrap() = ContainerAllocateResponse {
            mounts: vec![mount],
            devices: vec![spec],
            cdi_devices: vec![CdiDevice { name: "example.com/camera=0".to_owned() }],
            ..ContainerAllocateResponse::default()
        };
    }

    /// Adds a variable to each answer.
    pub fn set_variable(&self, name: &str, value: &str) {
        self.shared.extra.lock().unwrap().envs.insert(name.to_owned(), value.to_owned());
    }

    /// The ids of each Allocate that came.
    pub fn allocated(&self) -> Vec<Vec<String>> {
        self.shared.allocated.lock().unwrap().clone()
    }

    /// The ids of each PreStartContainer that came.
    pub fn started(&self) -> Vec<Vec<String>> {
        self.shared.started.lock().unwrap().clone()
    }

    /// How many ListAndWatch calls came.
    pub fn lists(&self) -> usize {
        *self.shared.lists.lock().unwrap()
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Registers anything.
pub async fn register(
    directory: &Path,
    version: &str,
    endpoint: &str,
    resource: &str,
    options: DevicePluginOptions,
) -> Result<(), Status> {
    let channel = connect(directory.join("kubelet.sock")).await.unwrap();
    let request = RegisterRequest {
        version: version.to_owned(),
        endpoint: endpoint.to_owned(),
        resource_name: resource.to_owned(),
        options: Some(options),
    };
    RegistrationClient::new(channel).register(request).await.map(|_| ())
}

struct Service(Arc<Shared>);

type Devices = std::pin::Pin<Box<dyn tokio_stream::Stream<Item = Result<ListAndWatchResponse, Status>> + Send>>;

#[tonic::async_trait]
impl DevicePlugin for Service {
    type ListAndWatchStream = Devices;

    async fn get_device_plugin_options(&self, _: Request<Empty>) -> Result<Response<DevicePluginOptions>, Status> {
        Ok(Response::new(*self.0.options.lock().unwrap()))
    }

    async fn list_and_watch(&self, _: Request<Empty>) -> Result<Response<Devices>, Status> {
        *self.0.lists.lock().unwrap() += 1;
        let lists = WatchStream::new(self.0.devices.subscribe());
        Ok(Response::new(Box::pin(lists.map(|devices| Ok(ListAndWatchResponse { devices })))))
    }

    async fn get_preferred_allocation(
        &self,
        request: Request<PreferredAllocationRequest>,
    ) -> Result<Response<PreferredAllocationResponse>, Status> {
        // The last ones first.
        let prefer = |mut available: Vec<String>| {
            available.reverse();
            ContainerPreferredAllocationResponse { device_ids: available }
        };
        let requests = request.into_inner().container_requests.into_iter();
        let container_responses = requests.map(|request| prefer(request.available_device_ids)).collect();
        Ok(Response::new(PreferredAllocationResponse { container_responses }))
    }

    async fn allocate(&self, request: Request<AllocateRequest>) -> Result<Response<AllocateResponse>, Status> {
        let ids: Vec<String> = request.into_inner().container_requests.into_iter().flat_map(|c| c.device_ids).collect();
        self.0.allocated.lock().unwrap().push(ids.clone());
        let answer = *self.0.answer.lock().unwrap();
        let of = |ids: &[String]| {
            let variable = |name: &str| (name.to_owned(), ids.join(","));
            let mut answer = self.0.extra.lock().unwrap().clone();
            answer.envs.extend([variable("DEVICE"), variable(&format!("DEVICE_{}", self.0.name))]);
            answer
        };
        let container_responses = match answer {
            Answer::Normal => vec![of(&ids)],
            Answer::PerDevice => ids.iter().map(|id| of(std::slice::from_ref(id))).collect(),
            Answer::Fail => return Err(Status::internal("out of order")),
            Answer::Hang => std::future::pending().await,
            Answer::Nonsense => {
                let envs = BTreeMap::from([("A=B".to_owned(), String::new())]);
                vec![ContainerAllocateResponse { envs, ..Default::default() }]
            }
            Answer::Nothing => Vec::new(),
        };
        Ok(Response::new(AllocateResponse { container_responses }))
    }

    async fn pre_start_container(
        &self,
        request: Request<PreStartContainerRequest>,
    ) -> Result<Response<PreStartContainerResponse>, Status> {
        self.0.started.lock().unwrap().push(request.into_inner().device_ids);
        Ok(Response::new(PreStartContainerResponse {}))
    }
}
