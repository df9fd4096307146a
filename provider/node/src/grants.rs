//! What a pod grants its containers beyond themselves, as its manifest says it.

use crate::pod::PodObject;
use akri_krustlet_runtime::network::NetworkRules;
use akri_krustlet_runtime::network::rules::RuleError;
use akri_krustlet_runtime::{Interface, Item};
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
pub fn network(pod: &PodObject) -> Result<Option<Arc<NetworkRules>>, GrantError> {
    let annotation = pod.api.metadata.annotations.as_ref().and_then(|annotations| annotations.get(NETWORK));
    let Some(text) = annotation else { return Ok(None) };
    let rules: NetworkRules = text.parse()?;
    if pod.spec().host_network != Some(true) {
        return Err(GrantError::HostNetwork);
    }
    Ok((!rules.0.is_empty()).then(|| Arc::new(rules)))
}

/// The line of a manifest that grants an interface.
pub fn manifest_line(interface: Interface) -> &'static str {
    match interface {}
}

/// Why a component cannot be run: it is neither a discovery handler nor a program.
pub fn neither_handler_nor_command(exports: &[Item]) -> String {
    let is_proxy = exports.iter().any(|export| export.interface() == "wasi:http/incoming-handler");
    let what = if is_proxy {
        "it is an HTTP server (wasi:http/proxy), which would need a listener that the node does not have".to_owned()
    } else {
        let exports = exports.iter().map(|export| export.name.as_str()).collect::<Vec<_>>();
        format!("it exports {}", if exports.is_empty() { "nothing".to_owned() } else { exports.join(", ") })
    };
    format!(
        "{what}; a component is a discovery handler by exporting akri:discovery/handler@0.1.0; a program must be a module (wasm32-wasip1)"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(annotation: &str, host_network: bool) -> Result<Option<Arc<NetworkRules>>, String> {
        let pod = json!({"metadata": {"name": "p", "uid": "u", "annotations": {NETWORK: annotation}},
            "spec": {"hostNetwork": host_network, "containers": []}});
        let pod = PodObject { api: Arc::new(serde_json::from_value(pod).unwrap()), folder: None };
        network(&pod).map_err(|error| error.to_string())
    }

    #[test]
    fn a_network_is_granted_by_rules_and_by_the_pods_word() {
        assert!(of("tcp 10.0.0.1:80", true).unwrap().is_some());
        assert!(of("tcp 10.0.0.1:80", false).unwrap_err().contains("spec.hostNetwork: true"));
        assert!(of("tcp 10.0.0.1", true).unwrap_err().contains("annotation akri-krustlet/network, line 1"));
        assert!(of("# nothing\n", true).unwrap().is_none());
    }
}
