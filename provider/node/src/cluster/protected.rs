//! Where the API server is, for the networks of guests: no rule for a network or a name opens that.

use akri_krustlet_runtime::network::NodeNetwork;
use k8s_openapi::api::core::v1::Service;
use kube::{Api, Client};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// How often it is looked up.
const LOOK_UP: Duration = Duration::from_secs(600);

/// Keeps the networks of guests from the API server, as they are kept from this machine: its own address, and those of the Service
/// in front of it, need rules of their own. Never returns.
pub async fn protect_api_server(network: Arc<NodeNetwork>, (host, port): (String, u16), client: Client) {
    let services: Api<Service> = Api::namespaced(client, "default");
    let (mut server, mut service) = (Vec::new(), Vec::new());
    loop {
        match tokio::net::lookup_host((host.as_str(), port)).await {
            Ok(found) => server = found.map(|address| address.ip().to_canonical()).collect(),
            Err(error) => tracing::debug!(host, %error, "the API server's address cannot be looked up"),
        }
        // It may not answer yet.
        network.protect([&server[..], &service[..]].concat());
        match services.get("kubernetes").await {
            Ok(found) => service = addresses(&found),
            Err(error) => tracing::debug!(%error, "the Service of the API server cannot be read"),
        }
        network.protect([&server[..], &service[..]].concat());
        tokio::time::sleep(LOOK_UP).await;
    }
}

fn addresses(service: &Service) -> Vec<IpAddr> {
    let listed = service.spec.iter().flat_map(|spec| spec.cluster_ips.iter().flatten());
    listed.filter_map(|address| address.parse().ok()).collect()
}
