//! A gRPC server on a Unix socket.

use crate::authority::AnyAuthority;
use crate::socket::{self, SocketError, SocketFile};
use futures::TryStreamExt as _;
use std::path::Path;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::service::Routes;

/// A socket and the server behind it. When this is dropped, the file is removed and no new call is taken; streams that are open
/// go on. Clients may call the server what they like (`:authority`).
#[derive(Debug)]
pub struct ServedSocket {
    file: SocketFile,
    _stop: DropGuard,
}

impl ServedSocket {
    /// Serves `services` at `path`, which is made as [`socket::listen`] does.
    pub fn start(path: &Path, services: Routes) -> Result<Self, SocketError> {
        let (listener, file) = socket::listen(path)?;
        let stop = CancellationToken::new();
        let (ended, shown) = (stop.clone(), path.display().to_string());
        let incoming = UnixListenerStream::new(listener).map_ok(AnyAuthority::new);
        let server = tonic::transport::Server::builder().add_routes(services);
        tokio::spawn(async move {
            if let Err(error) = server.serve_with_incoming_shutdown(incoming, ended.cancelled_owned()).await {
                tracing::error!(socket = shown, %error, "serving a socket");
            }
        });
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
