//! The socket that device plugins register at.

use crate::devices::Devices;
use akri_krustlet_host::GrpcService;
use akri_proto::v1beta1::registration_server::{Registration, RegistrationServer};
use akri_proto::v1beta1::{Empty, RegisterRequest};
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use tokio::sync::watch;
use tonic::{Request, Response, Status};

/// Its name in the plugins' directory.
pub(crate) const SOCKET: &str = "kubelet.sock";
/// The version of the interface.
pub(crate) const VERSION: &str = "v1beta1";
/// Largest registration, in bytes.
const MOST_MESSAGE: usize = 16 << 10;

/// A resource that plugins may offer: an extended resource of the API.
pub(crate) fn is_resource_name(name: &str) -> bool {
    let Some((domain, rest)) = name.split_once('/') else { return false };
    let is_label = |text: &str, most: usize, others: &[u8]| {
        let is_end = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
        let bytes = text.as_bytes();
        bytes.len() <= most
            && is_end(bytes.first())
            && is_end(bytes.last())
            && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || others.contains(byte))
    };
    domain != "kubernetes.io"
        && !domain.ends_with(".kubernetes.io")
        && !name.starts_with("requests.")
        && is_label(domain, 253, b".-")
        && is_label(rest, 63, b"._-")
}

/// What is served on the registration socket.
pub(crate) fn service(devices: &Arc<Devices>) -> impl GrpcService {
    let registry = Registry { devices: Arc::downgrade(devices) };
    RegistrationServer::new(registry).max_decoding_message_size(MOST_MESSAGE)
}

/// Makes the sockets again when somebody removes them from their directory.
pub(crate) async fn keep(devices: Weak<Devices>, directory: PathBuf, mut changes: watch::Receiver<()>) {
    let mut failed = false;
    while changes.changed().await.is_ok() {
        let Some(devices) = devices.upgrade() else { return };
        match devices.serve() {
            Ok(()) => failed = false,
            Err(error) if !failed => {
                failed = true;
                tracing::error!("device plugins cannot register: {error}");
            }
            Err(_) => {}
        }
    }
    tracing::error!(
        directory = %directory.display(),
        "the directory of the device plugins' sockets was removed; they are served again when the node is restarted"
    );
}

struct Registry {
    devices: Weak<Devices>,
}

#[tonic::async_trait]
impl Registration for Registry {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<Empty>, Status> {
        let devices = self.devices.upgrade().ok_or_else(|| Status::unavailable("the node is ending"))?;
        let request = request.into_inner();
        let resource = request.resource_name.clone();
        devices.register(request).map_err(|error| {
            tracing::warn!(resource, "a device plugin is refused: {error}");
            Status::invalid_argument(error)
        })?;
        Ok(Response::new(Empty {}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_of_plugins_have_a_domain_of_their_own() {
        for name in ["akri.sh/akri-debug-echo-8120fe", "example.com/a", "a/b_c.d"] {
            assert!(is_resource_name(name), "{name}");
        }
        let long = format!("a/{}", "x".repeat(64));
        for name in ["cpu", "kubernetes.io/a", "a.kubernetes.io/b", "a/", "/a", "a/b/c", "a/-b", "requests.a/b", &long]
        {
            assert!(!is_resource_name(name), "{name}");
        }
    }
}
