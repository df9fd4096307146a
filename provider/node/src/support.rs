//! What of a pod's specification the node honours, ignores or refuses: one table, which admission works by and which
//! docs/pod-support.md is printed from.

use crate::pod::PodObject;
use serde_json::Value;
use std::fmt::Write as _;

/// What the node does about a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Support {
    /// What the field says happens.
    Honoured,
    /// The field makes no difference, and a pod with it runs as it should.
    Ignored,
    /// A pod with it would not be what it asks for, and is not run.
    Refused,
}

/// A field of the pod; `[]` stands for each element of a list.
type Row = (&'static str, Support, &'static str);

use Support::{Honoured, Ignored, Refused};

/// Of the pod.
const POD: &[Row] = &[
    ("activeDeadlineSeconds", Honoured, ""),
    ("affinity", Honoured, "required nodeAffinity is checked once more; the rest is the scheduler's"),
    ("automountServiceAccountToken", Ignored, "no token is mounted"),
    ("dnsConfig", Ignored, "names are looked up as the machine does"),
    ("dnsPolicy", Ignored, "names are looked up as the machine does"),
    ("enableServiceLinks", Ignored, "no variables of Services are set"),
    ("ephemeralContainers", Ignored, "told by an event: there is no process to look at"),
    ("hostAliases", Ignored, "names are looked up as the machine does"),
    ("hostIPC", Refused, "a guest shares nothing with processes"),
    (
        "hostNetwork",
        Honoured,
        "a component has what the annotation akri-krustlet/network or a variable of its container grants it (grants.md), and without both no network",
    ),
    ("hostPID", Refused, "a guest sees no processes"),
    ("hostUsers", Ignored, "a guest has no user"),
    ("hostname", Ignored, "a guest cannot ask for it"),
    ("hostnameOverride", Ignored, "a guest cannot ask for it"),
    ("imagePullSecrets", Honoured, "dockerconfigjson and dockercfg"),
    ("nodeName", Honoured, ""),
    ("nodeSelector", Honoured, "checked once more after the scheduler"),
    ("os", Refused, "the node is neither linux nor windows"),
    ("overhead", Honoured, "counted"),
    ("preemptionPolicy", Ignored, "the scheduler's"),
    ("priority", Ignored, "the scheduler's"),
    ("priorityClassName", Ignored, "the scheduler's"),
    ("readinessGates", Honoured, ""),
    ("resourceClaims", Refused, "not supported"),
    (
        "resources",
        Honoured,
        "of the pod as a whole: what its containers may use together besides their own limits, and what is counted in place of the sum of their requests; can be changed while it runs",
    ),
    ("restartPolicy", Honoured, ""),
    ("runtimeClassName", Ignored, "there is one runtime"),
    ("schedulerName", Ignored, "the scheduler's"),
    ("schedulingGates", Ignored, "the scheduler's"),
    ("schedulingGroup", Ignored, "the scheduler's"),
    ("securityContext.fsGroup", Ignored, "a guest has no user; files belong to the node"),
    ("securityContext.fsGroupChangePolicy", Ignored, "a guest has no user"),
    ("securityContext.runAsGroup", Ignored, "a guest has no user"),
    ("securityContext.runAsNonRoot", Ignored, "a guest is no process of root, or of anybody"),
    ("securityContext.runAsUser", Ignored, "a guest has no user"),
    ("securityContext.seLinuxOptions", Ignored, "a guest is no process"),
    ("securityContext.seLinuxChangePolicy", Ignored, "a guest is no process"),
    ("securityContext.seccompProfile", Ignored, "a guest makes no system calls"),
    ("securityContext.appArmorProfile", Ignored, "a guest is no process"),
    ("securityContext.supplementalGroups", Ignored, "a guest has no user"),
    ("securityContext.supplementalGroupsPolicy", Ignored, "a guest has no user"),
    ("securityContext.sysctls", Refused, "a guest has no kernel settings of its own"),
    ("securityContext.windowsOptions", Refused, "the node is not Windows"),
    ("serviceAccount", Ignored, "no token is mounted"),
    ("serviceAccountName", Ignored, "no token is mounted; fieldRef spec.serviceAccountName is honoured"),
    ("setHostnameAsFQDN", Ignored, "a guest cannot ask for it"),
    ("shareProcessNamespace", Refused, "a guest sees no processes"),
    ("subdomain", Ignored, "a guest has no network"),
    (
        "terminationGracePeriodSeconds",
        Honoured,
        "a guest with `stdin: true` sees its input end first; a handler ends at once",
    ),
    ("tolerations", Honoured, "NoExecute taints are checked once more after the scheduler"),
    ("topologySpreadConstraints", Ignored, "the scheduler's"),
    (
        "volumes",
        Honoured,
        "hostPath, emptyDir, configMap, secret, downwardAPI, projected; kube-api-access-* is left out; other kinds are refused",
    ),
    (
        "volumes[].emptyDir.sizeLimit",
        Honoured,
        "looked at every 10 s; a pod above it is evicted; in memory, writes beyond it fail",
    ),
    ("volumes[].projected.sources[].clusterTrustBundle", Refused, "not supported yet"),
    ("volumes[].projected.sources[].podCertificate", Refused, "not supported yet"),
    (
        "volumes[].emptyDir.medium",
        Honoured,
        "Memory: a tmpfs of the volume's sizeLimit, and at most the sum of the containers' memory limits; without either, half of the machine's memory; on the disk where the node may not mount. HugePages: on the disk",
    ),
    ("workloadRef", Ignored, "the scheduler's"),
];

/// Of each container, init containers too.
const CONTAINER: &[Row] = &[
    ("args", Honoured, ""),
    ("command", Honoured, "the first word is the module's own name and left out"),
    ("env", Honoured, "values, $(NAME), configMapKeyRef, secretKeyRef, fieldRef, resourceFieldRef"),
    ("env[].valueFrom.fileKeyRef", Refused, "not supported yet"),
    ("envFrom", Honoured, ""),
    ("image", Honoured, "an OCI registry's, or fs:///path with --allow-local-modules"),
    ("imagePullPolicy", Honoured, "Always: at each start of a container; else a restarted container keeps its image"),
    ("lifecycle.postStart.exec", Refused, "a guest has no process to run a command in"),
    ("lifecycle.postStart.httpGet", Refused, "not supported; a startup probe can ask the guest"),
    ("lifecycle.postStart.sleep", Ignored, "the guest runs meanwhile"),
    ("lifecycle.postStart.tcpSocket", Refused, "not supported; a startup probe can ask the guest"),
    ("lifecycle.preStop.exec", Refused, "a guest has no process to run a command in"),
    ("lifecycle.preStop.httpGet", Refused, "not supported; a guest with stdin: true sees its input end"),
    ("lifecycle.preStop.sleep", Honoured, "within the grace period; then a standard input ends"),
    ("lifecycle.preStop.tcpSocket", Refused, "not supported; a guest with stdin: true sees its input end"),
    ("lifecycle.stopSignal", Ignored, "a guest receives no signals"),
    (
        "livenessProbe",
        Honoured,
        "tcpSocket, httpGet and grpc, of this node; only with hostNetwork, since else a guest has no port",
    ),
    ("livenessProbe.exec", Refused, "a guest has no process to run a command in"),
    ("name", Honoured, ""),
    ("ports", Honoured, "with hostNetwork: the guests of the pod may listen on them, components only"),
    ("ports[].hostPort", Ignored, "with hostNetwork; without it, a pod that has it is refused"),
    (
        "readinessProbe",
        Honoured,
        "tcpSocket, httpGet and grpc, of this node; only with hostNetwork, since else a guest has no port",
    ),
    ("readinessProbe.exec", Refused, "a guest has no process to run a command in"),
    (
        "resizePolicy",
        Honoured,
        "of cpu and memory, which change while the pod runs (the API server resizes pods only on nodes with --os-label linux)",
    ),
    (
        "resources",
        Honoured,
        "limits.cpu and limits.memory bound the guests together and can be changed while they run, a pod above limits.ephemeral-storage is evicted (looked at every 10 s); requests are counted; devices come from device plugins",
    ),
    ("resources.claims", Refused, "not supported"),
    ("restartPolicyRules", Refused, "not supported yet"),
    ("securityContext.allowPrivilegeEscalation", Ignored, "a guest has no privileges"),
    ("securityContext.appArmorProfile", Ignored, "a guest is no process"),
    ("securityContext.capabilities.add", Refused, "a guest has no capabilities"),
    ("securityContext.capabilities.drop", Ignored, "a guest has no capabilities"),
    ("securityContext.privileged", Refused, "a guest is always sandboxed"),
    ("securityContext.procMount", Ignored, "a guest has no /proc"),
    ("securityContext.readOnlyRootFilesystem", Ignored, "a guest has no root filesystem, only its mounts"),
    ("securityContext.runAsGroup", Ignored, "a guest has no user"),
    ("securityContext.runAsNonRoot", Ignored, "a guest is no process of root, or of anybody"),
    ("securityContext.runAsUser", Ignored, "a guest has no user"),
    ("securityContext.seLinuxOptions", Ignored, "a guest is no process"),
    ("securityContext.seccompProfile", Ignored, "a guest makes no system calls"),
    ("securityContext.windowsOptions", Refused, "the node is not Windows"),
    (
        "startupProbe",
        Honoured,
        "tcpSocket, httpGet and grpc, of this node; only with hostNetwork, since else a guest has no port",
    ),
    ("startupProbe.exec", Refused, "a guest has no process to run a command in"),
    ("stdin", Honoured, "the input is open and empty, and ends when the pod is asked to end, or the node ends"),
    ("stdinOnce", Ignored, "nobody can attach"),
    (
        "terminationMessagePath",
        Honoured,
        "a file in a directory of its own; not a handler's, and not where a volume is mounted. A trap says what it was instead",
    ),
    ("terminationMessagePolicy", Honoured, ""),
    ("tty", Ignored, "nobody can attach"),
    ("volumeDevices", Refused, "a guest has no devices"),
    ("volumeMounts", Honoured, "readOnly; a single file is given in a directory of its own"),
    ("volumeMounts[].mountPropagation", Ignored, "a guest mounts nothing"),
    ("volumeMounts[].recursiveReadOnly", Ignored, "readOnly holds for all that is below"),
    (
        "volumeMounts[].subPath",
        Honoured,
        "a missing directory is made; a file of a ConfigMap and the like is not brought up to date",
    ),
    ("volumeMounts[].subPathExpr", Honoured, ""),
    ("workingDir", Refused, "a guest has no working directory; give it absolute paths"),
];

/// What a container has only with the machine's network.
const WITHOUT_NETWORK: &[Row] = &[
    ("livenessProbe", Refused, NO_PORT),
    ("readinessProbe", Refused, NO_PORT),
    ("startupProbe", Refused, NO_PORT),
    // With it, the API server copies containerPort into hostPort.
    ("ports[].hostPort", Refused, NO_PORT),
];
const NO_PORT: &str = "a guest has no port without spec.hostNetwork: true (docs/grants.md)";

/// Of init containers besides, if they are no sidecars.
const INIT_CONTAINER: &[Row] = &[
    ("lifecycle", Refused, "it runs to its end"),
    ("livenessProbe", Refused, "it runs to its end"),
    ("readinessProbe", Refused, "it runs to its end"),
    ("restartPolicy", Refused, "other than Always, with which the container is a sidecar"),
    ("startupProbe", Refused, "it runs to its end"),
];

/// Of sidecars: init containers with restartPolicy Always.
const SIDECAR: &[Row] = &[(
    "restartPolicy",
    Honoured,
    "the next container starts when this one has, as its startupProbe says; it ends after all containers that were started after it",
)];

/// Of a container that is no init container.
const APP_CONTAINER: &[Row] = &[("restartPolicy", Refused, "not supported yet for a container by itself")];

/// True if the table says something of a field of `spec` itself, or of what is in it.
pub fn knows_of_pod(field: &str) -> bool {
    // Their fields are in tables of their own.
    ["containers", "initContainers"].contains(&field) || POD.iter().any(|(path, ..)| is_in(path, field))
}

/// True if the table says something of a container's field, or of what is in it.
pub fn knows_of_container(field: &str) -> bool {
    let mut rows = CONTAINER.iter().chain(APP_CONTAINER);
    rows.any(|(path, ..)| is_in(path, field))
}

fn is_in(path: &str, field: &str) -> bool {
    path.strip_prefix(field).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

/// The first field of a pod that is refused: where it is, and why.
pub fn refused(pod: &PodObject) -> Option<String> {
    let spec = serde_json::to_value(pod.spec()).unwrap_or_default();
    let lists = [("initContainers", INIT_CONTAINER), ("containers", APP_CONTAINER)];
    let is_sidecar = |container: &Value| container.get("restartPolicy").and_then(Value::as_str) == Some("Always");
    let of_pod = first_refused(&spec, POD).map(|(path, why)| format!("spec.{path}: {why}"));
    let by_network = if is_set(&spec, "hostNetwork") { &[] } else { WITHOUT_NETWORK };
    of_pod.or_else(|| {
        lists.into_iter().find_map(|(list, rows)| {
            spec.get(list)?.as_array()?.iter().find_map(|container| {
                let rows = if list == "initContainers" && is_sidecar(container) { SIDECAR } else { rows };
                let mut tables = [CONTAINER, rows, by_network].into_iter();
                let (path, why) = tables.find_map(|rows| first_refused(container, rows))?;
                let name = container.get("name").and_then(Value::as_str).unwrap_or_default();
                Some(format!("container {name}: {path}: {why}"))
            })
        })
    })
}

fn first_refused(object: &Value, rows: &'static [Row]) -> Option<(&'static str, &'static str)> {
    let row = rows.iter().find(|(path, support, _)| *support == Refused && is_set(object, path));
    row.map(|(path, _, why)| (*path, *why))
}

/// Whether the field has a value that asks for something.
fn is_set(object: &Value, path: &str) -> bool {
    let (head, rest) = path.split_once('.').unwrap_or((path, ""));
    let (name, list) = head.strip_suffix("[]").map_or((head, false), |name| (name, true));
    let Some(value) = object.get(name) else { return false };
    match (list, rest) {
        (true, rest) => value.as_array().is_some_and(|elements| elements.iter().any(|element| is_set(element, rest))),
        (false, "") => !matches!(value, Value::Null | Value::Bool(false)) && !is_empty(value),
        (false, rest) => is_set(value, rest),
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Array(elements) => elements.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Number(number) => number.as_f64() == Some(0.0),
        _ => false,
    }
}

/// The table as a page of documentation.
pub fn page() -> String {
    let mut page = "\
# What of a pod is honoured

Printed by `akri-krustlet pod-support` from the table that the node admits pods by. *Honoured*: what the field says happens.
*Ignored*: the pod runs as it should without. *Refused*: the pod would not be what it asks for; it fails with reason
`FailedValidation` and a message that names the field, before anything of it runs.
"
    .to_owned();
    for (title, rows) in [
        ("Fields of `spec`", POD),
        ("Fields of each container", CONTAINER),
        ("Of init containers besides", INIT_CONTAINER),
        ("Of sidecars (init containers with restartPolicy Always) besides", SIDECAR),
        ("Of the other containers besides", APP_CONTAINER),
    ] {
        let _ = write!(page, "\n## {title}\n\n| field | | |\n|---|---|---|\n");
        for (path, support, note) in rows {
            let support = format!("{support:?}").to_lowercase();
            let _ = writeln!(page, "| `{path}` | {support} | {note} |");
        }
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::sync::Arc;

    fn refused_of(spec: Value) -> Option<String> {
        let pod = json!({"metadata": {"name": "p", "uid": "u"}, "spec": spec});
        refused(&PodObject { api: Arc::new(serde_json::from_value(pod).unwrap()), folder: None })
    }

    #[test]
    fn what_a_guest_cannot_be_is_refused_and_named() {
        for (spec, expected) in [
            (json!({"hostPID": true, "containers": []}), "spec.hostPID: a guest"),
            (
                json!({"securityContext": {"sysctls": [{"name": "a", "value": "b"}]}, "containers": []}),
                "spec.securityContext.sysctls",
            ),
            (
                json!({"containers": [{"name": "c", "securityContext": {"privileged": true}}]}),
                "container c: securityContext.privileged",
            ),
            (
                json!({"containers": [{"name": "c", "ports": [{"containerPort": 1}, {"containerPort": 2, "hostPort": 2}]}]}),
                "ports[].hostPort",
            ),
            (json!({"containers": [{"name": "c", "livenessProbe": {"exec": {}}}]}), "container c: livenessProbe"),
            (json!({"initContainers": [{"name": "i", "restartPolicy": "Never"}], "containers": []}), "sidecar"),
            (
                json!({"initContainers": [{"name": "i", "lifecycle": {"preStop": {"sleep": {"seconds": 1}}}}]}),
                "lifecycle",
            ),
            (json!({"containers": [{"name": "c", "lifecycle": {"preStop": {"exec": {}}}}]}), "lifecycle.preStop.exec"),
            (
                json!({"volumes": [{"name": "v", "projected": {"sources": [{"podCertificate": {}}]}}], "containers": []}),
                "podCertificate",
            ),
        ] {
            let refused = refused_of(spec).unwrap();
            assert!(refused.contains(expected), "{refused}");
        }
    }

    #[test]
    fn what_a_restricted_pod_says_of_itself_is_no_reason() {
        let context = json!({"privileged": false, "runAsNonRoot": true, "allowPrivilegeEscalation": false,
            "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"}});
        let container = json!({"name": "c", "securityContext": context, "ports": [{"containerPort": 80}]});
        assert_eq!(refused_of(json!({"hostPID": false, "containers": [container]})), None);
        let ports = json!([{"name": "c", "ports": [{"containerPort": 80, "hostPort": 80}]}]);
        assert_eq!(refused_of(json!({"hostNetwork": true, "containers": ports, "initContainers": ports})), None);
        assert!(refused_of(json!({"hostNetwork": false, "containers": ports})).is_some());
    }

    #[test]
    fn the_page_in_docs_is_this_table() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/pod-support.md");
        let written = std::fs::read_to_string(path).unwrap();
        assert!(written == page(), "docs/pod-support.md is old: akri-krustlet pod-support > docs/pod-support.md");
    }
}
