//! Where the API server is, for the networks of guests: no rule for a network or a name opens that.

use akri_krustlet_runtime::network::NodeNetwork;
use k8s_openapi::api::core::v1::{Endpoints, Service};
use kube::{Api, Client};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// How often it is looked up, and how soon again after that failed.
const LOOK_UP: Duration = Duration::from_secs(600);
const AGAIN: Duration = Duration::from_secs(10);

/// Keeps the networks of guests from the API server, as they are kept from this machine: its own address, and those of the Service
/// in front of it, need rules of their own. Returns when its own address is known, or cannot be looked up now.
pub async fn protect_api_server(network: Arc<NodeNetwork>, server: (String, u16), client: Client) {
    let first = look_up(&server).await;
    network.protect(first.clone().unwrap_or_default());
    tokio::spawn(follow(network, server, client, first));
}

/// What cannot be found out now is as it was before.
async fn follow(network: Arc<NodeNetwork>, server: (String, u16), client: Client, first: Option<Vec<IpAddr>>) {
    let (mut own, mut of_service) = (Vec::new(), Vec::new());
    let mut looked_up = first;
    loop {
        let service = addresses_of_service(&client).await;
        let pause = if looked_up.is_some() && service.is_some() { LOOK_UP } else { AGAIN };
        own = looked_up.unwrap_or(own);
        of_service = service.unwrap_or(of_service);
        network.protect([&own[..], &of_service[..]].concat());
        tokio::time::sleep(pause).await;
        looked_up = look_up(&server).await;
    }
}

/// Those of the Service, and of all API servers behind it if the node has the right to see them.
async fn addresses_of_service(client: &Client) -> Option<Vec<IpAddr>> {
    let services: Api<Service> = Api::namespaced(client.clone(), "default");
    let endpoints: Api<Endpoints> = Api::namespaced(client.clone(), "default");
    let service = services.get("kubernetes").await;
    let service = service.inspect_err(|error| tracing::debug!(%error, "the Service of the API server cannot be read"));
    let mut found = addresses(&service.ok()?);
    match endpoints.get("kubernetes").await {
        Ok(endpoints) => found.extend(behind(&endpoints)),
        Err(error) => tracing::debug!(%error, "the API servers behind the Service cannot be read"),
    }
    Some(found)
}

async fn look_up((host, port): &(String, u16)) -> Option<Vec<IpAddr>> {
    let found = tokio::time::timeout(Duration::from_secs(3), tokio::net::lookup_host((host.as_str(), *port))).await;
    match found {
        Ok(Ok(found)) => Some(found.map(|address| address.ip().to_canonical()).collect()),
        _ => {
            tracing::debug!(host, "the API server's address cannot be looked up");
            None
        }
    }
}

fn addresses(service: &Service) -> Vec<IpAddr> {
    let listed = service.spec.iter().flat_map(|spec| spec.cluster_ips.iter().flatten());
    listed.filter_map(|address| address.parse().ok()).collect()
}

fn behind(endpoints: &Endpoints) -> Vec<IpAddr> {
    let subsets = endpoints.subsets.iter().flatten();
    let listed = subsets.flat_map(|subset| subset.addresses.iter().flatten());
    listed.filter_map(|address| address.ip.parse().ok()).collect()
}
