//! A container's environment.

use crate::fields::{self, NodeFacts};
use crate::objects::{Awaited, ObjectError, ObjectKey, ObjectKind, Objects, Values};
use crate::pod::PodObject;
use k8s_openapi::api::core::v1::{Container, EnvVar};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Why a container's environment cannot be made.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum EnvironmentError {
    /// The source of a variable is of a kind that the node does not know.
    #[error(
        "container {container}: variable {variable} has no source that this node reads: ConfigMaps, Secrets, fields, resources"
    )]
    Source {
        /// The container.
        container: String,
        /// The variable.
        variable: String,
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
    /// `resourceFieldRef` makes no sense.
    #[error("container {container}: variable {variable}: {what}")]
    Resource {
        /// The container.
        container: String,
        /// The variable.
        variable: String,
        /// What is wrong.
        what: String,
    },
    /// A ConfigMap or Secret cannot be read.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// It has no such key.
    #[error("couldn't find key {key} in {object} of namespace {}", object.namespace)]
    Key {
        /// The object.
        object: ObjectKey,
        /// The key.
        key: String,
    },
}

/// The ConfigMaps and Secrets that a container's variables are taken from.
#[derive(Debug, Default)]
pub struct Sources {
    values: BTreeMap<ObjectKey, Result<Arc<Values>, ObjectError>>,
    /// They are watched as long as this is kept, and read without a request the next time.
    awaited: Awaited,
}

impl Sources {
    /// Reads them.
    pub async fn read(container: &Container, pod: &PodObject, objects: &Objects) -> Self {
        let mut sources = Self::default();
        for key in references(container, pod.namespace()) {
            let values = match objects.watch(&key) {
                Ok(watched) => {
                    sources.awaited.add(watched.clone());
                    watched.read().await
                }
                Err(error) => Err(error),
            };
            sources.values.insert(key, values);
        }
        sources
    }

    /// Resolves when one of them has changed since it was read.
    pub async fn changed(&mut self) {
        self.awaited.changed().await;
    }

    /// The values of an object; `None` if it is not there and need not be.
    fn values(&self, key: &ObjectKey, optional: bool) -> Result<Option<&Values>, ObjectError> {
        match self.values.get(key) {
            Some(Ok(values)) => Ok(Some(values)),
            Some(Err(ObjectError::Missing(_) | ObjectError::NoCluster(_))) | None if optional => Ok(None),
            Some(Err(error)) => Err(error.clone()),
            None => Err(ObjectError::Missing(key.clone())),
        }
    }
}

fn references(container: &Container, namespace: &str) -> Vec<ObjectKey> {
    let mut keys = Vec::new();
    let mut add = |kind, name: &str| {
        keys.push(ObjectKey { kind, namespace: namespace.to_owned(), name: name.to_owned() });
    };
    for source in container.env_from.iter().flatten() {
        source.config_map_ref.iter().for_each(|source| add(ObjectKind::ConfigMap, &source.name));
        source.secret_ref.iter().for_each(|source| add(ObjectKind::Secret, &source.name));
    }
    for source in container.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref()) {
        source.config_map_key_ref.iter().for_each(|source| add(ObjectKind::ConfigMap, &source.name));
        source.secret_key_ref.iter().for_each(|source| add(ObjectKind::Secret, &source.name));
    }
    keys.sort();
    keys.dedup();
    keys
}

/// Which of a container's variables to make.
#[derive(Clone, Copy, Debug)]
pub enum Scope<'a> {
    /// All.
    All(&'a Sources),
    /// Those that are known without asking the API server.
    OfPod,
}

/// The variables in order, each name once, `$(NAME)` replaced as the API defines it.
pub fn variables(
    container: &Container,
    pod: &PodObject,
    node: &NodeFacts,
    scope: Scope<'_>,
) -> Result<Vec<(String, String)>, EnvironmentError> {
    let mut variables: Vec<(String, String)> = Vec::new();
    if let Scope::All(sources) = scope {
        for source in container.env_from.iter().flatten() {
            let of_map = source.config_map_ref.as_ref().map(|map| (ObjectKind::ConfigMap, &map.name, map.optional));
            let of_secret =
                source.secret_ref.as_ref().map(|secret| (ObjectKind::Secret, &secret.name, secret.optional));
            for (kind, name, optional) in of_map.into_iter().chain(of_secret) {
                let key = ObjectKey { kind, namespace: pod.namespace().to_owned(), name: name.clone() };
                let prefix = source.prefix.as_deref().unwrap_or_default();
                for (name, value) in sources.values(&key, optional.unwrap_or(false))?.into_iter().flatten() {
                    set(&mut variables, format!("{prefix}{name}"), text(value));
                }
            }
        }
    }
    for variable in container.env.iter().flatten() {
        let value = match &variable.value_from {
            None => Some(expand(variable.value.as_deref().unwrap_or_default(), &variables)),
            Some(_) => value_from(variable, container, pod, node, scope)?,
        };
        if let Some(value) = value {
            set(&mut variables, variable.name.clone(), value);
        }
    }
    Ok(variables)
}

fn set(variables: &mut Vec<(String, String)>, name: String, value: String) {
    match variables.iter_mut().find(|(known, _)| *known == name) {
        Some(known) => known.1 = value,
        None => variables.push((name, value)),
    }
}

/// A guest's variables are text.
fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).into_owned()
}

fn value_from(
    variable: &EnvVar,
    container: &Container,
    pod: &PodObject,
    node: &NodeFacts,
    scope: Scope<'_>,
) -> Result<Option<String>, EnvironmentError> {
    let Some(source) = &variable.value_from else { return Ok(None) };
    let (in_container, of_variable) = (container.name.clone(), variable.name.clone());
    if let Some(field) = &source.field_ref {
        let value = fields::field(&field.field_path, pod, node);
        let field = field.field_path.clone();
        let unknown = EnvironmentError::UnknownField { container: in_container, variable: of_variable, field };
        return value.map(Some).ok_or(unknown);
    }
    if let Some(selector) = &source.resource_field_ref {
        let named = selector.container_name.as_deref().filter(|name| !name.is_empty());
        let mut all = pod.spec().containers.iter().chain(pod.init_containers());
        let of = match named {
            Some(name) => all.find(|container| container.name == name),
            None => Some(container),
        };
        let value = match of {
            Some(of) => fields::resource(selector, of, pod, node),
            None => Err(format!("no container {:?}", named.unwrap_or_default())),
        };
        let failed = |what| EnvironmentError::Resource { container: in_container, variable: of_variable, what };
        return value.map(Some).map_err(failed);
    }
    let of_map = source.config_map_key_ref.as_ref();
    let of_map = of_map.map(|source| (ObjectKind::ConfigMap, &source.name, &source.key, source.optional));
    let of_secret = source.secret_key_ref.as_ref();
    let of_secret = of_secret.map(|source| (ObjectKind::Secret, &source.name, &source.key, source.optional));
    let Some((kind, name, key, optional)) = of_map.or(of_secret) else {
        return Err(EnvironmentError::Source { container: in_container, variable: of_variable });
    };
    let Scope::All(sources) = scope else { return Ok(None) };
    let object = ObjectKey { kind, namespace: pod.namespace().to_owned(), name: name.clone() };
    let optional = optional.unwrap_or(false);
    match sources.values(&object, optional)?.map(|values| values.get(key)) {
        Some(Some(value)) => Ok(Some(text(value))),
        _ if optional => Ok(None),
        _ => Err(EnvironmentError::Key { object, key: key.clone() }),
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
    use crate::cluster::machine::Capacity;
    use serde_json::json;
    use std::sync::Arc;

    fn variables_of(
        container: serde_json::Value,
        sources: Option<&Sources>,
    ) -> Result<Vec<(String, String)>, EnvironmentError> {
        let mut container = container;
        container["name"] = json!("c");
        let pod = json!({"metadata": {"name": "p", "uid": "u", "labels": {"app": "x"}},
            "spec": {"containers": [container]}});
        let pod = PodObject { api: Arc::new(serde_json::from_value(pod).unwrap()), folder: None };
        let addresses = vec!["127.0.0.1".to_owned()];
        let node = NodeFacts { name: "n".to_owned(), addresses, allocatable: Capacity::default() };
        variables(&pod.spec().containers[0], &pod, &node, sources.map_or(Scope::OfPod, Scope::All))
    }

    #[test]
    fn references_are_replaced_as_the_api_defines_it() {
        let env = json!([{"name": "A", "value": "1"}, {"name": "B", "value": "$(A)$(A) $$(A) $(C) $x $("},
            {"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
            {"name": "L", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
            {"name": "R", "valueFrom": {"resourceFieldRef": {"resource": "requests.cpu"}}}, {"name": "A", "value": "$(A)2"}]);
        let variables = variables_of(json!({"env": env}), None).unwrap();
        let value = |name: &str| variables.iter().find(|(known, _)| known == name).unwrap().1.as_str();
        assert_eq!(value("B"), "11 $(A) $(C) $x $(");
        assert_eq!((value("N"), value("L"), value("R"), value("A")), ("n", "x", "0", "12"));
        assert_eq!(variables.len(), 5, "each name once");
    }

    #[test]
    fn values_of_objects_are_used_and_what_is_missing_is_named() {
        let key = |kind, name: &str| ObjectKey { kind, namespace: "default".to_owned(), name: name.to_owned() };
        let values = |of: &[(&str, &str)]| {
            Arc::new(of.iter().map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec())).collect::<Values>())
        };
        let missing = key(ObjectKind::Secret, "gone");
        let sources = Sources {
            values: BTreeMap::from([
                (key(ObjectKind::ConfigMap, "m"), Ok(values(&[("A", "1"), ("B", "$(A)")]))),
                (key(ObjectKind::Secret, "s"), Ok(values(&[("k", "x")]))),
                (missing.clone(), Err(ObjectError::Missing(missing))),
            ]),
            awaited: Awaited::default(),
        };
        let secret = |name: &str, key: &str, optional: bool| json!({"name": "S", "valueFrom": {"secretKeyRef": {"name": name, "key": key, "optional": optional}}});
        let from = json!([{"configMapRef": {"name": "m"}, "prefix": "P_"}, {"configMapRef": {"name": "m"}},
            {"secretRef": {"name": "gone", "optional": true}}]);
        let env = json!([{"name": "A", "value": "own $(P_A)"}, secret("s", "k", false)]);
        let variables = variables_of(json!({"envFrom": from, "env": env}), Some(&sources)).unwrap();
        let expected = [("P_A", "1"), ("P_B", "$(A)"), ("A", "own 1"), ("B", "$(A)"), ("S", "x")];
        assert_eq!(variables, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
        let failed = |env| variables_of(json!({"env": [env]}), Some(&sources)).unwrap_err().to_string();
        assert_eq!(failed(secret("s", "no", false)), "couldn't find key no in secret \"s\" of namespace default");
        assert_eq!(failed(secret("gone", "k", false)), "secret \"gone\" not found");
        assert_eq!(variables_of(json!({"env": [secret("s", "no", true)]}), Some(&sources)), Ok(Vec::new()));
        let unknown = json!({"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "spec.nope"}}});
        assert!(failed(unknown).contains("no field \"spec.nope\""));
        // Before the API server is asked, what comes from it is left out.
        assert_eq!(variables_of(json!({"env": [secret("gone", "k", false)]}), None), Ok(Vec::new()));
    }
}
