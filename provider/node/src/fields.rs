//! What of a pod its containers can be told: fields and amounts of resources.

use crate::cluster::machine::Capacity;
use crate::pod::PodObject;
use crate::quantity;
use k8s_openapi::api::core::v1::{Container, ResourceFieldSelector};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// What fields of the pod refer to that the pod does not know itself.
#[derive(Clone, Debug)]
pub struct NodeFacts {
    /// The node's name.
    pub name: String,
    /// Its addresses, the first one first; never empty.
    pub addresses: Vec<String>,
    /// What it has for pods.
    pub allocatable: Capacity,
}

impl NodeFacts {
    pub(crate) fn address(&self) -> String {
        self.addresses.first().cloned().unwrap_or_default()
    }
}

/// The value of a field that variables and files can have; `None` if there is no such field.
pub fn field(path: &str, pod: &PodObject, node: &NodeFacts) -> Option<String> {
    let metadata = &pod.api.metadata;
    let in_map = |prefix: &str, map: &Option<BTreeMap<String, String>>| {
        let key = path.strip_prefix(prefix)?.strip_prefix("['")?.strip_suffix("']")?;
        Some(map.as_ref().and_then(|map| map.get(key)).cloned().unwrap_or_default())
    };
    match path {
        "metadata.name" => Some(pod.name().to_owned()),
        "metadata.namespace" => Some(pod.namespace().to_owned()),
        "metadata.uid" => Some(pod.uid().to_owned()),
        "spec.nodeName" => Some(node.name.clone()),
        "spec.serviceAccountName" => Some(service_account(pod).to_owned()),
        "status.hostIP" | "status.podIP" => Some(node.address()),
        "status.hostIPs" | "status.podIPs" => Some(node.addresses.join(",")),
        _ => in_map("metadata.labels", &metadata.labels)
            .or_else(|| in_map("metadata.annotations", &metadata.annotations)),
    }
}

/// The value of a field that files can have: besides the others, all labels or annotations, a line each.
pub fn file_field(path: &str, pod: &PodObject, node: &NodeFacts) -> Option<String> {
    let metadata = &pod.api.metadata;
    match path {
        "metadata.labels" => Some(lines(metadata.labels.as_ref())),
        "metadata.annotations" => Some(lines(metadata.annotations.as_ref())),
        _ => field(path, pod, node),
    }
}

/// The name of the pod's service account.
pub fn service_account(pod: &PodObject) -> &str {
    pod.spec().service_account_name.as_deref().filter(|name| !name.is_empty()).unwrap_or("default")
}

fn lines(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<_> = map.into_iter().flatten().map(|(key, value)| format!("{key}={}", quoted(value))).collect();
    lines.join("\n")
}

/// In double quotes, as Go writes a string.
fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for letter in text.chars() {
        match letter {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\x07' => quoted.push_str("\\a"),
            '\x08' => quoted.push_str("\\b"),
            '\x0b' => quoted.push_str("\\v"),
            '\x0c' => quoted.push_str("\\f"),
            control if u32::from(control) < 0x20 || control == '\x7f' => {
                let _ = write!(quoted, "\\x{:02x}", u32::from(control));
            }
            letter => quoted.push(letter),
        }
    }
    quoted.push('"');
    quoted
}

/// An amount of a resource that a container asks for, in units of the divisor, rounded up. A limit that it does not name is
/// that of its pod as a whole, or what the node has to give.
pub fn resource(
    selector: &ResourceFieldSelector,
    container: &Container,
    pod: &PodObject,
    node: &NodeFacts,
) -> Result<String, String> {
    let path = selector.resource.as_str();
    let unknown = || {
        format!("resource {path:?} is none of limits.* and requests.* of cpu, memory, ephemeral-storage, hugepages-*")
    };
    let (list, name) = path.split_once('.').ok_or_else(unknown)?;
    let resources = container.resources.as_ref();
    let amounts = match list {
        "limits" => resources.and_then(|resources| resources.limits.as_ref()),
        "requests" => resources.and_then(|resources| resources.requests.as_ref()),
        _ => return Err(unknown()),
    };
    if !["cpu", "memory", "ephemeral-storage"].contains(&name) && !name.starts_with("hugepages-") {
        return Err(unknown());
    }
    let parse = |text: &str| quantity::parse(text).map_err(|error| error.to_string());
    let amount = |amounts: Option<&BTreeMap<String, Quantity>>| {
        let amount = amounts.and_then(|amounts| amounts.get(name)).map(|amount| parse(&amount.0)).transpose()?;
        Ok::<_, String>(amount.filter(|amount| !amount.is_zero()))
    };
    let of_pod = pod.spec().resources.as_ref().filter(|_| list == "limits");
    let named = match amount(amounts)? {
        None => amount(of_pod.and_then(|resources| resources.limits.as_ref()))?,
        named => named,
    };
    let one = quantity::parse("1").map_err(|error| error.to_string())?;
    let divisor = selector.divisor.as_ref().map(|divisor| parse(&divisor.0)).transpose()?;
    let divisor = divisor.filter(|divisor| !divisor.is_zero()).unwrap_or(one);
    let amount = match (named, list, name) {
        (Some(amount), ..) => amount,
        (None, "limits", "cpu") => parse(&format!("{}m", node.allocatable.cpu_millis))?,
        (None, "limits", "memory") => parse(&node.allocatable.memory.to_string())?,
        (None, "limits", "ephemeral-storage") => parse(&node.allocatable.ephemeral_storage.to_string())?,
        (None, ..) => return Ok("0".to_owned()),
    };
    Ok(amount.divided(divisor).unwrap_or(0).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::sync::Arc;

    fn node() -> NodeFacts {
        let allocatable = crate::cluster::machine::Capacity { cpu_millis: 2500, memory: 1 << 30, ephemeral_storage: 7 };
        NodeFacts { name: "n".to_owned(), addresses: vec!["10.0.0.1".to_owned(), "::1".to_owned()], allocatable }
    }

    #[test]
    fn fields_are_those_of_the_api() {
        let pod = json!({"metadata": {"name": "p", "namespace": "s", "uid": "u",
            "labels": {"b": "2", "a": "say \"1\"\n"}, "annotations": {"x/y": "z"}}, "spec": {"containers": []}});
        let pod = PodObject { api: Arc::new(serde_json::from_value(pod).unwrap()), folder: None };
        for (path, value) in [
            ("metadata.name", Some("p")),
            ("metadata.namespace", Some("s")),
            ("metadata.uid", Some("u")),
            ("metadata.labels['b']", Some("2")),
            ("metadata.labels['none']", Some("")),
            ("metadata.annotations['x/y']", Some("z")),
            ("spec.serviceAccountName", Some("default")),
            ("status.hostIP", Some("10.0.0.1")),
            ("status.podIPs", Some("10.0.0.1,::1")),
            ("metadata.labels", None),
            ("status.phase", None),
        ] {
            assert_eq!(field(path, &pod, &node()).as_deref(), value, "{path}");
        }
        let labels = file_field("metadata.labels", &pod, &node()).unwrap();
        assert_eq!(labels, "a=\"say \\\"1\\\"\\n\"\nb=\"2\"");
    }

    #[test]
    fn amounts_are_rounded_up_to_their_divisor() {
        let container: Container = serde_json::from_value(json!({"name": "c", "resources": {
            "limits": {"cpu": "1500m", "memory": "64Mi"}, "requests": {"cpu": "250m"}}}))
        .unwrap();
        let pod = |resources: serde_json::Value| {
            let pod =
                json!({"metadata": {"name": "p", "uid": "u"}, "spec": {"resources": resources, "containers": []}});
            PodObject { api: Arc::new(serde_json::from_value(pod).unwrap()), folder: None }
        };
        let alone = pod(json!(null));
        let value = |resource: &str, divisor: &str| {
            let selector = json!({"resource": resource, "divisor": divisor});
            super::resource(&serde_json::from_value(selector).unwrap(), &container, &alone, &node())
        };
        for (resource, divisor, expected) in [
            ("limits.cpu", "0", "2"),
            ("limits.cpu", "1m", "1500"),
            ("requests.cpu", "1m", "250"),
            ("limits.memory", "1Mi", "64"),
            ("limits.memory", "1", "67108864"),
            ("requests.memory", "1", "0"),
            ("limits.ephemeral-storage", "1", "7"),
            ("requests.hugepages-2Mi", "1", "0"),
        ] {
            assert_eq!(value(resource, divisor).as_deref(), Ok(expected), "{resource} in {divisor}");
        }
        assert!(value("limits.gpu", "1").is_err());
        // What the pod has as a whole bounds a container without a limit of its own.
        let (of_pod, bare) =
            (pod(json!({"limits": {"cpu": "2", "memory": "0"}, "requests": {"cpu": "1"}})), Container::default());
        for (resource, expected) in [("limits.cpu", "2"), ("limits.memory", "1073741824"), ("requests.cpu", "0")] {
            let selector = serde_json::from_value(json!({"resource": resource})).unwrap();
            assert_eq!(super::resource(&selector, &bare, &of_pod, &node()).as_deref(), Ok(expected), "{resource}");
        }
    }
}
