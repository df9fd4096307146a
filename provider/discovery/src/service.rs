//! The gRPC service behind a handler's socket.

use crate::details::request_json;
use crate::handlers::Handler;
use crate::session::{self, Verdict};
use akri_proto::v0::discovery_handler_server::{DiscoveryHandler, DiscoveryHandlerServer};
use akri_proto::v0::{DiscoverRequest, DiscoverResponse};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixListener;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

/// How long a call waits for its guest's verdict on the discovery details before its headers are sent. The Agent waits for
/// the headers without a deadline, so it must not be kept.
const VERDICT: Duration = Duration::from_millis(500);

/// Serves `handler` on `listener` until `stop` is cancelled; streams that are open then go on.
pub(crate) fn serve(handler: Arc<Handler>, listener: UnixListener, stop: CancellationToken) {
    let service = DiscoveryHandlerServer::new(Service { handler: handler.clone() });
    tokio::spawn(async move {
        let served = tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop.cancelled_owned())
            .await;
        if let Err(error) = served {
            tracing::error!(handler = handler.name, %error, "serving a discovery handler's socket");
        }
    });
}

struct Service {
    handler: Arc<Handler>,
}

#[tonic::async_trait]
impl DiscoveryHandler for Service {
    type DiscoverStream = ReceiverStream<Result<DiscoverResponse, Status>>;

    async fn discover(&self, request: Request<DiscoverRequest>) -> Result<Response<Self::DiscoverStream>, Status> {
        let request = request_json(request.get_ref()).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let (stream, verdict) = session::open(self.handler.clone(), request);
        match tokio::time::timeout(VERDICT, verdict).await {
            Ok(Ok(Verdict::InvalidDetails(reason))) => Err(Status::invalid_argument(reason)),
            Ok(Ok(Verdict::Exhausted(reason))) => Err(Status::resource_exhausted(reason)),
            // A list is on its way, or nothing is known yet: the stream stays open either way.
            Ok(Ok(Verdict::Answered) | Err(_)) | Err(_) => Ok(Response::new(ReceiverStream::new(stream))),
        }
    }
}
