//! Checks a pod before anything of it is started: what the node cannot do is refused in words.

use crate::container::probe::{ProbeError, Probes};
use crate::environment::{self, EnvironmentError, Scope};
use crate::fields::NodeFacts;
use crate::grants::{self, GrantError};
use crate::pod::PodObject;
use crate::quantity;
use crate::volume::{self, VolumeError};
use akri_krustlet_discovery::settings::SettingsError;
use akri_krustlet_discovery::{HandlerInfo, HandlerSettings};
use akri_krustlet_runtime::{ContainerLimits, PodLimits};
use k8s_openapi::api::core::v1::{Container, ResourceRequirements};
use std::collections::BTreeMap;

/// Why a pod is refused.
#[derive(Debug, thiserror::Error)]
pub enum AdmissionError {
    /// Not one of the API's three.
    #[error("restartPolicy {0:?}: expected Always, OnFailure or Never")]
    RestartPolicy(String),
    /// The pod's log directory could not be made.
    #[error(
        "namespace, name and UID of the pod have {0} letters together, its log directory can have 253; use a shorter name"
    )]
    LongName(usize),
    /// The node does not have it, and running the pod without it would not be what it asks for.
    #[error("this node cannot give what the pod asks for: {0}")]
    Unsupported(String),
    /// Two containers have one name.
    #[error("two containers are named {0}")]
    DuplicateContainer(String),
    /// A container's name cannot be a directory's.
    #[error("container name {0:?}: lower-case letters, digits and `-` make a name, at most 63 of them")]
    ContainerName(String),
    /// See [`VolumeError`].
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// See [`EnvironmentError`].
    #[error(transparent)]
    Environment(#[from] EnvironmentError),
    /// The handler's settings make no sense.
    #[error("container {container}: {source}")]
    Handler {
        /// The container.
        container: String,
        /// What is wrong.
        #[source]
        source: SettingsError,
    },
    /// See [`GrantError`].
    #[error(transparent)]
    Grant(#[from] GrantError),
    /// See [`ProbeError`].
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// An amount makes no sense.
    #[error("{place}resources.{list}.{resource}: {message}")]
    Amount {
        /// Of whom: `container NAME: `, or `spec.` for the pod as a whole.
        place: String,
        /// `limits` or `requests`.
        list: &'static str,
        /// `memory` or `cpu`.
        resource: &'static str,
        /// What is wrong.
        message: String,
    },
}

/// Checks all of a pod.
pub fn validate(pod: &PodObject, node: &NodeFacts) -> Result<(), AdmissionError> {
    let policy = pod.spec().restart_policy.as_deref();
    if let Some(policy) = policy.filter(|policy| !["Always", "OnFailure", "Never"].contains(policy)) {
        return Err(AdmissionError::RestartPolicy(policy.to_owned()));
    }
    let length = pod.namespace().len() + pod.name().len() + pod.uid().len();
    if length > 253 {
        return Err(AdmissionError::LongName(length));
    }
    if let Some(what) = crate::support::refused(pod) {
        return Err(AdmissionError::Unsupported(what));
    }
    volume::validate(pod)?;
    grants::events(pod)?;
    pod_limits(pod)?;
    let mut names = Vec::new();
    for container in pod.init_containers().iter().chain(&pod.spec().containers) {
        let name = &container.name;
        if name.len() > 63 || name.contains('.') || !crate::manifest::is_dns_subdomain(name) {
            return Err(AdmissionError::ContainerName(name.clone()));
        }
        if names.contains(&name) {
            return Err(AdmissionError::DuplicateContainer(name.clone()));
        }
        names.push(name);
        let environment = environment::variables(container, pod, node, Scope::OfPod)?;
        handler_settings(container, pod, &environment, None)?;
        limits(pod, container)?;
        Probes::of(container, node, &*grants::network_of(pod, container)?)?;
    }
    Ok(())
}

/// The handler in a container, if there is one, by its environment and by what its image says.
pub fn handler_settings(
    container: &Container,
    pod: &PodObject,
    environment: &[(String, String)],
    image: Option<&HandlerInfo>,
) -> Result<Option<HandlerSettings>, AdmissionError> {
    static NONE: BTreeMap<String, String> = BTreeMap::new();
    let annotations = pod.api.metadata.annotations.as_ref().unwrap_or(&NONE);
    HandlerSettings::read(environment, annotations, image)
        .map_err(|source| AdmissionError::Handler { container: container.name.clone(), source })
}

/// A container's limits: its own where it names them; else of memory none beside the pod's, and the runtime's defaults elsewhere. Zero
/// is no limit.
pub fn limits(pod: &PodObject, container: &Container) -> Result<ContainerLimits, AdmissionError> {
    let (memory, cpu_millis) = amounts(container.resources.as_ref(), || format!("container {}: ", container.name))?;
    let default = ContainerLimits::default();
    // Where the pod bounds its containers together, that does, whatever it comes to be while they run.
    let together = pod_limits(pod)?.memory.map(|_| usize::MAX);
    let memory = memory.or(together).unwrap_or(default.memory);
    Ok(ContainerLimits { memory, cpu_millis, ..default })
}

/// What the containers of a pod may use together, if it says so.
pub fn pod_limits(pod: &PodObject) -> Result<PodLimits, AdmissionError> {
    let (memory, cpu_millis) = amounts(pod.spec().resources.as_ref(), || "spec.".to_owned())?;
    Ok(PodLimits { memory, cpu_millis })
}

/// Limits of memory and CPU.
fn amounts(
    resources: Option<&ResourceRequirements>,
    place: impl Fn() -> String,
) -> Result<(Option<usize>, Option<u32>), AdmissionError> {
    let read = |list: &'static str, resource: &'static str| -> Result<_, AdmissionError> {
        let failed = |message| AdmissionError::Amount { place: place(), list, resource, message };
        let amounts = resources.and_then(|resources| match list {
            "limits" => resources.limits.as_ref(),
            _ => resources.requests.as_ref(),
        });
        let Some(amount) = amounts.and_then(|amounts| amounts.get(resource)) else { return Ok(None) };
        match quantity::parse(&amount.0) {
            Ok(read) if read.is_negative() => Err(failed(format!("{} is less than 0", amount.0))),
            Ok(read) => Ok((!read.is_zero()).then_some(read)),
            Err(error) => Err(failed(error.to_string())),
        }
    };
    let memory = read("limits", "memory")?.map(|bytes| usize::try_from(bytes.ceil()).unwrap_or(usize::MAX));
    let cpu = read("limits", "cpu")?.map(|cores| u32::try_from(cores.millis()).unwrap_or(u32::MAX));
    // Requests do not bound a guest; one that cannot be read would be counted as none.
    for resource in ["cpu", "memory", "ephemeral-storage"] {
        read("requests", resource)?;
    }
    Ok((memory, cpu))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::sync::Arc;

    fn validate_spec(spec: serde_json::Value) -> Result<(), String> {
        let pod = json!({"metadata": {"name": "p", "uid": "u"}, "spec": spec});
        let pod = PodObject { api: Arc::new(serde_json::from_value(pod).unwrap()), folder: None };
        let addresses = vec!["127.0.0.1".to_owned()];
        let node = NodeFacts { name: "n".to_owned(), addresses, allocatable: Default::default() };
        validate(&pod, &node).map_err(|error| error.to_string())
    }

    #[test]
    fn pods_that_make_no_sense_are_refused() {
        for (container, message) in [
            (json!({"name": "A"}), "container name \"A\""),
            (json!({"name": "c", "resources": {"limits": {"memory": "lots"}}}), "not a quantity"),
            (json!({"name": "c", "resources": {"limits": {"cpu": "-1"}}}), "less than 0"),
            (json!({"name": "c", "resources": {"requests": {"cpu": "much"}}}), "resources.requests.cpu"),
            (json!({"name": "c", "env": [{"name": "DISCOVERY_HANDLER_NAME", "value": "a/b"}]}), "names its socket"),
            (json!({"name": "c", "env": [{"name": "A", "valueFrom": {}}]}), "no source that this node reads"),
        ] {
            let error = validate_spec(json!({"containers": [container]})).unwrap_err();
            assert!(error.contains(message), "{error}");
        }
        assert!(
            validate_spec(json!({"containers": [{"name": "c"}, {"name": "c"}]}))
                .unwrap_err()
                .contains("two containers")
        );
        for (spec, message) in [
            (json!({"restartPolicy": "never", "containers": []}), "expected Always"),
            (
                json!({"resources": {"limits": {"cpu": "-1"}}, "containers": []}),
                "spec.resources.limits.cpu: -1 is less",
            ),
            (json!({"initContainers": [{"name": "i", "restartPolicy": "OnFailure"}], "containers": []}), "sidecar"),
            (json!({"containers": [{"name": "c", "livenessProbe": {"exec": {}}}]}), "livenessProbe"),
        ] {
            let error = validate_spec(spec).unwrap_err();
            assert!(error.contains(message), "{error}");
        }
        assert_eq!(validate_spec(json!({"containers": [{"name": "c"}]})), Ok(()));
    }

    #[test]
    fn limits_become_bytes_and_thousandths_of_a_core() {
        let container = json!({"name": "c", "resources": {"limits": {"memory": "24Mi", "cpu": "100m"}}});
        let with = |resources: serde_json::Value| {
            let pod = json!({"metadata": {"name": "p", "uid": "u"}, "spec": {"resources": resources, "containers": [container, {"name": "d"}]}});
            let pod = PodObject { api: Arc::new(serde_json::from_value(pod).unwrap()), folder: None };
            let of_containers = pod.spec().containers.iter().map(|container| limits(&pod, container).unwrap());
            let of_containers = of_containers.map(|limits| (limits.memory, limits.cpu_millis)).collect::<Vec<_>>();
            (of_containers, pod_limits(&pod).unwrap())
        };
        let default = ContainerLimits::default().memory;
        assert_eq!(with(json!({})), (vec![(24 << 20, Some(100)), (default, None)], PodLimits::default()));
        let (of_containers, of_pod) = with(json!({"limits": {"memory": "256Mi", "cpu": "1500m"}}));
        assert_eq!(of_containers, [(24 << 20, Some(100)), (usize::MAX, None)]);
        assert_eq!(of_pod, PodLimits { memory: Some(256 << 20), cpu_millis: Some(1500) });
    }
}
