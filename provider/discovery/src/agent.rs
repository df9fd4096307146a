//! The Agent's side of the interface, as far as a developer or a test needs it: a registration socket, and Discover calls.

use crate::registration::AGENT_SOCKET;
use akri_krustlet_host::ServedSocket;
use akri_krustlet_host::socket::{SocketError, connect};
use akri_proto::v0::discovery_handler_client::DiscoveryHandlerClient;
use akri_proto::v0::registration_server::{Registration, RegistrationServer};
use akri_proto::v0::{DiscoverRequest, DiscoverResponse, Empty, RegisterDiscoveryHandlerRequest};
use std::path::{Path, PathBuf};
use tokio::sync::mpsc;
use tonic::{Request, Response, Status, Streaming};

/// A registration socket: what a stand-in for the Agent serves.
#[derive(Debug)]
pub struct RegistrationSocket {
    registrations: mpsc::UnboundedReceiver<RegisterDiscoveryHandlerRequest>,
    _socket: ServedSocket,
}

impl RegistrationSocket {
    /// Serves `agent-registration.sock` in `directory`; fails if a live Agent does.
    pub fn serve(directory: &Path) -> Result<Self, SocketError> {
        let (sender, registrations) = mpsc::unbounded_channel();
        let service = RegistrationServer::new(Recorder { sender });
        Ok(Self { registrations, _socket: ServedSocket::start(&directory.join(AGENT_SOCKET), service)? })
    }

    /// The next registration.
    pub async fn next(&mut self) -> Option<RegisterDiscoveryHandlerRequest> {
        self.registrations.recv().await
    }

    /// A registration that has already come.
    pub fn try_next(&mut self) -> Option<RegisterDiscoveryHandlerRequest> {
        self.registrations.try_recv().ok()
    }
}

struct Recorder {
    sender: mpsc::UnboundedSender<RegisterDiscoveryHandlerRequest>,
}

#[tonic::async_trait]
impl Registration for Recorder {
    async fn register_discovery_handler(
        &self,
        request: Request<RegisterDiscoveryHandlerRequest>,
    ) -> Result<Response<Empty>, Status> {
        self.sender.send(request.into_inner()).map_err(|_| Status::unavailable("the Agent is ending"))?;
        Ok(Response::new(Empty {}))
    }
}

/// Opens a Discover stream on a connection of its own, as the Agent does.
pub async fn discover(socket: PathBuf, request: DiscoverRequest) -> Result<Streaming<DiscoverResponse>, Status> {
    let shown = socket.display().to_string();
    let channel = connect(socket).await.map_err(|error| {
        let cause = std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
        Status::unavailable(format!("cannot connect to {shown}: {error}{cause}"))
    })?;
    Ok(DiscoveryHandlerClient::new(channel).discover(request).await?.into_inner())
}
