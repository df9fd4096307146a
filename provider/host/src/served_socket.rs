//! A gRPC server on a Unix socket.

use crate::authority::AnyAuthority;
use crate::socket::{self, SocketError, SocketFile};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use std::convert::Infallible;
use std::path::Path;
use std::time::Duration;
use tokio::net::UnixListener;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Pause after a connection that the system could not give, for want of file descriptors for example.
const PAUSE: Duration = Duration::from_millis(100);

/// A gRPC service as tonic generates it, `FooServer::new(..)`. It is served without tonic's router: a node has a socket for each
/// handler, and a router for one service takes more memory than all else of a socket. What a client says of its own deadline
/// (`grpc-timeout`) is left to the client, which resets its call then.
pub trait GrpcService:
    tower::Service<Request<Incoming>, Response = Response<tonic::body::Body>, Error = Infallible, Future: Send>
    + Clone
    + Send
    + 'static
{
}

impl<S> GrpcService for S where
    S: tower::Service<Request<Incoming>, Response = Response<tonic::body::Body>, Error = Infallible, Future: Send>
        + Clone
        + Send
        + 'static
{
}

/// A socket and the server behind it. When this is dropped, the file is removed and no new call is taken; streams that are open
/// go on. Clients may call the server what they like (`:authority`).
#[derive(Debug)]
pub struct ServedSocket {
    file: SocketFile,
    _stop: DropGuard,
}

impl ServedSocket {
    /// Serves `service` at `path`, which is made as [`socket::listen`] does.
    pub fn start(path: &Path, service: impl GrpcService) -> Result<Self, SocketError> {
        let (listener, file) = socket::listen(path)?;
        let stop = CancellationToken::new();
        tokio::spawn(serve(listener, service, stop.clone(), path.display().to_string()));
        Ok(Self { file, _stop: stop.drop_guard() })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// True while the file is still ours: nobody removed or replaced it.
    pub fn is_in_place(&self) -> bool {
        self.file.is_in_place()
    }
}

/// Takes connections until it is to stop, then waits for the streams that are open.
async fn serve(listener: UnixListener, service: impl GrpcService, stop: CancellationToken, shown: String) {
    let connections = GracefulShutdown::new();
    let mut is_failing = false;
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                if !std::mem::replace(&mut is_failing, true) {
                    tracing::error!(socket = shown, %error, "no connection to a socket can be taken; trying again");
                }
                tokio::select! {
                    () = stop.cancelled() => break,
                    () = tokio::time::sleep(PAUSE) => continue,
                }
            }
        };
        is_failing = false;
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            // Streams stay open for as long as their clients want; who may connect is trusted with their number.
            .max_concurrent_streams(None)
            .serve_connection(TokioIo::new(AnyAuthority::new(stream)), TowerToHyperService::new(service.clone()));
        let connection = connections.watch(connection);
        let shown = shown.clone();
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(socket = shown, %error, "a connection to a socket ended");
            }
        });
    }
    drop(listener);
    connections.shutdown().await;
}
