//! A container's environment.

use crate::pod::PodObject;
use k8s_openapi::api::core::v1::{Container, EnvVar, ObjectFieldSelector};

/// Why a container's environment cannot be made.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum EnvironmentError {
    /// The source of a variable is not read.
    #[error(
        "container {container}: variable {variable} is taken from a {source_kind}, which this version of the node does not read; give it a value"
    )]
    NeedsCluster {
        /// The container.
        container: String,
        /// The variable.
        variable: String,
        /// ConfigMap, Secret, ...
        source_kind: &'static str,
    },
    /// `fieldRef` names a field that does not exist.
    #[error("container {container}: variable {variable}: no field {field:?}")]
    UnknownField {
        /// The container.
        container: String,
        /// The variable.
        variable: String,
        /// The field.
        field: String,
    },
}

/// What fields of the pod refer to that the pod does not know itself.
#[derive(Clone, Debug)]
pub struct NodeFacts {
    /// The node's name.
    pub name: String,
    /// Its addresses, the first one first; never empty.
    pub addresses: Vec<String>,
}

impl NodeFacts {
    fn address(&self) -> String {
        self.addresses.first().cloned().unwrap_or_default()
    }
}

/// The variables in order, `$(NAME)` replaced as the API defines it.
pub fn variables(
    container: &Container,
    pod: &PodObject,
    node: &NodeFacts,
) -> Result<Vec<(String, String)>, EnvironmentError> {
    if container.env_from.as_ref().is_some_and(|sources| !sources.is_empty()) {
        let (container, variable) = (container.name.clone(), "envFrom".to_owned());
        return Err(EnvironmentError::NeedsCluster { container, variable, source_kind: "ConfigMap or Secret" });
    }
    let mut variables: Vec<(String, String)> = Vec::new();
    for variable in container.env.iter().flatten() {
        let value = value_of(variable, container, pod, node)?;
        let value = expand(&value, &variables);
        variables.push((variable.name.clone(), value));
    }
    Ok(variables)
}

fn value_of(
    variable: &EnvVar,
    container: &Container,
    pod: &PodObject,
    node: &NodeFacts,
) -> Result<String, EnvironmentError> {
    let Some(source) = &variable.value_from else { return Ok(variable.value.clone().unwrap_or_default()) };
    if let Some(field) = &source.field_ref {
        return field_of(field, pod, node).ok_or_else(|| EnvironmentError::UnknownField {
            container: container.name.clone(),
            variable: variable.name.clone(),
            field: field.field_path.clone(),
        });
    }
    let source_kind = match source {
        _ if source.config_map_key_ref.is_some() => "ConfigMap",
        _ if source.secret_key_ref.is_some() => "Secret",
        _ if source.resource_field_ref.is_some() => "resource field",
        _ => "source",
    };
    Err(EnvironmentError::NeedsCluster {
        container: container.name.clone(),
        variable: variable.name.clone(),
        source_kind,
    })
}

fn field_of(field: &ObjectFieldSelector, pod: &PodObject, node: &NodeFacts) -> Option<String> {
    let metadata = &pod.api.metadata;
    let path = field.field_path.as_str();
    let in_map = |prefix: &str, map: &Option<std::collections::BTreeMap<String, String>>| {
        let key = path.strip_prefix(prefix)?.strip_prefix("['")?.strip_suffix("']")?;
        Some(map.as_ref().and_then(|map| map.get(key)).cloned().unwrap_or_default())
    };
    match path {
        "metadata.name" => Some(pod.name().to_owned()),
        "metadata.namespace" => Some(pod.namespace().to_owned()),
        "metadata.uid" => Some(pod.uid().to_owned()),
        "spec.nodeName" => Some(node.name.clone()),
        "spec.serviceAccountName" => {
            Some(pod.spec().service_account_name.clone().unwrap_or_else(|| "default".to_owned()))
        }
        "status.hostIP" | "status.podIP" => Some(node.address()),
        "status.hostIPs" | "status.podIPs" => Some(node.addresses.join(",")),
        _ => in_map("metadata.labels", &metadata.labels)
            .or_else(|| in_map("metadata.annotations", &metadata.annotations)),
    }
}

/// Replaces `$(NAME)` by an earlier variable's value; `$$` is a `$`; a name that is not known stays as it stands.
pub fn expand(text: &str, variables: &[(String, String)]) -> String {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        expanded.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            expanded.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match variables.iter().rev().find(|(known, _)| known == name) {
                Some((_, value)) => expanded.push_str(value),
                None => {
                    expanded.push_str("$(");
                    expanded.push_str(name);
                    expanded.push(')');
                }
            }
            rest = after;
        } else {
            expanded.push('$');
        }
    }
    expanded.push_str(rest);
    expanded
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::sync::Arc;

    fn variables_of(env: serde_json::Value) -> Result<Vec<(String, String)>, EnvironmentError> {
        let pod = json!({"metadata": {"name": "p", "uid": "u", "labels": {"app": "x"}},
            "spec": {"containers": [{"name": "c", "env": env}]}});
        let pod = PodObject { api: Arc::new(serde_json::from_value(pod).unwrap()), folder: None };
        let node = NodeFacts { name: "n".to_owned(), addresses: vec!["127.0.0.1".to_owned()] };
        variables(&pod.spec().containers[0], &pod, &node)
    }

    #[test]
    fn references_are_replaced_as_the_api_defines_it() {
        let env = json!([{"name": "A", "value": "1"}, {"name": "B", "value": "$(A)$(A) $$(A) $(C) $x $("},
            {"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
            {"name": "L", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}}]);
        let variables = variables_of(env).unwrap();
        let value = |name: &str| variables.iter().find(|(known, _)| known == name).unwrap().1.as_str();
        assert_eq!(value("B"), "11 $(A) $(C) $x $(");
        assert_eq!((value("N"), value("L")), ("n", "x"));
    }

    #[test]
    fn what_needs_a_cluster_is_refused_in_words() {
        let env = json!([{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]);
        assert!(variables_of(env).unwrap_err().to_string().contains("variable A is taken from a Secret"));
        let env = json!([{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "spec.nope"}}}]);
        assert!(variables_of(env).unwrap_err().to_string().contains("no field \"spec.nope\""));
    }
}
