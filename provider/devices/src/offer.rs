//! The plugin's side of the interface, as far as a developer needs it: a resource whose devices all bring the same.

use akri_krustlet_host::ServedSocket;
use akri_krustlet_host::socket::{SocketError, connect};
use akri_proto::v1beta1::device_plugin_server::{DevicePlugin, DevicePluginServer};
use akri_proto::v1beta1::registration_client::RegistrationClient;
use akri_proto::v1beta1::{
    AllocateRequest, AllocateResponse, ContainerAllocateResponse, Device, DevicePluginOptions, Empty,
    ListAndWatchResponse, PreStartContainerRequest, PreStartContainerResponse, PreferredAllocationRequest,
    PreferredAllocationResponse, RegisterRequest,
};
use std::path::Path;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

/// Why a resource cannot be offered.
#[derive(Debug, thiserror::Error)]
pub enum OfferError {
    /// Its socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// Nobody takes registrations.
    #[error("cannot register {resource} at {socket}: {message}; does a node run with this --device-plugins-directory?")]
    Register {
        /// The resource.
        resource: String,
        /// Where nodes take registrations.
        socket: String,
        /// What happened.
        message: String,
    },
}

/// A resource that is offered until this is dropped.
#[derive(Debug)]
pub struct Offer {
    /// Ends the lists that are open.
    _ended: watch::Sender<()>,
    _socket: ServedSocket,
}

impl Offer {
    /// Serves devices with these ids on a socket in `directory` and registers them as `resource` at the node there.
    pub async fn start(
        directory: &Path,
        resource: &str,
        socket: &str,
        ids: Vec<String>,
        response: ContainerAllocateResponse,
    ) -> Result<Self, OfferError> {
        let (ended, end) = watch::channel(());
        let service = DevicePluginServer::new(Service { ids, response, end });
        let served = ServedSocket::start(&directory.join(socket), service)?;
        let offer = Self { _ended: ended, _socket: served };
        register(directory, resource, socket).await?;
        Ok(offer)
    }
}

async fn register(directory: &Path, resource: &str, endpoint: &str) -> Result<(), OfferError> {
    let socket = directory.join(crate::registry::SOCKET);
    let failed = |message: String| OfferError::Register {
        resource: resource.to_owned(),
        socket: socket.display().to_string(),
        message,
    };
    let channel = connect(socket.clone()).await.map_err(|error| failed(crate::plugin::describe(&error)))?;
    let request = RegisterRequest {
        version: crate::registry::VERSION.to_owned(),
        endpoint: endpoint.to_owned(),
        resource_name: resource.to_owned(),
        options: Some(DevicePluginOptions::default()),
    };
    let registered = RegistrationClient::new(channel).register(request).await;
    registered.map(|_| ()).map_err(|status| failed(status.message().to_owned()))
}

struct Service {
    ids: Vec<String>,
    response: ContainerAllocateResponse,
    end: watch::Receiver<()>,
}

#[tonic::async_trait]
impl DevicePlugin for Service {
    type ListAndWatchStream = ReceiverStream<Result<ListAndWatchResponse, Status>>;

    async fn get_device_plugin_options(&self, _: Request<Empty>) -> Result<Response<DevicePluginOptions>, Status> {
        Ok(Response::new(DevicePluginOptions::default()))
    }

    async fn list_and_watch(&self, _: Request<Empty>) -> Result<Response<Self::ListAndWatchStream>, Status> {
        let device = |id: &String| Device { id: id.clone(), health: "Healthy".to_owned(), topology: None };
        let list = ListAndWatchResponse { devices: self.ids.iter().map(device).collect() };
        let (sender, stream) = mpsc::channel(1);
        let mut end = self.end.clone();
        tokio::spawn(async move {
            let _ = sender.send(Ok(list)).await;
            tokio::select! {
                _ = end.changed() => {}
                () = sender.closed() => {}
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn get_preferred_allocation(
        &self,
        _: Request<PreferredAllocationRequest>,
    ) -> Result<Response<PreferredAllocationResponse>, Status> {
        Err(Status::unimplemented("there is no preference"))
    }

    async fn allocate(&self, request: Request<AllocateRequest>) -> Result<Response<AllocateResponse>, Status> {
        let containers = request.into_inner().container_requests;
        let container_responses = containers.iter().map(|_| self.response.clone()).collect();
        Ok(Response::new(AllocateResponse { container_responses }))
    }

    async fn pre_start_container(
        &self,
        _: Request<PreStartContainerRequest>,
    ) -> Result<Response<PreStartContainerResponse>, Status> {
        Ok(Response::new(PreStartContainerResponse {}))
    }
}
