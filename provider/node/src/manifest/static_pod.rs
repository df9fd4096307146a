//! Static pods: pods of manifests on a node of a cluster, as a kubelet makes them of what is in its folder.

use super::is_dns_subdomain;
use crate::pod::PodObject;
use k8s_openapi::api::core::v1::{Pod, PodSpec, Toleration};
use serde_json::Value;
use std::sync::Arc;

/// Where a pod is from; `file` for static pods.
pub const SOURCE_ANNOTATION: &str = "kubernetes.io/config.source";
/// On a static pod: its UID.
pub const HASH_ANNOTATION: &str = "kubernetes.io/config.hash";

/// The pod of a manifest as the static pod of a node: its name ends with the node's, so that it is another one on each node, and
/// no taint ends it. An error says what it may not have.
pub fn static_pod(pod: &PodObject, node: &str) -> Result<PodObject, String> {
    let mut api = (*pod.api).clone();
    let name = format!("{}-{node}", pod.name());
    if !is_dns_subdomain(&name) {
        return Err(format!("pod {name}: the pod's name and the node's have more than 253 letters together"));
    }
    let spec = api.spec.get_or_insert_default();
    if let Some(what) = of_the_api(spec) {
        return Err(format!(
            "static pod {name} refers to {what}: the API server gives a node nothing for pods that it was not asked to run; write it into the manifest, or make the pod one of the cluster"
        ));
    }
    spec.node_name = Some(node.to_owned());
    let toleration = Toleration {
        operator: Some("Exists".to_owned()),
        effect: Some("NoExecute".to_owned()),
        ..Toleration::default()
    };
    spec.tolerations.get_or_insert_default().push(toleration);
    let annotations = api.metadata.annotations.get_or_insert_default();
    annotations.insert(SOURCE_ANNOTATION.to_owned(), "file".to_owned());
    annotations.insert(HASH_ANNOTATION.to_owned(), pod.uid().to_owned());
    api.metadata.name = Some(name);
    Ok(PodObject { api: Arc::new(api), folder: pod.folder.clone() })
}

/// Whether a pod that is remembered is a static one: nobody else knows its UID before it has it.
pub fn is_static(pod: &Pod) -> bool {
    let annotations = pod.metadata.annotations.as_ref();
    let hash = annotations.and_then(|annotations| annotations.get(HASH_ANNOTATION));
    hash.is_some() && hash == pod.metadata.uid.as_ref()
}

/// The first thing of the API that a pod refers to.
fn of_the_api(spec: &PodSpec) -> Option<&'static str> {
    let is_named = |name: &Option<String>| name.as_deref().is_some_and(|name| !name.is_empty());
    if is_named(&spec.service_account_name) || is_named(&spec.service_account) {
        return Some("a ServiceAccount (serviceAccountName)");
    }
    if spec.image_pull_secrets.as_ref().is_some_and(|secrets| !secrets.is_empty()) {
        return Some("Secrets (imagePullSecrets; --registry-credentials gives all pods of the node credentials)");
    }
    if spec.resource_claims.as_ref().is_some_and(|claims| !claims.is_empty()) {
        return Some("ResourceClaims (resourceClaims)");
    }
    let volumes = serde_json::to_value(&spec.volumes).unwrap_or_default();
    let containers = serde_json::to_value((&spec.init_containers, &spec.containers)).unwrap_or_default();
    KINDS.into_iter().find_map(|(field, what)| (has(&volumes, field) || has(&containers, field)).then_some(what))
}

/// Fields of volumes and of variables.
const KINDS: [(&str, &str); 8] = [
    ("secret", "a Secret"),
    ("secretKeyRef", "a Secret"),
    ("secretRef", "a Secret"),
    ("configMap", "a ConfigMap"),
    ("configMapKeyRef", "a ConfigMap"),
    ("configMapRef", "a ConfigMap"),
    ("serviceAccountToken", "a ServiceAccount (serviceAccountToken)"),
    ("persistentVolumeClaim", "a PersistentVolumeClaim"),
];

/// Whether an object has a field of this name that is an object, however deep.
fn has(value: &Value, field: &str) -> bool {
    match value {
        Value::Object(object) => {
            object.iter().any(|(name, value)| (name == field && value.is_object()) || has(value, field))
        }
        Value::Array(list) => list.iter().any(|value| has(value, field)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn made(spec: Value) -> Result<PodObject, String> {
        let pod = json!({"metadata": {"name": "a", "namespace": "s", "uid": "u"}, "spec": spec});
        let api = Arc::new(serde_json::from_value(pod).unwrap());
        static_pod(&PodObject { api, folder: Some("/m".into()) }, "n")
    }

    #[test]
    fn a_static_pod_is_the_nodes_own() {
        let pod = made(json!({"containers": [{"name": "c"}]})).unwrap();
        assert_eq!((pod.key().as_str(), pod.uid(), pod.spec().node_name.as_deref()), ("s/a-n", "u", Some("n")));
        let annotations = pod.api.metadata.annotations.as_ref().unwrap();
        assert_eq!((annotations[SOURCE_ANNOTATION].as_str(), annotations[HASH_ANNOTATION].as_str()), ("file", "u"));
        assert_eq!(pod.spec().tolerations.as_ref().unwrap()[0].effect.as_deref(), Some("NoExecute"));
        assert!(pod.folder.is_some() && is_static(&pod.api));
    }

    #[test]
    fn what_it_may_not_refer_to_is_named() {
        let container = |more: Value| {
            let mut container = json!({"name": "c"});
            container.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            json!({"containers": [container]})
        };
        let volume = |source: Value| json!({"containers": [{"name": "c"}], "volumes": [source]});
        for (spec, what) in [
            (json!({"containers": [], "serviceAccountName": "x"}), "serviceAccountName"),
            (json!({"containers": [], "imagePullSecrets": [{"name": "x"}]}), "imagePullSecrets"),
            (container(json!({"envFrom": [{"secretRef": {"name": "x"}}]})), "a Secret"),
            (
                container(json!({"env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "x", "key": "k"}}}]})),
                "a ConfigMap",
            ),
            (volume(json!({"name": "v", "secret": {"secretName": "x"}})), "a Secret"),
            (volume(json!({"name": "v", "projected": {"sources": [{"configMap": {"name": "x"}}]}})), "a ConfigMap"),
            (
                volume(json!({"name": "v", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}})),
                "serviceAccountToken",
            ),
            (volume(json!({"name": "v", "persistentVolumeClaim": {"claimName": "x"}})), "PersistentVolumeClaim"),
        ] {
            let error = made(spec).unwrap_err();
            assert!(error.contains(what) && error.contains("a-n refers to"), "{error}");
        }
        // Its own fields and empty directories are no objects of the API.
        let field = json!({"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}});
        made(container(json!({"env": [field]}))).unwrap();
        made(volume(json!({"name": "v", "emptyDir": {}}))).unwrap();
    }
}
