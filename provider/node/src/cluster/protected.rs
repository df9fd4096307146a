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
    tokio::spawn(follow(network, server, client, first.unwrap_or_default()));
}

async fn follow(network: Arc<NodeNetwork>, server: (String, u16), client: Client, mut own: Vec<IpAddr>) {
    let services: Api<Service> = Api::namespaced(client.clone(), "default");
    let endpoints: Api<Endpoints> = Api::namespaced(client, "default");
    let mut of_service = Vec::new();
    loop {
        let found = services.get("kubernetes").await;
        let known = match &found {
            Ok(service) => {
                of_service = addresses(service);
                // All API servers of the cluster; a node may have no right to see them.
                match endpoints.get("kubernetes").await {
                    Ok(found) => of_service.extend(behind(&found)),
                    Err(error) => tracing::debug!(%error, "the API servers behind the Service cannot be read"),
                }
                true
            }
            Err(error) => {
                tracing::debug!(%error, "the Service of the API server cannot be read");
                false
            }
        };
        let looked_up = look_up(&server).await;
        let pause = if known && looked_up.is_some() { LOOK_UP } else { AGAIN };
        own = looked_up.unwrap_or(own);
        network.protect([&own[..], &of_service[..]].concat());
        tokio::time::sleep(pause).await;
    }
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
