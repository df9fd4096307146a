//! What a pod grants its containers beyond themselves, as its manifest says it.

use crate::pod::PodObject;
use akri_krustlet_runtime::Item;
use akri_krustlet_runtime::network::NetworkRules;
use akri_krustlet_runtime::network::rules::RuleError;
use std::sync::Arc;

/// Annotation: the rules of its containers' network, one a line; without it they have none.
pub const NETWORK: &str = "akri-krustlet/network";

/// A grant that makes no sense.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum GrantError {
    /// A line of the annotation is no rule.
    #[error("annotation {NETWORK}, {0} (docs/grants.md has all rules)")]
    Rule(#[from] RuleError),
    /// The pod does not say that it uses the machine's network.
    #[error(
        "annotation {NETWORK}: the network of a guest is the machine's; say so in the pod, with spec.hostNetwork: true"
    )]
    HostNetwork,
}

/// The network that a pod grants its containers.
pub fn network(pod: &PodObject) -> Result<Arc<NetworkRules>, GrantError> {
    let annotation = pod.api.metadata.annotations.as_ref().and_then(|annotations| annotations.get(NETWORK));
    let Some(text) = annotation else { return Ok(Arc::default()) };
    let rules: NetworkRules = text.parse()?;
    if pod.spec().host_network != Some(true) {
        return Err(GrantError::HostNetwork);
    }
    Ok(Arc::new(rules))
}

/// What a manifest has to say so that a program may use what it imports: nothing for most imports.
pub fn manifest_lines(import: &Item) -> &'static [&'static str] {
    match import.interface().starts_with("wasi:sockets/") {
        true => &["spec.hostNetwork: true", "annotation akri-krustlet/network: RULES (docs/grants.md)"],
        false => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(annotation: &str, host_network: bool) -> Result<Arc<NetworkRules>, String> {
        let pod = json!({"metadata": {"name": "p", "uid": "u", "annotations": {NETWORK: annotation}},
            "spec": {"hostNetwork": host_network, "containers": []}});
        let pod = PodObject { api: Arc::new(serde_json::from_value(pod).unwrap()), folder: None };
        network(&pod).map_err(|error| error.to_string())
    }

    #[test]
    fn a_network_is_granted_by_rules_and_by_the_pods_word() {
        assert_eq!(of("tcp 10.0.0.1:80", true).unwrap().0.len(), 1);
        assert!(of("tcp 10.0.0.1:80", false).unwrap_err().contains("spec.hostNetwork: true"));
        assert!(of("tcp 10.0.0.1", true).unwrap_err().contains("annotation akri-krustlet/network, line 1"));
        assert!(of("# nothing\n", true).unwrap().0.is_empty());
    }
}
