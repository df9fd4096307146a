//! What a container's guests reach of the network, by its pod's grants.

use crate::context::PodContext;
use crate::grants;
use akri_krustlet_runtime::log::ContainerLog;
use akri_krustlet_runtime::network::{Denials, NetworkAccess, NetworkGrant};
use std::sync::Arc;

/// The grant of one container; what is denied is told in its log.
pub fn network_grant(context: &PodContext, container: &str, log: &Arc<ContainerLog>) -> Result<NetworkGrant, String> {
    let rules = grants::network(&context.latest()).map_err(|error| error.to_string())?;
    let name = format!("{}/{container}", context.pod.key());
    let denials = Denials::new(&name, Some(log.clone()));
    Ok(NetworkGrant::new(rules, context.services.network.clone(), denials))
}

/// What a container that is no discovery handler may reach: where its rules speak of details, it is what the URLs in the
/// variables of its devices name.
pub fn network_access(
    context: &PodContext,
    container: &str,
    log: &Arc<ContainerLog>,
    of_devices: &[String],
) -> Result<Arc<NetworkAccess>, String> {
    let details = serde_json::Value::from(of_devices).to_string();
    Ok(NetworkAccess::new(network_grant(context, container, log)?, &details))
}
