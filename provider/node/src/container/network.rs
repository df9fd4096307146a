//! What a container's guests reach of the network, by its pod's grants.

use crate::context::PodContext;
use crate::grants::{self, GrantError};
use akri_krustlet_runtime::log::ContainerLog;
use akri_krustlet_runtime::network::{Denials, NetworkAccess, NetworkGrant, NetworkRules};
use k8s_openapi::api::core::v1::Container;
use std::sync::Arc;

/// The grant of a container by these rules; what is denied is told in its log.
pub fn network_grant(
    context: &PodContext,
    container: &str,
    log: &Arc<ContainerLog>,
    rules: Result<Arc<NetworkRules>, GrantError>,
) -> Result<NetworkGrant, String> {
    let rules = rules.map_err(|error| error.to_string())?;
    let name = format!("{}/{container}", context.pod.key());
    let denials = Denials::new(&name, Some(log.clone()));
    let grant = NetworkGrant::new(rules, context.services.network.clone(), denials);
    Ok(grant.counted_by(context.limits(container)))
}

/// What a container that is no discovery handler may reach: where its rules speak of details, it is what the URLs in the
/// variables of its devices name.
pub fn network_access(
    context: &PodContext,
    container: &Container,
    log: &Arc<ContainerLog>,
    of_devices: &[String],
) -> Result<Arc<NetworkAccess>, String> {
    let details = serde_json::Value::from(of_devices).to_string();
    let rules = grants::network_of(&context.latest(), container);
    Ok(NetworkAccess::new(network_grant(context, &container.name, log, rules)?, &details))
}
