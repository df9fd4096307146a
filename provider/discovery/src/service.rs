//! The gRPC service behind a handler's socket.

use crate::details::DiscoveryRequest;
use crate::handlers::Handler;
use crate::session::{self, Verdict};
use akri_krustlet_host::resting_memory;
use akri_proto::v0::discovery_handler_server::{DiscoveryHandler, DiscoveryHandlerServer};
use akri_proto::v0::{DiscoverRequest, DiscoverResponse};
use std::sync::Arc;
use std::time::Duration;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

/// How long a call waits for its guest's verdict on the discovery details before its headers are sent. The Agent waits for
/// the headers without a deadline, so it must not be kept.
const VERDICT: Duration = Duration::from_millis(500);

/// What is served on a handler's socket.
pub(crate) fn routes(handler: Arc<Handler>) -> Routes {
    Routes::new(DiscoveryHandlerServer::new(Service { handler }))
}

struct Service {
    handler: Arc<Handler>,
}

#[tonic::async_trait]
impl DiscoveryHandler for Service {
    type DiscoverStream = ReceiverStream<Result<DiscoverResponse, Status>>;

    async fn discover(&self, request: Request<DiscoverRequest>) -> Result<Response<Self::DiscoverStream>, Status> {
        let request = DiscoveryRequest::read(request.into_inner())
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        resting_memory::has_worked();
        let (stream, verdict) = session::open(self.handler.clone(), request);
        match tokio::time::timeout(VERDICT, verdict).await {
            Ok(Ok(Verdict::InvalidDetails(reason))) => Err(Status::invalid_argument(reason)),
            Ok(Ok(Verdict::Exhausted(reason))) => Err(Status::resource_exhausted(reason)),
            // A list is on its way, or nothing is known yet: the stream stays open either way.
            Ok(Ok(Verdict::Answered) | Err(_)) | Err(_) => Ok(Response::new(ReceiverStream::new(stream))),
        }
    }
}
