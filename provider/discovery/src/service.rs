//! The gRPC service behind a handler's socket.

use crate::details::DiscoveryRequest;
use crate::handlers::Handler;
use crate::session::{self, Verdict};
use akri_krustlet_host::{GrpcService, resting_memory, span, spans};
use akri_krustlet_metrics::counted;
use akri_proto::v0::discovery_handler_server::{DiscoveryHandler, DiscoveryHandlerServer};
use akri_proto::v0::{DiscoverRequest, DiscoverResponse};
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status};

/// How long a call waits for its guest's verdict on the discovery details before its headers are sent. The Agent waits for
/// the headers without a deadline, so it must not be kept.
const VERDICT: Duration = Duration::from_millis(500);

/// What is served on a handler's socket.
pub(crate) fn service(handler: Arc<Handler>) -> impl GrpcService {
    DiscoveryHandlerServer::new(Service { handler })
}

struct Service {
    handler: Arc<Handler>,
}

#[tonic::async_trait]
impl DiscoveryHandler for Service {
    type DiscoverStream = ReceiverStream<Result<DiscoverResponse, Status>>;

    async fn discover(&self, request: Request<DiscoverRequest>) -> Result<Response<Self::DiscoverStream>, Status> {
        let started = Instant::now();
        let answer = self.answer(request.into_inner(), started).await;
        let code = answer.as_ref().err().map_or(Code::Ok, Status::code);
        // What was counted of a handler that is gone stays forgotten.
        if !self.handler.closing.is_cancelled() {
            counted().discover_calls.add([&self.handler.name, &format!("{code:?}")]);
        }
        answer
    }
}

type Answer = Response<ReceiverStream<Result<DiscoverResponse, Status>>>;

impl Service {
    async fn answer(&self, request: DiscoverRequest, started: Instant) -> Result<Answer, Status> {
        let request = DiscoveryRequest::read(request).map_err(|error| Status::invalid_argument(error.to_string()))?;
        resting_memory::has_worked();
        let span = span!(parent: None, "discover", akri.handler = self.handler.name);
        *request.call.lock().unwrap_or_else(PoisonError::into_inner) = span.clone();
        let (stream, verdict) = session::open(self.handler.clone(), request, (started, span.clone()));
        let refused = |status: Status| {
            spans::fail(&span, &status.message());
            Err(status)
        };
        match tokio::time::timeout(VERDICT, verdict).await {
            Ok(Ok(Verdict::InvalidDetails(reason))) => refused(Status::invalid_argument(reason)),
            Ok(Ok(Verdict::Exhausted(reason))) => refused(Status::resource_exhausted(reason)),
            // A list is on its way, or nothing is known yet: the stream stays open either way.
            Ok(Ok(Verdict::Answered) | Err(_)) | Err(_) => Ok(Response::new(ReceiverStream::new(stream))),
        }
    }
}
